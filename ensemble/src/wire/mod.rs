//! The ZooKeeper protocol (3.x) on the wire.

pub mod code;
pub mod jute;
pub mod reply;
pub mod request;
pub mod stat;
