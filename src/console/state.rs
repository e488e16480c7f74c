//! The console's part of a machine's state: what a host that did not replay the guest from its boot has to know, so that clients find
//! their place on it.

use bincode::{Decode, Encode};

/// The most bytes of output that travel.
pub const MAX_OUTPUT: usize = 256 << 10;

/// The console at an instant: a pure function of the log up to there, but for how much of the output is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ConsoleState {
    /// Position of the first byte of `output` in the guest's stream.
    pub(super) start: u64,
    /// The newest output.
    pub(super) output: Vec<u8>,
    /// Session, offset and last entry of each keyboard stream that the log knows.
    pub(super) sessions: Vec<(u64, u64, u64)>,
    /// The highest entry in which a session typed that was forgotten since.
    pub(super) evicted_entry: Option<u64>,
}
