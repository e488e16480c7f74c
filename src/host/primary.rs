//! The primary's driver: moves bytes, timers and answers between the world and the protocol's
//! [`Primary`]. Everything that is decided is decided there.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use super::HostError;
use super::board::Request;
use super::channel::{ChannelError, Connection, Received, Stir, arrived};
use super::desk::{Desk, Turn, turn_away};
use super::guest::{FromVcpu, Guest, Living, Part, said};
use super::outgoing::Batch;
use super::precopy::Sent;
use super::transferring::Transferring;
use crate::backends::clock::{boot_clock_ns, wall_clock_ns};
use crate::console::hub::Protection;
use crate::console::status::Role;
use crate::log::boot::encode_boot;
use crate::machine::Machine;
use crate::machine::doors::{Control, EndReason, Halt};
use crate::machine::instant::Instant as GuestInstant;
use crate::machine::snapshot::Boot;
use crate::net::strays;
use crate::replication::backup::Backup;
use crate::replication::election::Answer;
use crate::replication::message::{Envelope, Message, Refusal};
use crate::replication::primary::{Action, Input, Primary, State};

/// Time between two horizons. A backup that keeps up is half of this behind a computing guest, on average; each horizon costs both
/// hosts a wake-up.
const HORIZON_EVERY: Duration = Duration::from_millis(2);

/// What happened next.
enum Wake {
    Accepted(std::io::Result<(TcpStream, std::net::SocketAddr)>),
    Arrived(Result<Stir, ChannelError>),
    Logged,
    Horizon,
    Time,
    Refresh,
    Answer(Answer),
    Vcpu(FromVcpu),
    Transfer(Sent),
    Requested(Request),
}

/// A machine whose guest has not started.
pub(super) struct Unstarted {
    pub machine: Machine,
    pub boot: Boot,
    pub living: Living,
}

/// The driver.
pub(super) struct Driver<'a> {
    desk: &'a mut Desk,
    protocol: Box<Primary>,
    actions: Vec<Action>,
    /// The connection failed while an action was carried out.
    broken: bool,
    /// It is to be closed when the protocol knows.
    closing: bool,
    /// The entries that the protocol is being told about.
    batch: Batch,
    /// The bulk of the message that the protocol is being told about.
    bulk: Vec<u8>,
    unstarted: Option<Unstarted>,
    /// The machine's world and log: of the guest, or of the one that has not started.
    living: Living,
    /// The newest one that was told: an idle guest stands still, and nobody needs to hear that a thousand times a second.
    horizon: GuestInstant,
    transferring: Option<Transferring>,
    /// A transfer that begins as soon as the guest lives here again: one that was taken back a moment ago has no world yet.
    transfer_to_come: Option<u64>,
    /// What the operator wants done with it then, and whether it shall stop.
    controls_to_come: Vec<Control>,
    stop_to_come: bool,
    /// Who waits for a switch.
    switch: Option<super::board::Reply>,
    /// The guest stands still at its beginning until it is protected: its backup has to get a copy of its disk first.
    starts_paused: bool,
    turn: Option<Turn>,
}

impl<'a> Driver<'a> {
    /// The driver of a machine that has not started.
    pub fn new(desk: &'a mut Desk, unstarted: Unstarted) -> Self {
        let mut settings = desk.settings;
        // A disk that each host has for itself gets to the backup with the state of a running guest, and in no other way. So the guest
        // starts, and stands still before its first instruction.
        let copies = desk.outlets.disk.as_ref().is_some_and(|disk| disk.takes_a_copy());
        let starts_paused = copies && !settings.start_alone;
        settings.start_alone |= copies;
        let protocol = Primary::new(desk.me.clone(), settings);
        let living = unstarted.living.clone();
        if starts_paused {
            living.world.control(Control::Pause);
        }
        Driver { starts_paused, ..Self::with(desk, Box::new(protocol), Some(unstarted), living) }
    }

    /// The driver of a machine that lives here since a moment ago, as `protocol` says.
    pub fn survivor(desk: &'a mut Desk, protocol: Box<Primary>) -> Self {
        let living = desk.guest.as_ref().and_then(Guest::living).cloned().expect("the guest lives here");
        Self::with(desk, protocol, None, living)
    }

    fn with(desk: &'a mut Desk, protocol: Box<Primary>, unstarted: Option<Unstarted>, living: Living) -> Self {
        Driver {
            desk,
            protocol,
            actions: Vec::with_capacity(16),
            broken: false,
            closing: false,
            batch: Batch::default(),
            bulk: Vec::new(),
            unstarted,
            living,
            horizon: GuestInstant::BOOT,
            transferring: None,
            transfer_to_come: None,
            controls_to_come: Vec::new(),
            stop_to_come: false,
            switch: None,
            starts_paused: false,
            turn: None,
        }
    }

    /// Drives until the role changes or ends.
    pub async fn drive(mut self) -> Result<Turn, HostError> {
        if self.unstarted.is_none() {
            // In this order: what waits for release is in its queue before anything is released.
            self.desk.outlets.go_live(self.protocol.generation(), Protection::HeldFrom(0))?;
            self.desk.board.set_live(true);
            self.desk.operate();
        }
        let mut refresh = super::board::refresh();
        let mut shown = "";
        let mut horizon = tokio::time::interval(HORIZON_EVERY);
        horizon.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                self.give_up();
                return Ok(Turn::Over);
            }
            if std::mem::replace(&mut shown, self.protocol.state().name()) != shown {
                // Who watches the cluster hears of it at once.
                self.report();
            }
            let time = super::due(self.protocol.next_deadline());
            let running = self.desk.guest.as_ref().is_some_and(|guest| guest.ended.is_none());
            let follows = matches!(self.protocol.state(), State::Protected | State::Joining { .. }) && running;
            let outgoing = self.living.outgoing.clone();
            let Desk { connection, guest, referee, listener, board, .. } = &mut *self.desk;
            let clear = connection.as_ref().is_some_and(|connection| !connection.has_much());
            let wake = tokio::select! {
                biased;
                _ = refresh.tick() => Wake::Refresh,
                result = arrived(connection) => Wake::Arrived(result),
                () = outgoing.ready() => Wake::Logged,
                said = said(guest) => Wake::Vcpu(said),
                answer = referee.answer() => Wake::Answer(answer),
                () = time => Wake::Time,
                accepted = listener.accept() => Wake::Accepted(accepted),
                request = board.requested() => Wake::Requested(request),
                _ = horizon.tick(), if follows => Wake::Horizon,
                sent = super::transferring::next(&mut self.transferring), if clear => Wake::Transfer(sent),
            };
            self.on_wake(wake)?;
        }
    }

    fn on_wake(&mut self, wake: Wake) -> Result<(), HostError> {
        match wake {
            Wake::Refresh => {
                self.report();
                self.look_at_the_disk()
            }
            Wake::Accepted(Ok((stream, address))) => self.on_accepted(stream, address),
            Wake::Accepted(Err(error)) => {
                // Out of descriptors, mostly: the pair goes on.
                tracing::warn!(%error, "cannot accept a connection on the logging channel");
                Ok(())
            }
            Wake::Arrived(result) => self.on_arrived(result),
            Wake::Logged => self.on_logged(),
            Wake::Horizon => self.on_horizon(),
            Wake::Time => {
                let guest_clock_ns = self.living.world.guest_ns();
                self.feed(Input::Tick { guest_clock_ns })
            }
            Wake::Answer(answer) => self.feed(Input::Arbiter(answer)),
            Wake::Vcpu(said) => self.on_vcpu(said),
            Wake::Transfer(sent) => self.on_transfer(sent),
            Wake::Requested(request) => self.on_requested(request),
        }
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
            } else if self.turn.is_none() && !std::mem::replace(&mut asked, true) {
                self.left()
            } else {
                None
            };
        }
        if let Some(disk) = &self.desk.outlets.disk {
            disk.executed(self.protocol.executed());
        }
        if self.starts_paused && *self.protocol.state() == State::Protected {
            self.starts_paused = false;
            self.living.world.control(Control::Resume);
        }
        if std::mem::take(&mut self.closing) {
            // Only now that nothing leaves any more: a backup that finds it closed may be live a moment later.
            self.desk.connection = None;
        }
        Ok(())
    }

    /// What the protocol has to know if the network has let more outputs go. The console is not asked: its clients count bytes, and find
    /// the rest on the other host.
    fn left(&self) -> Option<Input> {
        let below = self.desk.outlets.network.as_ref().map_or(u64::MAX, |port| port.left_below());
        (below > self.protocol.left()).then_some(Input::Left { below })
    }

    fn perform(&mut self, action: Action) -> Result<(), HostError> {
        match action {
            Action::Send(envelope) => self.send(&envelope)?,
            Action::Disconnect => self.desk.disconnect(),
            Action::StartGuest => self.start_guest()?,
            Action::Lease { until_ns } => self.desk.outlets.set_lease(until_ns),
            Action::Release { below: u64::MAX } => self.desk.outlets.set_protection(Protection::Unprotected),
            Action::Release { below } => self.desk.outlets.release(below),
            Action::Hold => self.desk.outlets.hold(),
            Action::Stall => self.living.outgoing.set_stalled(true),
            Action::Resume => self.living.outgoing.set_stalled(false),
            Action::SlowDown { per_mille } => self.living.world.set_slow_down(per_mille.into()),
            Action::Ask(question) => self.desk.referee.ask(question),
            Action::StopGuest if self.has_no_world() => self.stop_to_come = true,
            Action::StopGuest => self.living.world.stop(),
            Action::BeginTransfer { transfer } => {
                self.transfer_to_come = Some(transfer);
                self.begin_transfer()?;
            }
            Action::EndTransfer => {
                self.transfer_to_come = None;
                if let Some(transferring) = self.transferring.take() {
                    transferring.end(&self.living, &self.desk.outlets);
                }
            }
            Action::SwitchGuest => self.living.world.control(Control::Switch),
            Action::NoSwitch(why) => {
                tracing::warn!("no switch: {why}");
                if let Some(reply) = self.switch.take() {
                    reply.refuse(why.to_string());
                }
            }
            Action::TakeBack => {
                // The log has ended here, and goes on here: where it stands, the vCPU thread has said when it stopped.
                if let Some(guest) = &self.desk.guest {
                    guest.take_back(self.protocol.generation());
                }
            }
            Action::BecomeBackup => {
                if let Some(reply) = self.switch.take() {
                    reply.accept("the other host runs the machine now".into());
                }
                self.desk.board.set_live(false);
                self.desk.outlets.follow(Role::Backup, self.protocol.generation())?;
                self.turn = Some(Turn::Backup(Box::new(Backup::handed_over((*self.protocol).clone()))));
            }
            Action::Inject => {
                if let Some(network) = &self.desk.outlets.network {
                    network.inject(strays::decode(&self.bulk));
                }
            }
            Action::Suspect(suspicion) => tracing::warn!("the backup is given up: {suspicion}"),
            Action::Stop(reason) => {
                tracing::info!("{reason}");
                self.desk.stopped = Some(reason);
            }
        }
        Ok(())
    }

    /// Whether the guest is between two worlds: handed over and not gone, or taken back and not here yet.
    fn has_no_world(&self) -> bool {
        self.desk.guest.as_ref().is_some_and(|guest| guest.living().is_none())
    }

    /// Begins the transfer that is to come, if the guest lives here already.
    fn begin_transfer(&mut self) -> Result<(), HostError> {
        let Some(guest) = self.desk.guest.as_mut().filter(|guest| guest.living().is_some()) else { return Ok(()) };
        let Some(transfer) = self.transfer_to_come.take() else { return Ok(()) };
        // The one before, if there is one, was complete: it is over before its successor begins.
        drop(self.transferring.take());
        let begun = Transferring::begin(transfer, guest, &self.living, &self.desk.outlets, self.desk.transfer);
        self.transferring = Some(begun?);
        Ok(())
    }

    fn send(&mut self, envelope: &Envelope) -> Result<(), HostError> {
        let mut made = Vec::new();
        let bulk = match &envelope.message {
            Message::Boot => {
                self.set_boot_time()?;
                let boot = self.unstarted.as_ref().map(|unstarted| &unstarted.boot);
                made = boot.map(encode_boot).transpose()?.unwrap_or_default();
                made.as_slice()
            }
            Message::Transfer => {
                let boot = self.desk.guest.as_ref().map(|guest| guest.boot.clone());
                made = boot.as_deref().map(encode_boot).transpose()?.unwrap_or_default();
                made.as_slice()
            }
            Message::State { .. } => {
                made = self.transferring.as_mut().map(Transferring::take_state).unwrap_or_default();
                made.as_slice()
            }
            Message::Entries { .. } => self.batch.bytes.as_slice(),
            _ => &[],
        };
        self.broken |= !self.desk.send(envelope, bulk);
        drop(made);
        Ok(())
    }

    /// The guest boots now, however long its backup was awaited: the boot that the log starts from says so.
    fn set_boot_time(&mut self) -> Result<(), HostError> {
        let Some(unstarted) = &mut self.unstarted else { return Ok(()) };
        unstarted.boot.boot_time_ns = wall_clock_ns();
        unstarted.machine.set_boot_time(unstarted.boot.boot_time_ns);
        self.living.world.start_clock();
        self.desk.keep(&unstarted.boot)
    }

    fn start_guest(&mut self) -> Result<(), HostError> {
        if self.protocol.peer().is_none() {
            self.set_boot_time()?;
        }
        let Some(Unstarted { machine, boot, living }) = self.unstarted.take() else { return Ok(()) };
        let generation = self.protocol.generation();
        let protection =
            if *self.protocol.state() == State::Protected { Protection::HeldFrom(0) } else { Protection::Unprotected };
        self.desk.outlets.go_live(generation, protection)?;
        self.desk.board.set_live(true);
        tracing::info!(generation, ?protection, "the guest starts");
        self.desk.guest = Some(Guest::live(machine, Arc::new(boot), living, self.desk.surroundings())?);
        self.desk.operate();
        Ok(())
    }

    fn on_accepted(&mut self, stream: TcpStream, address: std::net::SocketAddr) -> Result<(), HostError> {
        tracing::debug!(%address, "connection on the logging channel");
        if self.desk.connection.is_some() {
            turn_away(stream, Refusal::Busy);
            return Ok(());
        }
        match Connection::new(stream) {
            Ok(connection) => {
                self.desk.connection = Some(connection);
                self.feed(Input::Connected)
            }
            Err(error) => {
                tracing::debug!(%error, "the connection was gone at once");
                Ok(())
            }
        }
    }

    fn on_arrived(&mut self, result: Result<Stir, ChannelError>) -> Result<(), HostError> {
        match result {
            Ok(Stir::Drained) => Ok(()),
            Ok(Stir::Arrived) => {
                self.feed(Input::Heard)?;
                self.on_messages()
            }
            Err(error) => self.lost(&error),
        }
    }

    fn on_messages(&mut self) -> Result<(), HostError> {
        // What comes behind a change of roles is for the next driver.
        while self.turn.is_none() {
            let Some(connection) = &mut self.desk.connection else { return Ok(()) };
            match connection.next_message() {
                Ok(Some(Received { envelope, bulk })) => {
                    self.bulk = bulk;
                    self.feed(Input::Received(envelope))?;
                }
                Ok(None) => return Ok(()),
                Err(error) => return self.lost(&error),
            }
        }
        Ok(())
    }

    fn lost(&mut self, error: &ChannelError) -> Result<(), HostError> {
        tracing::debug!(error = error as &dyn std::error::Error, "the logging channel");
        self.closing = true;
        self.feed(Input::Disconnected)
    }

    fn on_logged(&mut self) -> Result<(), HostError> {
        let mut spare = std::mem::take(&mut self.batch.bytes);
        spare.clear();
        let Some(batch) = self.living.outgoing.take(spare) else { return Ok(()) };
        self.desk.rate.add(batch.bytes.len() as u64);
        self.batch = batch;
        let (entries, bytes) = (self.batch.count, self.batch.bytes.len() as u32);
        self.feed(Input::Appended { entries, bytes })?;
        if self.desk.keeper.is_some() {
            let batch = std::mem::take(&mut self.batch);
            self.desk.kept(batch);
        }
        Ok(())
    }

    fn on_horizon(&mut self) -> Result<(), HostError> {
        // In this order: every entry at or before `at` is in the log by the time it is read, and so taken with it.
        let passed = self.desk.guest.as_ref().and_then(|guest| guest.safepoints.passed());
        // Entries that nobody waited for leave now at the latest, also those of a guest that has gone to sleep.
        self.on_logged()?;
        if let Some(at) = passed.filter(|&at| self.horizon < at) {
            self.horizon = at;
            let entries = self.protocol.appended();
            self.feed(Input::Horizon { entries, at })?;
        }
        Ok(())
    }

    fn on_transfer(&mut self, sent: Sent) -> Result<(), HostError> {
        match sent {
            Sent::Chunk(bytes) => {
                let chunk = Envelope { generation: self.protocol.generation(), message: Message::Chunk };
                if !self.desk.send(&chunk, &bytes) {
                    self.closing = true;
                    self.feed(Input::Disconnected)?;
                }
                Ok(())
            }
            // All before the cut is the unprotected guest's.
            Sent::Cut { .. } => self.on_logged(),
            Sent::State(bytes) => {
                let Some(transferring) = &mut self.transferring else { return Ok(()) };
                let (transfer, entries) = transferring.captured(bytes);
                self.feed(Input::Captured { transfer, entries })?;
                self.living.outgoing.join();
                Ok(())
            }
            Sent::Failed(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the new backup does not get the state");
                self.closing = true;
                self.feed(Input::Disconnected)
            }
        }
    }

    fn on_vcpu(&mut self, said: FromVcpu) -> Result<(), HostError> {
        match said {
            FromVcpu::Done(done) => self.on_done(done),
            FromVcpu::Follows(incoming, position) => {
                // Its last entries first.
                self.on_logged()?;
                if let Some(guest) = &mut self.desk.guest {
                    guest.parked(incoming, position);
                }
                self.feed(Input::Parked)
            }
            FromVcpu::WentLive(living) => {
                // Taken back: the switch did not take place.
                if let Some(guest) = &mut self.desk.guest {
                    guest.part = Part::Living(living.clone());
                }
                self.living = living;
                self.desk.outlets.go_live(self.protocol.generation(), Protection::Unprotected)?;
                for control in std::mem::take(&mut self.controls_to_come) {
                    self.living.world.control(control);
                }
                if std::mem::take(&mut self.stop_to_come) {
                    self.living.world.stop();
                }
                self.begin_transfer()
            }
        }
    }

    fn on_done(&mut self, done: Result<EndReason, Halt>) -> Result<(), HostError> {
        self.on_logged()?;
        let reason = done?;
        tracing::info!("{reason}");
        self.living.world.end();
        if let Some(guest) = &mut self.desk.guest {
            guest.ended = Some(reason);
        }
        self.feed(Input::GuestEnded)
    }

    fn on_requested(&mut self, request: Request) -> Result<(), HostError> {
        match request {
            Request::Stop => self.feed(Input::StopRequested),
            Request::Switch(reply) => {
                self.switch = Some(reply);
                self.feed(Input::SwitchRequested)
            }
            Request::Leave(reply) if *self.protocol.state() == State::Waiting => {
                reply.accept("this primary leaves; its guest has not started".into());
                self.feed(Input::StopRequested)
            }
            Request::Leave(reply) => {
                reply.refuse(format!("this side is {}", self.protocol.state().name()));
                Ok(())
            }
            Request::Control(control) if self.has_no_world() => {
                self.controls_to_come.push(control);
                Ok(())
            }
            Request::Control(control) => {
                self.living.world.control(control);
                Ok(())
            }
        }
    }

    /// A host whose image was taken over elsewhere has lost, whatever else it knows.
    fn look_at_the_disk(&mut self) -> Result<(), HostError> {
        match self.desk.outlets.disk.as_ref().and_then(|disk| disk.lost()) {
            Some(newer) => self.feed(Input::Fenced { newer }),
            None => Ok(()),
        }
    }

    fn report(&mut self) {
        let progress = self.transferring.as_mut().map(Transferring::status);
        super::report::primary(self.desk, &self.protocol, progress);
    }

    /// The end of this role for good: nothing leaves any more but what nobody will contradict.
    fn give_up(&mut self) {
        let ended = self.desk.guest.as_ref().is_some_and(|guest| guest.ended.is_some());
        let clean = ended && matches!(self.desk.stopped, Some(crate::replication::StopReason::Ended));
        // The console's clients may take the last words of a guest that has ended; its packets leave now. All of them may: the protocol
        // lets a guest end only when its backup holds everything, or when it has none.
        if clean && let Some(network) = &self.desk.outlets.network {
            network.release(u64::MAX);
        }
        self.desk.end_outlets(clean);
        self.report();
    }
}
