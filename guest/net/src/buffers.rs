//! The memory behind the card's rings: frames that come and frames that go, each with its header before it, in buffers that are
//! allocated once.

use crate::nic::Offloads;
use alloc::vec::Vec;
use core::num::NonZero;
use core::ptr::NonNull;
use lockstep_virtio::net_header;

/// Descriptors of each queue.
pub(crate) const QUEUE_SIZE: u16 = 256;
/// The longest frame that goes over the wire: 1,500 bytes and the Ethernet header.
pub(crate) const FRAME_MAX: usize = 1514;
/// The longest frame that somebody else cuts into segments: an IPv4 packet and the Ethernet header.
pub(crate) const LARGE_FRAME_MAX: usize = 14 + 65_535;
/// A buffer for a frame that goes over the wire.
const BUFFER_BYTES: usize = 2048;
/// A buffer for a large frame; whole cache lines.
const LARGE_BUFFER_BYTES: usize = 65_600;
const _: () = assert!(net_header::BYTES + FRAME_MAX <= BUFFER_BYTES);
const _: () = assert!(net_header::BYTES + LARGE_FRAME_MAX <= LARGE_BUFFER_BYTES);
/// How many buffers there are to receive large frames, each of which may also hold a small one: 8 MiB.
const LARGE_RECEIVED: u16 = 128;
/// How many of the buffers to send from are large ones: 2 MiB.
const LARGE_SENT: u16 = 32;

/// One of the card's queues.
pub(crate) type Queue = lockstep_virtio::Queue<{ QUEUE_SIZE as usize }>;

/// Buffers of one size, one behind the other. The device's for ever.
struct Buffers {
    memory: NonNull<u8>,
    /// Number of the first in its queue.
    first: u16,
    count: u16,
    /// Size of each.
    bytes: usize,
}

impl Buffers {
    fn new(first: u16, count: u16, bytes: usize) -> Self {
        let memory: &'static mut [u8] = alloc::vec![0; usize::from(count) * bytes].leak();
        Buffers { memory: NonNull::from(memory).cast(), first, count, bytes }
    }

    fn numbers(&self) -> core::ops::Range<u16> {
        self.first..self.first + self.count
    }

    fn address(&self, buffer: u16) -> u64 {
        self.memory.as_ptr() as u64 + u64::from(buffer - self.first) * self.bytes as u64
    }

    /// # Safety
    /// The driver has this buffer, and nobody else a reference into it.
    #[expect(clippy::mut_from_ref, reason = "each buffer is borrowed by itself; see the safety section")]
    unsafe fn get(&self, buffer: u16) -> &mut [u8] {
        assert!(self.numbers().contains(&buffer));
        let offset = usize::from(buffer - self.first) * self.bytes;
        // SAFETY: inside of the allocation; the caller's promise for the rest.
        unsafe { core::slice::from_raw_parts_mut(self.memory.as_ptr().add(offset), self.bytes) }
    }
}

/// What comes in.
pub(crate) struct Receiver {
    pub(crate) queue: Queue,
    buffers: Buffers,
    /// A frame that asks for a TCP connection has come; for whoever takes it back.
    pub(crate) connecting: bool,
    /// Such frames are dropped.
    pub(crate) deaf: bool,
}

impl Receiver {
    /// Offers all buffers.
    pub(crate) fn new(queue: Queue, offloads: Offloads) -> Self {
        let (count, bytes) =
            if offloads.large_in { (LARGE_RECEIVED, LARGE_BUFFER_BYTES) } else { (QUEUE_SIZE, BUFFER_BYTES) };
        let mut receiver = Receiver { queue, buffers: Buffers::new(0, count, bytes), connecting: false, deaf: false };
        receiver.buffers.numbers().for_each(|buffer| receiver.offer(buffer));
        receiver
    }

    fn offer(&mut self, buffer: u16) {
        let (address, bytes) = (self.buffers.address(buffer), self.buffers.bytes as u32);
        // SAFETY: called once for each buffer at the start, and then only for those that were taken.
        unsafe { self.queue.offer(buffer, address, bytes, true) };
    }

    pub(crate) fn has_frame(&self) -> bool {
        self.queue.has_used()
    }

    /// Hands the next frame, and whether somebody vouches for its checksum, to `use_frame` and gives its buffer back to the card.
    /// An empty frame is one that the card got wrong.
    pub(crate) fn next<R>(&mut self, use_frame: impl FnOnce(&[u8], bool) -> R) -> R {
        let known = |buffer| self.buffers.numbers().contains(&buffer);
        let Some(taken) = self.queue.take().filter(|taken| known(taken.buffer)) else { return use_frame(&[], true) };
        // SAFETY: just taken, and offered again only below.
        let bytes = unsafe { self.buffers.get(taken.buffer) };
        let result = match bytes[..self.buffers.bytes.min(taken.length as usize)].split_first_chunk() {
            Some((header, frame)) => use_frame(frame, net_header::vouched_for(header)),
            None => use_frame(&[], true),
        };
        self.offer(taken.buffer);
        result
    }
}

/// What goes out.
pub(crate) struct Transmitter {
    pub(crate) queue: Queue,
    small: Buffers,
    large: Buffers,
    free_small: Vec<u16>,
    free_large: Vec<u16>,
    delegates: bool,
    /// Somebody wanted to send and there was no buffer.
    pub(crate) starved: bool,
}

impl Transmitter {
    pub(crate) fn new(queue: Queue, offloads: Offloads) -> Self {
        let large = if offloads.large_out { LARGE_SENT } else { 0 };
        let small = Buffers::new(0, QUEUE_SIZE - large, BUFFER_BYTES);
        let large = Buffers::new(small.count, large, LARGE_BUFFER_BYTES);
        Transmitter {
            queue,
            free_small: small.numbers().collect(),
            free_large: large.numbers().collect(),
            small,
            large,
            delegates: offloads.checksum_out,
            starved: false,
        }
    }

    /// Whether there is a buffer to send from, whatever the frame's size.
    pub(crate) fn ready(&mut self) -> bool {
        if !self.has_free() {
            while let Some(taken) = self.queue.take() {
                let free = if taken.buffer < self.small.count { &mut self.free_small } else { &mut self.free_large };
                free.push(taken.buffer);
            }
        }
        self.starved = !self.has_free();
        !self.starved
    }

    fn has_free(&self) -> bool {
        !self.free_small.is_empty() && (self.large.count == 0 || !self.free_large.is_empty())
    }

    /// Puts a frame of `length` bytes, written by `write`, into the ring, to be cut into segments of so many data bytes if
    /// `segment` says so. To be called when [`ready`](Self::ready).
    pub(crate) fn send<R>(
        &mut self,
        length: usize,
        segment: Option<NonZero<u16>>,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let total = net_header::BYTES + length;
        let (buffers, free) = if total <= BUFFER_BYTES {
            (&self.small, &mut self.free_small)
        } else {
            (&self.large, &mut self.free_large)
        };
        let buffer = free.pop().expect("asked before whether there is one");
        // SAFETY: a free buffer is not the device's.
        let bytes = unsafe { buffers.get(buffer) };
        let (header, frame) = bytes[..total].split_first_chunk_mut().expect("longer than a header");
        let result = write(frame);
        if self.delegates {
            net_header::delegate(header, frame, segment);
        } else {
            *header = [0; net_header::BYTES];
        }
        // SAFETY: it was free, and is so again only when taken.
        unsafe { self.queue.offer(buffer, buffers.address(buffer), total as u32, false) };
        result
    }
}
