//! The machine of one side of a pair, on a vCPU thread of its own: living, replaying, and changing from the one to the other while it runs.
//!
//! ```text
//!                 the log ends, and this side may go on
//!    replaying ──────────────────────────────────────────► living
//!    (Incoming) ◄────────────────────────────────────────── (World, Outgoing)
//!                 its log says: the other host goes on
//! ```

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::incoming::{Incoming, IncomingSource};
use super::outgoing::{Outgoing, OutgoingLog};
use super::outlets::Outlets;
use super::vcpu_thread::{self, VcpuThread};
use super::{HostError, system};
use crate::backends::clock::boot_clock_ns;
use crate::backends::priority::ordinary_this_thread;
use crate::backends::world::World;
use crate::console::hub::Protection;
use crate::disk::DiskError;
use crate::doors::live::{LiveDoor, Log};
use crate::doors::replay::ReplayDoor;
use crate::doors::turns::{TurnDoor, Turns};
use crate::log::codec::Encoder;
use crate::machine::Machine;
use crate::machine::doors::{EndReason, Halt};
use crate::machine::instant::Instant;
use crate::machine::pages::Pages;
use crate::machine::safepoint::Safepoints;
use crate::machine::snapshot::Boot;

/// What the vCPU thread says.
pub enum FromVcpu {
    /// The machine lives here now.
    WentLive(Living),
    /// It has logged that the other host goes on, and replays what comes.
    Follows(Arc<Incoming>, Encoder),
    /// It has come to its end.
    Done(Result<EndReason, Halt>),
}

/// Where a living machine meets the rest of the host.
#[derive(Clone)]
pub struct Living {
    /// Its world.
    pub world: Arc<World>,
    /// Its log.
    pub outgoing: Arc<Outgoing>,
}

/// How the machine runs now.
#[derive(Clone)]
pub enum Part {
    /// In the world.
    Living(Living),
    /// After the other host's log.
    Replaying(Arc<Incoming>),
}

/// The primary's word about the guest's clock, and when it came: how a clock goes on with the time that a log without clock reads
/// does not have.
#[derive(Default)]
pub struct ClockWord {
    guest_ns: AtomicU64,
    heard_ns: AtomicU64,
}

impl ClockWord {
    /// The guest's clock shows `guest_ns` now.
    pub fn set(&self, guest_ns: u64) {
        self.heard_ns.store(boot_clock_ns(), SeqCst);
        self.guest_ns.store(guest_ns, SeqCst);
    }

    /// What was said last, nanoseconds; 0: nothing.
    fn said(&self) -> u64 {
        self.guest_ns.load(SeqCst)
    }

    /// What the guest's clock should show at host time `now_ns`; 0 if nothing was heard.
    fn due(&self, now_ns: u64) -> u64 {
        match self.guest_ns.load(SeqCst) {
            0 => 0,
            guest => guest + now_ns.saturating_sub(self.heard_ns.load(SeqCst)),
        }
    }
}

/// What the machine's doors need of this host, whoever stands at them.
pub struct Surroundings {
    /// Console, network and disk.
    pub outlets: Outlets,
    /// The host's name, for a guest that asks.
    pub host_name: String,
    /// Time between digests, nanoseconds.
    pub digest_every_ns: u64,
}

/// What driver and vCPU thread share.
struct Shared {
    surroundings: Surroundings,
    clock: ClockWord,
    /// Where the log's encoder has to go on, and in which generation, once this side may go live.
    permission: Mutex<Option<(Encoder, u64)>>,
}

/// The machine, as its driver has it.
pub struct Guest {
    /// What it has booted from.
    pub boot: Arc<Boot>,
    /// Its safepoints.
    pub safepoints: Safepoints,
    /// Its memory.
    pub pages: Pages,
    /// How it runs now. The driver changes it when it hears of it.
    pub part: Part,
    /// Why it has ended, once the driver knows.
    pub ended: Option<EndReason>,
    /// The thread that has copied its state last, see [`PreCopy`](super::precopy::PreCopy).
    pub copying: Option<super::precopy::Copying>,
    position: Option<Encoder>,
    shared: Arc<Shared>,
    thread: Option<VcpuThread<()>>,
    said: mpsc::UnboundedReceiver<FromVcpu>,
}

impl Guest {
    /// Runs `machine` in `world`, logging to `outgoing`.
    pub fn live(
        machine: Machine,
        boot: Arc<Boot>,
        living: Living,
        surroundings: Surroundings,
    ) -> Result<Self, HostError> {
        let (part, made) = (Part::Living(living.clone()), living);
        Self::start(machine, boot, part, surroundings, move |shared, turns| {
            let (log, behind) = (OutgoingLog(made.outgoing), shared.surroundings.outlets.behind());
            let live = LiveDoor::new(made.world, behind, log, shared.surroundings.digest_every_ns);
            TurnDoor::living(live, turns)
        })
    }

    /// Has `machine` replay what comes in by `incoming`; the guest has read its clock up to `clock_ns`.
    pub fn replica(
        machine: Machine,
        boot: Arc<Boot>,
        incoming: Arc<Incoming>,
        clock_ns: u64,
        surroundings: Surroundings,
    ) -> Result<Self, HostError> {
        let (part, paused) = (Part::Replaying(incoming.clone()), machine.paused());
        Self::start(machine, boot, part, surroundings, move |shared, turns| {
            let behind = shared.surroundings.outlets.behind();
            TurnDoor::replaying(
                ReplayDoor::new(incoming.source(), behind).from_clock(clock_ns).starting_paused(paused),
                turns,
            )
        })
    }

    fn start(
        mut machine: Machine,
        boot: Arc<Boot>,
        part: Part,
        surroundings: Surroundings,
        door: impl FnOnce(&Shared, HostTurns) -> TurnDoor<IncomingSource, OutgoingLog, HostTurns> + Send + 'static,
    ) -> Result<Self, HostError> {
        let shared = Arc::new(Shared { surroundings, clock: ClockWord::default(), permission: Mutex::default() });
        let (say, said) = mpsc::unbounded_channel();
        let (safepoints, pages) = (machine.safepoints(), machine.pages());
        let turns = HostTurns { shared: shared.clone(), safepoints: safepoints.clone(), say: say.clone() };
        let thread = {
            let shared = shared.clone();
            VcpuThread::spawn(move || {
                ordinary_this_thread();
                let mut door = door(&shared, turns);
                let done = machine.run(&mut door);
                if let (Ok(_), Some(disk)) = (&done, &shared.surroundings.outlets.disk) {
                    super::outlets::at_its_end(disk);
                }
                // Nobody listens any more only when the process is ending.
                let _ = say.send(FromVcpu::Done(done));
            })
            .map_err(system("start the vCPU thread"))?
        };
        Ok(Guest {
            boot,
            safepoints,
            pages,
            part,
            ended: None,
            copying: None,
            position: None,
            shared,
            thread: Some(thread),
            said,
        })
    }

    /// The world and the log of a living machine.
    pub fn living(&self) -> Option<&Living> {
        match &self.part {
            Part::Living(living) => Some(living),
            Part::Replaying(_) => None,
        }
    }

    /// The log of a replaying machine.
    pub fn incoming(&self) -> Option<&Arc<Incoming>> {
        match &self.part {
            Part::Living(_) => None,
            Part::Replaying(incoming) => Some(incoming),
        }
    }

    /// The vCPU thread follows the other host's log from now on; its own ended at `position`.
    pub fn parked(&mut self, incoming: Arc<Incoming>, position: Encoder) {
        self.part = Part::Replaying(incoming);
        self.position = Some(position);
    }

    /// Where this host's own log ended when it handed over.
    pub fn position(&self) -> Option<&Encoder> {
        self.position.as_ref()
    }

    /// The guest that stands still since it was to be handed over goes on here.
    pub fn take_back(&self, generation: u64) {
        self.go_live(self.position.clone().unwrap_or_default(), generation);
    }

    /// The primary says that the guest's clock shows this.
    pub fn heard_of_clock(&self, guest_ns: u64) {
        self.shared.clock.set(guest_ns);
    }

    /// Lets a replaying machine go live in `generation` at the end of what it was given; the log goes on where `encoder` stands.
    pub fn go_live(&self, encoder: Encoder, generation: u64) {
        *self.shared.permission.lock().unwrap_or_else(PoisonError::into_inner) = Some((encoder, generation));
        if let Part::Replaying(incoming) = &self.part {
            incoming.go_live();
        }
    }

    /// Waits for what the vCPU thread says next; for ever when it has said its last.
    pub async fn says(&mut self) -> FromVcpu {
        match self.said.recv().await {
            Some(said) => said,
            None => std::future::pending().await,
        }
    }

    /// Has the vCPU thread leave the guest where it stands, and waits for it.
    pub async fn stop(mut self) {
        match &self.part {
            Part::Living(living) => {
                living.outgoing.close();
                living.world.abandon();
                living.world.end();
            }
            Part::Replaying(incoming) => incoming.abandon(),
        }
        let Some(thread) = self.thread.take() else { return };
        while !thread.finished() {
            // It may change its part this very moment.
            while let Ok(said) = self.said.try_recv() {
                match said {
                    FromVcpu::WentLive(living) => {
                        living.outgoing.close();
                        living.world.abandon();
                        living.world.end();
                    }
                    FromVcpu::Follows(incoming, _) => incoming.abandon(),
                    FromVcpu::Done(_) => {}
                }
            }
            // It may be in the guest or only on its way there; then the next kick finds it.
            thread.kick();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        vcpu_thread::stop(Some(thread)).await;
    }
}

/// Waits for what the machine says, or for ever where there is none.
pub async fn said(guest: &mut Option<Guest>) -> FromVcpu {
    match guest {
        Some(guest) if guest.ended.is_none() => guest.says().await,
        _ => std::future::pending().await,
    }
}

fn failed(what: &'static str) -> impl FnOnce(DiskError) -> Halt {
    move |source| Halt::Failed { what, source: Box::new(source) }
}

/// Makes the doors of each turn, on the vCPU thread.
struct HostTurns {
    shared: Arc<Shared>,
    safepoints: Safepoints,
    say: mpsc::UnboundedSender<FromVcpu>,
}

impl Turns<IncomingSource, OutgoingLog> for HostTurns {
    fn go_live(&mut self, replay: ReplayDoor<IncomingSource>, _: Instant) -> Result<LiveDoor<OutgoingLog>, Halt> {
        let Shared { surroundings, clock, permission } = &*self.shared;
        let permission = permission.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (encoder, generation) = permission.unwrap_or_default();
        // Here, on the one thread that may wait for an image.
        if let Some(disk) = &surroundings.outlets.disk {
            disk.go_live(generation, Protection::HeldFrom(0)).map_err(failed("go on with the disk"))?;
        }
        // What the guest has read bounds its clock from below; a guest that has not looked lately may find it
        // as late as its primary said it was. The rest, the time that the failover took, it catches up with.
        let shown_ns = replay.tally().clock_ns.max(clock.said());
        // No time has gone by for a guest that is paused.
        let due_ns = if replay.tally().paused { 0 } else { clock.due(boot_clock_ns()) };
        let world = World::new(self.safepoints.clone(), shown_ns, due_ns);
        world.set_host_name(&surroundings.host_name);
        let entries = encoder.entries();
        let outgoing = Outgoing::new(encoder, entries);
        surroundings.outlets.wake(&world);
        let log = OutgoingLog(outgoing.clone());
        // Nobody listens any more only when the process is ending.
        let _ = self.say.send(FromVcpu::WentLive(Living { world: world.clone(), outgoing }));
        Ok(LiveDoor::new(world, surroundings.outlets.behind(), log, surroundings.digest_every_ns))
    }

    fn follow(&mut self, live: LiveDoor<OutgoingLog>, _: Instant) -> Result<ReplayDoor<IncomingSource>, Halt> {
        let guest_ns = live.world().guest_ns();
        if let Some(disk) = &self.shared.surroundings.outlets.disk {
            disk.quiesce();
        }
        live.world().end();
        let position = live.into_log().position();
        self.shared.clock.set(guest_ns);
        let incoming = Incoming::from_entry(self.safepoints.clone(), position.entries());
        let behind = self.shared.surroundings.outlets.behind();
        let replay = ReplayDoor::new(incoming.source(), behind).from_clock(position.clock_ns());
        let _ = self.say.send(FromVcpu::Follows(incoming, position));
        Ok(replay)
    }
}
