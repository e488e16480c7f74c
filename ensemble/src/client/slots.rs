//! A connection's requests, in order.
//!
//! ```text
//!   requests ─► later ─► waiting ─► replies
//! ```
//!
//! Changes go to the log as they come, one behind the other, and *wait* until they are applied here. A question is answered when all
//! changes before it have been, and out of the state of that moment; so a change that follows a question that cannot be answered yet
//! is not proposed before: the answer must not show it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::answer::Asker;
use crate::core::Core;
use crate::log::proposal::Proposal;
use crate::replica::State;
use crate::replica::mailbox::{CloseReason, Item, Mailbox};
use crate::replica::pending::Waiter;
use crate::tree::acl::{self, Ids};
use crate::tree::batch::Applied;
use crate::wire::code::Code;
use crate::wire::jute::Reader;
use crate::wire::reply;
use crate::wire::request::{self, Change, Request, op};

/// A request that has its turn.
enum Waiting {
    /// It was proposed.
    Change { xid: i32, sync_path: Option<Box<str>>, since: Instant },
    /// It is answered without more.
    Word(Word),
}

/// An answer that does not depend on anything.
struct Word {
    xid: i32,
    result: Result<(), Code>,
    /// The connection ends with it.
    last: bool,
}

/// A request that has not.
struct Later {
    xid: i32,
    kind: i32,
    body: Bytes,
}

/// How a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It does.
    Goes,
    /// It is closed when what was said has left.
    Ends,
}

/// Requests of a connection, and what is to be sent.
pub(super) struct Slots {
    mailbox: Arc<Mailbox>,
    session: i64,
    attached: i64,
    waiting: VecDeque<Waiting>,
    later: VecDeque<Later>,
    /// Bytes of the requests that are not answered.
    bytes: usize,
    /// The zxid of what was said last: no later reply has an older one.
    zxid: i64,
    ended: bool,
    /// What is to be sent.
    pub out: BytesMut,
}

/// Requests that may be unanswered, and their bytes, before no more are read.
const MAX_WAITING: usize = 1024;
const MAX_BYTES: usize = 4 << 20;

impl Slots {
    /// Those of a connection attached to `session` with the zxid `attached`.
    pub fn new(mailbox: Arc<Mailbox>, session: i64, attached: i64) -> Self {
        Slots {
            mailbox,
            session,
            attached,
            waiting: VecDeque::new(),
            later: VecDeque::new(),
            bytes: 0,
            zxid: attached,
            ended: false,
            out: BytesMut::new(),
        }
    }

    /// Whether there is room for more requests.
    pub fn has_room(&self) -> bool {
        self.waiting.len() + self.later.len() < MAX_WAITING
            && self.bytes < MAX_BYTES
            && self.out.len() < MAX_BYTES
            && !self.ended
    }

    /// Whether more may be said: the client takes it.
    pub fn may_say(&self) -> bool {
        self.out.len() < MAX_BYTES
    }

    /// Answers what can be answered: `frames` are new requests. Whatever the state has for this connection is said first, so nothing
    /// shows a change of which an event is still to come.
    pub fn go_on<N>(&mut self, core: &Core<N>, frames: &mut Vec<Bytes>) -> Next {
        let state = core.replica.state();
        let mut close = false;
        for item in self.mailbox.take() {
            match item {
                Item::Event(kind, path) => {
                    reply::event(&mut self.out, kind, &path);
                    core.statistics.count_sent();
                }
                Item::Applied { zxid, applied } => self.answer_change(core, zxid, applied),
                Item::Close(reason) => {
                    tracing::debug!(session = self.session, ?reason, "closing a connection");
                    close |= reason != CloseReason::SessionOver || self.waiting.is_empty();
                    // The request that has ended the session is answered first: that comes with the same entry.
                    self.ended = true;
                }
            }
        }
        if self.waiting.is_empty() {
            self.zxid = state.tree.zxid();
        }
        self.catch_up(core, &state);
        for frame in frames.drain(..) {
            self.take(core, &state, frame);
        }
        if close || self.ended { Next::Ends } else { Next::Goes }
    }

    /// The oldest proposal was applied.
    fn answer_change<N>(&mut self, core: &Core<N>, zxid: i64, applied: Applied) {
        self.say_words(core);
        self.zxid = zxid;
        let Some(Waiting::Change { xid, sync_path, since }) = self.waiting.pop_front() else {
            // Every proposal has its place here: proposals are applied in order.
            debug_assert!(false, "an answer to nothing");
            return;
        };
        core.statistics.note_latency(since.elapsed());
        core.statistics.count_sent();
        match applied {
            Applied::Reply(Err(Code::SessionMoved)) => self.ended = true,
            Applied::Reply(Err(code)) => reply::bare(&mut self.out, xid, zxid, Err(code)),
            Applied::Reply(Ok(outcome)) => {
                let record = |out: &mut BytesMut| reply::outcome(out, &outcome, sync_path.as_deref());
                reply::reply(&mut self.out, xid, zxid, Ok(record));
            }
            // Sessions are attached before there are slots.
            Applied::Opened | Applied::Attached(_) | Applied::Done => self.ended = true,
        }
        self.say_words(core);
    }

    /// Says what waits for nothing.
    fn say_words<N>(&mut self, core: &Core<N>) {
        while let Some(Waiting::Word(_)) = self.waiting.front() {
            if let Some(Waiting::Word(word)) = self.waiting.pop_front() {
                self.say(core, &word);
            }
        }
    }

    fn say<N>(&mut self, core: &Core<N>, word: &Word) {
        if self.ended {
            return;
        }
        // A request that is none at all is told so without a zxid.
        let zxid = if word.last { -1 } else { self.zxid };
        reply::bare(&mut self.out, word.xid, zxid, word.result);
        core.statistics.count_sent();
        self.ended |= word.last;
    }

    /// Gives later requests their turn, as far as they can have it.
    fn catch_up<N>(&mut self, core: &Core<N>, state: &State) {
        while let Some(Later { xid, kind, body }) = self.later.pop_front() {
            if !self.turn(core, state, xid, kind, &body) {
                self.later.push_front(Later { xid, kind, body });
                break;
            }
            self.bytes -= body.len();
        }
        if self.waiting.is_empty() && self.later.is_empty() {
            self.bytes = 0;
        }
    }

    /// Takes a frame.
    fn take<N>(&mut self, core: &Core<N>, state: &State, frame: Bytes) {
        if self.ended {
            return;
        }
        core.statistics.count_received();
        let mut reader = Reader::new(&frame);
        let (Ok(xid), Ok(kind)) = (reader.int(), reader.int()) else {
            self.ended = true;
            return;
        };
        let body = frame.slice(frame.len() - reader.rest().len()..);
        // Who somebody is holds from when it is said.
        if let op::AUTH | op::SASL = kind {
            self.prove(xid, kind, &body);
            return;
        }
        if !self.later.is_empty() || !self.turn(core, state, xid, kind, &body) {
            self.bytes += body.len();
            self.later.push_back(Later { xid, kind, body });
        }
    }

    /// A request has its turn, unless it has to wait for changes before it (`false`).
    fn turn<N>(&mut self, core: &Core<N>, state: &State, xid: i32, kind: i32, body: &[u8]) -> bool {
        let word = |result| Word { xid, result, last: false };
        let word = match request::read(kind, body) {
            Ok(Request::Query(query)) => {
                if !self.waiting.is_empty() {
                    return false;
                }
                let ids = self.mailbox.encoded_ids();
                let asker =
                    Asker { replica: &core.replica, mailbox: &self.mailbox, session: self.session, ids: Ids::of(&ids) };
                asker.answer(state, xid, &query, &mut self.out);
                core.statistics.count_sent();
                return true;
            }
            Ok(Request::Change(change)) => {
                let ids = self.mailbox.encoded_ids();
                let (session, attached) = (self.session, self.attached);
                let proposal = Proposal::Request { session, attached, ids: Ids::of(&ids), kind, body };
                core.replica.propose(&proposal, Waiter::Request(self.mailbox.clone()));
                let sync_path = match change {
                    Change::Sync { path } => path.map(Into::into),
                    _ => None,
                };
                self.waiting.push_back(Waiting::Change { xid, sync_path, since: Instant::now() });
                return true;
            }
            Ok(Request::Ping) => Word { xid: reply::PING_XID, ..word(Ok(())) },
            Ok(Request::Reconfig) => word(Err(Code::ReconfigDisabled)),
            Ok(Request::Unknown) => Word { last: true, ..word(Err(Code::Unimplemented)) },
            // These are dealt with where they come in.
            Ok(Request::Auth { .. } | Request::Sasl) | Err(_) => word(Err(Code::MarshallingError)),
        };
        match self.waiting.is_empty() {
            true => self.say(core, &word),
            false => self.waiting.push_back(Waiting::Word(word)),
        }
        true
    }

    /// The client says who it is.
    fn prove(&mut self, xid: i32, kind: i32, body: &[u8]) {
        match request::read(kind, body) {
            Ok(Request::Auth { scheme: "digest", proof: Some(proof) }) => {
                self.mailbox.add_id(acl::digest_of(proof));
                reply::bare(&mut self.out, xid, 0, Ok(()));
            }
            // Its address is known already.
            Ok(Request::Auth { scheme: "ip", .. }) => reply::bare(&mut self.out, xid, 0, Ok(())),
            Ok(Request::Sasl) => reply::reply(&mut self.out, xid, 0, Ok(|out: &mut BytesMut| reply::data(out, None))),
            Ok(Request::Auth { .. }) => {
                reply::bare(&mut self.out, xid, 0, Err(Code::AuthFailed));
                self.ended = true;
            }
            _ => self.ended = true,
        }
    }
}
