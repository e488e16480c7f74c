//! What members say to each other beside entries of the log.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::AppendEntriesRequest;
use serde::{Deserialize, Serialize};

use crate::log::entry::{self, CodecError};
use crate::member::{Address, MemberId};
use crate::raft::{LogId, Types, Vote};
use crate::wire::jute::{JuteError, Reader};

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// Who calls, and whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the caller's protocol.
    pub version: u32,
    /// The caller, if it is a member.
    pub from: Option<MemberId>,
    /// Whom it wants; whoever answers, if it does not say. A message that is meant for a member that was here before must not reach
    /// the one that has taken its place.
    pub to: Option<MemberId>,
}

/// Why a call is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another version.
    #[error("it speaks version {0} of the members' protocol, not version {VERSION}")]
    Version(u32),
    /// Somebody else is here.
    #[error("{0} is there, and nobody else")]
    OtherMember(MemberId),
    /// Not what should come first.
    #[error("it did not understand the greeting")]
    Greeting,
}

/// The answer to "who are you?".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Who answers.
    pub me: MemberId,
    /// Where it is.
    pub address: Address,
    /// The group it belongs to, as far as it knows; `None`: it has never been told of any.
    pub group: Option<Group>,
}

/// A group, as one of it sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its members, and where they are.
    pub members: Vec<(MemberId, Address)>,
    /// Those of them who vote.
    pub voters: Vec<MemberId>,
    /// Who leads.
    pub leader: Option<MemberId>,
    /// The term.
    pub term: u64,
    /// Entries that were applied here.
    pub applied: u64,
}

/// What a member that is not one of the group asks the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Who asks.
    pub me: MemberId,
    /// Where it is.
    pub address: Address,
    /// Whether it may be new. Otherwise it only takes the place of a member of the same number whose disk is lost.
    pub as_new: bool,
}

/// What became of the wish to change the members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ChangeError {
    /// Somebody else leads.
    #[error("this member does not lead; {}", .0.as_ref().map_or_else(|| "nobody does".into(), |(member, at)| format!("member {member} at {at} does")))]
    NotLeader(Option<(MemberId, Address)>),
    /// A member of this number is there, and was heard a moment ago.
    #[error("member {0} is alive; a member's place is taken only when it is gone")]
    Alive(MemberId),
    /// No member has this number.
    #[error("no member has the number {0}; a new one says `--join`")]
    NoSuchMember(u32),
    /// It is the only one.
    #[error("member {0} is the last one")]
    LastMember(u32),
    /// Another change is under way.
    #[error("another change of the members is under way")]
    Busy,
    /// The consensus did not come about: mostly for want of a majority, or because the new member is not reached.
    #[error("the change did not come about: {0}")]
    Failed(String),
}

/// Asks whether there would be a vote, before anything is changed for one: a member that was cut off shall not put the leader out of office when
/// it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canvass {
    /// The last entry of whoever asks.
    pub last: Option<LogId>,
    /// The entry from which it knows the members.
    pub members: Option<LogId>,
}

/// The answer to a [`Canvass`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inclination {
    /// There would be a vote.
    For,
    /// There would not.
    Against,
    /// A majority has decided, later than whoever asks knows, to go on without it.
    NotAMember,
}

/// Appends a request to append entries.
pub fn write_append(request: &AppendEntriesRequest<Types>, out: &mut BytesMut) {
    let head = entry::cold(&(request.vote, request.prev_log_id, request.leader_commit));
    out.put_u16(head.len() as u16);
    out.put_slice(&head);
    for entry in &request.entries {
        let at = out.len();
        out.put_u32(0);
        entry::write(entry, out);
        let length = (out.len() - at - 4) as u32;
        out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// The request that these bytes are.
pub fn read_append(bytes: &Bytes) -> Result<AppendEntriesRequest<Types>, CodecError> {
    let mut reader = Reader::new(bytes);
    let [high, low] = reader.array()?;
    let head = reader.take(u16::from_be_bytes([high, low]).into())?;
    let (vote, prev_log_id, leader_commit): (Vote, Option<LogId>, Option<LogId>) = entry::read_cold(head)?;
    let mut entries = Vec::new();
    while !reader.rest().is_empty() {
        let bytes = bytes.slice_ref(reader.buffer()?.ok_or(JuteError::Null)?);
        entries.push(entry::read(&bytes)?);
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::{CommittedLeaderId, EntryPayload};
    use proptest::prelude::*;

    #[test]
    fn appends_are_read_as_they_were_written() {
        let member = MemberId { id: 1, incarnation: 2 };
        let log_id = |index| LogId::new(CommittedLeaderId::new(3, member), index);
        let entry = |index| crate::raft::Entry { log_id: log_id(index), payload: EntryPayload::Blank };
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(3, member),
            prev_log_id: Some(log_id(4)),
            entries: vec![entry(5), entry(6)],
            leader_commit: None,
        };
        let mut bytes = BytesMut::new();
        write_append(&request, &mut bytes);
        let read = read_append(&bytes.freeze()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{request:?}"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_append_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_append(&bytes.into());
        }
    }
}
