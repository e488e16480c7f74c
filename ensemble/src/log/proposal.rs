//! What goes into the log: batches of proposals.
//!
//! ```text
//! batch     = version u8 · time i64 (ms since 1970, the leader's) · group*
//! group     = member (id u32, incarnation u64) · start u64 · first u64 · count u32 · length u32 · proposal{count}
//! proposal  = length u32 · kind u8 · fields
//! ```
//!
//! A *group* is what one member had to propose at one time. Each member numbers its proposals, from 1 on at each of its *starts*,
//! and proposes again, in order, what it has not seen applied when the leader changes or the way to it was lost. The state machine
//! takes the next number of a member and nothing else: so every proposal is carried out once and in the member's order, and with it
//! what each client asked for over one connection, however often it was sent, and whoever led in between.

use bytes::{BufMut, Bytes, BytesMut};

use crate::member::MemberId;
use crate::tree::acl::Ids;
use crate::tree::session::PASSWORD_BYTES;
use crate::wire::jute::{JuteError, Reader, Write};

/// The version of this format.
const VERSION: u8 = 1;

/// Whose proposals they are.
pub type Origin = MemberId;

/// How far the proposals of a member have been carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The member's start whose proposals they are.
    pub start: u64,
    /// The number of the last one.
    pub last: u64,
}

/// A proposal.
#[derive(Clone, Copy, Debug)]
pub enum Proposal<'a> {
    /// A client's request.
    Request {
        /// Its session.
        session: i64,
        /// The zxid with which its connection was attached to the session.
        attached: i64,
        /// Who the client has shown to be.
        ids: Ids<'a>,
        /// The request's type.
        kind: i32,
        /// The request's record.
        body: &'a [u8],
    },
    /// A new session.
    Open {
        /// Silence after which it is over, milliseconds.
        timeout_ms: u32,
        /// Its password.
        password: [u8; PASSWORD_BYTES],
    },
    /// A session goes on over a new connection.
    Attach {
        /// The session.
        session: i64,
        /// The new time-out, milliseconds.
        timeout_ms: u32,
        /// What the client says is the password.
        password: &'a [u8],
    },
    /// Nothing was heard of a session for its time-out.
    Expire {
        /// The session.
        session: i64,
        /// In which term: a leader's judgement of silence is worth something only while it leads.
        term: u64,
    },
    /// A container that has had children has none any more.
    RemoveContainer {
        /// Its path.
        path: &'a str,
    },
}

impl<'a> Proposal<'a> {
    /// Appends it.
    pub fn write(&self, out: &mut BytesMut) {
        let at = out.len();
        out.put_u32(0);
        match *self {
            Proposal::Open { timeout_ms, password } => {
                out.put_u8(1);
                out.put_u32(timeout_ms);
                out.put_slice(&password);
            }
            Proposal::Attach { session, timeout_ms, password } => {
                out.put_u8(2);
                out.put_i64(session);
                out.put_u32(timeout_ms);
                out.buffer(password);
            }
            Proposal::Expire { session, term } => {
                out.put_u8(3);
                out.put_i64(session);
                out.put_u64(term);
            }
            Proposal::RemoveContainer { path } => {
                out.put_u8(4);
                out.string(path);
            }
            Proposal::Request { session, attached, ids, kind, body } => {
                out.put_u8(0);
                out.put_i64(session);
                out.put_i64(attached);
                out.buffer(ids.bytes());
                out.put_i32(kind);
                out.put_slice(body);
            }
        }
        let length = (out.len() - at - 4) as u32;
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Reads it, without its length.
    pub fn read(bytes: &'a [u8]) -> Result<Self, JuteError> {
        let (&kind, rest) = bytes.split_first().ok_or(JuteError::Short)?;
        let mut reader = Reader::new(rest);
        Ok(match kind {
            0 => Proposal::Request {
                session: reader.long()?,
                attached: reader.long()?,
                ids: Ids::read(&mut reader)?,
                kind: reader.int()?,
                body: reader.rest(),
            },
            1 => Proposal::Open { timeout_ms: reader.int()? as u32, password: reader.array()? },
            2 => Proposal::Attach {
                session: reader.long()?,
                timeout_ms: reader.int()? as u32,
                password: reader.buffer()?.unwrap_or_default(),
            },
            3 => Proposal::Expire { session: reader.long()?, term: reader.long()? as u64 },
            4 => Proposal::RemoveContainer { path: reader.text()? },
            other => return Err(JuteError::Value { what: "the kind of a proposal", value: other.into() }),
        })
    }
}

/// What one member proposes at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    /// Whose proposals they are.
    pub origin: Origin,
    /// The member's start.
    pub start: u64,
    /// Number of the first one.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// The proposals, one after the other.
    pub proposals: &'a [u8],
}

impl<'a> Group<'a> {
    /// Appends it.
    pub fn write(&self, out: &mut BytesMut) {
        out.reserve(36 + self.proposals.len());
        out.put_u32(self.origin.id);
        out.put_u64(self.origin.incarnation);
        out.put_u64(self.start);
        out.put_u64(self.first);
        out.put_u32(self.count);
        out.buffer(self.proposals);
    }

    /// Reads it from where it begins.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self, JuteError> {
        Ok(Group {
            origin: MemberId { id: reader.int()? as u32, incarnation: reader.long()? as u64 },
            start: reader.long()? as u64,
            first: reader.long()? as u64,
            count: reader.int()? as u32,
            proposals: reader.buffer()?.ok_or(JuteError::Null)?,
        })
    }

    /// The proposals with their numbers. One that cannot be read is an error in its place.
    pub fn iter(self) -> impl Iterator<Item = (u64, Result<Proposal<'a>, JuteError>)> {
        let mut reader = Reader::new(self.proposals);
        (0..u64::from(self.count)).map_while(move |index| {
            let bytes = reader.buffer().ok()??;
            Some((self.first.wrapping_add(index), Proposal::read(bytes)))
        })
    }
}

/// A batch: an entry of the log.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Batch(pub Bytes);

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({} bytes)", self.0.len())
    }
}

/// The bytes before a batch's groups.
pub const BATCH_HEAD: usize = 9;

/// Begins a batch; groups follow.
pub fn begin_batch(time_ms: i64) -> BytesMut {
    let mut out = BytesMut::with_capacity(4096);
    out.put_u8(VERSION);
    out.put_i64(time_ms);
    out
}

impl Batch {
    /// When its leader made it, and its groups.
    pub fn read(&self) -> Result<(i64, impl Iterator<Item = Result<Group<'_>, JuteError>>), JuteError> {
        let mut reader = Reader::new(&self.0);
        let [version] = reader.array()?;
        if version != VERSION {
            return Err(JuteError::Value { what: "the version of a batch", value: version.into() });
        }
        let time_ms = reader.long()?;
        let mut failed = false;
        let groups = std::iter::from_fn(move || {
            if failed || reader.rest().is_empty() {
                return None;
            }
            let group = Group::read(&mut reader);
            failed = group.is_err();
            Some(group)
        });
        Ok((time_ms, groups))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_batch_is_read_as_it_was_written() {
        let mut proposals = BytesMut::new();
        Proposal::Open { timeout_ms: 4000, password: [7; 16] }.write(&mut proposals);
        Proposal::Request { session: 5, attached: 6, ids: Ids::default(), kind: 2, body: b"abc" }.write(&mut proposals);
        let origin = MemberId { id: 3, incarnation: 9 };
        let group = Group { origin, start: 2, first: 10, count: 2, proposals: &proposals };
        let mut batch = begin_batch(1234);
        group.write(&mut batch);
        group.write(&mut batch);
        let batch = Batch(batch.freeze());
        let (time_ms, groups) = batch.read().unwrap();
        let groups: Vec<_> = groups.map(Result::unwrap).collect();
        assert_eq!((time_ms, groups.as_slice()), (1234, &[group, group][..]));
        let read: Vec<_> =
            groups[0].iter().map(|(number, proposal)| (number, format!("{:?}", proposal.unwrap()))).collect();
        assert_eq!(read.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [10, 11]);
        assert!(read[0].1.starts_with("Open { timeout_ms: 4000") && read[1].1.contains("kind: 2, body: [97, 98, 99]"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_batch_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), known: bool) {
            let mut bytes = bytes;
            if known && !bytes.is_empty() {
                bytes[0] = VERSION;
            }
            if let Ok((_, groups)) = Batch(bytes.into()).read() {
                for group in groups.flatten() {
                    group.iter().for_each(drop);
                }
            }
        }
    }
}
