//! The driver of the network card: virtio-net behind an MMIO transport, in whatever slot.
//!
//! Packets are put into the rings and taken out of them without touching a device register, an exit of 27 µs each. On a lockstep
//! machine the card looks at its queues at every [`sync`](Nic::sync) (one cheaper exit for any number of packets, in either
//! direction) and whenever the processor halts; elsewhere it is notified where it asks for it. Interrupts are asked for
//! only to be woken by.

use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use lockstep_abi::{port, virtio};
use lockstep_runtime::{gate, nucleus, pv};
use lockstep_virtio::Queue;
use virtio_drivers::transport::mmio::{MmioTransport, MmioVersion, VirtIOHeader};
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

/// Buffers in each direction.
const QUEUE_SIZE: u16 = 256;
/// `struct virtio_net_hdr` as a device of version 1 has it, before each frame. All zeros without offloads.
pub(crate) const HEADER_BYTES: usize = 12;
/// The longest frame: 1,500 bytes and the Ethernet header.
pub(crate) const FRAME_MAX: usize = 1514;
/// What one buffer has: header and frame, rounded up to keep pages whole.
const BUFFER_BYTES: usize = 2048;
const _: () = assert!(HEADER_BYTES + FRAME_MAX <= BUFFER_BYTES);

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// The feature bits that the driver knows (virtio 1.2, sections 5.1.3 and 6).
mod feature {
    /// The card has an address of its own.
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const EVENT_INDEX: u64 = 1 << 29;
    pub(super) const VERSION_1: u64 = 1 << 32;
}

/// The buffers of one direction, one behind the other. The device's for ever.
struct Buffers(NonNull<u8>);

impl Buffers {
    fn new() -> Self {
        let buffers: &'static mut [u8] = alloc::vec![0; usize::from(QUEUE_SIZE) * BUFFER_BYTES].leak();
        Buffers(NonNull::from(buffers).cast())
    }

    fn address(&self, buffer: u16) -> u64 {
        self.0.as_ptr() as u64 + u64::from(buffer) * BUFFER_BYTES as u64
    }

    /// # Safety
    /// The driver has this buffer, and nobody else a reference into it.
    #[expect(clippy::mut_from_ref, reason = "each buffer is borrowed by itself; see the safety section")]
    unsafe fn get(&self, buffer: u16) -> &mut [u8] {
        assert!(buffer < QUEUE_SIZE);
        // SAFETY: inside of the allocation; the caller's promise for the rest.
        unsafe {
            core::slice::from_raw_parts_mut(self.0.as_ptr().add(usize::from(buffer) * BUFFER_BYTES), BUFFER_BYTES)
        }
    }
}

/// What comes in.
pub(crate) struct Receiver {
    queue: Queue<{ QUEUE_SIZE as usize }>,
    buffers: Buffers,
    /// A frame that asks for a TCP connection has come; for whoever takes it back.
    pub(crate) connecting: bool,
}

impl Receiver {
    fn offer(&mut self, buffer: u16) {
        // SAFETY: called once for each buffer at the start, and then only for those that were taken.
        unsafe { self.queue.offer(buffer, self.buffers.address(buffer), BUFFER_BYTES as u32, true) };
    }

    pub(crate) fn has_frame(&self) -> bool {
        self.queue.has_used()
    }

    /// Hands the next frame to `use_frame` and gives its buffer back to the card. An empty frame is one the card got wrong.
    pub(crate) fn next<R>(&mut self, use_frame: impl FnOnce(&[u8]) -> R) -> R {
        let Some(taken) = self.queue.take() else { return use_frame(&[]) };
        // SAFETY: just taken, and offered again only below.
        let bytes = unsafe { self.buffers.get(taken.buffer) };
        let result = use_frame(bytes[..BUFFER_BYTES.min(taken.length as usize)].get(HEADER_BYTES..).unwrap_or(&[]));
        self.offer(taken.buffer);
        result
    }
}

/// What goes out.
pub(crate) struct Transmitter {
    queue: Queue<{ QUEUE_SIZE as usize }>,
    buffers: Buffers,
    free: Vec<u16>,
    /// Somebody wanted to send and there was no buffer.
    pub(crate) starved: bool,
}

impl Transmitter {
    /// Whether there is a buffer to send from.
    pub(crate) fn ready(&mut self) -> bool {
        if self.free.is_empty() {
            while let Some(taken) = self.queue.take() {
                self.free.push(taken.buffer);
            }
        }
        self.starved = self.free.is_empty();
        !self.starved
    }

    /// Puts a frame of `length` bytes, written by `write`, into the ring. To be called when [`ready`](Self::ready).
    pub(crate) fn send<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let buffer = self.free.pop().expect("asked before whether there is one");
        // SAFETY: a free buffer is not the device's.
        let bytes = unsafe { self.buffers.get(buffer) };
        bytes[..HEADER_BYTES].fill(0);
        let result = write(&mut bytes[HEADER_BYTES..HEADER_BYTES + length]);
        let total = (HEADER_BYTES + length) as u32;
        // SAFETY: it was free, and is so again only when taken.
        unsafe { self.queue.offer(buffer, self.buffers.address(buffer), total, false) };
        result
    }
}

/// The network card.
pub(crate) struct Nic {
    transport: ManuallyDrop<MmioTransport<'static>>,
    pub(crate) mac: [u8; 6],
    pub(crate) receiver: Receiver,
    pub(crate) transmitter: Transmitter,
    /// The machine is a lockstep machine: no notifications, no acknowledgements of interrupts.
    paravirtual: bool,
}

impl Nic {
    /// The first network card, ready to use; `None` if there is none.
    pub(crate) fn find() -> Option<Self> {
        (0..virtio::SLOTS).find_map(|slot| {
            let header = NonNull::new((virtio::MMIO_BASE + slot * virtio::MMIO_STRIDE) as *mut VirtIOHeader)?;
            // SAFETY: a slot's registers, or a hole where reads give all ones or zeros, which is not the magic number; used here only.
            let transport = unsafe { MmioTransport::new(header, virtio::MMIO_STRIDE as usize) }.ok()?;
            // Dropping it would reset the device, which may be another driver's.
            let transport = ManuallyDrop::new(transport);
            let is_card = transport.device_type() == DeviceType::Network && transport.version() == MmioVersion::Modern;
            is_card.then(|| Self::start(transport)).flatten()
        })
    }

    /// The initialisation of virtio 1.2, section 3.1.1. `None` for a card that refuses what the driver needs.
    fn start(mut transport: ManuallyDrop<MmioTransport<'static>>) -> Option<Self> {
        let known = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(DeviceStatus::empty());
        transport.set_status(known);
        let features = transport.read_device_features() & (feature::MAC | feature::EVENT_INDEX | feature::VERSION_1);
        transport.write_driver_features(features);
        transport.set_status(known | DeviceStatus::FEATURES_OK);
        if features & feature::VERSION_1 == 0 || !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return None;
        }
        let mut mac = [2, 0, 0, 0, 0, 1];
        if features & feature::MAC != 0 {
            for (offset, byte) in mac.iter_mut().enumerate() {
                *byte = transport.read_config_space(offset).ok()?;
            }
        }
        let event_index = features & feature::EVENT_INDEX != 0;
        let mut queue = |number| {
            let queue = Queue::new(event_index);
            let parts = queue.addresses();
            (transport.max_queue_size(number) >= QUEUE_SIZE.into()).then(|| {
                transport.queue_set(number, QUEUE_SIZE.into(), parts.descriptors, parts.available, parts.used);
                queue
            })
        };
        let mut receiver = Receiver { queue: queue(RECEIVE)?, buffers: Buffers::new(), connecting: false };
        let transmitter = Transmitter {
            queue: queue(TRANSMIT)?,
            buffers: Buffers::new(),
            free: (0..QUEUE_SIZE).collect(),
            starved: false,
        };
        (0..QUEUE_SIZE).for_each(|buffer| receiver.offer(buffer));
        transport.set_status(known | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
        let mut nic = Nic { transport, mac, receiver, transmitter, paravirtual: pv::present() };
        nic.receiver.queue.ask_for_no_interrupt();
        nic.transmitter.queue.ask_for_no_interrupt();
        nic.sync();
        Some(nic)
    }

    /// Lets the card see what was put into the rings.
    pub(crate) fn sync(&mut self) {
        if self.paravirtual {
            gate::outb(port::VIRTIO_SYNC, 0);
        } else {
            self.notify();
        }
    }

    fn notify(&mut self) {
        if self.receiver.queue.must_notify() {
            self.transport.notify(RECEIVE);
        }
        if self.transmitter.queue.must_notify() {
            self.transport.notify(TRANSMIT);
        }
    }

    /// Sleeps until an interrupt, unless there has been one since [`nucleus::interrupts`] was `seen` or there is
    /// something to do. The card sees what was put into the rings.
    pub(crate) fn idle(&mut self, seen: u64) {
        let mut ready = self.receiver.queue.ask_for_interrupt(1);
        if self.transmitter.starved {
            // Not for every single buffer that comes back.
            ready |= self.transmitter.queue.ask_for_interrupt(QUEUE_SIZE / 4);
        }
        if !self.paravirtual {
            self.notify();
            // The line is a level that the last interrupt may have left up; lowered before the rings are looked at once more.
            self.transport.ack_interrupt();
            ready |= self.receiver.has_frame();
        }
        if !ready {
            gate::idle(seen);
        }
        self.receiver.queue.ask_for_no_interrupt();
        self.transmitter.queue.ask_for_no_interrupt();
    }

    /// Interrupts so far, for [`idle`](Self::idle).
    pub(crate) fn interrupts() -> u64 {
        nucleus::interrupts()
    }
}
