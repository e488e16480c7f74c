//! Entries applied: the state changed, events told, answers given.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use openraft::EntryPayload;

use super::mailbox::{CloseReason, Item, Mailbox};
use super::pending::{Pending, Waiter};
use super::{Connections, Replica, State, lock};
use crate::log::proposal::Origin;
use crate::log::store::Identity;
use crate::raft::{Entry, LogId, Membership};
use crate::tree::acl::{self, Ids, perms};
use crate::tree::batch::{Applied, Observer};
use crate::tree::{Effect, Tree};
use crate::watch::{Watcher, Watches};

/// Tells whoever is concerned on this member.
struct Telling<'a> {
    me: Identity,
    pending: MutexGuard<'a, Pending>,
    connections: MutexGuard<'a, Connections>,
    watches: MutexGuard<'a, Watches>,
    /// Whose mailbox has something new.
    to_wake: BTreeMap<Watcher, Arc<Mailbox>>,
}

impl Telling<'_> {
    fn put(&mut self, mailbox: &Arc<Mailbox>, item: Item) {
        mailbox.put(item);
        self.to_wake.entry(mailbox.watcher()).or_insert_with(|| mailbox.clone());
    }
}

impl Observer for Telling<'_> {
    fn effects(&mut self, effects: &[Effect]) {
        for effect in effects {
            let (open, to_wake) = (&self.connections.open, &mut self.to_wake);
            self.watches.fire(effect, |watcher, kind, path, acl| {
                // Whoever may not read the node does not hear of it either.
                if let Some(mailbox) = open.get(&watcher)
                    && acl::allows(acl, perms::READ, Ids::of(&mailbox.encoded_ids()))
                {
                    mailbox.put(Item::Event(kind, path.clone()));
                    to_wake.entry(watcher).or_insert_with(|| mailbox.clone());
                }
            });
        }
    }

    fn applied(&mut self, origin: Origin, start: u64, number: u64, zxid: i64, applied: Applied) {
        if (Identity { member: origin, start }) != self.me {
            return;
        }
        let Some(waiter) = self.pending.applied(number) else { return };
        let Some(mailbox) = waiter.mailbox() else { return };
        if let Some(session) = waiter.session(zxid, &applied)
            && self.connections.open.contains_key(&mailbox.watcher())
        {
            self.connections.sessions.insert(session, mailbox.clone());
        }
        self.put(mailbox, Item::Applied { zxid, applied });
    }

    fn attached(&mut self, session: i64, _: i64) {
        if let Some(mailbox) = self.connections.sessions.remove(&session) {
            self.put(&mailbox, Item::Close(CloseReason::SessionMoved));
        }
    }

    fn closed(&mut self, session: i64) {
        if let Some(mailbox) = self.connections.sessions.remove(&session) {
            self.put(&mailbox, Item::Close(CloseReason::SessionOver));
        }
    }
}

impl Replica {
    /// Applies entries, in order.
    pub fn apply(&self, entries: impl IntoIterator<Item = Entry>) -> usize {
        let mut state = self.state_mut();
        let mut telling = Telling {
            me: self.me,
            pending: lock(&self.pending),
            connections: lock(&self.connections),
            watches: lock(&self.watches),
            to_wake: BTreeMap::new(),
        };
        let mut count = 0;
        for entry in entries {
            count += 1;
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(batch) => {
                    state.tree.apply_batch(entry.log_id.leader_id.term, &batch, &mut telling);
                }
                EntryPayload::Membership(membership) => {
                    let nodes: Vec<Origin> = membership.nodes().map(|(member, _)| *member).collect();
                    state.tree.keep_origins(|origin| nodes.contains(origin));
                    state.membership = Membership::new(Some(entry.log_id), membership);
                }
            }
            state.applied = Some(entry.log_id);
        }
        let to_wake = std::mem::take(&mut telling.to_wake);
        // Woken before, they would only wait for these locks.
        drop(telling);
        drop(state);
        to_wake.into_values().for_each(|mailbox| mailbox.wake());
        count
    }

    /// Puts another state in the place of this one: this member was far behind. What its connections have seen and asked for is not
    /// known any more, so their clients have to come again.
    pub fn replace(&self, tree: Tree, applied: Option<LogId>, membership: Membership) {
        let mut state = self.state_mut();
        *state = State { tree, applied, membership };
        let last = state.tree.progress(&self.me.member).filter(|progress| progress.start == self.me.start);
        let lost = last.map(|progress| lock(&self.pending).lost(progress.last)).unwrap_or_default();
        for mailbox in lost.iter().filter_map(Waiter::mailbox) {
            mailbox.send(Item::Close(CloseReason::NotServing));
        }
        drop(state);
        self.close_all(CloseReason::NotServing);
    }
}
