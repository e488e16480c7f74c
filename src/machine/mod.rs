//! The deterministic machine: vCPU, memory, boot, instants, digests. Imports no clock, no socket,
//! no tokio; everything non-deterministic comes in through the [`doors`].

pub mod digest;
pub mod divergence;
pub mod doors;
pub mod instant;
pub mod snapshot;
