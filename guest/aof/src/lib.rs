//! An append-only file on a raw disk: records go in one after the other, and after a power failure those that were flushed come out again, in
//! order, and nothing else does.
//!
//! ```text
//!   sector 0            8             16                                             end
//!   ┌──────────────────┬─────────────┬──────────────────────┬──────────────────────┐
//!   │ superblock, even │ … odd       │ half 0               │ half 1               │
//!   └──────────────────┴─────────────┴──────────────────────┴──────────────────────┘
//! ```
//!
//! The log grows in one half. When it is to be [rewritten](Log::rewrite), what the records amount to goes into the other half, and only when that is on
//! stable storage a new superblock says that it counts; until then the old one does.
//!
//! What holds whatever sectors a power failure leaves old, new or torn:
//! - A batch of records begins at a sector of its own, so nothing that has been flushed is ever written again.
//! - A record has a check of all its bytes, a *sequence* number one above that of the record before it, and an *epoch* not below. Epochs
//!   grow whenever the log is opened or rewritten, and a superblock with the new one is on stable storage before a record has it. So
//!   what an earlier life left behind the log's end, valid in itself, is never taken for its continuation.
//! - The superblock has two copies, written in turn.
//!
//! [`Log`] is a state machine: [`Log::append`] takes records, [`Log::next_io`] says what is to be written or flushed, [`Log::io_ended`] hears how it went, and
//! [`Log::durable`] tells the last record that a power failure cannot take any more. Opening and rewriting work on a [`Storage`] and wait for it.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod format;
mod log;
mod open;
mod rewrite;

pub use format::RECORD_BYTES;
pub use log::{Io, Log, Sync};
pub use open::{OpenError, Opened};
pub use rewrite::RewriteError;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// A disk that is waited for.
pub trait Storage {
    /// What can go wrong with it.
    type Error: core::error::Error;

    /// Its size in sectors.
    fn sectors(&self) -> u64;
    /// Reads whole sectors.
    fn read(&mut self, sector: u64, buffer: &mut [u8]) -> Result<(), Self::Error>;
    /// Writes whole sectors.
    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// What was written before is on stable storage afterwards.
    fn flush(&mut self) -> Result<(), Self::Error>;
}
