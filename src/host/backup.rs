//! The backup's driver: moves bytes, timers and answers between the world and the protocol's [`Backup`],
//! feeds the replaying vCPU thread, and after a take-over drains its log.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;

mod replica;

use replica::{ClockWord, Replica};

use super::board::{Board, Rate};
use super::channel::{ChannelError, Connection, Received, arrived};
use super::outgoing::{Batch, Outgoing};
use super::outlets::Outlets;
use super::referee::Referee;
use super::{HostError, Keeping, Outcome, Site, system};
use crate::backends::clock::boot_clock_ns;
use crate::console::hub::Protection;
use crate::console::status::{GuestState, Role};
use crate::log::boot::decode_boot;
use crate::log::codec::Encoder;
use crate::log::entry::Entry;
use crate::machine::divergence::Divergence;
use crate::machine::doors::{EndReason, Halt};
use crate::replication::StopReason;
use crate::replication::backup::{Action, Backup, Input, State};
use crate::replication::election::Answer;
use crate::replication::message::Message;

/// How long a backup whose guest has ended keeps the guest's last words for clients that come from a dead primary.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the vCPU thread says.
enum FromVcpu {
    WentLive,
    Done(Result<EndReason, Halt>),
}

/// What happened next.
enum Wake {
    Connected(std::io::Result<TcpStream>),
    Arrived(Result<(), ChannelError>),
    Time,
    Refresh,
    Answer(Answer),
    Vcpu(FromVcpu),
    Logged,
    StopRequested,
}

type Connecting = Pin<Box<dyn Future<Output = std::io::Result<TcpStream>> + Send>>;

struct Driver {
    protocol: Backup,
    actions: Vec<Action>,
    primary: String,
    connecting: Option<Connecting>,
    connection: Option<Connection>,
    broken: bool,
    /// The bulk of the message that the protocol is being told about: the boot, or decoded entries and their bytes.
    boot: Vec<u8>,
    entries: Vec<Entry>,
    batch: Batch,
    replica: Option<Replica>,
    keeping: Keeping,
    outlets: Outlets,
    board: Arc<Board>,
    referee: Referee,
    host_name: String,
    clock: Arc<ClockWord>,
    stopped: Option<StopReason>,
    divergence: Option<Box<Divergence>>,
    rate: Rate,
    heartbeats_sent: u64,
}

/// How a backup came to its end.
#[derive(Debug)]
pub struct BackupEnd {
    /// The end itself.
    pub outcome: Outcome,
    /// The first difference, if this backup's execution was not the primary's.
    pub divergence: Option<Box<Divergence>>,
    /// The log, if it was kept and the end makes it interesting.
    pub log: Option<PathBuf>,
}

/// Runs a backup of the machine whose primary listens at `primary`, until it is over: here, or there.
pub async fn run(site: Site, primary: String) -> Result<BackupEnd, HostError> {
    let Site { me, settings, keeping, outlets, board, arbiter } = site;
    let mut driver = Driver {
        protocol: Backup::new(me.clone(), settings),
        actions: Vec::with_capacity(16),
        primary,
        connecting: None,
        connection: None,
        broken: false,
        boot: Vec::new(),
        entries: Vec::new(),
        batch: Batch::default(),
        replica: None,
        keeping,
        outlets: outlets.clone(),
        board,
        host_name: me.host_name().into(),
        referee: Referee::new(arbiter, me).map_err(system("start the arbiter's thread"))?,
        clock: Arc::new(ClockWord::default()),
        stopped: None,
        divergence: None,
        rate: Rate::default(),
        heartbeats_sent: 0,
    };
    let carrier = outlets.network.map(|port| tokio::spawn(port.run()));
    let result = driver.drive().await;
    let end = driver.finish(result).await;
    if let Some(carrier) = carrier {
        carrier.abort();
    }
    end
}

/// Waits for the vCPU thread of `replica`, or for ever where there is none.
async fn from_vcpu(replica: &mut Option<Replica>) -> FromVcpu {
    match replica {
        Some(replica) if replica.ended.is_none() => match replica.vcpu.recv().await {
            Some(said) => said,
            None => std::future::pending().await,
        },
        _ => std::future::pending().await,
    }
}

/// Waits for entries of the machine that went live here, or for ever.
async fn logged(outgoing: Option<Arc<Outgoing>>) {
    match outgoing {
        Some(outgoing) => outgoing.ready().await,
        None => std::future::pending().await,
    }
}

async fn connected(connecting: &mut Option<Connecting>) -> std::io::Result<TcpStream> {
    match connecting {
        Some(future) => {
            let result = future.await;
            *connecting = None;
            result
        }
        None => std::future::pending().await,
    }
}

impl Driver {
    async fn drive(&mut self) -> Result<(), HostError> {
        let mut refresh = super::board::refresh();
        self.feed(Input::Start)?;
        while self.stopped.is_none() {
            let time = super::due(self.protocol.next_deadline());
            let outgoing = self.replica.as_ref().and_then(|r| r.live.get()).map(|(_, outgoing)| outgoing.clone());
            let wake = tokio::select! {
                biased;
                _ = refresh.tick() => Wake::Refresh,
                result = arrived(&mut self.connection) => Wake::Arrived(result),
                said = from_vcpu(&mut self.replica) => Wake::Vcpu(said),
                answer = self.referee.answer() => Wake::Answer(answer),
                () = time => Wake::Time,
                stream = connected(&mut self.connecting) => Wake::Connected(stream),
                () = logged(outgoing) => Wake::Logged,
                () = self.board.stop_requested() => Wake::StopRequested,
            };
            match wake {
                Wake::Refresh => self.report(),
                Wake::Connected(Ok(stream)) => self.on_connected(stream)?,
                Wake::Connected(Err(error)) => {
                    tracing::debug!(%error, primary = self.primary, "no connection to the primary yet");
                    self.feed(Input::Disconnected)?;
                }
                Wake::Arrived(result) => self.on_arrived(result)?,
                Wake::Time => {
                    self.tell_executed()?;
                    self.feed(Input::Tick)?;
                }
                Wake::Answer(answer) => self.feed(Input::Arbiter(answer))?,
                Wake::Vcpu(FromVcpu::WentLive) => {
                    self.feed(Input::WentLive)?;
                    self.report();
                }
                Wake::Vcpu(FromVcpu::Done(done)) => self.on_done(done)?,
                Wake::Logged => self.drain_log(),
                Wake::StopRequested => self.feed(Input::StopRequested)?,
            }
        }
        Ok(())
    }

    /// Tells the protocol, and does what it says.
    fn feed(&mut self, input: Input) -> Result<(), HostError> {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let now = boot_clock_ns();
            let mut actions = std::mem::take(&mut self.actions);
            self.protocol.on(now, input, &mut actions);
            for action in actions.drain(..) {
                if let Some(input) = self.perform(action)? {
                    next = Some(input);
                }
            }
            self.actions = actions;
            if std::mem::take(&mut self.broken) {
                self.connection = None;
                next = Some(Input::Disconnected);
            }
        }
        Ok(())
    }

    /// Does what the protocol says; some of it has an answer for the protocol.
    fn perform(&mut self, action: Action) -> Result<Option<Input>, HostError> {
        match action {
            Action::Connect => {
                self.drop_replica();
                let primary = self.primary.clone();
                self.connecting = Some(Box::pin(async move { TcpStream::connect(primary).await }));
            }
            Action::Send(message) => {
                self.heartbeats_sent += u64::from(matches!(message, Message::Heartbeat { .. }));
                if let Some(connection) = &mut self.connection
                    && let Err(error) = connection.send(&message, &[])
                {
                    tracing::debug!(error = &error as &dyn std::error::Error, "sending to the primary");
                    self.broken = true;
                }
            }
            Action::Disconnect => {
                if let Some(connection) = self.connection.take() {
                    tokio::spawn(connection.close());
                }
            }
            Action::Load => {
                let boot = decode_boot(&std::mem::take(&mut self.boot))?;
                self.load(&boot)?;
                return Ok(Some(Input::Loaded));
            }
            Action::Replay { stamp, .. } => {
                if let Some(replica) = &mut self.replica {
                    self.rate.add(self.batch.bytes.len() as u64);
                    replica.incoming.push(self.entries.drain(..), stamp);
                    if let Some(keeper) = &mut replica.keeper {
                        keeper.keep(std::mem::take(&mut self.batch));
                    }
                }
            }
            Action::RunTo { at, stamp, .. } => {
                if let Some(replica) = &self.replica {
                    replica.incoming.clear_up_to(at, stamp);
                }
            }
            Action::Left { below } => {
                if let Some(network) = &self.outlets.network {
                    network.left(below);
                }
            }
            Action::Ask(question) => self.referee.ask(question),
            Action::GoLive { generation, entries } => {
                tracing::info!(generation, entries, "won; going live");
                if let Some(replica) = &self.replica {
                    let encoder = Encoder::continuing(replica.stream.decoder());
                    *replica.encoder.lock().unwrap_or_else(PoisonError::into_inner) = Some(encoder);
                    replica.incoming.go_live();
                }
            }
            Action::Release { .. } => {
                self.board.set_live(true);
                self.outlets.go_live(self.protocol.generation(), Protection::Unprotected)?;
            }
            Action::StopGuest => {
                if let Some((world, _)) = self.replica.as_ref().and_then(|r| r.live.get()) {
                    world.stop();
                }
            }
            Action::Suspect(suspicion) if matches!(self.protocol.state(), State::Connecting { .. }) => {
                // Nothing has run yet, and nothing is lost: it connects again.
                tracing::debug!(primary = self.primary, "no primary yet: {suspicion}");
            }
            Action::Suspect(suspicion) => tracing::warn!("the primary is given up: {suspicion}"),
            Action::Stop(reason) => {
                tracing::info!("{reason}");
                self.stopped = Some(reason);
            }
        }
        Ok(None)
    }

    fn on_connected(&mut self, stream: TcpStream) -> Result<(), HostError> {
        match Connection::new(stream) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.feed(Input::Connected)
            }
            Err(_) => self.feed(Input::Disconnected),
        }
    }

    fn on_arrived(&mut self, result: Result<(), ChannelError>) -> Result<(), HostError> {
        let mut trouble: Option<Box<dyn std::error::Error>> = None;
        match result {
            Ok(()) => {
                self.feed(Input::Heard)?;
                self.tell_executed()?;
            }
            Err(error) => trouble = Some(error.into()),
        }
        while trouble.is_none() {
            let Some(connection) = &mut self.connection else { return Ok(()) };
            match connection.next_message() {
                Ok(Some(mut received)) => match self.unpack(&mut received) {
                    Ok(()) => self.feed(Input::Received(received.message))?,
                    Err(error) => trouble = Some(error.into()),
                },
                Ok(None) => return Ok(()),
                Err(error) => trouble = Some(error.into()),
            }
        }
        if let Some(error) = trouble {
            tracing::debug!(error = error.as_ref(), "the logging channel");
            self.connection = None;
            self.feed(Input::Disconnected)?;
        }
        Ok(())
    }

    /// Makes sense of the bulk *before* the protocol hears of the message: what cannot be replayed is not acknowledged.
    fn unpack(&mut self, received: &mut Received) -> Result<(), crate::log::stream::StreamError> {
        match &received.message {
            Message::Boot => self.boot = std::mem::take(&mut received.bulk),
            Message::Heartbeat { guest_clock_ns, .. } => {
                self.clock.heard_ns.store(boot_clock_ns(), SeqCst);
                self.clock.guest_ns.store(*guest_clock_ns, SeqCst);
            }
            Message::Entries { first, count, .. } => {
                let Some(replica) = &mut self.replica else { return Ok(()) };
                replica.stream.begin(*first, *count)?;
                self.entries.clear();
                let mut rest = received.bulk.as_slice();
                while let Some(entry) = replica.stream.next(&mut rest)? {
                    self.entries.push(entry);
                }
                self.batch = Batch { first: *first, count: *count, bytes: std::mem::take(&mut received.bulk) };
            }
            _ => {}
        }
        Ok(())
    }

    fn tell_executed(&mut self) -> Result<(), HostError> {
        let Some(replica) = &self.replica else { return Ok(()) };
        let (entries, stamp) = replica.incoming.executed();
        self.feed(Input::Executed { entries, stamp })
    }

    fn on_done(&mut self, done: Result<EndReason, Halt>) -> Result<(), HostError> {
        match done {
            Ok(reason) => {
                if let Some(replica) = &mut self.replica {
                    replica.ended = Some(reason);
                }
                self.tell_executed()?;
                self.feed(Input::GuestEnded)
            }
            Err(Halt::Diverged(divergence)) => {
                let (entry, text) = (divergence.entry, divergence.to_string().into());
                self.divergence = Some(divergence);
                self.feed(Input::Diverged { entry, text })
            }
            Err(halt) => Err(halt.into()),
        }
    }

    /// After the take-over: the log has no reader but the copy, if one is kept.
    fn drain_log(&mut self) {
        let Some(replica) = &mut self.replica else { return };
        let Some((_, outgoing)) = replica.live.get() else { return };
        if let Some(batch) = outgoing.take(Vec::new()) {
            self.rate.add(batch.bytes.len() as u64);
            if let Some(keeper) = &mut replica.keeper {
                keeper.keep(batch);
            }
        }
    }

    fn report(&mut self) {
        let now = boot_clock_ns();
        let heartbeats_sent = self.heartbeats_sent;
        let rate = self.rate.per_second();
        let (protocol, replica) = (&self.protocol, &self.replica);
        let net = self.outlets.network.as_ref().map(|port| port.counters());
        let disk = self.outlets.disk.as_ref().map(|disk| disk.counters());
        let (log_bytes, traffic) = (self.rate.total(), self.connection.as_ref().map(Connection::traffic));
        self.board.update(|status| {
            status.state = protocol.state().name().into();
            status.role = match protocol.state() {
                State::Connecting { .. } | State::Loading | State::Ready | State::Following | State::Finishing => {
                    Role::Backup
                }
                State::Asking(_) | State::GoingLive => Role::Waiting,
                State::Live => Role::Unprotected,
                State::Stopped(_) => Role::Retired,
            };
            status.generation = protocol.generation();
            status.net = net;
            status.disk = disk;
            status.peer = protocol.peer().map(|peer| peer.host_name.clone());
            status.log_bytes_per_s = rate;
            status.entries = protocol.received();
            status.execution_lag_entries = Some(protocol.received() - protocol.executed());
            status.heartbeats_sent = heartbeats_sent;
            status.heartbeats_received = protocol.heartbeats();
            status.last_heard_ms = protocol.heard_at().map(|at| now.saturating_sub(at) / 1_000_000);
            status.guest = match replica {
                Some(Replica { ended: Some(reason), .. }) => GuestState::Ended(reason.to_string()),
                Some(_) => GuestState::Running,
                None => GuestState::Starting,
            };
            status.log_bytes = log_bytes;
            if let Some(traffic) = traffic {
                (status.channel_sent_bytes, status.channel_received_bytes) = (traffic.sent, traffic.received);
            }
        });
    }

    /// A machine that was loaded for a primary that went away before its guest ran.
    fn drop_replica(&mut self) {
        if let Some(replica) = self.replica.take() {
            replica.incoming.abandon();
            tokio::spawn(super::vcpu_thread::stop(Some(replica.thread)));
        }
    }

    async fn finish(mut self, result: Result<(), HostError>) -> Result<BackupEnd, HostError> {
        match (&self.stopped, &self.replica) {
            (Some(StopReason::Ended), Some(Replica { ended: Some(reason), live, .. })) => {
                if live.get().is_none() {
                    // All it said may leave. A client whose primary dies at this very moment finds the rest, and the end, here.
                    self.outlets.hub.ended(self.protocol.received().saturating_sub(1), reason);
                    self.outlets.hub.go_live(self.protocol.generation(), Protection::Unprotected);
                    tokio::time::sleep(LAST_WORDS).await;
                }
            }
            _ => {
                self.outlets.not_live(Role::Retired);
                self.board.set_live(false);
            }
        }
        self.report();
        let mut log = None;
        let mut reason = None;
        if let Some(mut replica) = self.replica.take() {
            replica.incoming.abandon();
            if let Some((world, outgoing)) = replica.live.get() {
                outgoing.close();
                world.abandon();
                world.end();
            }
            super::vcpu_thread::stop(Some(replica.thread)).await;
            reason = replica.ended;
            if let Some(keeper) = replica.keeper.take() {
                let path = keeper.path().to_owned();
                log = Some(keeper.close().map_err(|source| HostError::Keep { path, source })?);
            }
        }
        result?;
        let outcome = match (reason, self.stopped) {
            (Some(reason), Some(StopReason::Ended)) => Outcome::Ended(reason),
            (_, stopped) => Outcome::Stopped(stopped.unwrap_or(StopReason::Operator)),
        };
        Ok(BackupEnd { outcome, divergence: self.divergence, log })
    }
}
