//! Clients of the guest's network services, for the demo and the measurements, so that neither needs anything installed.
//!
//! | room | its one job |
//! | --- | --- |
//! | [`resp`] | the bytes of the Redis protocol, as far as these clients need them |
//! | [`connection`] | one connection, and what can go wrong with it |
//! | [`counting`] | clients that count up in the guest, and know what must be there |
//! | [`requests`] | many clients and a given number of requests |
//! | [`zookeeper`] | clients of the arbiters, or of any ZooKeeper |
#![allow(clippy::disallowed_methods, reason = "clients are the outside world, and measure time")]

pub mod connection;
pub mod counting;
pub mod requests;
pub mod resp;
pub mod zookeeper;
