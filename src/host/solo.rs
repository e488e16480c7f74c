//! A machine on one host without a partner: `run` and `record`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::board::{Board, Request};
use super::outlets::{self, Outlets};
use super::snapshots::{self, Inserts, Operated};
use super::vcpu_thread::{self, VcpuThread};
use super::{HostError, system};
use crate::backends::priority::ordinary_this_thread;
use crate::backends::world::World;
use crate::console::hub::Protection;
use crate::console::status::{GuestState as Doing, Role};
use crate::doors::live::{LiveDoor, Log};
use crate::machine::Machine;
use crate::machine::doors::{EndReason, Halt};
use crate::machine::instant::Instant;
use crate::transfer::state::GuestState;
use crate::transfer::take::Subject;

/// How long a guest has to reach an instant at which it can be stopped, after it was asked to stop.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a machine on its own came to its end.
#[derive(Debug)]
pub struct SoloEnd<L> {
    /// Why the guest ended; `None`: it was given up where it stood, since it reached no instant after it was asked to stop.
    pub reason: Option<EndReason>,
    /// Where it ended.
    pub at: Instant,
    /// The log, to be closed.
    pub log: L,
}

/// Where a machine on its own comes from, and what goes into its log beside its entries.
#[derive(Default)]
pub struct From {
    /// The rest of its guest's state, if it has run before.
    pub state: Option<GuestState>,
    /// Snapshots: the way into the log, and how often.
    pub snapshots: Option<(Arc<Inserts>, Duration)>,
}

/// Runs `machine` in the world, logging to `log`, until its guest ends or [`Board`] is asked to stop it.
pub async fn run<L: Log + Send + 'static>(
    mut machine: Machine,
    log: L,
    digest_every_ns: u64,
    outlets: Outlets,
    board: Arc<Board>,
    from: From,
) -> Result<SoloEnd<L>, HostError> {
    let safepoints = machine.safepoints();
    let shown_ns = from.state.as_ref().map_or(0, |state| state.guest_clock_ns);
    let world = World::new(safepoints.clone(), shown_ns, shown_ns);
    if let Some(state) = &from.state {
        outlets.hub.restore(&state.console, state.position.entries());
        if let Some(disk) = &outlets.disk {
            // Nobody knows how far they came: they are made once more.
            disk.adopt(machine.disk_in_flight());
        }
    }
    let paused = machine.paused();
    let subject = Subject { world: world.clone(), pages: machine.pages(), hub: outlets.hub.clone() };
    board.operate(Operated { subject: subject.clone(), boot: machine.boot().clone() });
    world.set_host_name(
        &nix::unistd::gethostname().map_or_else(|_| String::new(), |name| name.to_string_lossy().into()),
    );
    outlets.wake(&world);
    board.watch(safepoints);
    outlets.go_live(0, Protection::Unprotected)?;
    let carrier = outlets.network.clone().map(|port| tokio::spawn(port.run()));
    board.set_live(true);
    board.update(|status| {
        status.role = Role::Unprotected;
        status.state = "alone".into();
        status.guest = Doing::Running;
    });
    let (say, mut done) = mpsc::unbounded_channel();
    let thread = {
        let world = world.clone();
        let behind = outlets.behind();
        VcpuThread::spawn(move || {
            ordinary_this_thread();
            let mut door = LiveDoor::new(world, behind, log, digest_every_ns);
            door.set_paused(paused);
            let result = machine.run(&mut door);
            // Nobody listens any more only when the process is ending.
            let _ = say.send((result, machine.at(), door.into_log()));
        })
        .map_err(system("start the vCPU thread"))?
    };
    if let Some((inserts, every)) = from.snapshots {
        snapshots::put_into_log(subject, inserts, every).map_err(system("start the thread of snapshots"))?;
    }
    let mut stopping = false;
    let mut refresh = tokio::time::interval(Duration::from_millis(100));
    let ended = loop {
        tokio::select! {
            ended = done.recv() => break ended,
            request = board.requested() => match request {
                Request::Stop => {
                    world.stop();
                    stopping = true;
                    refresh.reset_after(PATIENCE);
                }
                Request::Control(control) => world.control(control),
                Request::Switch(reply) => reply.refuse("this machine has no backup: it was started alone".into()),
                Request::Leave(reply) => reply.refuse("this host runs the machine, and no other".into()),
            },
            _ = refresh.tick() => {
                if let Some(network) = &outlets.network {
                    board.update(|status| status.net = Some(network.counters()));
                }
                board.update(|status| status.disk = outlets.disk.as_ref().map(|disk| disk.counters()));
                if stopping {
                    tracing::warn!("the guest reaches no safepoint and no exit: it is given up where it stands");
                    world.abandon();
                    thread.kick();
                }
            }
        }
    };
    world.end();
    if let Some(disk) = &outlets.disk {
        if matches!(&ended, Some((Ok(_), ..))) {
            outlets::at_its_end(disk);
        }
        disk.not_live();
    }
    if let Some(carrier) = carrier {
        carrier.abort();
    }
    vcpu_thread::stop(Some(thread)).await;
    let Some((result, at, log)) = ended else {
        return Err(HostError::System {
            what: "run the machine",
            source: std::io::Error::other("the vCPU thread panicked"),
        });
    };
    let reason = match result {
        Ok(reason) => Some(reason),
        Err(Halt::Requested(_)) => None,
        Err(halt) => return Err(halt.into()),
    };
    board.update(|status| {
        let why = reason.as_ref().map_or("given up".into(), ToString::to_string);
        status.guest = Doing::Ended(why);
    });
    if reason.is_none() {
        outlets.hub.not_live(Role::Retired);
    }
    Ok(SoloEnd { reason, at, log })
}
