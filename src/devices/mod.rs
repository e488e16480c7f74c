//! Device models: register machines without time, sockets or threads. What the world does to them is an
//! event; what they need to know about the world they ask at the input door; a notification is
//! processed at once, at the exit that brought it.

pub mod pic;
pub mod pit;
pub mod pv;
pub mod uart;
pub mod virtio;

use bincode::{Decode, Encode};
use lockstep_abi::virtio::{DISK_SLOT, FIRST_IRQ, MMIO_STRIDE, NET_SLOT};
use lockstep_abi::{irq, port};
use xxhash_rust::xxh3::xxh3_64;

use crate::machine::blocks::{Completions, Requests};
use crate::machine::doors::{Halt, Inputs};
use crate::machine::instant::Instant;
use crate::machine::memory::Memory;
use crate::machine::packets::{Offloads, Packets};
use crate::machine::snapshot::{DiskConfig, NicConfig};

/// All devices of the machine, and the address decoding in front of them.
pub struct Devices {
    /// Interrupt controller.
    pub pic: pic::Pic,
    /// Timer.
    pub pit: pit::Pit,
    /// Console.
    pub uart: uart::Uart,
    /// Paravirtual register page.
    pub pv: pv::Pv,
    /// Network card, if the machine has one.
    pub nic: Option<virtio::net::Nic>,
    /// Disk, if the machine has one.
    pub blk: Option<virtio::blk::Blk>,
    /// What the guest wrote to the debug-exit port.
    pub exit_code: Option<u8>,
}

/// Version of [`DevicesState`]; part of what is digested.
const STATE_VERSION: u32 = 4;

/// The state of all devices, for digests (and, with state transfer, for snapshots).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DevicesState {
    version: u32,
    pic: pic::Pic,
    pit: pit::Pit,
    uart: uart::UartState,
    pv: pv::Pv,
    nic: Option<virtio::net::NicState>,
    blk: Option<virtio::blk::BlkState>,
    exit_code: Option<u8>,
}

/// A state that the devices cannot be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceStateError {
    /// Written by another version.
    #[error("the state of the devices has version {0}, not {STATE_VERSION}")]
    Version(u32),
    /// The interrupt controller.
    #[error("the state of the interrupt controller cannot be")]
    Pic,
    /// The timer.
    #[error("the state of the timer cannot be")]
    Pit,
    /// The serial port.
    #[error("the state of the serial port has more bytes on their way than it holds")]
    Uart,
    /// A device that the machine does not have, or one that it has and the state has not.
    #[error("the state is that of a machine with another {0}")]
    OtherMachine(&'static str),
    /// A virtio device.
    #[error("the {device}")]
    Virtio {
        /// Which.
        device: &'static str,
        /// What is wrong with its state.
        #[source]
        source: virtio::misuse::StateError,
    },
    /// The guest has ended.
    #[error("the state is that of a guest that has ended")]
    Ended,
}

/// Where a port belongs.
enum Port {
    Pic { slave: bool, offset: u16 },
    Pit(u16),
    Uart(u8),
    DebugExit,
    Unclaimed,
}

fn decode(at: u16) -> Port {
    match at {
        port::PIC_MASTER | 0x21 => Port::Pic { slave: false, offset: at & 1 },
        port::PIC_SLAVE | 0xa1 => Port::Pic { slave: true, offset: at & 1 },
        port::PIT..=0x43 => Port::Pit(at & 3),
        port::COM1..=0x3ff => Port::Uart((at & 7) as u8),
        port::DEBUG_EXIT..=0xf7 => Port::DebugExit,
        _ => Port::Unclaimed,
    }
}

impl Devices {
    /// Devices as after power-on, of a machine that booted at `boot_time_ns` since 1970 UTC and has the network card `net` and the disk `disk`.
    pub fn new(boot_time_ns: u64, net: Option<NicConfig>, disk: Option<DiskConfig>) -> Self {
        Devices {
            pic: pic::Pic::default(),
            pit: pit::Pit::default(),
            uart: uart::Uart::default(),
            pv: pv::Pv::new(boot_time_ns),
            nic: net.map(virtio::net::Nic::new),
            blk: disk.map(virtio::blk::Blk::new),
            exit_code: None,
        }
    }

    /// The devices in `state`, of a machine with this network card and disk.
    pub fn from_state(
        state: &DevicesState,
        net: Option<NicConfig>,
        disk: Option<DiskConfig>,
    ) -> Result<Self, DeviceStateError> {
        if state.version != STATE_VERSION {
            return Err(DeviceStateError::Version(state.version));
        }
        if !state.pic.is_valid() {
            return Err(DeviceStateError::Pic);
        }
        if !state.pit.is_valid() {
            return Err(DeviceStateError::Pit);
        }
        if state.exit_code.is_some() {
            return Err(DeviceStateError::Ended);
        }
        let nic = match (&state.nic, net) {
            (None, None) => None,
            (Some(nic), Some(config)) if nic.config() == config => {
                let failed = |source| DeviceStateError::Virtio { device: "network card", source };
                Some(virtio::net::Nic::from_state(nic).map_err(failed)?)
            }
            _ => return Err(DeviceStateError::OtherMachine("network card")),
        };
        let uart = uart::Uart::from_state(&state.uart).ok_or(DeviceStateError::Uart)?;
        let blk = match (&state.blk, disk) {
            (None, None) => None,
            (Some(blk), Some(config)) if blk.config() == config => {
                let failed = |source| DeviceStateError::Virtio { device: "disk", source };
                Some(virtio::blk::Blk::from_state(blk).map_err(failed)?)
            }
            _ => return Err(DeviceStateError::OtherMachine("disk")),
        };
        Ok(Devices { pic: state.pic, pit: state.pit, uart, pv: state.pv, nic, blk, exit_code: None })
    }

    /// As after power-on, of the same machine: it keeps what it is told of the wall clock at its boot.
    pub fn reset(&mut self, net: Option<NicConfig>, disk: Option<DiskConfig>) {
        let mut blk = self.blk.take();
        if let Some(blk) = &mut blk {
            blk.power_on_again();
        }
        *self = Devices { blk, ..Devices::new(self.pv.boot_time_ns(), net, disk) };
    }

    /// Reads one byte from a port. An unclaimed port reads as all ones, as on a bus where nobody answers.
    pub fn read_port(&mut self, at: Instant, port: u16, door: &mut impl Inputs) -> Result<u8, Halt> {
        Ok(match decode(port) {
            Port::Pic { slave, offset } => self.pic.read(slave, offset),
            Port::Pit(offset) => {
                let now = if self.pit.read_needs_clock(offset) { door.clock(at)? } else { 0 };
                self.pit.read(offset, now)
            }
            Port::Uart(offset) => {
                let value = self.uart.read(offset);
                self.carry_edges();
                value
            }
            Port::DebugExit | Port::Unclaimed => 0xff,
        })
    }

    /// Writes one byte to a port. An unclaimed port swallows it.
    pub fn write_port(&mut self, at: Instant, port: u16, value: u8, door: &mut impl Inputs) -> Result<(), Halt> {
        match decode(port) {
            Port::Pic { slave, offset } => self.pic.write(slave, offset, value),
            Port::Pit(offset) => {
                let now = if self.pit.write_needs_clock(offset, value) { door.clock(at)? } else { 0 };
                self.pit.write(offset, value, now);
            }
            Port::Uart(offset) => {
                self.uart.write(offset, value);
                self.carry_edges();
            }
            Port::DebugExit => self.exit_code = self.exit_code.or(Some(value)),
            Port::Unclaimed => {}
        }
        Ok(())
    }

    /// The timer ticked.
    pub fn tick(&mut self) {
        self.pic.raise(irq::TIMER);
    }

    /// Bytes arrived at the console.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.uart.receive(bytes);
        self.carry_edges();
    }

    fn carry_edges(&mut self) {
        if self.uart.take_edge() {
            self.pic.raise(irq::COM1);
        }
        for slot in [NET_SLOT, DISK_SLOT] {
            if self.virtio_in(slot).is_some_and(|device| device.take_edge()) {
                self.pic.raise(FIRST_IRQ + slot as u8);
            }
        }
    }

    /// The device in a slot.
    fn virtio_in(&mut self, slot: u64) -> Option<&mut dyn virtio::Device> {
        match slot {
            NET_SLOT => self.nic.as_mut().map(|nic| nic as _),
            DISK_SLOT => self.blk.as_mut().map(|blk| blk as _),
            _ => None,
        }
    }

    /// Reads at `offset` from the first virtio slot. An empty slot reads as zeros, as on QEMU's `microvm`.
    pub fn read_virtio(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(device) = self.virtio_in(offset / MMIO_STRIDE) {
            device.read(offset % MMIO_STRIDE, data);
        }
    }

    /// Writes at `offset` from the first virtio slot. True: the device there was notified, and has something to hand out.
    pub fn write_virtio(&mut self, offset: u64, data: &[u8], memory: &Memory) -> bool {
        let device = self.virtio_in(offset / MMIO_STRIDE);
        let notified = device.is_some_and(|device| device.write(offset % MMIO_STRIDE, data, memory));
        self.carry_edges();
        notified
    }

    /// Packets that the network card has buffers for.
    pub fn packet_room(&self, memory: &Memory) -> usize {
        self.nic.as_ref().map_or(0, |nic| nic.room(memory))
    }

    /// What the guest takes off its network link.
    pub fn offloads(&self) -> Offloads {
        self.nic.as_ref().map_or(Offloads::default(), virtio::net::Nic::offloads)
    }

    /// Packets arrived.
    pub fn receive_packets(&mut self, memory: &Memory, packets: &Packets) {
        if let Some(nic) = &mut self.nic {
            nic.receive(memory, packets);
        }
        self.carry_edges();
    }

    /// Takes what the guest has queued for sending; see [`Nic::transmit`](virtio::net::Nic::transmit).
    pub fn transmit_packets(&mut self, memory: &Memory, packets: &mut Packets) {
        if let Some(nic) = &mut self.nic {
            nic.transmit(memory, packets);
        }
        self.carry_edges();
    }

    /// Takes what the guest asks of its disk; see [`Blk::take_requests`](virtio::blk::Blk::take_requests). True: some was answered at once.
    pub fn take_requests(&mut self, memory: &Memory, requests: &mut Requests) -> bool {
        let answered = self.blk.as_mut().is_some_and(|blk| blk.take_requests(memory, requests));
        self.carry_edges();
        answered
    }

    /// Requests to the disk came to their end.
    pub fn complete_requests(&mut self, memory: &Memory, completions: Completions) {
        if let Some(blk) = &mut self.blk {
            blk.complete_requests(memory, completions);
        }
        self.carry_edges();
    }

    /// The requests to the disk that have not come to their end, in order; see [`Blk::in_flight`](virtio::blk::Blk::in_flight).
    pub fn disk_in_flight(&self, memory: &Memory) -> Requests {
        self.blk.as_ref().map_or_else(Requests::new, |blk| blk.in_flight(memory))
    }

    /// The state of all devices.
    pub fn state(&self) -> DevicesState {
        DevicesState {
            version: STATE_VERSION,
            pic: self.pic,
            pit: self.pit,
            uart: self.uart.state(),
            pv: self.pv,
            nic: self.nic.as_ref().map(virtio::net::Nic::state),
            blk: self.blk.as_ref().map(virtio::blk::Blk::state),
            exit_code: self.exit_code,
        }
    }

    /// Hash of the state of all devices.
    pub fn digest(&self) -> u64 {
        let bytes = bincode::encode_to_vec(self.state(), bincode::config::standard()).expect("encoding to memory");
        xxh3_64(&bytes)
    }
}
