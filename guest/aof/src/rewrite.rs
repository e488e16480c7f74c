//! Rewriting a log: what its records amount to goes into the other half, and then that one counts.

use crate::format::{RECORD_BYTES, Superblock, padded, push_record};
use crate::log::Log;
use crate::open::put;
use crate::{SECTOR, Storage};
use alloc::vec::Vec;

/// Why a log was not rewritten. It is as it was, unless it [has failed](Log::has_failed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError<E> {
    /// The disk cannot be written.
    #[error("{0}")]
    Storage(E),
    /// What the records amount to does not fit into a half.
    #[error("it takes more than {0} bytes")]
    Full(u64),
}

/// Takes records for the other half.
#[derive(Debug)]
struct Writer<'a, S> {
    storage: &'a mut S,
    first_sector: u64,
    half_bytes: u64,
    /// Whole sectors that have been written.
    written: u64,
    bytes: Vec<u8>,
}

impl<S: Storage> Writer<'_, S> {
    /// So much is gathered before it is written.
    const PIECE: usize = 256 << 10;

    fn push(&mut self, sequence: u64, epoch: u64, time_ms: u64, payload: &[u8]) -> Result<(), RewriteError<S::Error>> {
        let end = self.written + (self.bytes.len() + RECORD_BYTES + payload.len()) as u64;
        if padded(end) > self.half_bytes {
            return Err(RewriteError::Full(self.half_bytes));
        }
        push_record(&mut self.bytes, sequence, epoch, time_ms, payload);
        if self.bytes.len() >= Self::PIECE {
            let whole = self.bytes.len() / SECTOR * SECTOR;
            self.write(whole)?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: usize) -> Result<(), RewriteError<S::Error>> {
        let sector = self.first_sector + self.written / SECTOR as u64;
        self.storage.write(sector, &self.bytes[..bytes]).map_err(RewriteError::Storage)?;
        self.bytes.drain(..bytes);
        self.written += bytes as u64;
        Ok(())
    }
}

impl Log {
    /// Replaces the log by what `produce` hands to the function that it is given, payload by payload: the same as all records appended so far, in fewer
    /// bytes. All of them are then durable. To be called when the log [is at rest](Self::is_at_rest).
    ///
    /// If the very last step fails, nobody knows which half counts: the log [is in doubt](Self::is_in_doubt) and does nothing before it is
    /// [resolved](Self::resolve). Nothing is lost in either case.
    pub fn rewrite<S: Storage>(
        &mut self,
        storage: &mut S,
        time_ms: u64,
        produce: impl FnOnce(
            &mut dyn FnMut(&[u8]) -> Result<(), RewriteError<S::Error>>,
        ) -> Result<(), RewriteError<S::Error>>,
    ) -> Result<(), RewriteError<S::Error>> {
        assert!(self.is_at_rest() && !self.is_in_doubt());
        let result = self.try_rewrite(storage, time_ms, produce);
        if matches!(result, Err(RewriteError::Storage(_))) {
            // It may have been a flush that failed, and that one was also for what the log had written before.
            self.write_again();
        }
        result
    }

    fn try_rewrite<S: Storage>(
        &mut self,
        storage: &mut S,
        time_ms: u64,
        produce: impl FnOnce(
            &mut dyn FnMut(&[u8]) -> Result<(), RewriteError<S::Error>>,
        ) -> Result<(), RewriteError<S::Error>>,
    ) -> Result<(), RewriteError<S::Error>> {
        // The copies are written in turn, and this place again if it fails: the other copy is the one that is sure to be whole.
        let epoch = Superblock {
            generation: self.superblock.generation + 1,
            epoch: self.superblock.epoch + 1,
            ..self.superblock
        };
        put(storage, &epoch).map_err(RewriteError::Storage)?;
        self.superblock = epoch;
        let half = 1 - self.superblock.half;
        let mut writer = Writer {
            first_sector: self.half_at(half),
            half_bytes: self.half_bytes(),
            storage,
            written: 0,
            bytes: Vec::new(),
        };
        let first_sequence = self.sequence;
        let mut sequence = first_sequence;
        produce(&mut |payload| {
            writer.push(sequence, epoch.epoch, time_ms, payload)?;
            sequence += 1;
            Ok(())
        })?;
        let rest = padded(writer.bytes.len() as u64) as usize;
        writer.bytes.resize(rest, 0);
        if rest > 0 {
            writer.write(rest)?;
        }
        let tail = writer.written;
        storage.flush().map_err(RewriteError::Storage)?;
        let switched =
            Superblock { generation: epoch.generation + 1, half, first_sequence, first_epoch: epoch.epoch, ..epoch };
        let put = put(storage, &switched).map_err(RewriteError::Storage);
        // From here on nothing may go to the old half: the disk may say that it does not count any more.
        self.rewritten(switched, tail, sequence, put.is_err());
        put
    }

    /// Makes sure that the half counts to which the log was rewritten.
    pub fn resolve<S: Storage>(&mut self, storage: &mut S) -> Result<(), S::Error> {
        if self.is_in_doubt() {
            put(storage, &self.superblock)?;
            self.resolved();
        }
        Ok(())
    }
}
