//! The numbers of a member, and what it has of the outside world.

use std::sync::Arc;
use std::time::Duration;

/// The numbers of a member.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time between two signs of life of a leader.
    pub heartbeat: Duration,
    /// Silence of a leader after which a member asks the others for their votes: at least, and at most. Each time another one is drawn.
    pub election: (Duration, Duration),
    /// How long a member that has lost the majority goes on serving its clients.
    pub patience: Duration,
    /// The shortest time-out that a session may have.
    pub min_session: Duration,
    /// The longest.
    pub max_session: Duration,
    /// Connections of clients at one time.
    pub max_connections: usize,
    /// The most bytes of a client's frame (ZooKeeper's `jute.maxbuffer`).
    pub max_frame: usize,
    /// Entries of the log after which a snapshot is taken.
    pub snapshot_entries: u64,
    /// Bytes of the log after which a snapshot is taken.
    pub snapshot_bytes: u64,
    /// Time between two looks for containers that are to go.
    pub container_check: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Settings {
            heartbeat: ms(40),
            election: (ms(150), ms(300)),
            patience: ms(1000),
            min_session: ms(400),
            max_session: ms(60_000),
            max_connections: 4096,
            max_frame: 0xf_ffff,
            snapshot_entries: 50_000,
            snapshot_bytes: 64 << 20,
            container_check: ms(60_000),
        }
    }
}

/// The settings make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Signs of life must come more than twice as often as their absence is noticed.
    #[error("an election time-out must be at least twice the heartbeat, and the largest one larger than the smallest")]
    Times,
    /// The limits of sessions.
    #[error("the shortest time-out of a session must be above 0 and not above the longest")]
    Sessions,
}

impl Settings {
    /// The settings, if they make sense.
    pub fn checked(self) -> Result<Self, SettingsError> {
        let (least, most) = self.election;
        if self.heartbeat.is_zero() || least < 2 * self.heartbeat || most <= least {
            return Err(SettingsError::Times);
        }
        if self.min_session.is_zero() || self.min_session > self.max_session {
            return Err(SettingsError::Sessions);
        }
        Ok(self)
    }

    /// How long a member that has heard of a leader gives its vote to nobody else. Below the shortest election time-out, so that
    /// whoever has waited for that gets it.
    pub fn lease(&self) -> Duration {
        (self.election.0 * 5 / 6).max(self.heartbeat * 2)
    }

    /// How long a message with entries may take before it is sent again.
    pub fn append_time(&self) -> Duration {
        (self.heartbeat * 6).max(Duration::from_millis(250))
    }
}

/// Fills with random bytes.
pub type Random = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// What a member has of the outside world beside network and disk.
#[derive(Clone)]
pub struct World {
    /// Milliseconds since 1970. The times of nodes are made of it, and nothing else.
    pub wall_ms: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Fills with random bytes that nobody can guess.
    pub random: Random,
}

impl World {
    /// A random number.
    pub fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        (self.random)(&mut bytes);
        u64::from_ne_bytes(bytes)
    }

    /// A random time between these.
    pub fn between(&self, least: Duration, most: Duration) -> Duration {
        let span = most.saturating_sub(least).as_micros().max(1) as u64;
        least + Duration::from_micros(self.number() % span)
    }
}
