//! The log in use: what is appended is written in batches, one at a time, and each is flushed before the next begins.
//!
//! ```text
//!            append                next_io                 io_ended            next_io        io_ended
//!   pending ────────► (waits) ────────────► batch: writing ────────► written ─────────► flushing ────────► durable
//!      ▲                                        │ failed                                    │ failed
//!      └──────── (the same batch again, at the same place, once `retry` is called) ◄────────┘
//! ```

use crate::SECTOR;
use crate::format::{HALVES, MOST_PAYLOAD, RECORD_BYTES, Superblock, padded, push_record};
use alloc::vec::Vec;

/// The most bytes of one write.
const WRITE_BYTES: usize = 256 << 10;

/// When the log is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// After each batch: what is [durable](Log::durable) survives a power failure.
    Always,
    /// When [`Log::flush_soon`] says so. What is written counts as durable, and after a power failure up to so much may be missing.
    Sometimes,
    /// Never: what is written counts as durable.
    Never,
}

/// What is to be done to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Io {
    /// Write this.
    Write {
        /// The first sector.
        sector: u64,
        /// Whole sectors.
        bytes: Vec<u8>,
    },
    /// Flush.
    Flush,
}

/// Records that are written together, from a sector's beginning on.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Where, in bytes from the half's beginning.
    pub(crate) at: u64,
    /// Whole sectors.
    pub(crate) bytes: Vec<u8>,
    /// Sequence number of its last record.
    pub(crate) last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is under way.
    Rest,
    /// `given` bytes of the first unwritten batch have been given out, `writes` of them are under way.
    Write {
        given: usize,
        writes: usize,
        failed: bool,
    },
    Flush,
    /// Something has failed; waits for [`Log::retry`].
    Failed,
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    pub(crate) superblock: Superblock,
    sync: Sync,
    /// Where the next batch begins, in bytes from the half's beginning.
    pub(crate) tail: u64,
    /// Sequence number of the next record.
    pub(crate) sequence: u64,
    /// Records that are in no batch yet.
    pub(crate) pending: Vec<u8>,
    /// Batches that are not on stable storage, in order; the first `written` of them are written.
    pub(crate) batches: Vec<Batch>,
    written: usize,
    durable: u64,
    flush_wanted: bool,
    stage: Stage,
    /// A record could not be taken: the log must be rewritten before anything else is written.
    too_long: bool,
    /// The superblock on the disk may be this one or the one before; once it is this one, so many records are durable. See [`Log::rewrite`].
    pub(crate) in_doubt: Option<u64>,
    /// Bytes of the half after the last rewriting.
    pub(crate) base: u64,
}

impl Log {
    /// A log whose superblock is on stable storage, and so are its records up to `sequence`.
    pub(crate) fn new(superblock: Superblock, sync: Sync, tail: u64, sequence: u64) -> Self {
        Log {
            superblock,
            sync,
            tail,
            sequence,
            pending: Vec::new(),
            batches: Vec::new(),
            written: 0,
            durable: sequence - 1,
            flush_wanted: false,
            stage: Stage::Rest,
            too_long: false,
            in_doubt: None,
            base: 0,
        }
    }

    pub(crate) fn half_bytes(&self) -> u64 {
        self.superblock.half_sectors * SECTOR as u64
    }

    /// First sector of a half.
    pub(crate) fn half_at(&self, half: u64) -> u64 {
        HALVES + half * self.superblock.half_sectors
    }

    /// Bytes of payload that one more record may have. Every record takes [`RECORD_BYTES`] besides.
    pub fn room(&self) -> usize {
        let used = padded(self.tail + self.pending.len() as u64);
        let room = self.half_bytes().saturating_sub(used).saturating_sub(RECORD_BYTES as u64);
        usize::try_from(room).unwrap_or(usize::MAX).min(MOST_PAYLOAD)
    }

    /// Bytes that the log takes on the disk, and how many it took after it was last rewritten.
    pub fn used(&self) -> (u64, u64) {
        (self.tail + self.pending.len() as u64, self.base)
    }

    /// Bytes that the log may take.
    pub fn capacity(&self) -> u64 {
        self.half_bytes()
    }

    /// Appends a record; gives its sequence number, one above that of the last. `payload` is not empty. Without [room](Self::room), the
    /// record waits for the log to be rewritten.
    pub fn append(&mut self, time_ms: u64, payload: &[u8]) -> u64 {
        assert!(!payload.is_empty());
        let sequence = self.sequence;
        if payload.len() <= MOST_PAYLOAD {
            push_record(&mut self.pending, sequence, self.superblock.epoch, time_ms, payload);
        } else {
            self.too_long = true;
        }
        self.sequence += 1;
        sequence
    }

    /// Sequence number of the last record appended.
    pub fn appended(&self) -> u64 {
        self.sequence - 1
    }

    /// Sequence number of the last record that is safe, as far as [`Sync`] promises.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Whether something has failed, and waits for [`retry`](Self::retry).
    pub fn has_failed(&self) -> bool {
        self.stage == Stage::Failed || self.in_doubt.is_some()
    }

    /// Whether nothing is under way on the disk.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.stage, Stage::Rest | Stage::Failed)
    }

    /// Whether records wait that do not fit any more: the log has to be rewritten.
    pub fn is_over_full(&self) -> bool {
        self.too_long || padded(self.tail + self.pending.len() as u64) > self.half_bytes()
    }

    /// Under [`Sync::Sometimes`]: flushes what is written.
    pub fn flush_soon(&mut self) {
        self.flush_wanted = self.sync == Sync::Sometimes && self.written > 0;
    }

    /// Whether it is to be [resolved](Self::resolve) which half counts.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt.is_some()
    }

    /// Tries again what has failed, unless that [is the last step of a rewriting](Self::is_in_doubt).
    pub fn retry(&mut self) {
        if self.stage == Stage::Failed {
            self.stage = Stage::Rest;
        }
    }

    /// What is to be done to the disk next. To be asked until there is nothing; each has to come back to [`io_ended`](Self::io_ended).
    pub fn next_io(&mut self) -> Option<Io> {
        if self.in_doubt.is_some() {
            return None;
        }
        if self.stage == Stage::Rest {
            let flush = match self.sync {
                Sync::Always => self.written > 0,
                Sync::Sometimes => self.flush_wanted,
                Sync::Never => false,
            };
            if flush {
                self.flush_wanted = false;
                self.stage = Stage::Flush;
                return Some(Io::Flush);
            }
            if self.written == self.batches.len() {
                self.form_batch()?;
            }
            self.stage = Stage::Write { given: 0, writes: 0, failed: false };
        }
        let Stage::Write { given, writes, failed: false } = &mut self.stage else { return None };
        let batch = &self.batches[self.written];
        let rest = batch.bytes.get(*given..).filter(|rest| !rest.is_empty())?;
        let bytes = rest[..rest.len().min(WRITE_BYTES)].to_vec();
        let at = batch.at + *given as u64;
        *given += bytes.len();
        *writes += 1;
        let sector = HALVES + self.superblock.half * self.superblock.half_sectors + at / SECTOR as u64;
        Some(Io::Write { sector, bytes })
    }

    /// Makes a batch of what is pending; `None` if that is nothing, or does not fit.
    fn form_batch(&mut self) -> Option<()> {
        if self.pending.is_empty() || self.is_over_full() {
            return None;
        }
        let mut bytes = core::mem::take(&mut self.pending);
        bytes.resize(padded(bytes.len() as u64) as usize, 0);
        let at = self.tail;
        self.tail += bytes.len() as u64;
        self.batches.push(Batch { at, bytes, last: self.sequence - 1 });
        Some(())
    }

    /// One thing that [`next_io`](Self::next_io) asked for has come to its end. Writes may do so in any order.
    pub fn io_ended(&mut self, done: bool) {
        match &mut self.stage {
            Stage::Write { given, writes, failed } => {
                *writes -= 1;
                *failed |= !done;
                let all_given = *given == self.batches[self.written].bytes.len();
                match (*writes, *failed) {
                    (0, true) => self.stage = Stage::Failed,
                    (0, false) if all_given => self.batch_written(),
                    _ => {}
                }
            }
            Stage::Flush => {
                if done {
                    self.stage = Stage::Rest;
                    for batch in self.batches.drain(..self.written) {
                        self.durable = self.durable.max(batch.last);
                    }
                } else {
                    self.stage = Stage::Failed;
                }
                self.write_again();
            }
            Stage::Rest | Stage::Failed => unreachable!("nothing is under way"),
        }
    }

    /// A flush has failed: nobody knows what is left of what was written since the last one.
    pub(crate) fn write_again(&mut self) {
        self.written = 0;
    }

    fn batch_written(&mut self) {
        self.stage = Stage::Rest;
        let last = self.batches[self.written].last;
        self.written += 1;
        match self.sync {
            Sync::Always => {}
            Sync::Sometimes => self.durable = self.durable.max(last),
            Sync::Never => {
                self.durable = self.durable.max(last);
                self.batches.clear();
                self.written = 0;
            }
        }
    }

    /// All records are on stable storage in the half of this superblock, which ends at `tail`; `in_doubt`: or the disk has the old one.
    pub(crate) fn rewritten(&mut self, superblock: Superblock, tail: u64, sequence: u64, in_doubt: bool) {
        let durable = self.durable;
        *self = Log { base: tail, ..Log::new(superblock, self.sync, tail, sequence) };
        if in_doubt {
            self.in_doubt = Some(core::mem::replace(&mut self.durable, durable));
        }
    }

    /// It is sure again which half counts.
    pub(crate) fn resolved(&mut self) {
        if let Some(durable) = self.in_doubt.take() {
            self.durable = durable;
        }
    }
}
