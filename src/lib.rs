//! lockstep: a virtual machine that survives the death of its host, by deterministic replay.

pub mod backends;
pub mod devices;
pub mod doors;
pub mod guest;
pub mod log;
pub mod machine;
