//! One split virtqueue, as the device sees it: chains are taken from the available ring, checked as a whole before a byte of
//! them is touched, and given back in the used ring. All access to memory is that of `vm-memory`, so its
//! bitmap knows what was written.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use bincode::{Decode, Encode};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::buffers::Buffer;
use super::misuse::Misuse;
use super::reach::Reach;

/// The most entries of a queue, and the most descriptors of a chain, those of an indirect table included.
pub const MAX_SIZE: u16 = 256;

/// What a driver has written to a queue's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RingRegisters {
    /// QueueNum: how many entries.
    pub size: u32,
    /// QueueDesc: guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// QueueDriver: guest-physical address of the available ring.
    pub driver: u64,
    /// QueueDevice: guest-physical address of the used ring.
    pub device: u64,
}

/// How far the device has come with a ready queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Progress {
    /// The next entry of the available ring to look at; wraps at 65536.
    next_avail: u16,
    /// The next entry of the used ring to write; wraps at 65536.
    next_used: u16,
}

/// The state of a queue. (Whether it has event indexes is among the negotiated features.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RingState {
    registers: RingRegisters,
    /// `Some` if it is ready.
    progress: Option<Progress>,
}

/// Who writes to the buffers of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The driver: the device reads them.
    FromDriver,
    /// The device.
    ToDriver,
    /// First come those that the device reads, if any, and behind them those that it writes.
    Both,
}

/// A chain that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its first descriptor: what it is given back by.
    pub head: u16,
    /// Bytes of all its buffers.
    pub length: usize,
    /// How many of its buffers, the first ones, are for the device to read.
    pub readable: usize,
}

/// A queue of a device.
#[derive(Debug, Default)]
pub struct Ring {
    /// What the driver wrote; unchanged while the queue is ready.
    registers: RingRegisters,
    /// `Some` while it is ready.
    queue: Option<Queue>,
}

impl Ring {
    /// The queue in `state`.
    pub fn from_state(state: &RingState, event_idx: bool) -> Result<Self, Misuse> {
        let queue = state.progress.map(|progress| make_queue(&state.registers, progress, event_idx)).transpose()?;
        Ok(Ring { registers: state.registers, queue })
    }

    /// The state.
    pub fn state(&self) -> RingState {
        let progress =
            self.queue.as_ref().map(|queue| Progress { next_avail: queue.next_avail(), next_used: queue.next_used() });
        RingState { registers: self.registers, progress }
    }

    /// Whether the driver has made it ready.
    pub fn ready(&self) -> bool {
        self.queue.is_some()
    }

    /// The registers to write to, which are locked while the queue is ready.
    pub fn registers(&mut self) -> Option<&mut RingRegisters> {
        self.queue.is_none().then_some(&mut self.registers)
    }

    /// Makes it ready, from its beginning, if it is not. The one place where the rings themselves are checked.
    pub fn enable(&mut self, memory: &Reach, event_idx: bool) -> Result<(), Misuse> {
        if self.queue.is_none() {
            let queue = make_queue(&self.registers, Progress::default(), event_idx)?;
            // The crate takes an available ring at 0 for none.
            if queue.avail_ring() == 0 || !queue.is_valid(memory) {
                return Err(Misuse::RingPlace);
            }
            self.queue = Some(queue);
        }
        Ok(())
    }

    /// Makes it not ready.
    pub fn disable(&mut self) {
        self.queue = None;
    }

    /// How many chains are there to be taken: at most as many as the queue has entries, whatever the driver says.
    pub fn available(&self, memory: &Reach) -> usize {
        self.queue.as_ref().map_or(0, |queue| match queue.avail_idx(memory, Ordering::Acquire) {
            Ok(index) => (index - Wrapping(queue.next_avail())).0.min(queue.size()).into(),
            Err(_) => 0,
        })
    }

    /// Takes a chain, if there is one, and puts its buffers into `buffers` instead of what they held. All of them are in memory and
    /// none is empty.
    pub fn pop(
        &mut self,
        memory: &Reach,
        direction: Direction,
        buffers: &mut Vec<Buffer>,
    ) -> Result<Option<Chain>, Misuse> {
        let Some(queue) = &mut self.queue else { return Ok(None) };
        let Some(chain) = queue.iter(memory).map_err(|_| Misuse::AvailableIndex)?.next() else { return Ok(None) };
        let head = chain.head_index();
        let (mut length, mut readable) = (0, 0);
        // The iterator ends at a fault as it does at the end of the chain; only the last descriptor tells which it was.
        let mut whole = false;
        buffers.clear();
        for descriptor in chain {
            if buffers.len() == usize::from(MAX_SIZE) {
                return Err(Misuse::Chain);
            }
            let written = descriptor.is_write_only();
            let allowed = match direction {
                Direction::FromDriver => !written,
                Direction::ToDriver => written,
                Direction::Both => written || readable == buffers.len(),
            };
            if !allowed {
                return Err(Misuse::Direction);
            }
            let (address, bytes) = (descriptor.addr(), descriptor.len() as usize);
            if bytes == 0 || memory.slice(address, bytes).is_err() {
                return Err(Misuse::Buffer);
            }
            let buffer = Buffer { address: address.0, length: bytes };
            buffers.push(buffer);
            readable += usize::from(!written);
            length += buffer.length;
            whole = !descriptor.has_next();
        }
        if whole { Ok(Some(Chain { head, length, readable })) } else { Err(Misuse::Chain) }
    }

    /// The chain taken last is still to be done.
    pub fn put_back(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.go_to_previous_position();
        }
    }

    /// Gives the chain that begins at `head` back, with `written` bytes in its buffers.
    pub fn complete(&mut self, memory: &Reach, head: u16, written: usize) -> Result<(), Misuse> {
        match &mut self.queue {
            Some(queue) => queue.add_used(memory, head, written as u32).map_err(|_| Misuse::RingPlace),
            None => Ok(()),
        }
    }

    /// Asks the driver to notify when it makes the next chain available.
    pub fn ask_for_notification(&mut self, memory: &Reach) -> Result<(), Misuse> {
        match &mut self.queue {
            Some(queue) => queue.enable_notification(memory).map(|_| ()).map_err(|_| Misuse::RingPlace),
            None => Ok(()),
        }
    }

    /// Asks the driver not to notify. (With event indexes a driver that nobody asks anything notifies once, and then every 65536 chains.)
    pub fn do_without_notification(&mut self, memory: &Reach) -> Result<(), Misuse> {
        match &mut self.queue {
            Some(queue) => queue.disable_notification(memory).map_err(|_| Misuse::RingPlace),
            None => Ok(()),
        }
    }

    /// Whether the driver wants an interrupt for the chains given back since the last call. To be called after all of them.
    pub fn interrupt_wanted(&mut self, memory: &Reach) -> Result<bool, Misuse> {
        let Some(queue) = &mut self.queue else { return Ok(false) };
        if queue.event_idx_enabled() {
            queue.needs_notification(memory).map_err(|_| Misuse::RingPlace)
        } else {
            // The crate does not look at the flag.
            let flags: u16 =
                memory.load(GuestAddress(queue.avail_ring()), Ordering::Acquire).map_err(|_| Misuse::RingPlace)?;
            Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        }
    }
}

fn make_queue(registers: &RingRegisters, progress: Progress, event_idx: bool) -> Result<Queue, Misuse> {
    let size = u16::try_from(registers.size).map_err(|_| Misuse::QueueSize)?;
    QueueState {
        max_size: MAX_SIZE,
        next_avail: progress.next_avail,
        next_used: progress.next_used,
        event_idx_enabled: event_idx,
        size,
        ready: true,
        desc_table: registers.descriptors,
        avail_ring: registers.driver,
        used_ring: registers.device,
    }
    .try_into()
    .map_err(|error| match error {
        virtio_queue::Error::InvalidSize => Misuse::QueueSize,
        _ => Misuse::RingPlace,
    })
}
