//! Virtio devices behind the virtio-mmio transport (virtio 1.2, section 4.2). A device reads and writes its rings only at instants: at a
//! notification, which is an exit, or when an event brings it something.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`mmio`] | the transport: registers, negotiation, reset, interrupts |
//! | [`ring`] | one split virtqueue: chains taken, checked and given back |
//! | [`reach`] | guest memory as a device reaches it |
//! | [`misuse`] | what a driver can do wrong, and how a state can be none |
//! | [`net`] | the network card |

pub mod misuse;
pub mod mmio;
pub mod net;
pub mod reach;
pub mod ring;
