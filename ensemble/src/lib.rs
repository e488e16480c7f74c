//! A coordination service on Raft that speaks the ZooKeeper protocol.

pub mod log;
pub mod member;
pub mod tree;
pub mod wire;
