//! Takes requests out of bytes: arrays of bulk strings, or a line typed by hand.
//!
//! The parser remembers how far it got, so that a large request which arrives in many pieces is read once. It copies
//! nothing: arguments are ranges of the input (only a typed line with quotes is rewritten). Nothing is allocated for a
//! length that is only announced: an argument's range is noted when its bytes are there.

use alloc::vec::Vec;

/// What makes a byte stream no longer readable; the connection ends with the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("invalid multibulk length")]
    Count,
    #[error("expected '$', got '{}'", char::from(*.0))]
    Dollar(u8),
    #[error("invalid bulk length")]
    Length,
    #[error("too big inline request")]
    Inline,
    #[error("unbalanced quotes in request")]
    Quotes,
    #[error("request of more than {0} bytes")]
    Request(usize),
}

/// Bounds on what a client may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Longest argument.
    pub(crate) bulk_bytes: usize,
    /// Longest request.
    pub(crate) request_bytes: usize,
}

/// Longest line: an inline request, or a length.
const LINE_BYTES: usize = 64 * 1024;

/// Most arguments of one request.
const ARGUMENTS: i64 = 1024 * 1024;

/// A range of bytes: where an argument begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    start: u32,
    end: u32,
}

/// The arguments of one request; the first is the command's name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args<'a> {
    bytes: &'a [u8],
    ranges: &'a [Range],
}

impl<'a> Args<'a> {
    pub(crate) fn new(bytes: &'a [u8], ranges: &'a [Range]) -> Self {
        Args { bytes, ranges }
    }

    pub(crate) fn len(self) -> usize {
        self.ranges.len()
    }

    /// The argument with this number; empty if there are not so many.
    #[inline]
    pub(crate) fn at(self, at: usize) -> &'a [u8] {
        self.ranges
            .get(at)
            .and_then(|range| self.bytes.get(range.start as usize..range.end as usize))
            .unwrap_or_default()
    }

    /// The arguments from this number on.
    pub(crate) fn from(self, first: usize) -> impl DoubleEndedIterator<Item = &'a [u8]> + ExactSizeIterator {
        (first.min(self.len())..self.len()).map(move |at| self.at(at))
    }

    /// Bytes of all arguments, or a little more: with what stands between them.
    pub(crate) fn total_bytes(self) -> usize {
        match self.ranges {
            [first, .., last] => (last.end - first.start) as usize,
            [only] => (only.end - only.start) as usize,
            [] => 0,
        }
    }

    /// Copies the arguments behind `bytes`, for later.
    pub(crate) fn store(self, bytes: &mut Vec<u8>, ranges: &mut Vec<Range>) {
        for arg in self.from(0) {
            let start = bytes.len() as u32;
            bytes.extend_from_slice(arg);
            ranges.push(Range { start, end: bytes.len() as u32 });
        }
    }
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// It needs more bytes.
    Partial,
    /// It is complete and takes so many bytes of the input; with or without arguments.
    Complete(usize),
}

/// The state between two looks at the same request.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    ranges: Vec<Range>,
    /// Arguments still to come; 0 outside of an array.
    missing: u32,
    /// Bytes of the request that are dealt with.
    at: usize,
    /// Length of the argument that begins at `at`.
    bulk: Option<usize>,
    /// A typed line with its quotes undone; its ranges point here.
    line: Option<Vec<u8>>,
}

/// A line of digits.
enum Line {
    Partial,
    Invalid,
    Number { value: i64, next: usize },
}

/// Reads a number that ends with CR LF.
#[inline]
fn number(input: &[u8], start: usize) -> Line {
    let text = &input[start..];
    let mut value = 0u32;
    // Nearly all are a few digits.
    for (at, &byte) in text.iter().enumerate().take(9) {
        match byte {
            b'0'..=b'9' if !(at == 1 && text[0] == b'0') => value = value * 10 + u32::from(byte - b'0'),
            b'\r' if at > 0 => {
                return if at + 1 < text.len() {
                    Line::Number { value: i64::from(value), next: start + at + 2 }
                } else {
                    Line::Partial
                };
            }
            _ => return long_number(text, start),
        }
    }
    long_number(text, start)
}

#[cold]
fn long_number(text: &[u8], start: usize) -> Line {
    let head = &text[..text.len().min(32)];
    match head.iter().position(|&byte| byte == b'\r') {
        Some(end) => match crate::bytes::parse_i64(&head[..end]) {
            Some(_) if end + 1 >= text.len() => Line::Partial,
            Some(value) => Line::Number { value, next: start + end + 2 },
            None => Line::Invalid,
        },
        None if head.len() < 32 => Line::Partial,
        None => Line::Invalid,
    }
}

impl Parser {
    /// Looks at a request again, of which `input` has all bytes that arrived so far.
    #[inline]
    pub(crate) fn parse(&mut self, input: &[u8], bounds: &Bounds) -> Result<Parsed, ProtocolError> {
        if self.at == 0 {
            match input.first() {
                None => return Ok(Parsed::Partial),
                Some(b'*') => match number(input, 1) {
                    Line::Partial => return Ok(Parsed::Partial),
                    Line::Invalid => return Err(ProtocolError::Count),
                    Line::Number { value, .. } if value > ARGUMENTS => return Err(ProtocolError::Count),
                    Line::Number { value, next } if value <= 0 => return Ok(Parsed::Complete(next)),
                    Line::Number { value, next } => {
                        self.missing = value as u32;
                        self.at = next;
                    }
                },
                Some(_) => return self.parse_line(input),
            }
        }
        while self.missing > 0 {
            let length = match self.bulk {
                Some(length) => length,
                None => {
                    match input.get(self.at) {
                        None => return Ok(Parsed::Partial),
                        Some(b'$') => {}
                        Some(&other) => return Err(ProtocolError::Dollar(other)),
                    }
                    let (value, next) = match number(input, self.at + 1) {
                        Line::Partial => return Ok(Parsed::Partial),
                        Line::Number { value, next } if (0..=bounds.bulk_bytes as i64).contains(&value) => {
                            (value as usize, next)
                        }
                        Line::Invalid | Line::Number { .. } => return Err(ProtocolError::Length),
                    };
                    if next + value > bounds.request_bytes {
                        return Err(ProtocolError::Request(bounds.request_bytes));
                    }
                    self.at = next;
                    self.bulk = Some(value);
                    value
                }
            };
            let end = self.at + length;
            if input.len() < end + 2 {
                return Ok(Parsed::Partial);
            }
            self.ranges.push(Range { start: self.at as u32, end: end as u32 });
            self.at = end + 2;
            self.bulk = None;
            self.missing -= 1;
        }
        Ok(Parsed::Complete(self.at))
    }

    #[cold]
    fn parse_line(&mut self, input: &[u8]) -> Result<Parsed, ProtocolError> {
        let Some(end) = memchr::memchr(b'\n', &input[..input.len().min(LINE_BYTES)]) else {
            return if input.len() >= LINE_BYTES { Err(ProtocolError::Inline) } else { Ok(Parsed::Partial) };
        };
        let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
        let mut plain = Vec::with_capacity(line.len());
        split_line(line, &mut plain, &mut self.ranges).ok_or(ProtocolError::Quotes)?;
        self.line = Some(plain);
        self.at = end + 1;
        Ok(Parsed::Complete(self.at))
    }

    /// The ranges of the complete request, taken out so that they can be kept and given back to [`Parser::reset`].
    pub(crate) fn take(&mut self) -> (Vec<Range>, Option<Vec<u8>>) {
        (core::mem::take(&mut self.ranges), self.line.take())
    }

    /// Ready for the next request; `ranges` is a buffer to use again.
    pub(crate) fn reset(&mut self, mut ranges: Vec<Range>) {
        if ranges.capacity() > 4096 {
            ranges = Vec::new();
        }
        ranges.clear();
        *self = Parser { ranges, missing: 0, at: 0, bulk: None, line: None };
    }
}

/// Splits a typed line into words, with `"…"` (escapes as in C) and `'…'`; nothing if a quote stays open.
fn split_line(line: &[u8], plain: &mut Vec<u8>, ranges: &mut Vec<Range>) -> Option<()> {
    let is_space = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r' | 0);
    let mut at = 0;
    loop {
        while line.get(at).is_some_and(|&byte| is_space(byte)) {
            at += 1;
        }
        if at >= line.len() {
            return Some(());
        }
        let start = plain.len() as u32;
        while let Some(&byte) = line.get(at).filter(|&&byte| !is_space(byte)) {
            at += 1;
            if byte != b'"' && byte != b'\'' {
                plain.push(byte);
                continue;
            }
            loop {
                match (byte, line.get(at..)?) {
                    (_, []) => return None,
                    (_, [quote, rest @ ..]) if *quote == byte => {
                        if rest.first().is_some_and(|&next| !is_space(next)) {
                            return None;
                        }
                        at += 1;
                        break;
                    }
                    (b'\'', [b'\\', b'\'', ..]) => {
                        plain.push(b'\'');
                        at += 2;
                    }
                    (b'"', [b'\\', b'x', high, low, ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
                        plain.push(digit(*high) << 4 | digit(*low));
                        at += 4;
                    }
                    (b'"', [b'\\', escaped, ..]) => {
                        plain.push(match escaped {
                            b'n' => b'\n',
                            b'r' => b'\r',
                            b't' => b'\t',
                            b'b' => 8,
                            b'a' => 7,
                            other => *other,
                        });
                        at += 2;
                    }
                    (_, [other, ..]) => {
                        plain.push(*other);
                        at += 1;
                    }
                }
            }
        }
        ranges.push(Range { start, end: plain.len() as u32 });
    }
}
