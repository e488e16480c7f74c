//! The requests of a virtio disk (virtio 1.2, section 5.2.6) on their way through one queue and back: no I/O. Each is a chain of a header, its
//! data and a byte for its status; the data's memory belongs to the request until its end.

use crate::{Addresses, Part, Queue};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// Descriptors of the queue.
pub const QUEUE_SIZE: u16 = 256;
/// Bytes of a sector, the unit of all positions.
pub const SECTOR: usize = 512;
/// Requests that may be in flight.
pub const SLOTS: usize = QUEUE_SIZE as usize / PARTS;
/// Descriptors of a request: header, data, status.
const PARTS: usize = 3;

/// The device has not written a status yet.
const NO_STATUS: u8 = 0xff;

/// What is asked of a disk.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read so many bytes as the buffer has.
    Read {
        /// The first sector.
        sector: u64,
        /// Where to; its length is a multiple of [`SECTOR`], not 0.
        buffer: Vec<u8>,
    },
    /// Write all of the buffer.
    Write {
        /// The first sector.
        sector: u64,
        /// The bytes; a multiple of [`SECTOR`], not 0.
        buffer: Vec<u8>,
    },
    /// What has been completed before this was submitted shall be on stable storage.
    Flush,
    /// These sectors are of no use any more: what they hold from here on is unknown.
    Discard {
        /// The first sector.
        sector: u64,
        /// How many; not 0.
        sectors: u32,
    },
    /// These sectors shall read as zeros.
    WriteZeroes {
        /// The first sector.
        sector: u64,
        /// How many; not 0.
        sectors: u32,
        /// Whether the disk may give their room back.
        may_unmap: bool,
    },
}

impl Ask {
    /// First sector and number of sectors; `None` for a flush.
    pub fn extent(&self) -> Option<(u64, u64)> {
        match self {
            Ask::Read { sector, buffer } | Ask::Write { sector, buffer } => {
                Some((*sector, buffer.len().div_ceil(SECTOR) as u64))
            }
            Ask::Flush => None,
            Ask::Discard { sector, sectors } | Ask::WriteZeroes { sector, sectors, .. } => {
                Some((*sector, u64::from(*sectors)))
            }
        }
    }
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The device reports an I/O error.
    Io,
    /// The device does not know such requests.
    Unsupported,
    /// The device ended the request with a status that means nothing.
    Status(u8),
    /// It does not lie within the disk.
    OutOfRange,
    /// It is empty, or its data are no whole sectors.
    Length(usize),
    /// It is longer than the disk takes in one request; how many bytes or sectors that is.
    TooLong(u64),
    /// The disk can only be read.
    ReadOnly,
    /// As many requests as there may be are in flight.
    Full,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DiskError::Io => write!(f, "I/O error"),
            DiskError::Unsupported => write!(f, "the disk does not know such requests"),
            DiskError::Status(status) => write!(f, "the disk ended a request with status {status}"),
            DiskError::OutOfRange => write!(f, "beyond the end of the disk"),
            DiskError::Length(length) => write!(f, "{length}: no whole number of sectors, or none"),
            DiskError::TooLong(most) => write!(f, "more than the {most} that the disk takes at a time"),
            DiskError::ReadOnly => write!(f, "the disk is read-only"),
            DiskError::Full => write!(f, "too many requests in flight"),
        }
    }
}

impl core::error::Error for DiskError {}

/// What the disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its size.
    pub sectors: u64,
    /// Nothing can be written.
    pub read_only: bool,
    /// It has a cache to be flushed; otherwise what is completed is on stable storage.
    pub flush: bool,
    /// Most bytes of a read or write; a multiple of [`SECTOR`].
    pub most_bytes: u32,
    /// Most sectors of a discard; 0 if it knows none.
    pub most_discard: u32,
    /// Most sectors to be zeroed by one request; 0 if it knows none.
    pub most_zeroes: u32,
}

/// A request has come to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// What [`Requests::submit`] gave for it.
    pub number: u64,
    /// The request with its buffer, which holds what was read.
    pub ask: Ask,
    /// What has become of it.
    pub result: Result<(), DiskError>,
}

/// What the device reads and writes of a request beside its data, as it lies in memory.
#[repr(C, align(16))]
struct Frame {
    /// Type, reserved, sector (section 5.2.6).
    header: [u8; 16],
    /// Of a discard or a write of zeros: sector, number, flags.
    segment: [u8; 16],
    status: u8,
}

struct Slot {
    frame: Box<Frame>,
    /// Number and request, while it is in flight.
    asked: Option<(u64, Ask)>,
}

/// The requests of one disk.
pub struct Requests {
    /// To be asked about notifications and interrupts.
    pub queue: Queue<{ QUEUE_SIZE as usize }>,
    shape: Shape,
    slots: Vec<Slot>,
    free: Vec<u16>,
    next: u64,
}

impl Requests {
    /// No requests. `event_index`: whether `VIRTIO_F_EVENT_IDX` has been negotiated.
    pub fn new(shape: Shape, event_index: bool) -> Self {
        let frame = || Box::new(Frame { header: [0; 16], segment: [0; 16], status: NO_STATUS });
        Requests {
            queue: Queue::new(event_index),
            shape,
            slots: (0..SLOTS).map(|_| Slot { frame: frame(), asked: None }).collect(),
            free: (0..SLOTS as u16).rev().collect(),
            next: 0,
        }
    }

    /// What the disk is like.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Where the queue's parts lie.
    pub fn addresses(&self) -> Addresses {
        self.queue.addresses()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        SLOTS - self.free.len()
    }

    /// Requests that may be submitted now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    fn check(&self, ask: &Ask) -> Result<(), DiskError> {
        let shape = &self.shape;
        if shape.read_only && !matches!(ask, Ask::Read { .. } | Ask::Flush) {
            return Err(DiskError::ReadOnly);
        }
        match ask {
            Ask::Read { buffer, .. } | Ask::Write { buffer, .. } => {
                if buffer.is_empty() || !buffer.len().is_multiple_of(SECTOR) {
                    return Err(DiskError::Length(buffer.len()));
                }
                if buffer.len() as u64 > u64::from(shape.most_bytes) {
                    return Err(DiskError::TooLong(shape.most_bytes.into()));
                }
            }
            Ask::Flush => {}
            Ask::Discard { sectors, .. } | Ask::WriteZeroes { sectors, .. } => {
                let most = if let Ask::Discard { .. } = ask { shape.most_discard } else { shape.most_zeroes };
                match *sectors {
                    _ if most == 0 => return Err(DiskError::Unsupported),
                    0 => return Err(DiskError::Length(0)),
                    sectors if sectors > most => return Err(DiskError::TooLong(most.into())),
                    _ => {}
                }
            }
        }
        match ask.extent() {
            Some((sector, sectors)) if sector.checked_add(sectors).is_none_or(|end| end > shape.sectors) => {
                Err(DiskError::OutOfRange)
            }
            _ => Ok(()),
        }
    }

    /// Puts a request into the queue; gives its number, one more than that of the last. What cannot be asked comes back.
    ///
    /// The order in which overlapping requests in flight are carried out is the device's business.
    pub fn submit(&mut self, ask: Ask) -> Result<u64, (DiskError, Ask)> {
        if let Err(error) = self.check(&ask) {
            return Err((error, ask));
        }
        let Some(number) = self.free.pop() else { return Err((DiskError::Full, ask)) };
        let slot = &mut self.slots[usize::from(number)];
        let (_, asked) = slot.asked.insert((self.next, ask));
        let frame = &mut *slot.frame;
        let (kind, sector) = match asked {
            Ask::Read { sector, .. } => (0_u32, *sector),
            Ask::Write { sector, .. } => (1, *sector),
            Ask::Flush => (4, 0),
            Ask::Discard { .. } => (11, 0),
            Ask::WriteZeroes { .. } => (13, 0),
        };
        frame.header[..4].copy_from_slice(&kind.to_le_bytes());
        frame.header[8..].copy_from_slice(&sector.to_le_bytes());
        frame.status = NO_STATUS;
        let part = |address: u64, length: usize, device_writes| Part { address, length: length as u32, device_writes };
        let data = match asked {
            Ask::Read { buffer, .. } => Some(part(buffer.as_mut_ptr() as u64, buffer.len(), true)),
            Ask::Write { buffer, .. } => Some(part(buffer.as_ptr() as u64, buffer.len(), false)),
            Ask::Flush => None,
            Ask::Discard { sector, sectors } => {
                frame.segment = segment(*sector, *sectors, 0);
                Some(part(frame.segment.as_ptr() as u64, frame.segment.len(), false))
            }
            Ask::WriteZeroes { sector, sectors, may_unmap } => {
                frame.segment = segment(*sector, *sectors, u32::from(*may_unmap));
                Some(part(frame.segment.as_ptr() as u64, frame.segment.len(), false))
            }
        };
        let header = part(frame.header.as_ptr() as u64, frame.header.len(), false);
        let status = part(&raw mut frame.status as u64, 1, true);
        let first = number * PARTS as u16;
        // SAFETY: the slot was free, and each has descriptors of its own. Header, segment and status lie in the slot's box, the data in the
        // request's vector; both are in the slot and left alone until the queue gives it back, and leaked if that never happens (see `Drop`).
        unsafe {
            match data {
                Some(data) => self.queue.offer_chain(first, &[header, data, status]),
                None => self.queue.offer_chain(first, &[header, status]),
            }
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// The next request that has come to its end.
    pub fn take(&mut self) -> Option<Done> {
        while self.queue.has_used() {
            // What the device invents is passed over.
            let Some(taken) = self.queue.take() else { continue };
            let number = taken.buffer / PARTS as u16;
            let Some(slot) = self.slots.get_mut(usize::from(number)).filter(|_| taken.buffer % PARTS as u16 == 0)
            else {
                continue;
            };
            let Some((asked, ask)) = slot.asked.take() else { continue };
            self.free.push(number);
            // SAFETY: a plain read of memory that we own; volatile, since it was the device that wrote it.
            let status = unsafe { core::ptr::read_volatile(&raw const slot.frame.status) };
            let result = match status {
                0 => Ok(()),
                1 => Err(DiskError::Io),
                2 => Err(DiskError::Unsupported),
                status => Err(DiskError::Status(status)),
            };
            return Some(Done { number: asked, ask, result });
        }
        None
    }
}

impl Drop for Requests {
    /// What is in flight is the device's for ever.
    fn drop(&mut self) {
        for slot in self.slots.drain(..).filter(|slot| slot.asked.is_some()) {
            core::mem::forget(slot);
        }
    }
}

/// `struct virtio_blk_discard_write_zeroes`.
fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}
