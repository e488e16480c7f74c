//! When this member last heard of its leader.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::member::MemberId;

/// What is known of the leader's being there.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// Who leads, as far as this member has been told.
    pub leader: Option<MemberId>,
    /// When it, or somebody who might become it, was last heard: an election begins some time after.
    pub at: Instant,
    /// When somebody last led: clients are served for some time after.
    pub led: Option<Instant>,
    /// Since when its connection is closed: a process that has died is noticed at once.
    pub gone: Option<Instant>,
}

/// See the module.
pub struct Contact {
    heard: Mutex<Heard>,
    lost: Notify,
}

impl Default for Contact {
    fn default() -> Self {
        Contact {
            heard: Mutex::new(Heard { leader: None, at: Instant::now(), led: None, gone: None }),
            lost: Notify::new(),
        }
    }
}

impl Contact {
    /// What is known.
    pub fn heard(&self) -> Heard {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leader was heard.
    pub fn note(&self, leader: MemberId) {
        let now = Instant::now();
        let heard = Heard { leader: Some(leader), at: now, led: Some(now), gone: None };
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
    }

    /// This member has given its vote: whoever has it is given the time to win.
    pub fn voted(&self) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        *heard = Heard { leader: None, at: Instant::now(), gone: None, led: heard.led };
    }

    /// A message of `member` has come in. It counts only if that is the leader as far as is known.
    pub fn note_if_leader(&self, member: MemberId) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.leader == Some(member) {
            let now = Instant::now();
            (heard.at, heard.led, heard.gone) = (now, Some(now), None);
        }
    }

    /// The connection over which `member` speaks is closed.
    pub fn closed(&self, member: MemberId) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.leader == Some(member) && heard.gone.is_none() {
            heard.gone = Some(Instant::now());
            self.lost.notify_one();
        }
    }

    /// Waits until the leader's connection is closed. Cancelling the wait loses nothing.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }
}
