//! Virtio devices behind the virtio-mmio transport (virtio 1.2, section 4.2). A device reads and writes its rings only at instants: at a
//! notification, which is an exit, or when an event brings it something.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`mmio`] | the transport: registers, negotiation, reset, interrupts |
//! | [`ring`] | one split virtqueue: chains taken, checked and given back |
//! | [`buffers`] | the pieces of memory that a chain names |
//! | [`reach`] | guest memory as a device reaches it |
//! | [`misuse`] | what a driver can do wrong, and how a state can be none |
//! | [`net`] | the network card |
//! | [`blk`] | the disk |

pub mod blk;
pub mod buffers;
pub mod misuse;
pub mod mmio;
pub mod net;
pub mod reach;
pub mod ring;

use crate::machine::memory::Memory;

/// What every device in a slot does for its driver.
pub trait Device {
    /// The guest reads at `offset` in the device's slot.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes at `offset` in the device's slot. True: there may be something to hand out.
    fn write(&mut self, offset: u64, data: &[u8], memory: &Memory) -> bool;
    /// Whether the interrupt line has pulsed since the last call.
    fn take_edge(&mut self) -> bool;
}

impl Device for net::Nic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8], memory: &Memory) -> bool {
        self.write(offset, data, memory)
    }

    fn take_edge(&mut self) -> bool {
        self.take_edge()
    }
}

impl Device for blk::Blk {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8], memory: &Memory) -> bool {
        self.write(offset, data, memory)
    }

    fn take_edge(&mut self) -> bool {
        self.take_edge()
    }
}
