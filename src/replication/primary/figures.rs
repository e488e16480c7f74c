//! What a primary shows of itself: for its driver, for `status`, for tests.

use super::{Primary, State};
use crate::replication::message::Hello;

impl Primary {
    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The generation it holds; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The backup, as it introduced itself; after a failure the last one.
    pub fn peer(&self) -> Option<&Hello> {
        self.peer.as_deref()
    }

    /// Entries of the log.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// Entries acknowledged by the backup.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Outputs of entries below this number are known to have left: what [`Input::Left`](super::Input::Left) has to say is more.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Entries executed by the backup.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// Execution lag of the backup at its last acknowledgement, ns: the age of the oldest frame that it has not
    /// executed.
    pub fn lag_ns(&self) -> u64 {
        self.flow.lag_ns()
    }

    /// How much the guest is slowed down, per mille of its full speed.
    pub fn slow_down_per_mille(&self) -> u16 {
        self.flow.slow_down_per_mille()
    }

    /// Bytes of the log not acknowledged.
    pub fn unacked_bytes(&self) -> u64 {
        self.flow.unacked_bytes()
    }

    /// Whether the vCPU may append to the log; `false` between [`Action::Stall`](super::Action::Stall) and [`Action::Resume`](super::Action::Resume).
    pub fn may_append(&self) -> bool {
        !self.flow.is_stalled()
    }

    /// When the backup was last heard, ns; `None` without a connection.
    pub fn heard_at(&self) -> Option<u64> {
        self.link.heard_at()
    }

    /// Heartbeats heard.
    pub fn heartbeats(&self) -> u64 {
        self.link.heartbeats.0
    }

    /// Messages refused because of the generation that they spoke for.
    pub fn fenced(&self) -> u64 {
        self.link.fenced.0
    }
}
