//! A host's side of a machine: what joins the deterministic machine, its doors and the protocol to threads, files and
//! sockets.
//!
//! One thread (tokio) carries the logging channel, the console port and the timers of the protocol; the vCPU thread runs the
//! guest. They meet in [`outgoing`] (primary), [`incoming`] (backup), the [`World`](crate::backends::world::World) and the
//! console's [`Hub`](crate::console::hub::Hub).
#![allow(clippy::disallowed_methods, reason = "this is where the host's time enters")]

mod backup;
pub mod board;
pub mod channel;
mod desk;
pub mod file_log;
pub mod guest;
pub mod incoming;
pub mod keeper;
pub mod outgoing;
pub mod outlets;
pub mod pair;
pub mod precopy;
mod primary;
mod progress;
pub mod receiving;
pub mod referee;
pub mod remains;
mod report;
pub mod snapshots;
pub mod solo;
mod transferring;
pub mod vcpu_thread;

use std::path::PathBuf;
use std::time::Duration;

use crate::backends::clock::boot_clock_ns;
use crate::disk::DiskError;
use crate::log::file::LogError;
use crate::machine::MachineError;
use crate::machine::doors::{EndReason, Halt};
use crate::replication::StopReason;

/// How one side of a pair came to its end.
#[derive(Debug)]
pub enum Outcome {
    /// The guest ended, live or in the replay, and everything it said has left.
    Ended(EndReason),
    /// The protocol stopped this side, and why.
    Stopped(StopReason),
}

/// What a host can fail at.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The machine cannot be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The running machine failed.
    #[error("the machine cannot go on")]
    Halt(#[from] Halt),
    /// The operating system refused something.
    #[error("cannot {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The guest has a network card, and this host nothing to plug it into.
    #[error("the guest has a network card: say with --net where this host plugs it in")]
    NoNetwork,
    /// The guest leaves checksums and segments to its network card, and this host's cable cannot do them.
    #[error(
        "the guest's network card has offloads: plug it into a TAP device here, too, or start the primary with --net …,offload=off"
    )]
    NoOffloads,
    /// The guest has a disk, and this host none for it.
    #[error("the guest has a disk: say with --disk which image it has on this host")]
    NoDisk,
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The boot that the log starts from is out of bounds.
    #[error("the guest cannot be sent to a backup")]
    Boot(#[from] crate::log::boot::BootError),
    /// The state of a running guest that was received.
    #[error("the guest's state cannot be used")]
    State(#[from] crate::transfer::state::StateBytesError),
    /// The copy of the log.
    #[error("cannot keep the log in {}", path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: LogError,
    },
}

/// How often to take a digest, and where to keep the log.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Time between digests, in nanoseconds.
    pub digest_every_ns: u64,
    /// File for a copy of the log; `None`: none is kept.
    pub file: Option<PathBuf>,
    /// The file is wanted for a divergence only. A guest that is received running has none then: it would begin with all of its memory.
    pub scratch: bool,
    /// Size at which the file is given up, in bytes.
    pub limit_bytes: u64,
}

/// Waits until the protocol's clock shows `deadline_ns`; for ever where there is none.
async fn due(deadline_ns: Option<u64>) {
    match deadline_ns {
        Some(at) => tokio::time::sleep(Duration::from_nanos(at.saturating_sub(boot_clock_ns()))).await,
        None => std::future::pending().await,
    }
}

pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> HostError {
    move |source| HostError::System { what, source }
}
