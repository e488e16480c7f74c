//! The model's pair of hosts: bounds and names.

pub mod actions;
pub mod arbiter;
pub mod machine;
pub mod state;

use actions::{Plant, Start};

/// Far above the number of frames that are ever sent at one time: stamps differ by one there.
pub const TIMEOUT: u64 = 1000;
pub const ENTRIES: u64 = 2;
/// Time moves by half a time-out, so that one side may be silent while the other is heard.
pub const STEP: u64 = TIMEOUT / 2;
/// Enough for every way through the faults, few enough to visit every state in seconds.
pub const ONCE: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// It starts as the primary.
    A,
    /// It starts as the backup.
    B,
}
pub use Side::{A, B};

impl std::ops::Not for Side {
    type Output = Side;

    fn not(self) -> Side {
        match self {
            A => B,
            B => A,
        }
    }
}

pub struct Pair {
    pub plant: Plant,
    pub start: Start,
    pub steps: u64,
    /// Questions to the arbiter that are given up.
    pub give_ups: u8,
}
