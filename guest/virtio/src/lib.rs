//! The driver's end of a virtio queue (virtio 1.2, section 2.7, "split virtqueues"): buffers of one descriptor each or chains, event
//! index, no I/O. On it, [`block`], the requests of a disk; and [`net_header`], what stands before each frame of a network card.
//!
//! Nothing here touches a device register: a driver offers any number of buffers and then asks once whether the device
//! [wants to be told](Queue::must_notify). Where the device looks at its queues anyway, it need not ask at all. In the same way
//! interrupts are asked for only by whoever goes to sleep. (The `virtio-drivers` crate's `VirtQueue` asks for an interrupt at every
//! buffer it takes, and its test whether to notify is wrong where the 16-bit index wraps.)
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::boxed::Box;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, fence};

pub mod block;
pub mod net_header;
#[cfg(test)]
mod tests;

/// The chain goes on.
const NEXT: u16 = 1;
/// The device writes into the buffer.
const WRITE: u16 = 2;
/// In a ring's flags, where there is no event index: the other side need not tell.
const NO_NOTIFICATION: u16 = 1;

/// A descriptor as it lies in memory.
#[repr(C, align(16))]
#[derive(Default)]
struct Descriptor {
    address: AtomicU64,
    length: AtomicU32,
    flags: AtomicU16,
    next: AtomicU16,
}

/// What the driver offers.
#[repr(C, align(2))]
struct Available<const N: usize> {
    flags: AtomicU16,
    index: AtomicU16,
    ring: [AtomicU16; N],
    /// The device shall interrupt when it gives back the buffer with this index.
    used_event: AtomicU16,
}

/// A buffer that the device gives back.
#[repr(C)]
#[derive(Default)]
struct Element {
    descriptor: AtomicU32,
    length: AtomicU32,
}

/// What the device gives back.
#[repr(C, align(4))]
struct Used<const N: usize> {
    flags: AtomicU16,
    index: AtomicU16,
    ring: [Element; N],
    /// The driver shall notify when it offers the buffer with this index.
    available_event: AtomicU16,
}

/// The three parts that driver and device share. Atomics only: both sides write, at any time.
#[repr(C, align(4096))]
struct Shared<const N: usize> {
    descriptors: [Descriptor; N],
    available: Available<N>,
    used: Used<N>,
}

/// A buffer that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The buffer's number, below the queue's size.
    pub buffer: u16,
    /// Bytes that the device says to have written.
    pub length: u32,
}

/// The driver's end of a queue of `N` buffers, `N` a power of two. Buffer *n* has descriptor *n* for ever.
pub struct Queue<const N: usize> {
    shared: &'static Shared<N>,
    event_index: bool,
    /// Index of the next buffer that is offered.
    offered: u16,
    /// `offered` as it was when the driver last asked whether to notify.
    announced: u16,
    /// Index of the next buffer that comes back.
    taken: u16,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Where it lies.
    pub address: u64,
    /// How long it is.
    pub length: u32,
    /// Whether the device writes it, or else reads it. What it reads comes first (section 2.7.4.2).
    pub device_writes: bool,
}

/// Guest-physical addresses of a queue's three parts.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring ("driver area").
    pub available: u64,
    /// Used ring ("device area").
    pub used: u64,
}

impl<const N: usize> Queue<N> {
    /// An empty queue. `event_index`: whether `VIRTIO_F_EVENT_IDX` has been negotiated. Its memory is the device's from now
    /// on and never freed.
    pub fn new(event_index: bool) -> Self {
        const { assert!(N.is_power_of_two() && N <= 1 << 15) };
        let shared = Box::leak(Box::new(Shared {
            descriptors: core::array::from_fn(|_| Descriptor::default()),
            available: Available {
                flags: AtomicU16::new(0),
                index: AtomicU16::new(0),
                ring: [const { AtomicU16::new(0) }; N],
                used_event: AtomicU16::new(0),
            },
            used: Used {
                flags: AtomicU16::new(0),
                index: AtomicU16::new(0),
                ring: core::array::from_fn(|_| Element::default()),
                available_event: AtomicU16::new(0),
            },
        }));
        Queue { shared, event_index, offered: 0, announced: 0, taken: 0 }
    }

    /// Where the parts lie, on a machine whose virtual addresses are its physical ones.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            descriptors: &raw const self.shared.descriptors as u64,
            available: &raw const self.shared.available as u64,
            used: &raw const self.shared.used as u64,
        }
    }

    /// Buffers (or chains) that the device has.
    pub fn outstanding(&self) -> u16 {
        self.offered.wrapping_sub(self.taken)
    }

    /// Offers buffer number `buffer` to the device, which may write (or else read) `length` bytes at this address.
    ///
    /// # Safety
    /// The driver has this buffer (it was never offered, or taken since), and the memory is used for nothing else until
    /// [`take`](Self::take) gives it back.
    pub unsafe fn offer(&mut self, buffer: u16, address: u64, length: u32, device_writes: bool) {
        // SAFETY: the caller's promise.
        unsafe { self.offer_chain(buffer, &[Part { address, length, device_writes }]) }
    }

    /// Offers a chain of buffers, never none, in the descriptors from number `first` on. It comes back as `first`.
    ///
    /// # Safety
    /// The driver has these descriptors, and the memory is used for nothing else until [`take`](Self::take) gives `first` back.
    pub unsafe fn offer_chain(&mut self, first: u16, parts: &[Part]) {
        assert!(!parts.is_empty());
        let descriptors = &self.shared.descriptors[usize::from(first)..][..parts.len()];
        for (number, (descriptor, part)) in descriptors.iter().zip(parts).enumerate() {
            let is_last = number + 1 == parts.len();
            let write = if part.device_writes { WRITE } else { 0 };
            descriptor.address.store(part.address, Relaxed);
            descriptor.length.store(part.length, Relaxed);
            descriptor.flags.store(if is_last { write } else { write | NEXT }, Relaxed);
            descriptor.next.store(if is_last { 0 } else { first + number as u16 + 1 }, Relaxed);
        }
        self.shared.available.ring[usize::from(self.offered) % N].store(first, Relaxed);
        self.offered = self.offered.wrapping_add(1);
        self.shared.available.index.store(self.offered, Release);
    }

    /// Whether the device wants to be notified of what has been offered since the last call.
    pub fn must_notify(&mut self) -> bool {
        let since = core::mem::replace(&mut self.announced, self.offered);
        if since == self.offered {
            return false;
        }
        // The device sets its event and then looks at the index; we have set the index and now look at its event.
        fence(SeqCst);
        if self.event_index {
            passes(self.shared.used.available_event.load(Acquire), since, self.offered)
        } else {
            self.shared.used.flags.load(Acquire) & NO_NOTIFICATION == 0
        }
    }

    /// Whether the device has given anything back that has not been taken yet.
    pub fn has_used(&self) -> bool {
        self.shared.used.index.load(Acquire) != self.taken
    }

    /// The next buffer that the device has given back. `None` as well for one that the device invented.
    pub fn take(&mut self) -> Option<Taken> {
        if !self.has_used() {
            return None;
        }
        let element = &self.shared.used.ring[usize::from(self.taken) % N];
        self.taken = self.taken.wrapping_add(1);
        let buffer = u16::try_from(element.descriptor.load(Relaxed)).ok().filter(|&buffer| usize::from(buffer) < N)?;
        Some(Taken { buffer, length: element.length.load(Relaxed) })
    }

    /// Asks for an interrupt when the device gives back `after` more buffers than have been taken. Whether it has done so already,
    /// and may therefore not interrupt.
    #[must_use]
    pub fn ask_for_interrupt(&mut self, after: u16) -> bool {
        self.shared.available.flags.store(0, Relaxed);
        self.shared.available.used_event.store(self.taken.wrapping_add(after - 1), Release);
        // We set our event and then look at the index; the device sets its index and then looks at our event.
        fence(SeqCst);
        self.shared.used.index.load(Acquire).wrapping_sub(self.taken) >= after
    }

    /// Asks for no interrupts. Must be said again before the device has given back 2¹⁵ more buffers.
    pub fn ask_for_no_interrupt(&mut self) {
        if self.event_index {
            self.shared.available.used_event.store(self.taken.wrapping_add(1 << 15), Relaxed);
        } else {
            self.shared.available.flags.store(NO_NOTIFICATION, Relaxed);
        }
    }
}

/// Whether an index going from `old` to `new` passes `event` (section 2.7.10's `vring_need_event`).
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
