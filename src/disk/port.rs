//! The meeting point of the vCPU thread, the threads that read and write the image, and the protocol that says which changes may be made.

use std::sync::Arc;

use super::DiskError;
use super::spec::DiskSpec;
use crate::console::hub::Protection;
use crate::doors::{Disk, DiskReplayError};
use crate::machine::blocks::{Completions, Requests};
use crate::machine::snapshot::DiskConfig;

/// Says that requests have come to their end. Called on any thread.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// The disk of one host.
pub struct DiskPort {
    config: DiskConfig,
}

/// A piece of a separate image for a new backup: `bytes` at position `at`, zeros if there are none of the `length`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, in bytes.
    pub at: u64,
    /// How long it is.
    pub length: u32,
    /// What is there; empty: zeros.
    pub bytes: Vec<u8>,
}

impl DiskPort {
    /// Opens the image. Nothing is changed before [`go_live`](Self::go_live).
    pub fn open(_spec: &DiskSpec) -> Result<Arc<Self>, DiskError> {
        Ok(Arc::new(DiskPort { config: DiskConfig { sectors: 0, read_only: false, serial: [0; 20], identity: 0 } }))
    }

    /// The disk as a guest that boots here finds it.
    pub fn config(&self) -> DiskConfig {
        self.config
    }

    /// Backup: the primary's disk is this. An error if this host's image cannot stand for it.
    pub fn fit(&self, _config: &DiskConfig) -> Result<(), DiskError> {
        Ok(())
    }

    /// Whom to tell that requests have come to their end.
    pub fn set_waker(&self, _waker: Waker) {}

    /// A machine was made from a state: these are its requests in flight, before any other.
    pub fn adopt(&self, _in_flight: Requests) {}

    /// This host runs the machine from now on, in `generation`. What the replay has asked for and not got goes to the image
    /// (again), in order; changes of entries that `protection` holds wait.
    pub fn go_live(&self, _generation: u64, _protection: Protection) -> Result<(), DiskError> {
        Ok(())
    }

    /// Which changes wait for a backup.
    pub fn set_protection(&self, _protection: Protection) {}

    /// Changes of entries below `below` may be made (shared images; those of separate ones are made at once).
    pub fn release(&self, _below: u64) {}

    /// No change begins until the next release.
    pub fn hold(&self) {}

    /// Changes may begin before `until_ns`, a time of [`boot_clock_ns`](crate::backends::clock::boot_clock_ns), and not later.
    pub fn set_lease(&self, _until_ns: u64) {}

    /// The backup has executed this many entries: what it reads by itself, it has read.
    pub fn executed(&self, _entries: u64) {}

    /// The other side goes on from here: returns when nothing is at work on the image any more, and nothing begins until this side is live again.
    /// May take as long as a request takes. What did not begin stays in flight.
    pub fn quiesce(&self) {}

    /// This host does not run the machine (any more).
    pub fn not_live(&self) {}

    /// Separate images: begins to note what changes, for a copy. The pieces that a new backup needs come from
    /// [`next_piece`](Self::next_piece).
    pub fn begin_copy(&self) {}

    /// The next piece of the image (at most 256 KiB) that the new backup does not have; `None`: it has all, for now.
    pub fn next_piece(&self) -> Result<Option<Piece>, DiskError> {
        Ok(None)
    }

    /// How many bytes the new backup does not have.
    pub fn left_to_copy(&self) -> u64 {
        0
    }

    /// Between these two nothing changes the image: the pieces taken meanwhile are those of one moment.
    pub fn freeze(&self) {}

    /// See [`freeze`](Self::freeze). Ends the copy.
    pub fn thaw(&self) {}

    /// Backup, separate images: the image becomes a copy, and is of no use until [`copied`](Self::copied).
    pub fn begin_receiving(&self) -> Result<(), DiskError> {
        Ok(())
    }

    /// A piece of the copy.
    pub fn receive(&self, _piece: &Piece) -> Result<(), DiskError> {
        Ok(())
    }

    /// The copy is whole, and that of `generation`.
    pub fn copied(&self, _generation: u64) -> Result<(), DiskError> {
        Ok(())
    }
}

impl Disk for DiskPort {
    fn submit(&self, _: u64, _: Requests) {}

    fn take(&self) -> Option<Completions> {
        None
    }

    fn replayed(&self, _: u64, _: &mut Requests) {}

    fn replayed_completed(&self, _: u64, _: &mut Completions) -> Result<(), DiskReplayError> {
        Ok(())
    }
}
