//! A coordination service on Raft that speaks the ZooKeeper protocol: who may live, decided by a majority.
//!
//! | room | what is in it |
//! | --- | --- |
//! | [`wire`] | ZooKeeper's records: requests, replies, codes |
//! | [`tree`] | the replicated state, a deterministic machine: nodes, sessions, ACLs |
//! | [`watch`] | who is told of which change |
//! | [`log`] | what goes into the log, and the log on disk |
//! | [`replica`] | the state as far as it is applied here, and who waits for what |
//! | [`raft`] | the consensus: the crate `openraft`, with elections, proposals, members and snapshots |
//! | [`peer`] | how members talk to each other |
//! | [`client`] | what a member does for clients |
//! | [`sessions`] | which sessions are over |
//! | [`server`] | a member as a whole |
//!
//! What stands above does not look below it, but for [`core`], which joins the tasks of a member.
#![allow(clippy::disallowed_methods, reason = "the pure rooms say so by name; see clippy.toml")]

pub mod client;
pub mod core;
pub mod log;
pub mod member;
pub mod net;
pub mod peer;
pub mod raft;
pub mod replica;
pub mod server;
pub mod sessions;
pub mod settings;
pub mod tree;
pub mod watch;
pub mod wire;
