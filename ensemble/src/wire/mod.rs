//! The ZooKeeper protocol (3.x) on the wire.

pub mod code;
pub mod jute;
pub mod request;
pub mod stat;
