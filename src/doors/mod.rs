//! Who stands at the doors of the machine: the [world](live), a [log](replay), or first the one and then the other
//! ([takeover]).

pub mod live;
pub mod replay;
pub mod takeover;

use crate::machine::doors::ConsoleInput;

/// The console behind the doors: where output goes and input comes from. Called on the vCPU thread.
pub trait Console: Send + Sync {
    /// The guest wrote `bytes`, logged as `entry`. They may leave when that entry is safe.
    fn output(&self, entry: u64, bytes: &[u8]);
    /// Input to give to the guest, at most `room` bytes of it.
    fn take(&self, room: usize) -> Option<ConsoleInput>;
    /// `input` was given to the guest and logged as `entry`.
    fn logged(&self, input: &ConsoleInput, entry: u64);
    /// `input` was given to the guest, out of the log, where it is `entry`.
    fn replayed(&self, input: &ConsoleInput, entry: u64);
}
