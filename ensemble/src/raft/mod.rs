//! The consensus on the log: the crate `openraft`, with our types, storage, network and elections around it.

use openraft::impls::OneshotResponder;

use crate::log::proposal::Batch;
use crate::member::{Address, MemberId};

pub mod contact;
pub mod election;
pub mod group;
pub mod machine;
pub mod network;
pub mod propose;

openraft::declare_raft_types!(
    /// What the consensus is about.
    pub Types:
        D = Batch,
        R = (),
        NodeId = MemberId,
        Node = Address,
        Entry = openraft::Entry<Types>,
        SnapshotData = machine::SnapshotFile,
        Responder = OneshotResponder<Types>,
        AsyncRuntime = openraft::TokioRuntime,
);

/// The consensus of a member.
pub type Raft = openraft::Raft<Types>;
/// An entry of the log.
pub type Entry = openraft::Entry<Types>;
/// Where in the log, by which leader.
pub type LogId = openraft::LogId<MemberId>;
/// For whom a member has voted.
pub type Vote = openraft::Vote<MemberId>;
/// The members, and since which entry.
pub type Membership = openraft::StoredMembership<MemberId, Address>;
/// What storage may say.
pub type StorageError = openraft::StorageError<MemberId>;
