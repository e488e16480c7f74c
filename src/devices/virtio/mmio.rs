//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2.2): the registers by which a driver finds a device, agrees with it on features,
//! shows it its queues and starts it.
//!
//! ```text
//!          ACKNOWLEDGE, DRIVER        FEATURES_OK            DRIVER_OK
//!   reset ────────────────────► features ────────► queues ─────────────► live ──misuse──► DEVICE_NEEDS_RESET
//!     ▲                                                                                           │
//!     └───────────────────────────────── 0 written to Status, at any time ────────────────────────┘
//! ```
//!
//! A register is read and written by aligned accesses of four bytes; any other reads as zero and writes nothing, and so does a
//! register that is not there. The configuration space is read byte by byte.

use bincode::{Decode, Encode};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::misuse::{Misuse, StateError};
use super::reach::Reach;
use super::ring::{MAX_SIZE, Ring, RingRegisters, RingState};

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"LKST");
/// Status bits that a driver can set.
const DRIVER_STATUS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;

/// What a device is; it does not change.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Kind of device (virtio 1.2, section 5).
    pub device_id: u32,
    /// Features on offer, one bit each; VERSION_1 is among them.
    pub features: u64,
    /// Features that may not be had without others: (the feature, what it needs).
    pub needs: &'static [(u64, u64)],
    /// The configuration space.
    pub config: Vec<u8>,
}

/// What a write to a register asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The driver is ready: the device is live.
    Start,
    /// Look at this queue. The device is live and the queue ready.
    Look(usize),
}

/// The transport's state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TransportState<const QUEUES: usize> {
    registers: Registers,
    rings: [RingState; QUEUES],
}

/// The registers that are not a queue's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    interrupt_status: u32,
    /// The line has pulsed and nobody has looked yet.
    edge: bool,
    /// Why the device needs a reset.
    misuse: Option<Misuse>,
}

/// A device's side of the transport.
#[derive(Debug)]
pub struct Transport<const QUEUES: usize> {
    identity: Identity,
    registers: Registers,
    rings: [Ring; QUEUES],
}

impl<const QUEUES: usize> Transport<QUEUES> {
    /// As after power-on.
    pub fn new(identity: Identity) -> Self {
        Transport { identity, registers: Registers::default(), rings: std::array::from_fn(|_| Ring::default()) }
    }

    /// The transport in `state`.
    pub fn from_state(identity: Identity, state: &TransportState<QUEUES>) -> Result<Self, StateError> {
        let mut transport = Transport { registers: state.registers.clone(), ..Transport::new(identity) };
        let unknown = transport.negotiated() & !transport.identity.features;
        if unknown != 0 {
            return Err(StateError::Features(unknown));
        }
        let event_idx = transport.event_idx();
        for (ring, state) in transport.rings.iter_mut().zip(&state.rings) {
            *ring = Ring::from_state(state, event_idx).map_err(StateError::Queue)?;
        }
        Ok(transport)
    }

    /// The state.
    pub fn state(&self) -> TransportState<QUEUES> {
        TransportState { registers: self.registers.clone(), rings: std::array::from_fn(|i| self.rings[i].state()) }
    }

    /// The features agreed on; none before they are.
    pub fn negotiated(&self) -> u64 {
        if self.has(VIRTIO_CONFIG_S_FEATURES_OK) { self.registers.driver_features } else { 0 }
    }

    /// Whether the device may look at its queues.
    pub fn live(&self) -> bool {
        self.registers.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED)
            == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// Why the device needs a reset, if it does.
    pub fn misuse(&self) -> Option<Misuse> {
        self.registers.misuse
    }

    /// A queue.
    pub fn ring(&self, index: usize) -> &Ring {
        &self.rings[index]
    }

    /// A queue, to work on.
    pub fn ring_mut(&mut self, index: usize) -> &mut Ring {
        &mut self.rings[index]
    }

    /// Tells the driver of chains given back.
    pub fn interrupt(&mut self) {
        self.registers.interrupt_status |= VIRTIO_MMIO_INT_VRING;
        self.registers.edge = true;
    }

    /// The driver did something wrong: the device needs a reset, and until then does nothing.
    pub fn fail(&mut self, misuse: Misuse) {
        if self.registers.misuse.is_some() {
            return;
        }
        self.registers.misuse = Some(misuse);
        self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        // Who has not said DRIVER_OK gets no interrupts (virtio 1.2, 2.1.2).
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            self.registers.interrupt_status |= VIRTIO_MMIO_INT_CONFIG;
            self.registers.edge = true;
        }
    }

    /// Whether the interrupt line has pulsed since the last call.
    pub fn take_edge(&mut self) -> bool {
        std::mem::take(&mut self.registers.edge)
    }

    /// The driver reads at `offset` in the device's slot.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(start) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            let bytes = self.identity.config.iter().skip(start as usize);
            data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        } else if let Some(register) = register(offset, data.len()) {
            data.copy_from_slice(&self.read_register(register).to_le_bytes());
        }
    }

    fn read_register(&self, register: u32) -> u32 {
        let queue = self.rings.get(self.registers.queue_sel as usize);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.identity.device_id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => word(self.identity.features, self.registers.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |_| MAX_SIZE.into()),
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(Ring::ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.registers.interrupt_status,
            VIRTIO_MMIO_STATUS => self.registers.status,
            // There is no shared memory, which reads as -1.
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            // Among them ConfigGeneration: the configuration never changes.
            _ => 0,
        }
    }

    /// The driver writes at `offset` in the device's slot.
    pub fn write(&mut self, offset: u64, data: &[u8], memory: &Reach) -> Option<Request> {
        if offset >= u64::from(VIRTIO_MMIO_CONFIG) {
            self.fail(Misuse::ConfigWritten);
            return None;
        }
        let register = register(offset, data.len())?;
        let value = u32::from_le_bytes(data.try_into().ok()?);
        match self.write_register(register, value, memory) {
            Ok(request) => request,
            Err(misuse) => {
                self.fail(misuse);
                None
            }
        }
    }

    fn write_register(&mut self, register: u32, value: u32, memory: &Reach) -> Result<Option<Request>, Misuse> {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) => {
                let selector = self.registers.driver_features_sel;
                set_word(&mut self.registers.driver_features, selector, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NUM => self.set_ring(|ring| ring.size = value),
            VIRTIO_MMIO_QUEUE_DESC_LOW => self.set_ring(|ring| set_word(&mut ring.descriptors, 0, value)),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => self.set_ring(|ring| set_word(&mut ring.descriptors, 1, value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => self.set_ring(|ring| set_word(&mut ring.driver, 0, value)),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => self.set_ring(|ring| set_word(&mut ring.driver, 1, value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => self.set_ring(|ring| set_word(&mut ring.device, 0, value)),
            VIRTIO_MMIO_QUEUE_USED_HIGH => self.set_ring(|ring| set_word(&mut ring.device, 1, value)),
            VIRTIO_MMIO_QUEUE_READY => self.set_ready(value, memory)?,
            VIRTIO_MMIO_QUEUE_NOTIFY => return self.notified(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.registers.interrupt_status &= !value,
            VIRTIO_MMIO_STATUS => return Ok(self.set_status(value)),
            _ => {} // not there, or only to be read
        }
        Ok(None)
    }

    fn set_ring(&mut self, set: impl FnOnce(&mut RingRegisters)) {
        if let Some(registers) = self.rings.get_mut(self.registers.queue_sel as usize).and_then(Ring::registers) {
            set(registers);
        }
    }

    fn set_ready(&mut self, value: u32, memory: &Reach) -> Result<(), Misuse> {
        let in_turn = self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.has(VIRTIO_CONFIG_S_DRIVER_OK);
        let event_idx = self.event_idx();
        let ring = self.rings.get_mut(self.registers.queue_sel as usize);
        match (value, ring) {
            (0, Some(ring)) => {
                ring.disable();
                Ok(())
            }
            (0, None) => Ok(()),
            (_, Some(ring)) if in_turn => ring.enable(memory, event_idx),
            (_, Some(_)) => Err(Misuse::ReadyOutOfTurn),
            (_, None) => Err(Misuse::NoSuchQueue),
        }
    }

    fn notified(&mut self, value: u32) -> Result<Option<Request>, Misuse> {
        if !self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            return Err(Misuse::NotifiedTooEarly);
        }
        let index = value as usize;
        if !self.rings.get(index).is_some_and(Ring::ready) {
            return Err(Misuse::NoSuchQueue);
        }
        Ok(self.live().then_some(Request::Look(index)))
    }

    fn set_status(&mut self, value: u32) -> Option<Request> {
        if value == 0 {
            self.registers = Registers::default();
            self.rings = std::array::from_fn(|_| Ring::default());
            return None;
        }
        let was_live = self.live();
        // A driver takes no bit back but by a reset.
        let mut status = self.registers.status | (value & DRIVER_STATUS);
        if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.features_fit() {
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            status &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.registers.status = status;
        (self.live() && !was_live).then_some(Request::Start)
    }

    /// Whether what the driver has chosen is on offer and goes together.
    fn features_fit(&self) -> bool {
        let chosen = self.registers.driver_features;
        chosen & !self.identity.features == 0
            && chosen & (1 << VIRTIO_F_VERSION_1) != 0
            && self.identity.needs.iter().all(|(feature, needs)| chosen & feature == 0 || chosen & needs == *needs)
    }

    fn event_idx(&self) -> bool {
        self.negotiated() & (1 << VIRTIO_RING_F_EVENT_IDX) != 0
    }

    fn has(&self, status: u32) -> bool {
        self.registers.status & status != 0
    }
}

/// The register that an access means, if it means one.
fn register(offset: u64, length: usize) -> Option<u32> {
    (length == 4 && offset.is_multiple_of(4)).then_some(offset as u32)
}

/// 32 bits out of 64, by a selector; there are no others.
fn word(bits: u64, selector: u32) -> u32 {
    match selector {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn set_word(bits: &mut u64, selector: u32, value: u32) {
    match selector {
        0 => *bits = *bits & !0xffff_ffff | u64::from(value),
        1 => *bits = *bits & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}
