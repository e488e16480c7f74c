//! What a member has of the ensemble's state, and who on it waits for what: shared by the consensus, which applies entries, and the
//! connections, which ask and propose.
//!
//! Locks are taken in the order of the fields. A connection holds the state for reading while it answers, so that what it says and
//! the events that it has are of one moment: whatever is applied later is in its mailbox later.

pub mod mailbox;
mod observer;
pub mod pending;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

use self::mailbox::{CloseReason, Item, Mailbox};
use self::pending::{Pending, Waiter};
use crate::log::proposal::Proposal;
use crate::log::store::Identity;
use crate::raft::{LogId, Membership};
use crate::tree::Tree;
use crate::watch::{Watcher, Watches};

/// The state as far as it has been applied here.
#[derive(Debug, Default)]
pub struct State {
    /// Nodes and sessions.
    pub tree: Tree,
    /// The last entry that was applied.
    pub applied: Option<LogId>,
    /// The members.
    pub membership: Membership,
}

/// The connections of this member.
#[derive(Debug, Default)]
struct Connections {
    open: BTreeMap<Watcher, Arc<Mailbox>>,
    /// The connection that a session goes on over, if it does so here.
    sessions: BTreeMap<i64, Arc<Mailbox>>,
}

/// See the module.
pub struct Replica {
    /// Who this member is.
    pub me: Identity,
    state: RwLock<State>,
    pending: Mutex<Pending>,
    connections: Mutex<Connections>,
    watches: Mutex<Watches>,
    /// There is something new to be sent to the leader.
    proposed: Notify,
    next_watcher: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replica {
    /// With this state to begin with.
    pub fn new(me: Identity, state: State) -> Arc<Self> {
        Arc::new(Replica {
            me,
            state: RwLock::new(state),
            pending: Mutex::new(Pending::new(me)),
            connections: Mutex::default(),
            watches: Mutex::default(),
            proposed: Notify::new(),
            next_watcher: AtomicU64::new(1),
        })
    }

    /// The state. Nothing is applied while somebody holds it.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watches; whoever looks at the state as well takes that first.
    pub fn watches(&self) -> MutexGuard<'_, Watches> {
        lock(&self.watches)
    }

    /// What is under way to the leader.
    pub fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    /// Proposes something.
    pub fn propose(&self, proposal: &Proposal<'_>, waiter: Waiter) {
        lock(&self.pending).push(proposal, waiter);
        self.proposed.notify_one();
    }

    /// Waits until something was proposed. Cancelling the wait loses nothing.
    pub async fn proposed(&self) {
        self.proposed.notified().await;
    }

    /// A number for a new connection.
    pub fn number_connection(&self) -> Watcher {
        self.next_watcher.fetch_add(1, Relaxed)
    }

    /// A connection is there.
    pub fn connect(&self, mailbox: &Arc<Mailbox>) {
        lock(&self.connections).open.insert(mailbox.watcher(), mailbox.clone());
    }

    /// A connection is gone, with its watches.
    pub fn disconnect(&self, mailbox: &Arc<Mailbox>) {
        let mut connections = lock(&self.connections);
        connections.open.remove(&mailbox.watcher());
        connections.sessions.retain(|_, other| !Arc::ptr_eq(other, mailbox));
        drop(connections);
        self.watches().forget(mailbox.watcher());
    }

    /// The number of the last change that was applied here.
    pub fn zxid(&self) -> i64 {
        self.state().tree.zxid()
    }

    /// Addresses and sessions of the clients that have one.
    pub fn clients(&self) -> Vec<(String, i64)> {
        let connections = lock(&self.connections);
        let clients = connections.sessions.iter();
        clients
            .map(|(session, mailbox)| (mailbox.ids().first().map_or("?".into(), |id| id.id.clone()), *session))
            .collect()
    }

    /// How many connections there are.
    pub fn connection_count(&self) -> usize {
        lock(&self.connections).open.len()
    }

    /// Sessions of this member's connections that were heard since this was asked last.
    pub fn heard_sessions(&self) -> Vec<i64> {
        let connections = lock(&self.connections);
        connections.sessions.iter().filter(|(_, mailbox)| mailbox.was_heard()).map(|(session, _)| *session).collect()
    }

    /// Closes all connections: their clients are better off elsewhere.
    pub fn close_all(&self, reason: CloseReason) {
        for mailbox in lock(&self.connections).open.values() {
            mailbox.send(Item::Close(reason));
        }
    }
}
