//! Entries of the log as bytes: the same on disk and on the way to another member.
//!
//! ```text
//! entry = term u64 · leader (id u32, incarnation u64) · index u64 · kind u8 · payload
//! ```
//!
//! Batches are carried as they are. Memberships, which are rare, are bincode.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::{CommittedLeaderId, EntryPayload, Membership};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::proposal::Batch;
use crate::member::{Address, MemberId};
use crate::raft::{Entry, LogId};
use crate::wire::jute::{JuteError, Reader};

/// The most bytes that bincode may make a reader allocate.
const MAX_COLD: usize = 1 << 20;

/// Why bytes are no entry, or no message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A word is missing, or stands for nothing.
    #[error("unreadable")]
    Word(#[from] JuteError),
    /// What is bincode cannot be read.
    #[error("unreadable")]
    Cold(#[from] bincode::error::DecodeError),
    /// Something follows.
    #[error("more bytes than there should be")]
    Trailing,
}

const BLANK: u8 = 0;
const BATCH: u8 = 1;
const MEMBERSHIP: u8 = 2;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_COLD>()
}

/// What is rare, as bytes.
pub fn cold(value: &impl Serialize) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, config()).expect("plain words and numbers")
}

/// What is rare, from its bytes.
pub fn read_cold<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, length) = bincode::serde::decode_from_slice(bytes, config())?;
    if length == bytes.len() { Ok(value) } else { Err(CodecError::Trailing) }
}

/// Appends the bytes of an entry.
pub fn write(entry: &Entry, out: &mut BytesMut) {
    let LogId { leader_id, index } = entry.log_id;
    out.put_u64(leader_id.term);
    out.put_u32(leader_id.node_id.id);
    out.put_u64(leader_id.node_id.incarnation);
    out.put_u64(index);
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(BLANK),
        EntryPayload::Normal(batch) => {
            out.put_u8(BATCH);
            out.put_slice(&batch.0);
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(MEMBERSHIP);
            out.put_slice(&cold(membership));
        }
    }
}

/// The entry that these bytes are. A batch shares them.
pub fn read(bytes: &Bytes) -> Result<Entry, CodecError> {
    let mut reader = Reader::new(bytes);
    let term = reader.long()? as u64;
    let node_id = MemberId { id: reader.int()? as u32, incarnation: reader.long()? as u64 };
    let index = reader.long()? as u64;
    let [kind] = reader.array()?;
    let payload = match kind {
        BLANK if reader.rest().is_empty() => EntryPayload::Blank,
        BLANK => return Err(CodecError::Trailing),
        BATCH => EntryPayload::Normal(Batch(bytes.slice_ref(reader.rest()))),
        MEMBERSHIP => EntryPayload::Membership(read_cold::<Membership<MemberId, Address>>(reader.rest())?),
        other => return Err(JuteError::Value { what: "the kind of an entry", value: other.into() }.into()),
    };
    Ok(Entry { log_id: LogId::new(CommittedLeaderId::new(term, node_id), index), payload })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        let member = MemberId { id: 2, incarnation: 5 };
        let nodes = BTreeMap::from([(member, Address { peer: "a:1".into(), client: "a:2".into() })]);
        let membership = Membership::new(vec![BTreeSet::from([member])], nodes);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Batch(Bytes::from_static(b"abc"))),
            EntryPayload::Membership(membership),
        ] {
            let entry = Entry { log_id: LogId::new(CommittedLeaderId::new(7, member), 9), payload };
            let mut bytes = BytesMut::new();
            write(&entry, &mut bytes);
            assert_eq!(read(&bytes.freeze()).unwrap(), entry);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_entry_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..100), kind in 0u8..4) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.get_mut(28) {
                *byte = kind;
            }
            let _ = read(&bytes.into());
        }
    }
}
