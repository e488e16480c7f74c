//! Writing a log file: frames of entries, states of the machine between them, and a close frame.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::{BATCH_BYTES, LogError};
use crate::log::boot::encode_boot;
use crate::log::codec::Encoder;
use crate::log::entry::Entry;
use crate::log::frame::{self, FrameError, FrameKind, HEADER_BYTES};
use crate::log::stream::StreamError;
use crate::machine::snapshot::Boot;

/// Writes a log of entries that are already encoded, for a primary that encodes them once for file and
/// channel.
#[derive(Debug)]
pub struct EncodedWriter<W: Write> {
    out: W,
    /// Number of the entry to be appended next.
    next: u64,
    /// The entries that make the next frame, encoded, and how many they are.
    batch: Vec<u8>,
    batch_entries: u32,
    /// The last frame written; kept for its allocation.
    frame: Vec<u8>,
    /// Bytes written.
    written: u64,
    /// A write failed half way: whatever came behind it could not be read.
    broken: bool,
}

impl EncodedWriter<File> {
    /// Creates the file (an older one is lost) and writes what the log starts from.
    pub fn create(path: &Path, boot: &Boot) -> Result<Self, LogError> {
        Self::new(create(path)?, boot)
    }
}

fn create(path: &Path) -> Result<File, LogError> {
    File::create(path).map_err(|source| LogError::Create { path: path.to_owned(), source })
}

impl<W: Write> EncodedWriter<W> {
    /// Starts a log on `out` with what it starts from.
    pub fn new(out: W, boot: &Boot) -> Result<Self, LogError> {
        let (batch, frame) = (Vec::with_capacity(BATCH_BYTES), Vec::new());
        let mut writer = EncodedWriter { out, next: 0, batch, batch_entries: 0, frame, written: 0, broken: false };
        writer.write_frame(FrameKind::Boot, 0, 0, &encode_boot(boot)?)?;
        writer.frame = Vec::with_capacity(HEADER_BYTES + BATCH_BYTES);
        Ok(writer)
    }

    /// Goes on with a log on `out`, which has `written` bytes, the last of which are a state's before entry `next`.
    pub fn continuing(out: W, written: u64, next: u64) -> Self {
        let (batch, frame) = (Vec::with_capacity(BATCH_BYTES), Vec::with_capacity(HEADER_BYTES + BATCH_BYTES));
        EncodedWriter { out, next, batch, batch_entries: 0, frame, written, broken: false }
    }

    /// Puts a chunk of a machine's state, or the rest of it, before the next entry. `snapshot` is the same number for all that belong together.
    pub fn put_state(&mut self, frame: &OwnStateFrame, snapshot: u32) -> Result<(), LogError> {
        self.write_batch()?;
        match frame {
            OwnStateFrame::Chunk(bytes) => self.write_frame(FrameKind::Chunk, snapshot.into(), 0, bytes),
            OwnStateFrame::State(bytes) => self.write_frame(FrameKind::State, self.next, snapshot, bytes),
        }
    }

    /// Appends `count` entries, the first of which has the number `first`, as the log's one encoder wrote
    /// them. They may stay in memory until [`flush`](Self::flush).
    pub fn append(&mut self, first: u64, count: u32, bytes: &[u8]) -> Result<(), LogError> {
        if first != self.next {
            return Err(StreamError::Gap { expected: self.next, found: first }.into());
        }
        if bytes.len() > FrameKind::Entries.max_payload() {
            let source = FrameError::TooLong { kind: FrameKind::Entries, length: bytes.len() };
            return Err(LogError::Frame { offset: self.written, source });
        }
        if count == 0 {
            return if bytes.is_empty() { Ok(()) } else { Err(StreamError::Empty(first).into()) };
        }
        if self.batch.len() + bytes.len() > BATCH_BYTES {
            self.write_batch()?;
        }
        self.batch.extend_from_slice(bytes);
        self.batch_entries += count;
        self.next += u64::from(count);
        Ok(())
    }

    /// Number of the entry to be appended next.
    pub fn entries(&self) -> u64 {
        self.next
    }

    /// Bytes written so far, frames and all.
    pub fn written_bytes(&self) -> u64 {
        self.written
    }

    /// Hands everything appended to the operating system.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.write_batch()?;
        self.out.flush().map_err(LogError::Write)
    }

    /// Flushes, and marks the log as complete.
    pub fn close(mut self) -> Result<(), LogError> {
        self.write_batch()?;
        self.write_frame(FrameKind::Close, self.next, 0, &[])?;
        self.out.flush().map_err(LogError::Write)
    }

    fn write_batch(&mut self) -> Result<(), LogError> {
        if self.batch.is_empty() {
            return if self.broken { Err(LogError::Broken) } else { Ok(()) };
        }
        let (batch, count) = (std::mem::take(&mut self.batch), std::mem::take(&mut self.batch_entries));
        let written = self.write_frame(FrameKind::Entries, self.next - u64::from(count), count, &batch);
        self.batch = batch;
        self.batch.clear();
        written
    }

    fn write_frame(&mut self, kind: FrameKind, number: u64, count: u32, payload: &[u8]) -> Result<(), LogError> {
        if self.broken {
            return Err(LogError::Broken);
        }
        self.frame.clear();
        let encoded = frame::encode(kind, number, count, payload, &mut self.frame);
        encoded.map_err(|source| LogError::Frame { offset: self.written, source })?;
        self.out.write_all(&self.frame).map_err(|error| {
            self.broken = true;
            LogError::Write(error)
        })?;
        self.written += self.frame.len() as u64;
        Ok(())
    }
}

impl<W: Write> Drop for EncodedWriter<W> {
    /// A recorder that gives up leaves an incomplete log, but one with its last entries: they are what
    /// its failure will be looked for in. Nobody is left to be told if that fails too.
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

/// Writes a log of entries.
#[derive(Debug)]
pub struct LogWriter<W: Write> {
    out: EncodedWriter<W>,
    encoder: Encoder,
    encoded: Vec<u8>,
}

impl LogWriter<File> {
    /// Creates the file (an older one is lost) and writes what the log starts from.
    pub fn create(path: &Path, boot: &Boot) -> Result<Self, LogError> {
        Self::new(create(path)?, boot)
    }
}

impl<W: Write> LogWriter<W> {
    /// Starts a log on `out` with what it starts from.
    pub fn new(out: W, boot: &Boot) -> Result<Self, LogError> {
        Ok(LogWriter { out: EncodedWriter::new(out, boot)?, encoder: Encoder::new(), encoded: Vec::new() })
    }

    /// Goes on with a log on `out`, which has `written` bytes, the last of which are a state's with this `position`.
    pub fn continuing(out: W, written: u64, position: &Encoder) -> Self {
        let out = EncodedWriter::continuing(out, written, position.entries());
        LogWriter { out, encoder: position.clone(), encoded: Vec::new() }
    }

    /// Puts a chunk of a machine's state, or the rest of it, before the next entry. `snapshot` is the same number for all that belong together.
    pub fn put_state(&mut self, frame: &OwnStateFrame, snapshot: u32) -> Result<(), LogError> {
        self.out.put_state(frame, snapshot)
    }

    /// The encoder, as far as it has come.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Appends an entry and returns its number. It may stay in memory until [`flush`](Self::flush). An
    /// entry that is refused ([`LogError::Encode`]) leaves the log as it was.
    pub fn append(&mut self, entry: &Entry) -> Result<u64, LogError> {
        let number = self.encoder.entries();
        self.encoded.clear();
        self.encoder.encode(entry, &mut self.encoded).map_err(|source| LogError::Encode { number, source })?;
        self.out.append(number, 1, &self.encoded)?;
        Ok(number)
    }

    /// Number of the entry to be appended next.
    pub fn entries(&self) -> u64 {
        self.out.entries()
    }

    /// Bytes written so far, frames and all.
    pub fn written_bytes(&self) -> u64 {
        self.out.written_bytes()
    }

    /// Hands everything appended to the operating system.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.out.flush()
    }

    /// Flushes, and marks the log as complete.
    pub fn close(self) -> Result<(), LogError> {
        self.out.close()
    }
}

/// A part of a machine's state, to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnStateFrame {
    /// Pages.
    Chunk(Vec<u8>),
    /// The rest.
    State(Vec<u8>),
}
