//! The backup's driver: moves bytes, timers and answers between the world and the protocol's [`Backup`], feeds the replaying vCPU
//! thread, and puts the pieces of a running guest's state where they belong.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::board::Request;
use super::channel::{ChannelError, Connection, Received, Stir, arrived};
use super::desk::{Desk, Turn, turn_away};
use super::guest::{FromVcpu, Guest, Part, said};
use super::incoming::Incoming;
use super::outgoing::Batch;
use super::receiving::{Receiving, ReceivingError};
use super::{HostError, Outcome};
use crate::backends::clock::boot_clock_ns;
use crate::console::hub::Protection;
use crate::console::status::Role;
use crate::log::boot::decode_boot;
use crate::log::codec::Encoder;
use crate::log::entry::Entry;
use crate::log::stream::{EntryStream, StreamError};
use crate::machine::doors::{EndReason, Halt};
use crate::machine::packets::Packets;
use crate::machine::{Machine, Tracking};
use crate::net::port::Port;
use crate::replication::StopReason;
use crate::replication::backup::{Action, Backup, Input, State};
use crate::replication::election::Answer;
use crate::replication::message::{Envelope, Message, Refusal};
use crate::replication::primary::Primary;

/// How long a backup whose guest has ended keeps the guest's last words for clients that come from a dead primary.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Within this the network has learnt where the guest is after a switch.
const NETWORK_LEARNS: Duration = Duration::from_secs(1);

/// What happened next.
enum Wake {
    Connected(std::io::Result<TcpStream>),
    Accepted(std::io::Result<(TcpStream, std::net::SocketAddr)>),
    Arrived(Result<Stir, ChannelError>),
    Time,
    Refresh,
    Answer(Answer),
    Vcpu(FromVcpu),
    Requested(Request),
    Strays(Packets),
}

/// Why a message cannot be used.
#[derive(Debug, thiserror::Error)]
enum BadMessage {
    #[error("the log that was received")]
    Stream(#[from] StreamError),
    #[error("the state that was received")]
    State(#[from] ReceivingError),
}

type Connecting = Pin<Box<dyn Future<Output = std::io::Result<TcpStream>> + Send>>;

/// The driver.
pub(super) struct Driver<'a> {
    desk: &'a mut Desk,
    protocol: Box<Backup>,
    actions: Vec<Action>,
    connecting: Option<Connecting>,
    broken: bool,
    /// The bulk of the message that the protocol is being told about: a boot or a piece of state, or decoded entries and their bytes.
    bulk: Vec<u8>,
    entries: Vec<Entry>,
    batch: Batch,
    /// Turns the log's bytes into entries, from where the machine stands on.
    stream: EntryStream,
    receiving: Option<Receiving>,
    /// The primary that is being connected to.
    primary: String,
    turn: Option<Turn>,
    /// Until when packets that come here for the guest are passed on to the host that has just got it.
    passes_on_until: Option<Instant>,
}

/// Waits for packets that have gone astray, or for ever.
async fn strays(network: Option<Arc<Port>>) -> Packets {
    match network {
        Some(network) => network.strays().await,
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

impl<'a> Driver<'a> {
    /// A backup that looks for its primary.
    pub fn new(desk: &'a mut Desk) -> Self {
        let protocol = Box::new(Backup::new(desk.me.clone(), desk.settings));
        Self::with(desk, protocol, EntryStream::new())
    }

    /// The backup that a primary has become which has handed over; its machine replays already.
    pub fn handed_over(desk: &'a mut Desk, protocol: Box<Backup>) -> Self {
        let stream = desk.guest.as_ref().and_then(Guest::position).map(EntryStream::continuing).unwrap_or_default();
        let passes_on_until = Some(Instant::now() + NETWORK_LEARNS);
        Driver { passes_on_until, ..Self::with(desk, protocol, stream) }
    }

    fn with(desk: &'a mut Desk, protocol: Box<Backup>, stream: EntryStream) -> Self {
        Driver {
            desk,
            protocol,
            actions: Vec::with_capacity(16),
            connecting: None,
            broken: false,
            bulk: Vec::new(),
            entries: Vec::new(),
            batch: Batch::default(),
            stream,
            receiving: None,
            primary: String::new(),
            turn: None,
            passes_on_until: None,
        }
    }

    /// Drives until the role changes or ends.
    pub async fn drive(mut self) -> Result<Turn, HostError> {
        let mut refresh = super::board::refresh();
        let mut shown = "";
        self.feed(Input::Start)?;
        if self.desk.connection.is_some() {
            // What came behind the change of roles.
            self.on_messages()?;
        }
        loop {
            if let Some(turn) = self.turn.take() {
                self.report();
                return Ok(turn);
            }
            if self.desk.stopped.is_some() {
                self.give_up().await;
                return Ok(Turn::Over);
            }
            if std::mem::replace(&mut shown, self.protocol.state().name()) != shown {
                // Who watches the cluster hears of it at once.
                self.report();
            }
            let time = super::due(self.protocol.next_deadline());
            let network = self.passes_on_until.and(self.desk.outlets.network.clone());
            let Desk { connection, guest, referee, listener, board, .. } = &mut *self.desk;
            let wake = tokio::select! {
                biased;
                _ = refresh.tick() => Wake::Refresh,
                result = arrived(connection) => Wake::Arrived(result),
                said = said(guest) => Wake::Vcpu(said),
                answer = referee.answer() => Wake::Answer(answer),
                () = time => Wake::Time,
                stream = connected(&mut self.connecting) => Wake::Connected(stream),
                accepted = listener.accept() => Wake::Accepted(accepted),
                request = board.requested() => Wake::Requested(request),
                packets = strays(network) => Wake::Strays(packets),
            };
            match wake {
                Wake::Refresh => {
                    self.report();
                    self.look_at_the_disk()?;
                    if self.passes_on_until.take_if(|until| *until <= Instant::now()).is_some()
                        && let Some(network) = &self.desk.outlets.network
                    {
                        network.end_strays();
                    }
                }
                Wake::Connected(Ok(stream)) => self.on_connected(stream)?,
                Wake::Connected(Err(error)) => {
                    tracing::debug!(%error, primary = self.primary, "no connection to the primary yet");
                    self.feed(Input::Disconnected)?;
                }
                Wake::Accepted(Ok((stream, _))) => turn_away(stream, Refusal::Busy),
                Wake::Accepted(Err(error)) => {
                    tracing::warn!(%error, "cannot accept a connection on the logging channel")
                }
                Wake::Arrived(result) => self.on_arrived(result)?,
                Wake::Time => {
                    self.tell_executed()?;
                    self.feed(Input::Tick)?;
                }
                Wake::Answer(answer) => self.feed(Input::Arbiter(answer))?,
                Wake::Vcpu(said) => self.on_vcpu(said)?,
                Wake::Strays(packets) => {
                    let strays = Envelope { generation: self.protocol.generation(), message: Message::Strays };
                    if !self.desk.send(&strays, &crate::net::strays::encode(&packets)) {
                        self.desk.connection = None;
                        self.feed(Input::Disconnected)?;
                    }
                }
                Wake::Requested(Request::Stop) => self.feed(Input::StopRequested)?,
                Wake::Requested(Request::Switch(reply)) => reply.refuse("this host does not run the machine".into()),
                Wake::Requested(Request::Leave(reply)) => match self.protocol.state() {
                    State::Connecting { .. }
                    | State::Loading
                    | State::Receiving
                    | State::Restoring
                    | State::Ready
                    | State::Following => {
                        reply.accept("this backup leaves".into());
                        self.feed(Input::StopRequested)?;
                    }
                    State::Finishing
                    | State::Taking(_)
                    | State::Asking(_)
                    | State::GoingLive
                    | State::Live
                    | State::Stopped(_) => reply.refuse(format!("this side is {}", self.protocol.state().name())),
                },
                Wake::Requested(Request::Control(_)) => {}
            }
        }
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
                self.desk.connection = None;
                next = Some(Input::Disconnected);
            }
        }
        Ok(())
    }

    /// Does what the protocol says; some of it has an answer for the protocol.
    fn perform(&mut self, action: Action) -> Result<Option<Input>, HostError> {
        match action {
            Action::Connect => {
                self.receiving = None;
                self.desk.drop_guest();
                let primary = self.desk.peer();
                self.primary.clone_from(&primary);
                self.connecting = Some(Box::pin(async move { TcpStream::connect(primary).await }));
            }
            Action::Send(envelope) => self.broken |= !self.desk.send(&envelope, &[]),
            Action::Disconnect => self.desk.disconnect(),
            Action::Load => {
                self.load()?;
                return Ok(Some(Input::Loaded));
            }
            Action::LoadBlank => {
                let boot = decode_boot(&std::mem::take(&mut self.bulk))?;
                self.desk.outlets.fit(&boot)?;
                let keep = self.desk.keeping.file.as_deref().filter(|_| !self.desk.keeping.scratch);
                self.receiving = Some(Receiving::begin(boot, &self.desk.outlets, keep)?);
            }
            // Done where a flaw can still be told: see `unpack`.
            Action::Apply => {}
            Action::Restore { .. } => {
                self.restore()?;
                return Ok(Some(Input::Loaded));
            }
            Action::Replay { stamp, .. } => {
                if let Some(incoming) = self.desk.guest.as_ref().and_then(Guest::incoming) {
                    self.desk.rate.add(self.batch.bytes.len() as u64);
                    incoming.push(self.entries.drain(..), stamp);
                    let batch = std::mem::take(&mut self.batch);
                    self.desk.kept(batch);
                }
            }
            Action::RunTo { at, stamp, .. } => {
                if let Some(incoming) = self.desk.guest.as_ref().and_then(Guest::incoming) {
                    incoming.clear_up_to(at, stamp);
                }
            }
            Action::Left { below } => {
                if let Some(network) = &self.desk.outlets.network {
                    network.left(below);
                }
            }
            Action::Ask(question) => self.desk.referee.ask(question),
            Action::GoLive { generation, entries, .. } => {
                tracing::info!(generation, entries, "won; going live");
                if let Some(guest) = &self.desk.guest {
                    guest.go_live(Encoder::continuing(self.stream.decoder()), generation);
                }
            }
            Action::BecomePrimary if self.desk.guest.as_ref().is_some_and(|guest| guest.ended.is_some()) => {
                // A guest that has ended has no more to do than to say its last words.
                self.desk.board.set_live(true);
                self.desk.outlets.go_live(self.protocol.generation(), Protection::Unprotected)?;
                self.desk.stopped = Some(StopReason::Ended);
            }
            Action::BecomePrimary => {
                self.turn = Some(Turn::Primary(Box::new(Primary::from_backup((*self.protocol).clone()))));
            }
            Action::Suspect(suspicion) if matches!(self.protocol.state(), State::Connecting { .. }) => {
                // Nothing has run yet, and nothing is lost: it connects again.
                tracing::debug!(primary = self.primary, "no primary yet: {suspicion}");
            }
            Action::Suspect(suspicion) => tracing::warn!("the primary is given up: {suspicion}"),
            Action::Stop(reason) => {
                tracing::info!("{reason}");
                self.desk.stopped = Some(reason);
            }
        }
        Ok(None)
    }

    /// Makes the machine that the primary is about to boot, and has it wait for the log.
    fn load(&mut self) -> Result<(), HostError> {
        let boot = decode_boot(&std::mem::take(&mut self.bulk))?;
        self.desk.outlets.fit(&boot)?;
        let machine = Machine::new(&boot, Tracking::On)?;
        self.desk.board.watch(machine.safepoints());
        self.desk.keep(&boot)?;
        self.stream = EntryStream::new();
        let incoming = Incoming::new(machine.safepoints());
        let guest = Guest::replica(machine, Arc::new(boot), incoming, 0, self.desk.surroundings())?;
        self.desk.guest = Some(guest);
        Ok(())
    }

    /// The state is here as a whole: makes the machine of it, and has it wait for the log that follows.
    fn restore(&mut self) -> Result<(), HostError> {
        let Some(receiving) = self.receiving.take() else { return Ok(()) };
        let generation = self.protocol.generation();
        let (bulk, limit) = (std::mem::take(&mut self.bulk), self.desk.keeping.limit_bytes);
        let (machine, boot, state, keeper) = receiving.finish(&bulk, generation, &self.desk.outlets, limit)?;
        self.desk.keeper = keeper;
        let (entries, clock_ns) = (state.position.entries(), state.position.clock_ns());
        self.desk.board.watch(machine.safepoints());
        self.desk.outlets.hub.restore(&state.console, entries);
        if let Some(disk) = &self.desk.outlets.disk {
            disk.adopt(machine.disk_in_flight());
        }
        self.stream = EntryStream::continuing(&state.position);
        let incoming = Incoming::from_entry(machine.safepoints(), entries);
        let guest = Guest::replica(machine, boot, incoming, clock_ns, self.desk.surroundings())?;
        guest.heard_of_clock(state.guest_clock_ns);
        tracing::info!(entries, "the guest's state is here");
        self.desk.guest = Some(guest);
        Ok(())
    }

    fn on_connected(&mut self, stream: TcpStream) -> Result<(), HostError> {
        match Connection::new(stream) {
            Ok(connection) => {
                self.desk.connection = Some(connection);
                self.feed(Input::Connected)
            }
            Err(_) => self.feed(Input::Disconnected),
        }
    }

    fn on_arrived(&mut self, result: Result<Stir, ChannelError>) -> Result<(), HostError> {
        match result {
            Ok(Stir::Drained) => Ok(()),
            Ok(Stir::Arrived) => {
                self.feed(Input::Heard)?;
                self.tell_executed()?;
                self.on_messages()
            }
            Err(error) => self.lost(&error),
        }
    }

    fn on_messages(&mut self) -> Result<(), HostError> {
        while self.turn.is_none() {
            let Some(connection) = &mut self.desk.connection else { return Ok(()) };
            match connection.next_message() {
                Ok(Some(mut received)) => match self.unpack(&mut received) {
                    Ok(()) => self.feed(Input::Received(received.envelope))?,
                    Err(error) => return self.lost(&error),
                },
                Ok(None) => return Ok(()),
                Err(error) => return self.lost(&error),
            }
        }
        Ok(())
    }

    fn lost(&mut self, error: &(dyn std::error::Error + 'static)) -> Result<(), HostError> {
        tracing::debug!(error, "the logging channel");
        self.desk.connection = None;
        self.feed(Input::Disconnected)
    }

    /// Makes sense of the bulk *before* the protocol hears of the message: what cannot be replayed is not acknowledged. Of what the protocol will refuse
    /// for its generation nothing is looked at.
    fn unpack(&mut self, received: &mut Received) -> Result<(), BadMessage> {
        let Envelope { generation, message } = &received.envelope;
        if !self.protocol.admits(message.kind(), *generation) {
            return Ok(());
        }
        match message {
            Message::Boot | Message::Transfer | Message::State { .. } => self.bulk = std::mem::take(&mut received.bulk),
            Message::Chunk => {
                if let Some(receiving) = &mut self.receiving {
                    receiving.apply(&received.bulk, &self.desk.outlets)?;
                }
            }
            Message::Heartbeat { guest_clock_ns, .. } => {
                if let Some(guest) = &self.desk.guest {
                    guest.heard_of_clock(*guest_clock_ns);
                }
            }
            Message::Entries { first, count, .. } if self.desk.guest.is_some() => {
                self.stream.begin(*first, *count)?;
                self.entries.clear();
                let mut rest = received.bulk.as_slice();
                while let Some(entry) = self.stream.next(&mut rest)? {
                    self.entries.push(entry);
                }
                self.batch = Batch { first: *first, count: *count, bytes: std::mem::take(&mut received.bulk) };
            }
            _ => {}
        }
        Ok(())
    }

    fn tell_executed(&mut self) -> Result<(), HostError> {
        let Some(incoming) = self.desk.guest.as_ref().and_then(Guest::incoming) else { return Ok(()) };
        let (entries, stamp) = incoming.executed();
        self.feed(Input::Executed { entries, stamp })
    }

    fn on_vcpu(&mut self, said: FromVcpu) -> Result<(), HostError> {
        match said {
            FromVcpu::WentLive(living) => {
                if let Some(guest) = &mut self.desk.guest {
                    guest.part = Part::Living(living);
                }
                self.feed(Input::WentLive)
            }
            FromVcpu::Done(done) => self.on_done(done),
            // Only a living machine logs that the other side goes on.
            FromVcpu::Follows(..) => Ok(()),
        }
    }

    fn on_done(&mut self, done: Result<EndReason, Halt>) -> Result<(), HostError> {
        match done {
            Ok(reason) => {
                if let Some(guest) = &mut self.desk.guest {
                    guest.ended = Some(reason);
                }
                self.tell_executed()?;
                self.feed(Input::GuestEnded)
            }
            Err(Halt::Diverged(divergence)) => {
                let (entry, text) = (divergence.entry, divergence.to_string().into());
                self.desk.divergence = Some(divergence);
                self.feed(Input::Diverged { entry, text })
            }
            Err(halt) => Err(halt.into()),
        }
    }

    /// A backup whose own image failed cannot be the survivor, and says so.
    fn look_at_the_disk(&mut self) -> Result<(), HostError> {
        match self.desk.outlets.disk.as_ref().and_then(|disk| disk.broken()) {
            Some(error) if *self.protocol.state() == State::Following => {
                let entry = self.protocol.executed();
                self.feed(Input::Diverged { entry, text: error.to_string().into() })
            }
            _ => Ok(()),
        }
    }

    fn report(&mut self) {
        let received = self.receiving.as_mut().map(Receiving::status);
        super::report::backup(self.desk, &self.protocol, received);
    }

    async fn give_up(&mut self) {
        let reason = self.desk.guest.as_ref().and_then(|guest| guest.ended.clone());
        match (&self.desk.stopped, reason) {
            (Some(StopReason::Ended), Some(reason)) => {
                // All it said may leave. A client whose primary dies at this very moment finds the rest, and the end, here.
                let hub = &self.desk.outlets.hub;
                hub.ended(self.protocol.received().saturating_sub(1), &reason);
                hub.go_live(self.protocol.generation(), Protection::Unprotected);
                tokio::time::sleep(LAST_WORDS).await;
            }
            _ => {
                self.desk.outlets.not_live(Role::Retired);
                self.desk.board.set_live(false);
            }
        }
        self.report();
    }
}

/// How a side of a pair came to its end, in the caller's words.
pub(super) fn outcome(desk: &Desk) -> Outcome {
    let ended = desk.guest.as_ref().and_then(|guest| guest.ended.clone());
    match (ended, desk.stopped.clone()) {
        (Some(reason), Some(StopReason::Ended)) => Outcome::Ended(reason),
        (_, stopped) => Outcome::Stopped(stopped.unwrap_or(StopReason::Operator)),
    }
}
