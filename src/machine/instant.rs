//! Instants: where in the guest's execution something happened, the same on every replay.

use std::fmt;

/// A point of the guest's execution, counted by what the guest itself does.
///
/// Ordered lexicographically. Within one value of `exits` the safepoint count only grows, and the
/// doorbell stop at count `p` comes after the exit (if any) that was taken at a count below `p`, so
/// every point where an event may be delivered has an instant of its own.
#[derive(bincode::Encode, bincode::Decode, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    /// Guest-caused exits so far (device access, `hlt`); doorbells do not count.
    pub exits: u64,
    /// Safepoints passed so far: the count in the safepoint page; 0 until the guest has one.
    pub polls: u64,
}

impl Instant {
    /// The instant at which the guest has not executed anything.
    pub const BOOT: Instant = Instant { exits: 0, polls: 0 };

    /// The instant with these counts.
    pub const fn new(exits: u64, polls: u64) -> Self {
        Instant { exits, polls }
    }
}

/// `exits:polls`, as `lockstep log` prints it.
impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.exits, self.polls)
    }
}
