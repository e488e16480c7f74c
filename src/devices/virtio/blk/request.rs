//! What a chain of the disk's queue asks for (virtio 1.2, section 5.2.6): a header of 16 bytes and then what is to be written, all to be read by
//! the device; then room for what is read, and at the very end a byte for the status. How these are cut into descriptors has no meaning.

use bincode::{Decode, Encode};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::{DISCARD, FLUSH, MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS, WRITE_ZEROES};
use crate::devices::virtio::buffers::{self, Buffer};
use crate::devices::virtio::misuse::Misuse;
use crate::devices::virtio::reach::Reach;
use crate::machine::blocks::{Ask, MAX_REQUEST, SECTOR};

/// Bytes of `struct virtio_blk_req` before the data: type, a reserved word, sector.
const HEADER: usize = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`, of which a request has one.
const SEGMENT: usize = 16;
/// Bytes of the disk's name.
pub(super) const NAME: usize = VIRTIO_BLK_ID_BYTES as usize;

const IO_ERROR: Verdict = Verdict::Refuse(VIRTIO_BLK_S_IOERR as u8);
const UNSUPPORTED: Verdict = Verdict::Refuse(VIRTIO_BLK_S_UNSUPP as u8);

/// A request that has left the device, with the places in guest memory that it is about.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Kind {
    /// Read from `sector` on into these buffers.
    Read { sector: u64, into: Vec<Buffer> },
    /// Write from `sector` on what is in these buffers.
    Write { sector: u64, from: Vec<Buffer> },
    /// Bring everything to stable storage.
    Flush,
    /// Forget these sectors.
    Discard { sector: u64, sectors: u32 },
    /// Make these sectors zeros.
    WriteZeroes { sector: u64, sectors: u32, may_unmap: bool },
}

impl Kind {
    /// The request as the world gets it; what is to be written is read from guest memory here.
    pub fn ask(&self, memory: &Reach) -> Result<Ask, Misuse> {
        Ok(match self {
            Kind::Read { sector, into } => Ask::Read { sector: *sector, bytes: buffers::length(into) as u32 },
            Kind::Write { sector, from } => {
                let mut data = Vec::with_capacity(buffers::length(from));
                buffers::gather(memory, from, &mut data)?;
                Ask::Write { sector: *sector, data }
            }
            Kind::Flush => Ask::Flush,
            &Kind::Discard { sector, sectors } => Ask::Discard { sector, sectors },
            &Kind::WriteZeroes { sector, sectors, may_unmap } => Ask::WriteZeroes { sector, sectors, may_unmap },
        })
    }

    /// Whether a disk of so many sectors can have let it out: for states from elsewhere.
    pub fn can_be(&self, capacity: u64) -> bool {
        let (sector, sectors) = match self {
            Kind::Read { sector, into: buffers } | Kind::Write { sector, from: buffers } => {
                let length = buffers.iter().try_fold(0usize, |sum, buffer| sum.checked_add(buffer.length));
                let Some(length) = length.filter(|&length| length_fits(length)) else { return false };
                if buffers.iter().any(|buffer| buffer.address.checked_add(buffer.length as u64).is_none()) {
                    return false;
                }
                (*sector, length as u64 / SECTOR)
            }
            Kind::Flush => return true,
            Kind::Discard { sector, sectors } | Kind::WriteZeroes { sector, sectors, .. } => {
                (*sector, u64::from(*sectors))
            }
        };
        sectors > 0 && lies_within(sector, sectors, capacity)
    }
}

/// What is to be done with a chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is for the world.
    Carry(Kind),
    /// The driver wants to know the disk's name.
    Name,
    /// It gets this status, at once.
    Refuse(u8),
}

/// A chain, taken apart.
pub(super) struct Parts {
    kind: u32,
    sector: u64,
    /// Behind the header: what the device shall read.
    from: Vec<Buffer>,
    /// Before the status: where the device shall write.
    pub into: Vec<Buffer>,
    /// Where the status goes.
    pub status: u64,
}

impl Parts {
    /// The parts of a chain of which the first `readable` buffers are for the device to read.
    pub fn of(memory: &Reach, chain: &[Buffer], readable: usize) -> Result<Self, Misuse> {
        let (from, into) = chain.split_at(readable);
        let Some((last, before)) = into.split_last() else { return Err(Misuse::Request) };
        if buffers::length(from) < HEADER {
            return Err(Misuse::Request);
        }
        let mut header = [0; HEADER];
        buffers::peek(memory, from, &mut header)?;
        let mut into = before.to_vec();
        if last.length > 1 {
            into.push(Buffer { length: last.length - 1, ..*last });
        }
        let [kind, _, low, high] = words(&header);
        Ok(Parts {
            kind,
            sector: u64::from(high) << 32 | u64::from(low),
            from: buffers::skip(from, HEADER),
            into,
            status: last.address + last.length as u64 - 1,
        })
    }

    /// What to do with it, on a disk of `capacity` sectors whose driver has agreed on `features`.
    pub fn judge(&mut self, memory: &Reach, capacity: u64, read_only: bool, features: u64) -> Result<Verdict, Misuse> {
        let (from, into) = (buffers::length(&self.from), buffers::length(&self.into));
        let transfer =
            |length: usize| length_fits(length) && lies_within(self.sector, length as u64 / SECTOR, capacity);
        let sector = self.sector;
        Ok(match self.kind {
            VIRTIO_BLK_T_IN if from == 0 && transfer(into) => {
                Verdict::Carry(Kind::Read { sector, into: std::mem::take(&mut self.into) })
            }
            VIRTIO_BLK_T_OUT if into == 0 && transfer(from) && !read_only => {
                Verdict::Carry(Kind::Write { sector, from: std::mem::take(&mut self.from) })
            }
            VIRTIO_BLK_T_FLUSH if features & FLUSH == 0 => UNSUPPORTED,
            VIRTIO_BLK_T_FLUSH if from == 0 && into == 0 => Verdict::Carry(Kind::Flush),
            VIRTIO_BLK_T_GET_ID if from == 0 && into >= NAME => Verdict::Name,
            VIRTIO_BLK_T_DISCARD if features & DISCARD == 0 => UNSUPPORTED,
            VIRTIO_BLK_T_WRITE_ZEROES if features & WRITE_ZEROES == 0 => UNSUPPORTED,
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if from == SEGMENT && into == 0 => {
                let mut segment = [0; SEGMENT];
                buffers::peek(memory, &self.from, &mut segment)?;
                self.judge_segment(words(&segment), capacity)
            }
            VIRTIO_BLK_T_IN
            | VIRTIO_BLK_T_OUT
            | VIRTIO_BLK_T_FLUSH
            | VIRTIO_BLK_T_GET_ID
            | VIRTIO_BLK_T_DISCARD
            | VIRTIO_BLK_T_WRITE_ZEROES => IO_ERROR,
            _ => UNSUPPORTED,
        })
    }

    fn judge_segment(&self, [low, high, sectors, flags]: [u32; 4], capacity: u64) -> Verdict {
        let sector = u64::from(high) << 32 | u64::from(low);
        let discard = self.kind == VIRTIO_BLK_T_DISCARD;
        let known = if discard { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        let most = if discard { MAX_DISCARD_SECTORS } else { MAX_ZEROES_SECTORS };
        if flags & !known != 0 {
            UNSUPPORTED
        } else if sectors == 0 || sectors > most || !lies_within(sector, sectors.into(), capacity) {
            IO_ERROR
        } else if discard {
            Verdict::Carry(Kind::Discard { sector, sectors })
        } else {
            Verdict::Carry(Kind::WriteZeroes { sector, sectors, may_unmap: flags != 0 })
        }
    }
}

/// Whether a request may read or write so many bytes.
fn length_fits(length: usize) -> bool {
    (1..=MAX_REQUEST).contains(&length) && length.is_multiple_of(SECTOR as usize)
}

fn lies_within(sector: u64, sectors: u64, capacity: u64) -> bool {
    sector.checked_add(sectors).is_some_and(|end| end <= capacity)
}

fn words(bytes: &[u8; 16]) -> [u32; 4] {
    std::array::from_fn(|i| u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
}
