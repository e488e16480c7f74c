//! What clients have typed: numbered byte streams, one a session, on their way into the guest.
//!
//! A session's stream passes three watermarks:
//!
//! ```text
//!   0 .......... safe .......... logged .......... taken .......... queued
//!     client may       an entry           the vCPU        received by
//!     forget it        carries it         has it          this host
//! ```
//!
//! Only `logged` is part of the guest's execution, and the table of logged watermarks is a pure
//! function of the log: a backup that replays the same entries has the same table, evictions
//! included. Everything above it belongs to one host and dies with it; the client still has those
//! bytes, since it forgets only what is safe, and sends them again to whoever is live next.

use super::wire::Attach;
use crate::machine::doors::ConsoleInput;
use std::collections::{BTreeMap, VecDeque};

/// The keyboard streams of one machine.
#[derive(Debug, Default)]
pub struct InputTable {
    /// The logged watermark of every session the log knows: a pure function of the log.
    logged: BTreeMap<u64, Logged>,
    /// The highest entry in which a session typed that was evicted since: a pure function of the log, too.
    evicted_entry: Option<u64>,
    /// Streams of this host: of attached sessions, and of those whose bytes the vCPU has taken but
    /// not logged yet.
    streams: BTreeMap<u64, Stream>,
    /// Logged input that is not yet safe, in log order.
    unsafe_input: VecDeque<Unsafe>,
    /// Entries below this number are safe.
    safe_below_entry: u64,
    /// The session served last: the others have their turn first.
    turn: u64,
    /// Bytes queued and not taken, over all streams.
    waiting_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Logged {
    offset: u64,
    /// The last entry that carried input of this session; the least recent session is evicted.
    entry: u64,
}

#[derive(Debug)]
struct Stream {
    attached: bool,
    /// `logged <= taken() <= queued`.
    logged: u64,
    queued: u64,
    /// The last bytes of the stream below `queued`; what lies before them was taken.
    bytes: VecDeque<u8>,
}

#[derive(Debug)]
struct Unsafe {
    entry: u64,
    session: u64,
    offset: u64,
}

impl Stream {
    fn taken(&self) -> u64 {
        self.queued - self.bytes.len() as u64
    }
}

/// Why input or a session is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The session is not attached here.
    #[error("session {0:016x} is not attached")]
    NotAttached(u64),
    /// Bytes between what this host has and what it was offered are missing.
    #[error("input at offset {offset} leaves a gap: this host has {queued}")]
    Gap {
        /// First offset this host does not have.
        queued: u64,
        /// Offset offered, or in the log.
        offset: u64,
    },
    /// The stream would pass the last offset there is.
    #[error("input at offset {0} passes the end of the stream")]
    Overflow(u64),
    /// The client was told that bytes are safe which this machine has never seen, or this machine
    /// has bytes which the client has never sent.
    #[error("this machine knows session {session:016x} up to {known}, the client speaks of {claimed}")]
    OtherMachine {
        /// The session.
        session: u64,
        /// How much of it this machine has.
        known: u64,
        /// What the client claims.
        claimed: u64,
    },
    /// The session was evicted since, so nobody knows whether its unacknowledged input was logged.
    #[error("session {0:016x} was forgotten; its unacknowledged input is in doubt")]
    Forgotten(u64),
}

impl InputTable {
    /// Sessions whose watermark is kept; the least recently typing one gives way.
    pub const SESSIONS_MAX: usize = 64;
    /// Bytes a session may have queued and not taken.
    pub const QUEUE_MAX: usize = 64 << 10;

    /// A client (re)attaches. Returns the offset from which it sends (again).
    pub fn attach(&mut self, attach: &Attach) -> Result<u64, InputError> {
        let &Attach { session, unacknowledged, sent, born, .. } = attach;
        let may_be_evicted = self.evicted_entry.is_some_and(|entry| born <= entry);
        let known = match (self.streams.get(&session), self.logged.get(&session)) {
            (Some(stream), _) => stream.taken(),
            (None, Some(logged)) => logged.offset,
            (None, None) if may_be_evicted && sent > unacknowledged => return Err(InputError::Forgotten(session)),
            (None, None) if may_be_evicted => unacknowledged,
            (None, None) => 0,
        };
        if unacknowledged > known {
            return Err(InputError::OtherMachine { session, known, claimed: unacknowledged });
        }
        if sent < known {
            return Err(InputError::OtherMachine { session, known, claimed: sent });
        }
        // Taken bytes that are not logged stay so, whoever attaches meanwhile.
        let logged = self.streams.get(&session).map_or(known, |stream| stream.logged);
        self.detach(session);
        self.streams.insert(session, Stream { attached: true, logged, queued: known, bytes: VecDeque::new() });
        Ok(known)
    }

    /// The session's client is gone. What the vCPU has not taken is dropped: the client sends it again.
    pub fn detach(&mut self, session: u64) {
        if let Some(stream) = self.streams.get_mut(&session) {
            stream.queued = stream.taken();
            self.waiting_bytes -= stream.bytes.len();
            stream.bytes.clear();
            stream.attached = false;
        }
        self.drop_idle_stream(session);
    }

    /// The client sent `bytes` at `offset`. Returns how many of them are dealt with: all, unless the
    /// queue is full. What this host has already is skipped.
    pub fn offer(&mut self, session: u64, offset: u64, bytes: &[u8]) -> Result<usize, InputError> {
        let Some(stream) = self.streams.get_mut(&session).filter(|stream| stream.attached) else {
            return Err(InputError::NotAttached(session));
        };
        if offset > stream.queued {
            return Err(InputError::Gap { queued: stream.queued, offset });
        }
        offset.checked_add(bytes.len() as u64).ok_or(InputError::Overflow(offset))?;
        let skip = (stream.queued - offset).min(bytes.len() as u64) as usize;
        let room = Self::QUEUE_MAX - stream.bytes.len();
        let taken = &bytes[skip..bytes.len().min(skip + room)];
        stream.bytes.extend(taken);
        stream.queued += taken.len() as u64;
        self.waiting_bytes += taken.len();
        Ok(skip + taken.len())
    }

    /// Bytes queued and not taken, over all sessions.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The next input for the guest, at most `max` bytes; sessions take turns.
    pub fn take(&mut self, max: usize) -> Option<ConsoleInput> {
        if max == 0 || self.waiting_bytes == 0 {
            return None;
        }
        let session = {
            let later = self.streams.range((std::ops::Bound::Excluded(self.turn), std::ops::Bound::Unbounded));
            let all = self.streams.range(..=self.turn);
            *later.chain(all).find(|(_, stream)| !stream.bytes.is_empty())?.0
        };
        let stream = self.streams.get_mut(&session)?;
        let offset = stream.taken();
        let length = stream.bytes.len().min(max).min(ConsoleInput::MAX);
        let bytes: Vec<u8> = stream.bytes.drain(..length).collect();
        self.turn = session;
        self.waiting_bytes -= length;
        Some(ConsoleInput { session, offset, bytes })
    }

    /// Log entry `entry` carries what [`take`](Self::take) gave. True if that makes it safe at once.
    ///
    /// # Panics
    /// When it does not follow what was logged before: input is logged in the order in which it was taken.
    pub fn logged(&mut self, input: &ConsoleInput, entry: u64) -> bool {
        self.record(input, entry).expect("input is logged in the order in which it was taken");
        let safe = entry < self.safe_below_entry;
        if !safe {
            self.unsafe_input.push_back(Unsafe { entry, session: input.session, offset: input.offset });
        }
        self.drop_idle_stream(input.session);
        safe
    }

    /// A replay met `input` in log entry `entry`. Its log is in memory here, so this is safe at once.
    pub fn replayed(&mut self, input: &ConsoleInput, entry: u64) -> Result<(), InputError> {
        self.record(input, entry)
    }

    /// Input in entries below `below_entry` is safe. True if that moved anything.
    pub fn safe(&mut self, below_entry: u64) -> bool {
        self.safe_below_entry = self.safe_below_entry.max(below_entry);
        let before = self.unsafe_input.len();
        while self.unsafe_input.front().is_some_and(|input| input.entry < self.safe_below_entry) {
            self.unsafe_input.pop_front();
        }
        self.unsafe_input.len() < before
    }

    /// Input in entries from `entry` on waits again until it is safe.
    pub fn hold_from(&mut self, entry: u64) {
        self.safe_below_entry = entry;
    }

    /// The offset below which a session's client may forget its stream.
    pub fn safe_offset(&self, session: u64) -> u64 {
        let first_unsafe = self.unsafe_input.iter().find(|input| input.session == session);
        match (first_unsafe, self.logged.get(&session), self.streams.get(&session)) {
            (Some(input), _, _) => input.offset,
            (None, Some(logged), _) => logged.offset,
            // Evicted, or never logged: this host remembers where its client began.
            (None, None, Some(stream)) => stream.logged,
            (None, None, None) => 0,
        }
    }

    /// Drops whatever is not in the log: done when a host goes live or stops being live.
    pub fn drop_queued(&mut self) {
        self.streams.clear();
        self.waiting_bytes = 0;
    }

    /// Session, logged offset and last entry of every session the log knows, and the last entry of
    /// those it has forgotten: the part of the table that is a pure function of the log.
    pub fn log_view(&self) -> (Vec<(u64, u64, u64)>, Option<u64>) {
        let sessions = self.logged.iter().map(|(&session, logged)| (session, logged.offset, logged.entry));
        (sessions.collect(), self.evicted_entry)
    }

    /// A table that knows of the log what [`log_view`](Self::log_view) says.
    pub fn from_log_view(sessions: &[(u64, u64, u64)], evicted_entry: Option<u64>) -> Self {
        let logged = sessions.iter().map(|&(session, offset, entry)| (session, Logged { offset, entry }));
        let logged = logged.take(Self::SESSIONS_MAX).collect();
        InputTable { logged, evicted_entry, ..InputTable::default() }
    }

    fn record(&mut self, input: &ConsoleInput, entry: u64) -> Result<(), InputError> {
        let offset = input.offset.checked_add(input.bytes.len() as u64).ok_or(InputError::Overflow(input.offset))?;
        match self.logged.get(&input.session) {
            Some(logged) if logged.offset != input.offset => {
                return Err(InputError::Gap { queued: logged.offset, offset: input.offset });
            }
            _ => self.logged.insert(input.session, Logged { offset, entry }),
        };
        if let Some(stream) = self.streams.get_mut(&input.session) {
            stream.logged = offset;
        }
        if self.logged.len() > Self::SESSIONS_MAX {
            let oldest = self.logged.iter().min_by_key(|(_, logged)| logged.entry).map(|(&session, _)| session);
            let evicted = oldest.and_then(|session| self.logged.remove(&session));
            self.evicted_entry = self.evicted_entry.max(evicted.map(|logged| logged.entry));
        }
        Ok(())
    }

    /// A stream without a client is kept only while the vCPU holds bytes of it that are not logged.
    fn drop_idle_stream(&mut self, session: u64) {
        if self.streams.get(&session).is_some_and(|stream| !stream.attached && stream.taken() <= stream.logged) {
            self.streams.remove(&session);
        }
    }
}
