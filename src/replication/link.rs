//! Silence, heartbeats and fencing tokens: one connection as a state machine sees it.
//!
//! Silence is measured from the last message *processed*, and is checked before the next one is. A process that was
//! stopped and wakes up therefore suspects first, and whatever waited in its buffers comes too late; no rule
//! for time jumps is needed beside this one.

use super::Violation;
use super::fence::Fence;
use super::message::Kind;

/// How far a connection has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// There is none.
    Down,
    /// There is one, and nobody has said hello.
    Open,
    /// Hellos begin: heartbeats go out.
    Greeted,
}

/// A number that is shown and that no decision reads: equal to every other, so that states that differ only
/// in it are one state to a model checker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observed(pub u64);

impl PartialEq for Observed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Observed {}

impl std::hash::Hash for Observed {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    phase: Phase,
    /// When something was last heard, ns.
    heard_at: u64,
    /// When the next heartbeat is due, ns.
    beat_at: u64,
    /// Which generation the other side may speak for.
    pub(super) fence: Fence,
    /// Heartbeats heard, ever.
    pub(super) heartbeats: Observed,
    /// Messages refused for their generation, ever.
    pub(super) fenced: Observed,
}

impl Link {
    /// No connection.
    pub fn down() -> Self {
        let (heartbeats, fenced) = (Observed(0), Observed(0));
        Link { phase: Phase::Down, heard_at: 0, beat_at: 0, fence: Fence::Unknown, heartbeats, fenced }
    }

    /// A new connection; it replaces what was there. Of generations its other side may speak for what `fence` says.
    pub fn open(&mut self, now: u64, fence: Fence) {
        self.phase = Phase::Open;
        self.heard_at = now;
        self.fence = fence;
    }

    /// A message of this kind has come with this token. An error: the connection is to be given up.
    pub fn admit(&mut self, kind: Kind, generation: u64) -> Result<(), Violation> {
        let admitted = self.fence.admit(kind, generation);
        self.fenced.0 += u64::from(admitted.is_err());
        admitted
    }

    /// Heartbeats begin, the first at once.
    pub fn greet(&mut self, now: u64) {
        self.phase = Phase::Greeted;
        self.beat_at = now;
    }

    /// The connection is gone. Returns whether there was one.
    pub fn close(&mut self) -> bool {
        let was_up = self.is_up();
        self.phase = Phase::Down;
        // What belongs to a connection means nothing when it is down; equal states should be equal.
        self.heard_at = 0;
        self.beat_at = 0;
        self.fence = Fence::Unknown;
        was_up
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        match self.phase {
            Phase::Down => false,
            Phase::Open | Phase::Greeted => true,
        }
    }

    /// How far the connection has got.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Something was heard.
    pub fn heard(&mut self, now: u64) {
        if self.is_up() {
            self.heard_at = now;
        }
    }

    /// When something was last heard, ns; `None` without a connection.
    pub fn heard_at(&self) -> Option<u64> {
        self.is_up().then_some(self.heard_at)
    }

    /// The silence, if it has lasted too long.
    pub fn silence(&self, now: u64, timeout_ns: u64) -> Option<u64> {
        let silence = now.saturating_sub(self.heard_at);
        (self.is_up() && silence >= timeout_ns).then_some(silence)
    }

    /// Whether a heartbeat is due; if so, the next one is due an interval from now.
    pub fn beat(&mut self, now: u64, heartbeat_ns: u64) -> bool {
        let due = self.phase == Phase::Greeted && now >= self.beat_at;
        if due {
            self.beat_at = now.saturating_add(heartbeat_ns);
        }
        due
    }

    /// When this connection needs attention next, ns.
    pub fn deadline(&self, timeout_ns: u64) -> Option<u64> {
        let silent_at = self.heard_at.saturating_add(timeout_ns);
        match self.phase {
            Phase::Down => None,
            Phase::Open => Some(silent_at),
            Phase::Greeted => Some(silent_at.min(self.beat_at)),
        }
    }
}
