//! Disk requests and their completions on their way through a door: bounded batches of what a guest asks of its disk, and of what has become
//! of it.

/// Bytes of a sector, the unit of all positions (virtio 1.2, 5.2).
pub const SECTOR: u64 = 512;

/// The most bytes that one request reads or writes.
pub const MAX_REQUEST: usize = 256 << 10;

/// What the guest asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read `bytes` from `sector` on.
    Read {
        /// The first sector.
        sector: u64,
        /// How many bytes; a multiple of [`SECTOR`], at most [`MAX_REQUEST`].
        bytes: u32,
    },
    /// Write `data` from `sector` on.
    Write {
        /// The first sector.
        sector: u64,
        /// The bytes; a multiple of [`SECTOR`], at most [`MAX_REQUEST`].
        data: Vec<u8>,
    },
    /// Everything whose completion the guest has seen shall be on stable storage.
    Flush,
    /// These sectors are of no use any more.
    Discard {
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u32,
    },
    /// These sectors shall read as zeros.
    WriteZeroes {
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u32,
        /// Whether their room may be given back.
        may_unmap: bool,
    },
}

impl Ask {
    /// Whether it may change what the disk holds, or what of it survives.
    pub fn changes(&self) -> bool {
        !matches!(self, Ask::Read { .. })
    }

    /// The bytes of the disk that it is about: (position, length). `None` for a flush.
    pub fn extent(&self) -> Option<(u64, u64)> {
        match self {
            Ask::Read { sector, bytes } => Some((sector * SECTOR, u64::from(*bytes))),
            Ask::Write { sector, data } => Some((sector * SECTOR, data.len() as u64)),
            Ask::Flush => None,
            Ask::Discard { sector, sectors } | Ask::WriteZeroes { sector, sectors, .. } => {
                Some((sector * SECTOR, u64::from(*sectors) * SECTOR))
            }
        }
    }
}

/// One request of a guest to its disk. It lies within the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its number: 0 for the first of the machine's life, and so on.
    pub id: u64,
    /// What is asked for.
    pub ask: Ask,
}

/// Some requests, in the order in which the guest made them. At most [`MAX_COUNT`] of them, writing at most about [`MAX_BYTES`].
pub type Requests = Vec<Request>;

/// The most requests of one batch.
pub const MAX_COUNT: usize = 256;
/// The most bytes that the requests of one batch write; one request more may be begun below it.
pub const MAX_BYTES: usize = 1 << 20;

/// What has become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done. (Not of a read.)
    Done,
    /// The bytes that were read.
    Read(Vec<u8>),
    /// In a log only: so many bytes were read, and whoever replays reads them himself. `check` is their XXH3.
    ReadElsewhere {
        /// How many.
        bytes: u32,
        /// Their XXH3, 64 bits.
        check: u64,
    },
    /// An I/O error.
    Failed,
}

/// The end of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's number.
    pub id: u64,
    /// What has become of it.
    pub outcome: Outcome,
}

/// The end of some requests, in any order. At most [`MAX_COUNT`] of them, with at most [`MAX_REQUEST`] bytes of read data in all.
pub type Completions = Vec<Completion>;
