//! What this member has proposed and not seen carried out.
//!
//! Proposals are numbered and kept until the state machine has met them. They are sent to whoever leads, in order; when the leader
//! changes, or the way to it was lost, all that is still here is sent once more. Numbers make that harmless.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::mailbox::Mailbox;
use crate::log::proposal::{Group, Proposal};
use crate::log::store::Identity;
use crate::tree::batch::Applied;

/// The most bytes of proposals that go in one group.
const MAX_GROUP_BYTES: usize = 1 << 20;

/// Who waits for a proposal.
#[derive(Clone, Debug)]
pub enum Waiter {
    /// A connection, for the answer to a request.
    Request(Arc<Mailbox>),
    /// A connection that is being attached to a session: this one, or the one that the proposal opens.
    Session(Arc<Mailbox>, Option<i64>),
    /// Nobody.
    Nobody,
}

#[derive(Debug)]
struct Waiting {
    bytes: Bytes,
    waiter: Waiter,
}

/// Proposals under way.
#[derive(Debug)]
pub struct Pending {
    me: Identity,
    /// Number of the first one here.
    first: u64,
    waiting: VecDeque<Waiting>,
    /// Of these, so many have been sent.
    sent: usize,
    scratch: BytesMut,
}

impl Pending {
    /// None yet.
    pub fn new(me: Identity) -> Self {
        Pending { me, first: 1, waiting: VecDeque::new(), sent: 0, scratch: BytesMut::new() }
    }

    /// Takes a proposal on; it is sent with the next group.
    pub fn push(&mut self, proposal: &Proposal<'_>, waiter: Waiter) {
        proposal.write(&mut self.scratch);
        self.waiting.push_back(Waiting { bytes: self.scratch.split().freeze(), waiter });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Number of the oldest one.
    pub fn oldest(&self) -> Option<u64> {
        (!self.waiting.is_empty()).then_some(self.first)
    }

    /// All of them are to be sent once more.
    pub fn send_again(&mut self) {
        self.sent = 0;
    }

    /// The next group to be sent, if anything is.
    pub fn next_group(&mut self) -> Option<Bytes> {
        let mut proposals = BytesMut::new();
        let mut count = 0;
        for waiting in self.waiting.range(self.sent..) {
            if count > 0 && proposals.len() + waiting.bytes.len() > MAX_GROUP_BYTES {
                break;
            }
            proposals.extend_from_slice(&waiting.bytes);
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let first = self.first + self.sent as u64;
        self.sent += count;
        let Identity { member: origin, start } = self.me;
        let mut out = BytesMut::new();
        Group { origin, start, first, count: count as u32, proposals: &proposals }.write(&mut out);
        Some(out.freeze())
    }

    /// Proposal `number` was carried out: who waits for it. They are carried out in order, so it is the oldest, or none of these.
    pub fn applied(&mut self, number: u64) -> Option<Waiter> {
        if number != self.first || self.waiting.is_empty() {
            return None;
        }
        self.first += 1;
        self.sent = self.sent.saturating_sub(1);
        self.waiting.pop_front().map(|waiting| waiting.waiter)
    }

    /// All up to `number` were carried out, and nobody knows what came of them: who waits.
    pub fn lost(&mut self, number: u64) -> Vec<Waiter> {
        let mut waiters = Vec::new();
        while self.first <= number {
            match self.applied(self.first) {
                Some(waiter) => waiters.push(waiter),
                None => break,
            }
        }
        waiters
    }
}

impl Waiter {
    /// The connection that waits.
    pub fn mailbox(&self) -> Option<&Arc<Mailbox>> {
        match self {
            Waiter::Request(mailbox) | Waiter::Session(mailbox, _) => Some(mailbox),
            Waiter::Nobody => None,
        }
    }

    /// The session that a connection has by this, if it has one.
    pub fn session(&self, zxid: i64, applied: &Applied) -> Option<i64> {
        match (self, applied) {
            (Waiter::Session(_, None), Applied::Opened) => Some(zxid),
            (Waiter::Session(_, Some(session)), Applied::Attached(Ok(()))) => Some(*session),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::MemberId;
    use crate::wire::jute::Reader;

    fn numbers(group: &Bytes) -> Vec<u64> {
        let group = Group::read(&mut Reader::new(group)).unwrap();
        group.iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn what_was_not_carried_out_is_sent_again_in_order() {
        let mut pending = Pending::new(Identity { member: MemberId::default(), start: 1 });
        assert!(pending.next_group().is_none());
        for _ in 0..3 {
            pending.push(&Proposal::RemoveContainer { path: "/c" }, Waiter::Nobody);
        }
        assert_eq!(numbers(&pending.next_group().unwrap()), [1, 2, 3]);
        assert!(pending.applied(2).is_none(), "never out of order");
        assert!(pending.applied(1).is_some() && pending.applied(1).is_none());
        pending.push(&Proposal::RemoveContainer { path: "/c" }, Waiter::Nobody);
        assert_eq!(numbers(&pending.next_group().unwrap()), [4]);
        pending.send_again();
        assert_eq!(numbers(&pending.next_group().unwrap()), [2, 3, 4]);
        assert_eq!((pending.lost(3).len(), pending.oldest()), (2, Some(4)));
        assert_eq!((pending.lost(9).len(), pending.oldest()), (1, None));
    }
}
