//! The primary's driver: moves bytes, timers and answers between the world and the protocol's
//! [`Primary`]. Everything that is decided is decided there.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::board::{Board, Rate};
use super::channel::{ChannelError, Connection, arrived};
use super::keeper::Keeper;
use super::outgoing::{Batch, Outgoing, OutgoingLog};
use super::outlets::Outlets;
use super::referee::Referee;
use super::vcpu_thread::VcpuThread;
use super::{HostError, Keeping, Outcome, Site, system};
use crate::backends::clock::{boot_clock_ns, wall_clock_ns};
use crate::backends::priority::ordinary_this_thread;
use crate::backends::world::World;
use crate::console::hub::Protection;
use crate::console::status::{GuestState, Role};
use crate::doors::live::LiveDoor;
use crate::log::boot::encode_boot;
use crate::log::codec::Encoder;
use crate::machine::doors::{EndReason, Halt};
use crate::machine::instant::Instant as GuestInstant;
use crate::machine::safepoint::Safepoints;
use crate::machine::snapshot::Boot;
use crate::machine::{Machine, Tracking};
use crate::replication::StopReason;
use crate::replication::election::Answer;
use crate::replication::message::{Message, Refusal};
use crate::replication::primary::{Action, Input, Primary, State};

/// Time between two horizons. A backup that keeps up is half of this behind a computing guest, on average; each horizon costs both
/// hosts a wake-up.
const HORIZON_EVERY: Duration = Duration::from_millis(2);

/// How the vCPU thread came to its end.
type Done = Result<EndReason, Halt>;

/// What happened next.
enum Wake {
    Accepted(std::io::Result<(TcpStream, std::net::SocketAddr)>),
    Arrived(Result<(), ChannelError>),
    Logged,
    Horizon,
    Time,
    Refresh,
    Answer(Answer),
    Done(Option<Done>),
    StopRequested,
}

struct Driver {
    protocol: Primary,
    actions: Vec<Action>,
    connection: Option<Connection>,
    /// The connection failed while an action was carried out.
    broken: bool,
    /// It is to be closed when the protocol knows.
    closing: bool,
    /// The entries that the protocol is being told about.
    batch: Batch,
    boot: Boot,
    /// As the backup gets it.
    boot_bytes: Vec<u8>,
    keeper: Option<Keeper>,
    outgoing: Arc<Outgoing>,
    world: Arc<World>,
    safepoints: Safepoints,
    /// The newest one that was told: an idle guest stands still, and nobody needs to hear that a thousand times a second.
    horizon: GuestInstant,
    outlets: Outlets,
    board: Arc<Board>,
    referee: Referee,
    machine: Option<Machine>,
    thread: Option<VcpuThread<()>>,
    keeping: Keeping,
    done: mpsc::UnboundedSender<Done>,
    ended: Option<EndReason>,
    stopped: Option<StopReason>,
    rate: Rate,
    heartbeats_sent: u64,
    /// There is no backup (any more): everything leaves at once.
    alone: bool,
}

/// Runs a primary until its guest has ended or the protocol stops it.
pub async fn run(site: Site, boot: Boot, listener: TcpListener) -> Result<Outcome, HostError> {
    let Site { me, settings, keeping, outlets, board, arbiter } = site;
    let machine = Machine::new(&boot, Tracking::On)?;
    let safepoints = machine.safepoints();
    board.watch(safepoints.clone());
    let world = World::new(safepoints.clone(), 0, 0);
    world.set_host_name(me.host_name());
    let (done, mut vcpu) = mpsc::unbounded_channel();
    let mut driver = Driver {
        protocol: Primary::new(me.clone(), settings),
        actions: Vec::with_capacity(16),
        connection: None,
        broken: false,
        closing: false,
        batch: Batch::default(),
        boot_bytes: encode_boot(&boot)?,
        boot,
        keeper: None,
        outgoing: Outgoing::new(Encoder::new(), 0),
        world: world.clone(),
        safepoints,
        horizon: GuestInstant::BOOT,
        outlets: outlets.clone(),
        board: board.clone(),
        referee: Referee::new(arbiter, me).map_err(system("start the arbiter's thread"))?,
        machine: Some(machine),
        thread: None,
        keeping,
        done,
        ended: None,
        stopped: None,
        rate: Rate::default(),
        heartbeats_sent: 0,
        alone: false,
    };
    outlets.fit(&driver.boot)?;
    outlets.wake(&world);
    let carrier = outlets.network.map(|port| tokio::spawn(port.run()));
    let result = driver.drive(&listener, &mut vcpu).await;
    let outcome = driver.finish(result).await;
    if let Some(carrier) = carrier {
        carrier.abort();
    }
    outcome
}

impl Driver {
    async fn drive(
        &mut self,
        listener: &TcpListener,
        vcpu: &mut mpsc::UnboundedReceiver<Done>,
    ) -> Result<(), HostError> {
        let mut refresh = super::board::refresh();
        let mut horizon = tokio::time::interval(HORIZON_EVERY);
        horizon.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.feed(Input::Start)?;
        while self.stopped.is_none() {
            let time = super::due(self.protocol.next_deadline());
            let protected = *self.protocol.state() == State::Protected && self.ended.is_none();
            let wake = tokio::select! {
                biased;
                _ = refresh.tick() => Wake::Refresh,
                result = arrived(&mut self.connection) => Wake::Arrived(result),
                () = self.outgoing.ready() => Wake::Logged,
                Some(done) = vcpu.recv(), if self.ended.is_none() => Wake::Done(Some(done)),
                answer = self.referee.answer() => Wake::Answer(answer),
                () = time => Wake::Time,
                accepted = listener.accept() => Wake::Accepted(accepted),
                () = self.board.stop_requested() => Wake::StopRequested,
                _ = horizon.tick(), if protected => Wake::Horizon,
            };
            match wake {
                Wake::Refresh => self.report(),
                Wake::Accepted(Ok((stream, address))) => self.on_accepted(stream, address)?,
                Wake::Accepted(Err(error)) => {
                    // Out of descriptors, mostly: the pair goes on.
                    tracing::warn!(%error, "cannot accept a connection on the logging channel");
                }
                Wake::Arrived(result) => self.on_arrived(result)?,
                Wake::Logged => self.on_logged()?,
                Wake::Horizon => self.on_horizon()?,
                Wake::Time => {
                    let guest_clock_ns = self.world.guest_ns();
                    self.feed(Input::Tick { guest_clock_ns })?;
                }
                Wake::Answer(answer) => self.feed(Input::Arbiter(answer))?,
                Wake::Done(done) => self.on_done(done)?,
                Wake::StopRequested => self.feed(Input::StopRequested)?,
            }
        }
        Ok(())
    }

    /// Tells the protocol, and does what it says.
    fn feed(&mut self, input: Input) -> Result<(), HostError> {
        let (mut next, mut asked) = (Some(input), false);
        while let Some(input) = next.take() {
            let now = boot_clock_ns();
            let mut actions = std::mem::take(&mut self.actions);
            self.protocol.on(now, input, &mut actions);
            for action in actions.drain(..) {
                self.perform(action)?;
            }
            self.actions = actions;
            next = if std::mem::take(&mut self.broken) {
                self.closing = true;
                Some(Input::Disconnected)
            } else if !std::mem::replace(&mut asked, true) {
                self.left()
            } else {
                None
            };
        }
        if std::mem::take(&mut self.closing) {
            // Only now that nothing leaves any more: a backup that finds it closed may be live a moment later.
            self.connection = None;
        }
        Ok(())
    }

    /// What the protocol has to know if the network has let more outputs go. The console is not asked: its clients count bytes, and find
    /// the rest on the other host.
    fn left(&self) -> Option<Input> {
        let below = self.outlets.network.as_ref().map_or(u64::MAX, |port| port.left_below());
        (below > self.protocol.left()).then_some(Input::Left { below })
    }

    fn perform(&mut self, action: Action) -> Result<(), HostError> {
        match action {
            Action::Send(message) => {
                self.heartbeats_sent += u64::from(matches!(message, Message::Heartbeat { .. }));
                if message == Message::Boot {
                    self.set_boot_time()?;
                }
                let bulk = match &message {
                    Message::Boot => self.boot_bytes.as_slice(),
                    Message::Entries { .. } => self.batch.bytes.as_slice(),
                    _ => &[],
                };
                if let Some(connection) = &mut self.connection
                    && let Err(error) = connection.send(&message, bulk)
                {
                    tracing::debug!(error = &error as &dyn std::error::Error, "sending to the backup");
                    self.broken = true;
                }
            }
            Action::Disconnect => {
                if let Some(connection) = self.connection.take() {
                    tokio::spawn(connection.close());
                }
            }
            Action::StartGuest => self.start_guest()?,
            Action::Lease { until_ns } => self.outlets.set_lease(until_ns),
            Action::Release { below: u64::MAX } => {
                self.alone = true;
                self.outlets.set_protection(Protection::Unprotected);
            }
            Action::Release { below } => self.outlets.release(below),
            Action::Hold => self.outlets.hold(),
            Action::Stall => self.outgoing.set_stalled(true),
            Action::Resume => self.outgoing.set_stalled(false),
            Action::SlowDown { per_mille } => self.world.set_slow_down(per_mille.into()),
            Action::Ask(question) => self.referee.ask(question),
            Action::StopGuest => self.world.stop(),
            Action::Suspect(suspicion) => tracing::warn!("the backup is given up: {suspicion}"),
            Action::Stop(reason) => {
                tracing::info!("{reason}");
                self.stopped = Some(reason);
            }
        }
        Ok(())
    }

    /// The guest boots now, however long its backup was awaited: the boot that the log starts from says so.
    fn set_boot_time(&mut self) -> Result<(), HostError> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        self.boot.boot_time_ns = wall_clock_ns();
        machine.set_boot_time(self.boot.boot_time_ns);
        self.world.start_clock();
        self.boot_bytes = encode_boot(&self.boot)?;
        let (boot, limit) = (&self.boot, self.keeping.limit_bytes);
        self.keeper = self
            .keeping
            .file
            .clone()
            .map(|path| Keeper::create(&path, boot, limit).map_err(|source| HostError::Keep { path, source }))
            .transpose()?;
        Ok(())
    }

    fn start_guest(&mut self) -> Result<(), HostError> {
        if self.protocol.peer().is_none() {
            self.set_boot_time()?;
        }
        let Some(mut machine) = self.machine.take() else { return Ok(()) };
        let generation = self.protocol.generation();
        let protection =
            if *self.protocol.state() == State::Protected { Protection::HeldFrom(0) } else { Protection::Unprotected };
        self.outlets.go_live(generation, protection)?;
        self.board.set_live(true);
        tracing::info!(generation, ?protection, "the guest starts");
        let (world, behind) = (self.world.clone(), self.outlets.behind());
        let log = OutgoingLog(self.outgoing.clone());
        let (digest_every_ns, done) = (self.keeping.digest_every_ns, self.done.clone());
        self.thread = Some(
            VcpuThread::spawn(move || {
                ordinary_this_thread();
                let mut door = LiveDoor::new(world, behind, log, digest_every_ns);
                // Nobody listens any more only when the process is ending.
                let _ = done.send(machine.run(&mut door));
            })
            .map_err(system("start the vCPU thread"))?,
        );
        Ok(())
    }

    fn on_accepted(&mut self, stream: TcpStream, address: std::net::SocketAddr) -> Result<(), HostError> {
        tracing::debug!(%address, "connection on the logging channel");
        let mut connection = match Connection::new(stream) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "the connection was gone at once");
                return Ok(());
            }
        };
        if self.connection.is_some() {
            if connection.send(&Message::Refuse(Box::new(Refusal::Busy)), &[]).is_ok() {
                tokio::spawn(connection.close());
            }
            return Ok(());
        }
        self.connection = Some(connection);
        self.feed(Input::Connected)
    }

    fn on_arrived(&mut self, result: Result<(), ChannelError>) -> Result<(), HostError> {
        let mut result = result;
        if result.is_ok() {
            self.feed(Input::Heard)?;
        }
        while result.is_ok() {
            let Some(connection) = &mut self.connection else { return Ok(()) };
            match connection.next_message() {
                Ok(Some(received)) => self.feed(Input::Received(received.message))?,
                Ok(None) => return Ok(()),
                Err(error) => result = Err(error),
            }
        }
        if let Err(error) = result {
            tracing::debug!(error = &error as &dyn std::error::Error, "the logging channel");
            self.closing = true;
            self.feed(Input::Disconnected)?;
        }
        Ok(())
    }

    fn on_logged(&mut self) -> Result<(), HostError> {
        let mut spare = std::mem::take(&mut self.batch.bytes);
        spare.clear();
        let Some(batch) = self.outgoing.take(spare) else { return Ok(()) };
        self.rate.add(batch.bytes.len() as u64);
        self.batch = batch;
        let (entries, bytes) = (self.batch.count, self.batch.bytes.len() as u32);
        self.feed(Input::Appended { entries, bytes })?;
        if let Some(keeper) = &mut self.keeper {
            keeper.keep(std::mem::take(&mut self.batch));
        }
        Ok(())
    }

    fn on_horizon(&mut self) -> Result<(), HostError> {
        // In this order: every entry at or before `at` is in the log by the time it is read, and so taken with it.
        let passed = self.safepoints.passed();
        // Entries that nobody waited for leave now at the latest, also those of a guest that has gone to sleep.
        self.on_logged()?;
        if let Some(at) = passed.filter(|&at| self.horizon < at) {
            self.horizon = at;
            let entries = self.protocol.appended();
            self.feed(Input::Horizon { entries, at })?;
        }
        Ok(())
    }

    fn on_done(&mut self, done: Option<Done>) -> Result<(), HostError> {
        self.on_logged()?;
        match done {
            Some(Ok(reason)) => {
                tracing::info!("{reason}");
                self.world.end();
                self.ended = Some(reason);
                self.feed(Input::GuestEnded)
            }
            Some(Err(halt)) => Err(halt.into()),
            None => Ok(()),
        }
    }

    fn report(&mut self) {
        let now = boot_clock_ns();
        let heartbeats_sent = self.heartbeats_sent;
        let rate = self.rate.per_second();
        let (protocol, ended) = (&self.protocol, &self.ended);
        let (log_bytes, traffic) = (self.rate.total(), self.connection.as_ref().map(Connection::traffic));
        let running = self.thread.is_some();
        let net = self.outlets.network.as_ref().map(|port| port.counters());
        let disk = self.outlets.disk.as_ref().map(|disk| disk.counters());
        self.board.update(|status| {
            status.state = protocol.state().name().into();
            status.role = match protocol.state() {
                State::Protected => Role::Primary,
                State::Unprotected => Role::Unprotected,
                State::Waiting | State::Claiming(_) | State::Preparing | State::Asking(_) => Role::Waiting,
                State::Stopped(_) => Role::Retired,
            };
            status.generation = protocol.generation();
            status.net = net;
            status.disk = disk;
            status.peer = protocol.peer().map(|peer| peer.host_name.clone());
            let protected = *protocol.state() == State::Protected;
            status.execution_lag_ns = protected.then(|| protocol.lag_ns());
            status.execution_lag_entries = protected.then(|| protocol.appended() - protocol.executed());
            status.entries_acknowledged = protected.then(|| protocol.acked());
            status.log_bytes_per_s = rate;
            status.entries = protocol.appended();
            status.heartbeats_sent = heartbeats_sent;
            status.heartbeats_received = protocol.heartbeats();
            status.last_heard_ms = protocol.heard_at().map(|at| now.saturating_sub(at) / 1_000_000);
            status.log_bytes = log_bytes;
            if let Some(traffic) = traffic {
                (status.channel_sent_bytes, status.channel_received_bytes) = (traffic.sent, traffic.received);
            }
            status.slowdown_per_mille = protocol.slow_down_per_mille().into();
            status.guest = match ended {
                Some(reason) => GuestState::Ended(reason.to_string()),
                None if running => GuestState::Running,
                None => GuestState::Starting,
            };
        });
    }

    /// Stops the vCPU thread, whatever it does, and closes what is open.
    async fn finish(mut self, result: Result<(), HostError>) -> Result<Outcome, HostError> {
        let clean = self.ended.is_some() && matches!(self.stopped, Some(StopReason::Ended));
        // The console's clients may take the last words of a guest that has ended; its packets leave now.
        if let Some(network) = &self.outlets.network {
            if clean && self.alone {
                network.release(u64::MAX);
            }
            network.not_live();
        }
        if !clean {
            self.outlets.not_live(Role::Retired);
            self.board.set_live(false);
        }
        if result.is_err() {
            // The backup, if there is one, shall know at once.
            self.connection = None;
        }
        self.outgoing.close();
        self.world.abandon();
        self.world.end();
        super::vcpu_thread::stop(self.thread.take()).await;
        self.report();
        if let Some(keeper) = self.keeper.take() {
            let path = keeper.path().to_owned();
            keeper.close().map_err(|source| HostError::Keep { path, source })?;
        }
        result?;
        Ok(match (self.ended, self.stopped) {
            (Some(reason), Some(StopReason::Ended)) => Outcome::Ended(reason),
            (_, stopped) => Outcome::Stopped(stopped.unwrap_or(StopReason::Operator)),
        })
    }
}
