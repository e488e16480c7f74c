//! What the tasks of a member share.

use std::sync::Arc;

use bytes::Bytes;
use openraft::ServerState;
use tokio::sync::{mpsc, watch};

use crate::client::statistics::Statistics;
use crate::log::store::Identity;
use crate::member::{Address, MemberId};
use crate::peer::link::Links;
use crate::raft::contact::Contact;
use crate::raft::{LogId, Raft};
use crate::replica::Replica;
use crate::sessions::Sessions;
use crate::settings::{Settings, World};

/// A member.
pub struct Core<N> {
    /// Who it is.
    pub me: Identity,
    /// Where it is.
    pub address: Address,
    /// Its numbers.
    pub settings: Settings,
    /// Clock and random numbers.
    pub world: World,
    /// The consensus.
    pub raft: Raft,
    /// The state.
    pub replica: Arc<Replica>,
    /// The ways to the others.
    pub links: Arc<Links<N>>,
    /// When the leader was heard.
    pub contact: Contact,
    /// When sessions were heard, where this member leads.
    pub sessions: Sessions,
    /// Groups of proposals, for the leader.
    pub proposals: mpsc::Sender<Bytes>,
    /// Whether clients are served.
    pub serving: watch::Sender<bool>,
    /// What was done for clients.
    pub statistics: Statistics,
    /// Whether the group goes on without this member.
    pub removed: watch::Sender<bool>,
    /// Held while the members are being changed.
    pub changing: tokio::sync::Mutex<()>,
}

impl<N> Core<N> {
    /// Whether this member, which leads, was answered by a majority a moment ago.
    pub fn has_majority(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let answered = |member: &MemberId| {
            *member == self.me.member || self.links.answered(*member).is_some_and(|ago| ago < self.settings.patience)
        };
        let configs = metrics.membership_config.membership().get_joint_config();
        configs.iter().all(|config| 2 * config.iter().filter(|member| answered(member)).count() > config.len())
    }

    /// Whether this member can do for its clients what they came for: it leads a majority, or follows who does. An election takes a
    /// moment, and nobody is sent away for it: what was asked for meanwhile is carried out by the next leader.
    pub fn can_serve(&self) -> bool {
        if self.leads().is_some() && self.has_majority() {
            self.contact.note(self.me.member);
            return true;
        }
        self.contact.heard().led.is_some_and(|led| led.elapsed() < self.settings.patience)
    }

    /// The term in which this member leads, if it does.
    pub fn leads(&self) -> Option<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        (metrics.state == ServerState::Leader).then(|| metrics.vote.leader_id.term)
    }

    /// The last entry that was applied here.
    pub fn applied(&self) -> Option<LogId> {
        self.replica.state().applied
    }
}
