//! A server's side of the Redis protocol: bytes in, replies out, no I/O and no clock.
//!
//! | room | what is there |
//! | --- | --- |
//! | [`Connection`] | one client: takes requests out of its input, appends replies to its output |
//! | [`Store`] | the one database that the connections share |
//! | `resp`, `reply` | the protocol, both ways |
//! | `command` | the commands, by kind |
//! | `journal` | what persists: the commands that changed data, and carrying them out again ([`Replay`]) |
//! | `table`, `list`, `zset`, `value` | what a key can hold |
//!
//! What the store does depends on nothing but its settings, its calls and the times they name: hashes are seeded by
//! [`Settings::seed`], and so are the commands that draw at random. Commands over many elements call
//! [`Settings::poll`] at least every few hundred, so that nobody waits long for the server's attention.
//!
//! Commands, replies and errors are those of Redis 7.0, which the tests ask the same questions. What differs:
//! - RESP2 only (`HELLO 3` is refused), one database, no password.
//! - No blocking commands, publish/subscribe, scripts, streams, bit fields, geography; nothing evicted. Persistence is an append-only log that somebody else writes
//!   ([`Store::take_journal`]).
//! - `INCRBYFLOAT` is exact where both numbers are plain decimals; scores have the shortest text that reads back as
//!   the same number (as Redis has them since 7.2).
//! - Scans of small collections keep to `COUNT`, too; `OBJECT ENCODING` names what Redis has for large ones.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod bytes;
mod chunked;
mod client;
mod command;
mod connection;
mod glob;
mod journal;
mod list;
mod refusal;
mod reply;
mod resp;
mod store;
mod table;
mod value;
mod zset;

pub use client::Next;
pub use connection::{Connection, Served};
pub use journal::{JournalTrouble, Replay, ReplayError};
pub use store::Store;

/// What a store is built with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Seeds the hashes and the draws (`SPOP`, `RANDOMKEY`); clients should not know it.
    pub seed: u64,
    /// Commands that would take memory are refused with `OOM` when the heap in use would pass this.
    pub maxmemory_bytes: usize,
    /// Replies do not let the heap in use pass this; a reply that would ends its connection. More than
    /// `maxmemory_bytes`, or a full store could not even be read.
    pub heap_bytes: usize,
    /// The heap in use, with everything in it.
    pub heap_used: fn() -> usize,
    /// Longest argument (`proto-max-bulk-len`).
    pub bulk_bytes: usize,
    /// Longest request; a client that sends a longer one is told so and closed. Never more than 4 GiB.
    pub request_bytes: usize,
    /// Longest reply; a longer one becomes an error and ends its connection.
    pub reply_bytes: usize,
    /// No request is begun while the output is longer than this.
    pub high_water_bytes: usize,
    /// Called within long loops.
    pub poll: fn(),
}

impl Default for Settings {
    /// Bounds for a small machine; no bound on the heap.
    fn default() -> Self {
        Settings {
            seed: 0,
            maxmemory_bytes: usize::MAX,
            heap_bytes: usize::MAX,
            heap_used: || 0,
            bulk_bytes: 16 << 20,
            request_bytes: 64 << 20,
            reply_bytes: 64 << 20,
            high_water_bytes: 64 << 10,
            poll: || {},
        }
    }
}
