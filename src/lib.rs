//! lockstep: a virtual machine that survives the death of its host, by deterministic replay.

pub mod cli;
pub mod console;
pub mod log;
pub mod machine;
