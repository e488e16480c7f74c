//! What one role leaves to the other in the same process: a backup that goes live becomes a primary, and a primary that has handed
//! over becomes a backup.
//!
//! Everything passes from machine to machine by itself, the moment at which the other side was last heard included: a driver that
//! read its clock anew would make a process that was stopped in between look wide awake.

use super::link::Link;
use super::message::Hello;
use super::{Identity, Settings};
use std::sync::Arc;

/// What stays when the role changes.
#[derive(Clone, Debug)]
pub(super) struct Heritage {
    pub(super) me: Arc<Identity>,
    pub(super) settings: Settings,
    pub(super) link: Link,
    pub(super) generation: u64,
    pub(super) peer: Option<Arc<Hello>>,
    pub(super) guest_clock_ns: u64,
    /// Entries of the log so far: both sides have them, if there is another side.
    pub(super) entries: u64,
    /// Outputs of entries below this number have left, on whichever side.
    pub(super) left: u64,
    /// Stamp of `Took`, the new primary's first; 0 if there was none.
    pub(super) stamp: u64,
    /// The generation was won alone: there is no other side.
    pub(super) alone: bool,
    pub(super) ended: bool,
    pub(super) stop_requested: bool,
}
