//! Entries of the log, carried out.

use super::acl::Ids;
use super::apply::{Outcome, Txn};
use super::{Effect, Tree};
use crate::log::proposal::{Batch, Group, Origin, Progress, Proposal};
use crate::wire::code::Code;
use crate::wire::request;

/// What a proposal led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// A client's request: its answer.
    Reply(Result<Outcome, Code>),
    /// A new session, whose number is the zxid.
    Opened,
    /// A session goes on (over the connection whose number is the zxid), or not.
    Attached(Result<(), Code>),
    /// Nobody waits for it.
    Done,
}

/// Who wants to know what comes of the log.
pub trait Observer {
    /// A change was carried out, with these effects.
    fn effects(&mut self, effects: &[Effect]);
    /// A proposal was carried out: the `number`th of the `start`th start of `origin`.
    fn applied(&mut self, origin: Origin, start: u64, number: u64, zxid: i64, applied: Applied);
    /// The session goes on over the connection attached with this zxid, and no other.
    fn attached(&mut self, session: i64, zxid: i64);
    /// The session is over.
    fn closed(&mut self, session: i64);
}

impl Tree {
    /// Carries out an entry that a leader made in `term`. What cannot be read has no effect.
    pub fn apply_batch(&mut self, term: u64, batch: &Batch, observer: &mut impl Observer) {
        let Ok((time_ms, groups)) = batch.read() else { return };
        self.time_ms = self.time_ms.max(time_ms);
        for group in groups.map_while(Result::ok) {
            self.apply_group(term, group, observer);
        }
    }

    fn apply_group(&mut self, term: u64, group: Group<'_>, observer: &mut impl Observer) {
        let mut progress = self.origins.get(&group.origin).copied().unwrap_or_default();
        if group.start < progress.start {
            // Of a process that is no more, and has successors that have been heard.
            return;
        }
        if group.start > progress.start {
            progress = Progress { start: group.start, last: 0 };
        }
        for (number, proposal) in group.iter() {
            // Known already, or not to be carried out before those that are missing: they will come again, in order.
            if number != progress.last + 1 {
                continue;
            }
            progress.last = number;
            let applied = match proposal {
                Ok(proposal) => self.apply_proposal(term, proposal, observer),
                Err(_) => Applied::Reply(Err(Code::MarshallingError)),
            };
            observer.applied(group.origin, group.start, number, self.zxid, applied);
        }
        self.origins.insert(group.origin, progress);
    }

    fn apply_proposal(&mut self, term: u64, proposal: Proposal<'_>, observer: &mut impl Observer) -> Applied {
        match proposal {
            Proposal::Request { session, attached, ids, kind, body } => {
                Applied::Reply(self.apply_request(session, attached, ids, kind, body, observer))
            }
            Proposal::Open { timeout_ms, password } => {
                self.zxid += 1;
                let session = self.open_session(self.zxid, password, timeout_ms);
                observer.attached(session, self.zxid);
                Applied::Opened
            }
            Proposal::Attach { session, timeout_ms, password } => {
                self.zxid += 1;
                let attached = self.attach_session(self.zxid, session, password, timeout_ms);
                if attached.is_ok() {
                    observer.attached(session, self.zxid);
                }
                Applied::Attached(attached)
            }
            Proposal::Expire { session, term: judged } => {
                if judged == term {
                    self.end_session(session, observer);
                }
                Applied::Done
            }
            Proposal::RemoveContainer { path } => {
                self.zxid += 1;
                let mut effects = Vec::new();
                self.remove_container(self.zxid, path, &mut effects);
                observer.effects(&effects);
                Applied::Done
            }
        }
    }

    fn apply_request(
        &mut self,
        session: i64,
        attached: i64,
        ids: Ids<'_>,
        kind: i32,
        body: &[u8],
        observer: &mut impl Observer,
    ) -> Result<Outcome, Code> {
        let change = request::read_change(kind, body).map_err(|_| Code::MarshallingError)?;
        self.check_session(session, attached)?;
        match change {
            request::Change::CloseSession => {
                self.end_session(session, observer);
                return Ok(Outcome::Closed);
            }
            request::Change::Sync { .. } => {}
            _ => self.zxid += 1,
        }
        let txn = Txn { zxid: self.zxid, time_ms: self.time_ms, session, ids };
        let mut effects = Vec::new();
        let outcome = self.apply(&txn, &change, &mut effects)?;
        observer.effects(&effects);
        Ok(outcome)
    }

    /// Ends a session; its ephemeral nodes go with one transaction.
    fn end_session(&mut self, session: i64, observer: &mut impl Observer) {
        if self.session(session).is_none() {
            return;
        }
        self.zxid += 1;
        let txn = Txn { zxid: self.zxid, time_ms: self.time_ms, session, ids: Ids::default() };
        let mut effects = Vec::new();
        self.close_session(&txn, &mut effects);
        observer.effects(&effects);
        observer.closed(session);
    }

    /// How far the proposals of a member have been carried out.
    pub fn progress(&self, origin: &Origin) -> Option<Progress> {
        self.origins.get(origin).copied()
    }

    /// Forgets the progress of members that are gone for good. Deterministic: called where the log says who the members are.
    pub fn keep_origins(&mut self, is_member: impl Fn(&Origin) -> bool) {
        let kept = self.origins.iter().filter(|(origin, _)| is_member(origin));
        self.origins = kept.map(|(origin, progress)| (*origin, *progress)).collect();
    }
}
