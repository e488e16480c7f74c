//! The machine of a backup: made from the boot, replaying on a thread of its own, and going live in the middle of it.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::mpsc;

use super::{Driver, FromVcpu};
use crate::backends::clock::boot_clock_ns;
use crate::backends::priority::ordinary_this_thread;
use crate::backends::world::World;
use crate::doors::live::LiveDoor;
use crate::doors::replay::ReplayDoor;
use crate::doors::takeover::TakeoverDoor;
use crate::host::incoming::{Incoming, IncomingSource};
use crate::host::keeper::Keeper;
use crate::host::outgoing::{Outgoing, OutgoingLog};
use crate::host::vcpu_thread::VcpuThread;
use crate::host::{HostError, system};
use crate::log::codec::Encoder;
use crate::log::stream::EntryStream;
use crate::machine::doors::EndReason;
use crate::machine::snapshot::Boot;
use crate::machine::{Machine, Tracking};

/// The machine that replays, and later lives.
pub(super) struct Replica {
    pub(super) incoming: Arc<Incoming>,
    pub(super) stream: EntryStream,
    pub(super) thread: VcpuThread<()>,
    pub(super) vcpu: mpsc::UnboundedReceiver<FromVcpu>,
    /// Set by the vCPU thread as it goes live.
    pub(super) live: Arc<OnceLock<(Arc<World>, Arc<Outgoing>)>>,
    /// Tells the vCPU thread where the log's encoder has to go on.
    pub(super) encoder: Arc<Mutex<Option<Encoder>>>,
    pub(super) keeper: Option<Keeper>,
    pub(super) ended: Option<EndReason>,
}

/// The primary's word about the guest's clock, and when it came: how a clock goes on with the time that a log without clock reads
/// does not have.
#[derive(Default)]
pub(super) struct ClockWord {
    pub(super) guest_ns: AtomicU64,
    pub(super) heard_ns: AtomicU64,
}

impl ClockWord {
    /// What the guest's clock should show at host time `now_ns`; 0 if nothing was heard.
    pub(super) fn due(&self, now_ns: u64) -> u64 {
        match self.guest_ns.load(SeqCst) {
            0 => 0,
            guest => guest + now_ns.saturating_sub(self.heard_ns.load(SeqCst)),
        }
    }
}

impl Driver {
    /// Makes the machine and has it wait for the log.
    pub(super) fn load(&mut self, boot: &Boot) -> Result<(), HostError> {
        self.outlets.fit(boot)?;
        let mut machine = Machine::new(boot, Tracking::On)?;
        let safepoints = machine.safepoints();
        self.board.watch(safepoints.clone());
        let incoming = Incoming::new(safepoints.clone());
        let keeper = self
            .keeping
            .file
            .clone()
            .map(|path| {
                Keeper::create(&path, boot, self.keeping.limit_bytes).map_err(|source| HostError::Keep { path, source })
            })
            .transpose()?;
        let (say, vcpu) = mpsc::unbounded_channel();
        let live = Arc::new(OnceLock::new());
        let encoder: Arc<Mutex<Option<Encoder>>> = Arc::default();
        let go_live = {
            let (say, live, encoder) = (say.clone(), live.clone(), encoder.clone());
            let (outlets, clock) = (self.outlets.clone(), self.clock.clone());
            let safepoints = safepoints.clone();
            let digest_every_ns = self.keeping.digest_every_ns;
            let host_name = self.host_name.clone();
            move |replay: ReplayDoor<IncomingSource>, _| {
                let encoder = encoder.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
                // What the guest has read bounds its clock from below; a guest that has not looked lately may find it
                // as late as its primary said it was. The rest, the time that the failover took, it catches up with.
                let shown_ns = replay.tally().clock_ns.max(clock.guest_ns.load(SeqCst));
                let world = World::new(safepoints, shown_ns, clock.due(boot_clock_ns()));
                world.set_host_name(&host_name);
                let entries = encoder.entries();
                let outgoing = Outgoing::new(encoder, entries);
                outlets.wake(&world);
                let log = OutgoingLog(outgoing.clone());
                let _ = live.set((world.clone(), outgoing));
                // Nobody listens any more only when the process is ending.
                let _ = say.send(FromVcpu::WentLive);
                Ok(LiveDoor::new(world, outlets.behind(), log, digest_every_ns))
            }
        };
        let replay = ReplayDoor::new(incoming.source(), self.outlets.behind());
        let thread = VcpuThread::spawn(move || {
            ordinary_this_thread();
            let mut door = TakeoverDoor::new(replay, go_live);
            let _ = say.send(FromVcpu::Done(machine.run(&mut door)));
        })
        .map_err(system("start the vCPU thread"))?;
        let stream = EntryStream::new();
        self.replica = Some(Replica { incoming, stream, thread, vcpu, live, encoder, keeper, ended: None });
        Ok(())
    }
}
