//! A guest's network. An application brings it up with [`Net::up`], and runs a [`Server`] on it for ever.
//!
//! | room | serves |
//! | --- | --- |
//! | `buffers` | the memory behind the card's rings |
//! | `nic` | the virtio network card |
//! | `phy` | the card, as `smoltcp` wants to see it |
//! | [`stack`] | addresses, packets in and out, sleeping |
//! | [`server`] | TCP connections of a [`lockstep_service::Service`], UDP |
#![no_std]

extern crate alloc;

mod buffers;
mod nic;
mod phy;
pub mod server;
pub mod stack;

pub use lockstep_service as service;
pub use server::Server;
pub use stack::{Net, NetError};
