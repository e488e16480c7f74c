//! lockstep: a virtual machine that survives the death of its host, by deterministic replay.

pub mod arbiter;
pub mod backends;
pub mod bench;
pub mod cli;
pub mod console;
pub mod devices;
pub mod doors;
pub mod guest;
pub mod host;
pub mod log;
pub mod machine;
pub mod replication;
