//! What a driver can do wrong with a device. It costs the driver its device, until it resets it, and nobody else anything:
//! the device sets `DEVICE_NEEDS_RESET` and leaves its queues alone from there on.

use bincode::{Decode, Encode};

/// What a driver did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Encode, Decode)]
pub enum Misuse {
    /// QueueReady before FEATURES_OK or after DRIVER_OK.
    #[error("a queue was made ready before the features were agreed on or after the driver was")]
    ReadyOutOfTurn,
    /// QueueReady for a queue that the device does not have, or QueueNotify for one that is not ready.
    #[error("there is no such queue, or it is not ready")]
    NoSuchQueue,
    /// QueueReady with a bad QueueNum.
    #[error("the size of a queue is not a power of two from 1 to 256")]
    QueueSize,
    /// QueueReady with rings that are not aligned or do not lie in memory.
    #[error("a ring is misaligned or not in memory")]
    RingPlace,
    /// QueueNotify before DRIVER_OK.
    #[error("a queue was notified before the driver was ready")]
    NotifiedTooEarly,
    /// A write to the configuration space, all of which is read-only.
    #[error("the configuration space was written")]
    ConfigWritten,
    /// More chains available than the queue has entries.
    #[error("the available index is further ahead than the queue is long")]
    AvailableIndex,
    /// A loop, more than 256 descriptors, an index beyond the table, more than 4 GiB, or a bad indirect table.
    #[error("a descriptor chain does not end, or its table is broken")]
    Chain,
    /// A buffer that is empty or does not lie in memory.
    #[error("a buffer is empty or not in memory")]
    Buffer,
    /// A buffer to be written in the transmit queue, one to be read in the receive queue, or one to be read behind one to be written.
    #[error("a buffer is for the other direction")]
    Direction,
    /// A disk request that has no whole header, or no place for its status.
    #[error("a disk request has no whole header or no byte for its status")]
    Request,
    /// A chain that the device still has was made available again.
    #[error("a chain was made available that the device has not given back")]
    InFlight,
}

/// A state that no device can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Written by another version.
    #[error("the state of a device has version {0}, which is not known here")]
    Version(u32),
    /// Features that the device does not offer.
    #[error("the state of a device has features that it does not offer: {0:#x}")]
    Features(u64),
    /// A ready queue that cannot be one.
    #[error("the state of a device has a queue that cannot be: {0}")]
    Queue(Misuse),
    /// A request in flight that cannot be; its number.
    #[error("the state of a disk has a request in flight that cannot be: {0}")]
    InFlight(u64),
}
