//! Writes replies. One reply is bounded: what would pass the bound is not written, and the connection ends.

use alloc::vec::Vec;

use crate::bytes::{COPY_BYTES, f64_text, push_i64};
use crate::refusal::Refusal;

/// What replies may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyBounds {
    /// Longest reply.
    pub(crate) reply_bytes: usize,
    /// The heap in use must not pass this for a reply's sake.
    pub(crate) heap_bytes: usize,
    /// The heap in use.
    pub(crate) heap_used: fn() -> usize,
    /// Called while much is copied.
    pub(crate) poll: fn(),
}

/// The reply to one request, at the end of a connection's output.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    bounds: ReplyBounds,
    overflow: bool,
}

/// Where a reply's part begins whose length is not known yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(usize);

impl<'a> Reply<'a> {
    #[inline]
    pub(crate) fn new(out: &'a mut Vec<u8>, bounds: ReplyBounds) -> Self {
        let start = out.len();
        Reply { out, start, bounds, overflow: false }
    }

    /// Whether the reply did not fit; then it is replaced by an error.
    pub(crate) fn finish(self) -> Result<(), Refusal> {
        if !self.overflow {
            return Ok(());
        }
        self.out.truncate(self.start);
        let refusal = Refusal::Reply(self.bounds.reply_bytes);
        self.out.extend_from_slice(alloc::format!("-{refusal}\r\n").as_bytes());
        Err(refusal)
    }

    /// Room for so many bytes more, if they fit.
    #[inline]
    fn room(&mut self, more: usize) -> bool {
        self.out.capacity() - self.out.len() >= more || self.grow(more)
    }

    #[cold]
    fn grow(&mut self, more: usize) -> bool {
        let length = self.out.len() + more;
        let grown = length.max(2 * self.out.capacity());
        let fits = length - self.start <= self.bounds.reply_bytes
            && (self.bounds.heap_used)().saturating_add(grown) <= self.bounds.heap_bytes;
        if fits {
            self.out.reserve(more);
        } else {
            self.overflow = true;
        }
        fits
    }

    /// Whether more would be in vain.
    pub(crate) fn is_full(&self) -> bool {
        self.overflow
    }

    /// Bytes as they are.
    #[inline]
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        if self.room(bytes.len()) {
            self.out.extend_from_slice(bytes);
        }
    }

    pub(crate) fn ok(&mut self) {
        self.raw(b"+OK\r\n");
    }

    pub(crate) fn simple(&mut self, text: &str) {
        if self.room(text.len() + 3) {
            self.out.push(b'+');
            self.out.extend_from_slice(text.as_bytes());
            self.out.extend_from_slice(b"\r\n");
        }
    }

    pub(crate) fn error(&mut self, refusal: Refusal) {
        if refusal != Refusal::Said {
            self.raw(alloc::format!("-{refusal}\r\n").as_bytes());
        }
    }

    #[inline]
    fn header(&mut self, kind: u8, value: i64) {
        if self.room(24) {
            self.out.push(kind);
            push_i64(self.out, value);
            self.out.extend_from_slice(b"\r\n");
        }
    }

    #[inline]
    pub(crate) fn int(&mut self, value: i64) {
        self.header(b':', value);
    }

    pub(crate) fn size(&mut self, value: usize) {
        self.int(value as i64);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.raw(if value { b":1\r\n" } else { b":0\r\n" });
    }

    #[inline]
    pub(crate) fn bulk(&mut self, bytes: &[u8]) {
        if self.room(bytes.len() + 26) {
            self.out.push(b'$');
            push_i64(self.out, bytes.len() as i64);
            self.out.extend_from_slice(b"\r\n");
            if bytes.len() <= COPY_BYTES {
                self.out.extend_from_slice(bytes);
            } else {
                for piece in bytes.chunks(COPY_BYTES) {
                    self.out.extend_from_slice(piece);
                    (self.bounds.poll)();
                }
            }
            self.out.extend_from_slice(b"\r\n");
        }
    }

    /// A bulk string, or nothing.
    pub(crate) fn bulk_or_null(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    pub(crate) fn null(&mut self) {
        self.raw(b"$-1\r\n");
    }

    pub(crate) fn null_array(&mut self) {
        self.raw(b"*-1\r\n");
    }

    pub(crate) fn f64(&mut self, value: f64) {
        self.bulk(&f64_text(value));
    }

    #[inline]
    pub(crate) fn array(&mut self, length: usize) {
        self.header(b'*', length as i64);
    }

    /// Begins an array whose length comes out at its end.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.out.len())
    }

    /// Ends it.
    pub(crate) fn array_since(&mut self, mark: Mark, length: usize) {
        let end = self.out.len();
        self.array(length);
        let header = self.out.len() - end;
        if let Some(part) = self.out.get_mut(mark.0..) {
            part.rotate_right(header);
        }
    }
}
