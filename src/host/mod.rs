//! A host's side of a machine: what joins the deterministic machine, its doors and the protocol to threads, files and
//! sockets.
//!
//! One thread (tokio) carries the logging channel, the console port and the timers of the protocol; the vCPU thread runs the
//! guest. They meet in [`outgoing`] (primary), [`incoming`] (backup), the [`World`] and the
//! console's [`Hub`].
#![allow(clippy::disallowed_methods, reason = "this is where the host's time enters")]

pub mod backup;
pub mod board;
pub mod channel;
pub mod file_log;
pub mod incoming;
pub mod keeper;
pub mod outgoing;
pub mod primary;
pub mod referee;
pub mod solo;
pub mod vcpu_thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::arbiter::Arbiter;
use crate::backends::clock::boot_clock_ns;
use crate::backends::world::World;
use crate::console::hub::Hub;
use crate::doors::Behind;
use crate::log::file::LogError;
use crate::machine::MachineError;
use crate::machine::doors::{EndReason, Halt};
use crate::machine::snapshot::Boot;
use crate::net::port::Port;
use crate::replication::{Identity, Settings, StopReason};
use board::Board;

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
    /// The boot that the log starts from is out of bounds.
    #[error("the guest cannot be sent to a backup")]
    Boot(#[from] crate::log::boot::BootError),
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

/// What the driver of either side of a pair is given.
pub struct Site {
    /// Who this is.
    pub me: Identity,
    /// The protocol's numbers.
    pub settings: Settings,
    /// Digests and the copy of the log.
    pub keeping: Keeping,
    /// The console.
    pub hub: Arc<Hub>,
    /// What `lockstep status` reads.
    pub board: Arc<Board>,
    /// Where the guest's card is plugged in, if it has one.
    pub network: Option<Arc<Port>>,
    /// Who may live.
    pub arbiter: Arc<dyn Arbiter>,
}

/// How often to take a digest, and where to keep the log.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// Time between digests, in nanoseconds.
    pub digest_every_ns: u64,
    /// File for a copy of the log; `None`: none is kept.
    pub file: Option<PathBuf>,
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

/// What stands behind the doors of a machine with this console and, maybe, this network.
fn behind(hub: &Arc<Hub>, network: &Option<Arc<Port>>) -> Behind {
    let mut behind = Behind::console(hub.clone());
    if let Some(port) = network {
        behind.network = port.clone();
    }
    behind
}

/// Has packets for the guest wake the machine in `world`.
fn wake_for_packets(network: &Option<Arc<Port>>, world: &Arc<World>) {
    if let Some(port) = network {
        let (wake, remind) = (world.clone(), world.clone());
        port.set_waker(Box::new(move || wake.packets_wait()), Box::new(move || remind.remind_of_packets()));
    }
}

/// Tells the network the address of the machine's card.
fn name_card(network: &Option<Arc<Port>>, boot: &Boot) {
    if let (Some(port), Some(card)) = (network, boot.net) {
        port.set_mac(card.mac);
    }
}
