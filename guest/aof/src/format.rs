//! The bytes on the disk: superblock and record headers, little endian.

use crate::SECTOR;
use alloc::vec::Vec;
use xxhash_rust::xxh3::xxh3_64;

/// `"lckstaof"`.
const MAGIC: u64 = u64::from_le_bytes(*b"lckstaof");
const VERSION: u64 = 1;
/// First sectors of the superblock's copies.
pub(crate) const COPIES: [u64; 2] = [0, 8];
/// First sector of half 0.
pub(crate) const HALVES: u64 = 16;
/// Sectors of the smallest disk: halves of 256 KiB.
pub(crate) const SMALLEST: u64 = HALVES + 2 * 512;

/// What the disk is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The copy with the higher one counts. Its parity is its place.
    pub(crate) generation: u64,
    /// No record has a higher one.
    pub(crate) epoch: u64,
    /// Where the log is: 0 or 1.
    pub(crate) half: u64,
    /// Sectors of a half.
    pub(crate) half_sectors: u64,
    /// Sequence number of the half's first record.
    pub(crate) first_sequence: u64,
    /// No record of the half has a lower epoch.
    pub(crate) first_epoch: u64,
}

impl Superblock {
    const WORDS: usize = 9;

    pub(crate) fn place(&self) -> u64 {
        COPIES[(self.generation % 2) as usize]
    }

    pub(crate) fn encode(&self) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let mut words = [
            MAGIC,
            VERSION,
            self.generation,
            self.epoch,
            self.half,
            self.half_sectors,
            self.first_sequence,
            self.first_epoch,
            0,
        ];
        for last in [false, true] {
            for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *to = word.to_le_bytes();
            }
            if !last {
                words[Self::WORDS - 1] = xxh3_64(&bytes[..8 * (Self::WORDS - 1)]);
            }
        }
        bytes
    }

    /// `None` for anything that is no whole superblock of this version.
    pub(crate) fn decode(bytes: &[u8; SECTOR]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(bytes.as_chunks::<8>().0[at]);
        let superblock = Superblock {
            generation: word(2),
            epoch: word(3),
            half: word(4),
            half_sectors: word(5),
            first_sequence: word(6),
            first_epoch: word(7),
        };
        (superblock.encode() == *bytes && superblock.half < 2).then_some(superblock)
    }

    /// The first one of an empty log with halves of so many sectors. No record has this epoch or one below.
    pub(crate) fn first(half_sectors: u64, epoch: u64) -> Self {
        Superblock { generation: 0, epoch, half: 0, half_sectors, first_sequence: 1, first_epoch: epoch }
    }

    /// Whether these are the bytes of the very first superblock of a disk, whole or torn in any way: each is its own, or has never been written.
    pub(crate) fn is_begun(bytes: &[u8; SECTOR], half_sectors: u64) -> bool {
        let whole = Self::first(half_sectors, 1).encode();
        bytes.iter().zip(whole).all(|(&byte, own)| byte == 0 || byte == own)
    }
}

/// The longest payload.
pub(crate) const MOST_PAYLOAD: usize = 64 << 20;
/// Bytes of a record beside its payload.
pub const RECORD_BYTES: usize = 40;

/// What stands before a record's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) check: u64,
    /// Of the payload; never 0.
    pub(crate) length: u64,
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
    pub(crate) time_ms: u64,
}

impl Header {
    pub(crate) fn decode(bytes: &[u8; RECORD_BYTES]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes.as_chunks::<8>().0[at]);
        Header { check: word(0), length: word(1), sequence: word(2), epoch: word(3), time_ms: word(4) }
    }

    /// Whether `record`, header and payload, is the record that its check is of.
    pub(crate) fn fits(&self, record: &[u8]) -> bool {
        xxh3_64(&record[8..]) == self.check
    }
}

/// Appends a record. `payload` is not empty.
pub(crate) fn push_record(to: &mut Vec<u8>, sequence: u64, epoch: u64, time_ms: u64, payload: &[u8]) {
    let start = to.len();
    for word in [0, payload.len() as u64, sequence, epoch, time_ms] {
        to.extend_from_slice(&word.to_le_bytes());
    }
    to.extend_from_slice(payload);
    let check = xxh3_64(&to[start + 8..]);
    to[start..start + 8].copy_from_slice(&check.to_le_bytes());
}

/// Up to the next sector's beginning.
pub(crate) fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR as u64)
}
