//! Opening a log: which half counts, its records up to the first that is none, and a new epoch.

use crate::format::{COPIES, HALVES, Header, RECORD_BYTES, SMALLEST, Superblock, padded};
use crate::log::{Log, Sync};
use crate::{SECTOR, Storage};
use alloc::vec;
use alloc::vec::Vec;

/// Why a log cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError<E, A> {
    /// The disk cannot be read or written.
    #[error("{0}")]
    Storage(E),
    /// The disk is too small.
    #[error("the disk is too small: {0} sectors of 512 bytes, and {SMALLEST} are needed")]
    TooSmall(u64),
    /// The disk's beginning is neither empty nor that of a log.
    #[error("the disk holds something else")]
    Foreign,
    /// The superblock speaks of a disk of another size.
    #[error("the log was made on a disk with halves of {0} sectors")]
    Size(u64),
    /// A record is whole, but whoever it was handed to cannot make sense of it.
    #[error("record {sequence}: {reason}")]
    Record {
        /// Its sequence number.
        sequence: u64,
        /// What is wrong with it.
        reason: A,
    },
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Whether the disk was empty, and has become a log.
    pub formatted: bool,
    /// Records that were handed out.
    pub records: u64,
}

impl Log {
    /// Opens the log on this disk and hands its records, in order, to `apply`: time and payload. An empty disk becomes an empty log, and so does
    /// any other if `format` says so.
    pub fn open<S: Storage, A>(
        storage: &mut S,
        sync: Sync,
        format: bool,
        mut apply: impl FnMut(u64, &[u8]) -> Result<(), A>,
    ) -> Result<(Log, Opened), OpenError<S::Error, A>> {
        if storage.sectors() < SMALLEST {
            return Err(OpenError::TooSmall(storage.sectors()));
        }
        let half_sectors = (storage.sectors() - HALVES) / 2;
        let mut copies = [[0; SECTOR]; 2];
        for (place, copy) in COPIES.into_iter().zip(&mut copies) {
            storage.read(place, copy).map_err(OpenError::Storage)?;
        }
        let newest = copies.iter().filter_map(Superblock::decode).max_by_key(|copy| copy.generation);
        let is_free = |copy: &[u8; SECTOR]| copy.iter().all(|&byte| byte == 0);
        // The second copy of an empty log is written after the first is on stable storage. So a first one that is torn, beside a second that was
        // never there, is all that an interrupted beginning leaves.
        let was_begun = Superblock::is_begun(&copies[0], half_sectors) && is_free(&copies[1]);
        let (old, mut opened) = match newest {
            Some(old) if !format => (old, Opened::default()),
            None if !format && !was_begun && !copies.iter().all(is_free) => return Err(OpenError::Foreign),
            _ => {
                let epoch = newest.map_or(0, |old| old.epoch);
                (begin(storage, half_sectors, epoch, format)?, Opened { formatted: true, ..Opened::default() })
            }
        };
        if old.half_sectors != half_sectors {
            return Err(OpenError::Size(old.half_sectors));
        }
        let mut reader = Reader { storage, first: HALVES + old.half * half_sectors, window: Vec::new(), at: 0 };
        let half_bytes = half_sectors * SECTOR as u64;
        let mut end = 0;
        let mut sequence = old.first_sequence;
        let mut last_epoch = old.first_epoch;
        loop {
            let starts = [end, padded(end)];
            let mut found = None;
            for &start in &starts[..if starts[0] == starts[1] { 1 } else { 2 }] {
                let epochs = last_epoch..=old.epoch;
                if let Some(header) = reader.record(start, half_bytes, sequence, epochs).map_err(OpenError::Storage)? {
                    found = Some((start, header));
                    break;
                }
            }
            let Some((start, header)) = found else { break };
            let bytes = RECORD_BYTES + header.length as usize;
            let payload = &reader.bytes(start, bytes).map_err(OpenError::Storage)?[RECORD_BYTES..];
            apply(header.time_ms, payload).map_err(|reason| OpenError::Record { sequence, reason })?;
            last_epoch = header.epoch;
            sequence += 1;
            opened.records += 1;
            end = start + bytes as u64;
        }
        let tail = padded(end);
        let storage = reader.storage;
        // What was read may have been in a cache only, and is now counted on; and no record of an earlier epoch may follow ours.
        let superblock = Superblock { generation: old.generation + 1, epoch: old.epoch + 1, ..old };
        put(storage, &superblock).map_err(OpenError::Storage)?;
        let mut log = Log::new(superblock, sync, tail, sequence);
        log.base = tail;
        Ok((log, opened))
    }
}

/// Writes a superblock to its place; on stable storage when this returns.
pub(crate) fn put<S: Storage>(storage: &mut S, superblock: &Superblock) -> Result<(), S::Error> {
    storage.write(superblock.place(), &superblock.encode())?;
    storage.flush()
}

/// Makes an empty log, with epochs above that of the last one that was there.
fn begin<S: Storage, A>(
    storage: &mut S,
    half_sectors: u64,
    epoch: u64,
    erase: bool,
) -> Result<Superblock, OpenError<S::Error, A>> {
    if erase {
        // An old log whose superblocks are lost could have any epoch. Erased first: as long as it is not, the disk does not look empty.
        let zeros = vec![0; 256 << 10];
        let (mut sector, end) = (HALVES, HALVES + 2 * half_sectors);
        while sector < end {
            let sectors = (end - sector).min((zeros.len() / SECTOR) as u64);
            storage.write(sector, &zeros[..sectors as usize * SECTOR]).map_err(OpenError::Storage)?;
            sector += sectors;
        }
        storage.flush().map_err(OpenError::Storage)?;
    }
    for place in COPIES.into_iter().rev() {
        storage.write(place, &[0; SECTOR]).and_then(|()| storage.flush()).map_err(OpenError::Storage)?;
    }
    let epoch = epoch + 1;
    let mut superblock = Superblock::first(half_sectors, epoch);
    for generation in 0..2 {
        superblock.generation = generation;
        put(storage, &superblock).map_err(OpenError::Storage)?;
    }
    Ok(superblock)
}

/// Reads a half from its beginning to its end.
struct Reader<'a, S> {
    storage: &'a mut S,
    /// The half's first sector.
    first: u64,
    /// What has been read, from byte `at` of the half on; whole sectors.
    window: Vec<u8>,
    at: u64,
}

impl<S: Storage> Reader<'_, S> {
    /// So much is read at a time.
    const PIECE: usize = 256 << 10;

    /// The bytes from `start` on, which lies not before that of the last call by more than a sector. The half has them.
    fn bytes(&mut self, start: u64, length: usize) -> Result<&[u8], S::Error> {
        if start < self.at {
            self.window.clear();
            self.at = start - start % SECTOR as u64;
        }
        if start - self.at > 4 * Self::PIECE as u64 {
            let passed = (start - self.at).min(self.window.len() as u64) / SECTOR as u64 * SECTOR as u64;
            self.window.drain(..passed as usize);
            self.at += passed;
        }
        let end = (start - self.at) as usize + length;
        while self.window.len() < end {
            let sector = self.first + (self.at + self.window.len() as u64) / SECTOR as u64;
            let left = self.storage.sectors().saturating_sub(sector);
            let piece = (left as usize).saturating_mul(SECTOR).min(Self::PIECE);
            let mut bytes = vec![0; piece];
            self.storage.read(sector, &mut bytes)?;
            self.window.extend_from_slice(&bytes);
        }
        Ok(&self.window[end - length..end])
    }

    /// The header of the record at `start`, if there is a whole one with this sequence number and one of these epochs.
    fn record(
        &mut self,
        start: u64,
        half_bytes: u64,
        sequence: u64,
        epochs: core::ops::RangeInclusive<u64>,
    ) -> Result<Option<Header>, S::Error> {
        let Some(room) = half_bytes.checked_sub(start).and_then(|room| room.checked_sub(RECORD_BYTES as u64)) else {
            return Ok(None);
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes.copy_from_slice(self.bytes(start, RECORD_BYTES)?);
        let header = Header::decode(&bytes);
        // Looked at before anything is allocated for it.
        if !(1..=room).contains(&header.length) || header.sequence != sequence || !epochs.contains(&header.epoch) {
            return Ok(None);
        }
        let record = self.bytes(start, RECORD_BYTES + header.length as usize)?;
        Ok(header.fits(record).then_some(header))
    }
}
