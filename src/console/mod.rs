//! The guest's console over the network, exactly once in both directions, wherever the guest lives.
//!
//! ```text
//!  vCPU thread            |  server (tokio)                |  client
//!  output ──> history ────┼──> Output{position} ───────────┼──> session ──> screen
//!  take  <─── input <─────┼─── Input{offset} <─────────────┼─── session <── keyboard
//!            (hub)        |                                |
//! ```
//!
//! Output bytes and keyboard bytes are numbered. Both numberings belong to the guest's execution
//! (a backup that replays the log counts the same), not to a connection or a host; so whoever is
//! live can go on from the number at which the other side stopped. [`history`], [`input`] and
//! [`session`] are pure; [`hub`] is where threads meet; [`server`] and [`client`] move bytes.

pub mod client;
pub mod control;
mod dial;
mod follow;
pub mod held_times;
pub mod history;
pub mod hub;
pub mod input;
pub mod server;
pub mod session;
pub mod state;
pub mod status;
pub mod terminal;
pub mod wire;
