//! One host of a pair from its start to its end, in whatever roles that leads it.
//!
//! ```text
//!             its guest goes on here                     it hands over
//!   backup ───────────────────────────► primary ────────────────────────► backup ...
//!      ▲                                   │
//!      └───────────────────────────────────┘ lost the guest to the other host, and rejoins
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::board::Board;
use super::desk::{Desk, Turn};
use super::guest::Living;
use super::outgoing::Outgoing;
use super::outlets::Outlets;
use super::referee::Referee;
use super::{HostError, Keeping, Outcome, backup, precopy, primary, system};
use crate::arbiter::Arbiter;
use crate::backends::world::World;
use crate::console::status::Role;
use crate::log::codec::Encoder;
use crate::machine::divergence::Divergence;
use crate::machine::snapshot::Boot;
use crate::machine::{Machine, Tracking};
use crate::replication::{Identity, Settings, StopReason};

/// What the drivers of a host are given.
pub struct Site {
    /// Who this is.
    pub me: Identity,
    /// The protocol's numbers.
    pub settings: Settings,
    /// Digests and the copy of the log.
    pub keeping: Keeping,
    /// How the state of a running guest is sent.
    pub transfer: precopy::Settings,
    /// Console, network and disk.
    pub outlets: Outlets,
    /// What `lockstep status` reads.
    pub board: Arc<Board>,
    /// Who may live.
    pub arbiter: Arc<dyn Arbiter>,
    /// Where backups connect to a host that runs the machine.
    pub listener: TcpListener,
    /// Logging channels of the other hosts.
    pub peers: Vec<String>,
    /// Whether a host that has lost the machine to another one becomes its backup.
    pub rejoin: bool,
}

/// How a host begins.
pub enum Start {
    /// It boots this guest.
    Primary(Box<Boot>),
    /// It is the backup of whichever of its peers runs the machine.
    Backup,
}

/// How a host of a pair came to its end.
#[derive(Debug)]
pub struct PairEnd {
    /// The end itself.
    pub outcome: Outcome,
    /// The first difference, if this host was a backup and its execution not the primary's.
    pub divergence: Option<Box<Divergence>>,
    /// The log, if it was kept.
    pub log: Option<PathBuf>,
}

/// Runs a host of a pair until its machine has ended or the protocol stops it.
pub async fn run(site: Site, start: Start) -> Result<PairEnd, HostError> {
    let rejoin = site.rejoin;
    let Site { me, settings, keeping, transfer, outlets, board, arbiter, listener, peers, .. } = site;
    let carrier = outlets.network.clone().map(|port| tokio::spawn(port.run()));
    let mut desk = Desk {
        referee: Referee::new(arbiter, me.clone()).map_err(system("start the arbiter's thread"))?,
        me,
        settings,
        keeping,
        transfer,
        outlets,
        board,
        listener,
        peers,
        next_peer: 0,
        connection: None,
        guest: None,
        keeper: None,
        rate: Default::default(),
        heartbeats_sent: 0,
        divergence: None,
        stopped: None,
    };
    let result = turns(&mut desk, start, rejoin).await;
    if let Some(carrier) = carrier {
        carrier.abort();
    }
    finish(desk, result).await
}

async fn turns(desk: &mut Desk, start: Start, rejoin: bool) -> Result<(), HostError> {
    let mut turn = match start {
        Start::Backup => backup::Driver::new(desk).drive().await?,
        Start::Primary(boot) => {
            let unstarted = prepare(desk, *boot)?;
            primary::Driver::new(desk, unstarted).drive().await?
        }
    };
    loop {
        turn = match turn {
            Turn::Primary(protocol) => primary::Driver::survivor(desk, protocol).drive().await?,
            Turn::Backup(protocol) => backup::Driver::handed_over(desk, protocol).drive().await?,
            Turn::Over
                if rejoin && matches!(desk.stopped, Some(StopReason::Lost { .. } | StopReason::Fenced { .. })) =>
            {
                tracing::warn!("the machine runs on another host; joining as its backup");
                desk.stopped = None;
                desk.connection = None;
                desk.outlets.not_live(Role::Backup);
                desk.board.set_live(false);
                if let Some(guest) = desk.guest.take() {
                    guest.stop().await;
                }
                backup::Driver::new(desk).drive().await?
            }
            Turn::Over => return Ok(()),
        }
    }
}

/// The machine whose guest has yet to start.
fn prepare(desk: &Desk, boot: Boot) -> Result<primary::Unstarted, HostError> {
    let machine = Machine::new(&boot, Tracking::On)?;
    let safepoints = machine.safepoints();
    desk.board.watch(safepoints.clone());
    desk.outlets.plug(&boot)?;
    let world = World::new(safepoints, 0, 0);
    world.set_host_name(desk.me.host_name());
    desk.outlets.wake(&world);
    let living = Living { world, outgoing: Outgoing::new(Encoder::new(), 0) };
    Ok(primary::Unstarted { machine, boot, living })
}

/// Stops the vCPU thread, whatever it does, and closes what is open.
async fn finish(mut desk: Desk, result: Result<(), HostError>) -> Result<PairEnd, HostError> {
    if result.is_err() {
        desk.outlets.not_live(Role::Retired);
        desk.board.set_live(false);
        // The other side, if there is one, shall know at once.
        desk.connection = None;
    }
    let outcome = backup::outcome(&desk);
    if let Some(guest) = desk.guest.take() {
        guest.stop().await;
    }
    let mut log = None;
    if let Some(keeper) = desk.keeper.take() {
        let path = keeper.path().to_owned();
        log = Some(keeper.close().map_err(|source| HostError::Keep { path, source })?);
    }
    result?;
    Ok(PairEnd { outcome, divergence: desk.divergence, log })
}
