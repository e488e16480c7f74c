//! What a backup shows of itself: for its driver, for `status`, for tests.

use super::{Backup, State};
use crate::replication::message::Hello;

impl Backup {
    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The pair's generation, then the one won; 0 before the primary's hello.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The primary, as it introduced itself.
    pub fn peer(&self) -> Option<&Hello> {
        self.peer.as_deref()
    }

    /// Entries received, all of them acknowledged while the connection stood.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Entries executed.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// The guest's clock by the primary's last heartbeat, ns.
    pub fn guest_clock_ns(&self) -> u64 {
        self.guest_clock_ns
    }

    /// When the primary was last heard, ns; `None` without a connection.
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
