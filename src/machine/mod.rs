//! The deterministic machine: vCPU, memory, boot, instants, digests. Imports no clock, no socket,
//! no tokio; everything non-deterministic comes in through the [`doors`].

pub mod blank;
pub mod blocks;
pub mod boot;
pub mod cpuid;
pub mod digest;
pub mod divergence;
pub mod doors;
pub mod instant;
pub mod memory;
pub mod memory_digest;
pub mod packets;
pub mod pages;
pub mod run;
pub mod safepoint;
pub mod snapshot;
pub mod vcpu;
pub mod vcpu_state;

pub use blank::Blank;
pub use run::{Machine, MachineError, Tracking};
