//! The driver of the network card: virtio-net behind an MMIO transport, in whatever slot.
//!
//! Packets are put into the rings and taken out of them without touching a device register, an exit of 27 µs each. On a lockstep
//! machine the card looks at its queues at every [`sync`](Nic::sync) (one cheaper exit for any number of packets, in either
//! direction) and whenever the processor halts; elsewhere it is notified where it asks for it. Interrupts are asked for
//! only to be woken by.

use crate::buffers::{QUEUE_SIZE, Queue, Receiver, Transmitter};
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use lockstep_abi::{port, virtio};
use lockstep_runtime::{gate, nucleus, pv};
use virtio_drivers::transport::mmio::{MmioTransport, MmioVersion, VirtIOHeader};
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// The feature bits that the driver knows (virtio 1.2, sections 5.1.3 and 6).
mod feature {
    /// The card completes checksums.
    pub(super) const CHECKSUM: u64 = 1 << 0;
    /// The driver takes frames whose checksum is not complete.
    pub(super) const GUEST_CHECKSUM: u64 = 1 << 1;
    /// The card has an address of its own.
    pub(super) const MAC: u64 = 1 << 5;
    /// The driver takes TCP packets that were not cut into segments.
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    /// The card cuts TCP packets into segments.
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const EVENT_INDEX: u64 = 1 << 29;
    pub(super) const VERSION_1: u64 = 1 << 32;

    /// All of them.
    pub(super) const KNOWN: u64 = CHECKSUM | GUEST_CHECKSUM | MAC | GUEST_TSO4 | HOST_TSO4 | EVENT_INDEX | VERSION_1;
}

/// What card and driver take off each other's hands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offloads {
    /// The card completes the checksums of what is sent.
    pub(crate) checksum_out: bool,
    /// Frames may come whose checksum is not complete, or was checked by somebody else.
    pub(crate) checksum_in: bool,
    /// The card cuts TCP packets into segments.
    pub(crate) large_out: bool,
    /// TCP packets may come that nobody has cut into segments.
    pub(crate) large_in: bool,
}

impl Offloads {
    fn of(features: u64) -> Self {
        let has = |feature| features & feature != 0;
        Offloads {
            checksum_out: has(feature::CHECKSUM),
            checksum_in: has(feature::GUEST_CHECKSUM),
            large_out: has(feature::CHECKSUM) && has(feature::HOST_TSO4),
            large_in: has(feature::GUEST_CHECKSUM) && has(feature::GUEST_TSO4),
        }
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
    pub(crate) offloads: Offloads,
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
        let features = transport.read_device_features() & feature::KNOWN;
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
        let offloads = Offloads::of(features);
        let receiver = Receiver::new(queue(RECEIVE)?, offloads);
        let transmitter = Transmitter::new(queue(TRANSMIT)?, offloads);
        transport.set_status(known | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
        let mut nic = Nic { transport, mac, receiver, transmitter, paravirtual: pv::present(), offloads };
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

    /// Sleeps until an interrupt (or, on a lockstep machine, any event), unless there has been an interrupt since [`nucleus::interrupts`] was `seen` or there is
    /// something to do. The card sees what was put into the rings.
    pub(crate) fn idle(&mut self, seen: u64) {
        if self.paravirtual {
            // A card that has seen the ring gives every buffer in it back. Whoever is still in want of one says so again.
            if core::mem::take(&mut self.transmitter.starved) {
                self.sync()
            } else {
                gate::wait(seen)
            }
            // Said again now and then: it is a place in the ring that comes round.
            self.receiver.queue.ask_for_no_interrupt();
            self.transmitter.queue.ask_for_no_interrupt();
            return;
        }
        let mut ready = self.receiver.queue.ask_for_interrupt(1);
        if self.transmitter.starved {
            // Not for every single buffer that comes back.
            let half = self.transmitter.queue.outstanding() / 2;
            ready |= self.transmitter.queue.ask_for_interrupt(half.max(1));
        }
        self.notify();
        // The line is a level that the last interrupt may have left up; lowered before the rings are looked at once more.
        self.transport.ack_interrupt();
        ready |= self.receiver.has_frame();
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
