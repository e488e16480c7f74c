//! Virtio devices behind the virtio-mmio transport (virtio 1.2, section 4.2). A device reads and writes its rings only at instants: at a
//! notification, which is an exit, or when an event brings it something.

pub mod net;
