//! The model's state and what its actions do to it.

use super::actions::{Action, Ending, Item, Plant, Start};
use super::arbiter::{Won, number};
use super::machine::{Host, Machine};
use super::{A, B, Side, TIMEOUT};
use lockstep::replication::backup::{self, Backup};
use lockstep::replication::election::{Answer, Question};
use lockstep::replication::held::HeldOutputs;
use lockstep::replication::lease::Lease;
use lockstep::replication::message::{Envelope, Message};
use lockstep::replication::primary::{self, Primary};
use lockstep::replication::{Identity, Settings, Suspicion};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub now: u64,
    pub hosts: [Host; 2],
    pub guest_started: bool,
    pub switched: bool,
    /// What the arbiter's register holds, and what it held before.
    pub register: Won,
    pub register_before: Won,
    /// Claims that were given up, and may be carried out yet.
    pub overdue: Vec<(Side, Question)>,
    /// What was said in an older generation, and may arrive yet.
    pub late: Vec<(Side, Envelope)>,
    pub crashes: u8,
    pub breaks: u8,
    pub give_ups: u8,
    /// A claim that was given up has won, or has come too late.
    pub won_late: bool,
    pub came_too_late: bool,
    /// Who had won heard that it was overtaken.
    pub overtaken: bool,
    /// A message of an older generation was refused.
    pub fenced: bool,
    /// Who made the output that has left at each position.
    pub seen: Vec<Side>,
    /// Entries that a backup that counts has held, by generation.
    pub counted: [u64; 8],
    /// Outputs below this had not left when a backup without them was taken: a network that takes nothing for a time-out may lose them.
    pub given_up: u64,
    pub contradicted: bool,
    pub out_of_order: bool,
    pub unheld: bool,
    pub released_late: bool,
    pub left_after_the_survivor: bool,
    pub missing: bool,
    pub acknowledged_left: bool,
}

impl State {
    pub fn new(plant: Plant, start: Start) -> Self {
        let settings = Settings {
            heartbeat_ns: TIMEOUT / 2,
            timeout_ns: TIMEOUT,
            retry_ns: TIMEOUT,
            start_alone: start == Start::Alone,
            ..Settings::default()
        };
        let identity = |side| Identity::new("vm", number(side), "host", "cpu").unwrap();
        let mut state = State {
            now: 0,
            hosts: [
                Host::new(Machine::Primary(Primary::new(identity(A), settings))),
                Host::new(Machine::Backup(Backup::new(identity(B), settings))),
            ],
            guest_started: false,
            switched: false,
            register: (0, A, None),
            register_before: (0, A, None),
            overdue: Vec::new(),
            late: Vec::new(),
            crashes: 0,
            breaks: 0,
            give_ups: 0,
            won_late: false,
            came_too_late: false,
            overtaken: false,
            fenced: false,
            seen: Vec::new(),
            counted: [0; 8],
            given_up: 0,
            contradicted: false,
            out_of_order: false,
            unheld: false,
            released_late: false,
            left_after_the_survivor: false,
            missing: false,
            acknowledged_left: false,
        };
        state.primary_on(plant, A, primary::Input::Start);
        state.backup_on(plant, B, backup::Input::Start);
        match start {
            Start::Boot => {}
            Start::Alone => {
                while state.hosts[0].question.is_some() {
                    state.act(plant, Action::Arbitrate(A));
                    state.act(plant, Action::Answer(A));
                }
                state.act(plant, Action::Append(A));
            }
            Start::Switch => {
                state.act(plant, Action::Connect(B));
                state.settle(plant);
            }
            Start::Survivor => {
                state.act(plant, Action::Connect(B));
                state.settle(plant);
                state.act(plant, Action::Append(A));
                state.settle(plant);
                state.act(plant, Action::Write(A));
                state.act(plant, Action::Break(Ending::Close));
                // The first of the two to ask wins.
                state.settle(plant);
                assert_eq!(state.register, (2, A, None));
                // The loser comes back as another process, and nothing of what has happened counts against the bounds.
                state.hosts[B as usize] = Host::new(Machine::Backup(Backup::new(identity(B), settings)));
                state.backup_on(plant, B, backup::Input::Start);
                (state.breaks, state.register_before) = (0, (1, A, None));
                state.hosts[A as usize].silence = false;
                let entries = state.hosts[A as usize].primary().map_or(0, Primary::appended);
                let (received, executed) = (entries + 1, entries);
                let ack = Message::Ack { received, executed, executed_stamp: 0, received_stamp: 0 };
                let log = Message::Entries { first: entries, count: 1, bytes: 1, stamp: 0, released: 0 };
                state.late =
                    [(A, ack), (B, log)].map(|(side, message)| (side, Envelope { generation: 1, message })).into();
            }
        }
        state
    }

    /// Everything that is on its way arrives, and the arbiter answers; no time passes.
    fn settle(&mut self, plant: Plant) {
        for _ in 0..12 {
            for side in [A, B] {
                self.act(plant, Action::Deliver(side));
                if self.act(plant, Action::Arbitrate(side)) {
                    self.act(plant, Action::Answer(side));
                }
            }
        }
    }

    pub(super) fn host(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[side as usize]
    }

    fn send(&mut self, from: Side, envelope: Envelope) {
        let heartbeat = matches!(envelope.message, Message::Heartbeat { .. });
        if !self.host(from).connected {
            return;
        }
        let to = self.host(!from);
        // One heartbeat says as much as many, and any other message says it as well.
        if to.connected && !to.dead && (!heartbeat || to.incoming.is_empty()) {
            to.incoming.push_back(Item::Message(envelope));
        }
    }

    fn hang_up(&mut self, side: Side) {
        if self.host(side).close() && self.host(!side).connected {
            self.host(!side).incoming.push_back(Item::Closed);
        }
    }

    /// What may leave now leaves.
    fn let_out(&mut self, plant: Plant, side: Side) {
        if !self.hosts[side as usize].lease_holds(plant, self.now) {
            return;
        }
        while let Some((entry, maker)) = self.host(side).held.pop() {
            let (host, other) = (&self.hosts[side as usize], &self.hosts[!side as usize]);
            let protected = host.primary().is_some_and(|primary| *primary.state() == primary::State::Protected);
            let joining =
                host.primary().is_some_and(|primary| matches!(primary.state(), primary::State::Joining { .. }));
            let held = protected && entry < self.counted[host.generation() as usize];
            self.unheld |= (protected || joining) && entry >= host.base && !held;
            self.acknowledged_left |= held;
            self.released_late |= protected && self.now - host.heard_at >= TIMEOUT;
            self.left_after_the_survivor |=
                other.lives_alone() && other.silence && other.generation() > host.generation();
            while (self.seen.len() as u64) < entry.min(self.given_up) {
                self.seen.push(A);
            }
            match self.seen.get(entry as usize) {
                Some(before) => self.contradicted |= *before != maker,
                None if entry == self.seen.len() as u64 => self.seen.push(maker),
                None => self.out_of_order = true,
            }
        }
    }

    fn primary_on(&mut self, plant: Plant, side: Side, input: primary::Input) {
        let (mut actions, now) = (Vec::new(), if plant == Plant::IgnoreTime { 0 } else { self.now });
        let Machine::Primary(primary) = &mut self.host(side).machine else { return };
        let before = *primary.state() == primary::State::Protected;
        primary.on(now, input, &mut actions);
        if !before && *primary.state() == primary::State::Protected {
            self.host(side).heard_at = self.now;
        }
        for action in actions {
            match action {
                primary::Action::Send(envelope) => {
                    match (plant, &envelope.message) {
                        (Plant::ReleaseOnSent, Message::Entries { first, count, .. }) => {
                            self.host(side).held.release(first + u64::from(*count));
                        }
                        (_, Message::Handover { .. }) => self.host(side).handed_over = true,
                        _ => {}
                    }
                    self.send(side, envelope);
                }
                primary::Action::Disconnect | primary::Action::Stop(_) => self.hang_up(side),
                primary::Action::StartGuest => {
                    self.guest_started = true;
                    self.host(side).running = true;
                }
                primary::Action::Lease { until_ns } => {
                    if plant != Plant::IgnoreLease && (plant != Plant::LeaseFromArrival || until_ns == u64::MAX) {
                        self.host(side).lease_until = until_ns;
                    }
                }
                primary::Action::Release { below } => self.host(side).held.release(below),
                primary::Action::Hold => self.host(side).held.hold(),
                primary::Action::Ask(question) => self.ask(plant, side, question),
                primary::Action::BeginTransfer { transfer } => self.host(side).capture = Some(transfer),
                primary::Action::EndTransfer => {
                    self.host(side).capture = None;
                    self.host(side).ended_transfer = true;
                }
                primary::Action::SwitchGuest => self.host(side).park = true,
                primary::Action::TakeBack => {
                    let host = self.host(side);
                    host.taken_back |= std::mem::take(&mut host.handed_over);
                    host.parked = false;
                }
                primary::Action::BecomeBackup => self.become_backup(plant, side),
                primary::Action::Suspect(suspicion) => self.suspects(side, &suspicion),
                primary::Action::Stall
                | primary::Action::Resume
                | primary::Action::SlowDown { .. }
                | primary::Action::NoSwitch(_)
                | primary::Action::Inject
                | primary::Action::StopGuest => {}
            }
        }
        let host = &self.hosts[side as usize];
        let protected = host.primary().is_some_and(|primary| *primary.state() == primary::State::Protected);
        if protected && side == A && host.held.left_below() < host.base && !host.taken_back {
            self.given_up = host.base;
        }
        let Some(told) = self.host(side).primary().map(Primary::left) else { return };
        let below = if plant == Plant::LeftFromAcks { u64::MAX } else { self.host(side).held.left_below() };
        if below > told && !self.host(side).telling {
            self.host(side).telling = true;
            self.primary_on(plant, side, primary::Input::Left { below });
            self.host(side).telling = false;
        }
    }

    fn suspects(&mut self, side: Side, suspicion: &Suspicion) {
        self.host(side).silence = matches!(suspicion, Suspicion::Silence { .. } | Suspicion::NotTaken);
    }

    fn become_backup(&mut self, plant: Plant, side: Side) {
        let host = self.host(side);
        let Machine::Primary(primary) = &host.machine else { return };
        host.machine = Machine::Backup(Backup::handed_over(primary.clone()));
        (host.running, host.parked, host.handed_over, host.left) = (false, false, false, 0);
        host.held.hold();
        self.backup_on(plant, side, backup::Input::Start);
    }

    fn become_primary(&mut self, plant: Plant, side: Side) {
        let host = self.host(side);
        let Machine::Backup(backup) = &host.machine else { return };
        let primary = Primary::from_backup(backup.clone());
        host.base = primary.appended();
        host.machine = Machine::Primary(primary);
        (host.running, host.parked, host.lease_until) = (true, false, 0);
        if plant == Plant::RepeatNothing {
            host.left = host.base;
        }
        // What has left the other side is left out, and nothing else.
        let (left, seen) = (host.left, self.seen.len() as u64);
        let host = self.host(side);
        host.held.release(left);
        let mut missing = false;
        while let Some((entry, _)) = host.held.pop() {
            missing |= entry >= seen;
        }
        host.held.hold();
        if plant == Plant::HeirLeaks && !host.alone {
            host.lease_until = u64::MAX;
            host.held.release(u64::MAX);
        }
        self.missing |= missing;
        self.primary_on(plant, side, primary::Input::Start);
    }

    fn backup_on(&mut self, plant: Plant, side: Side, input: backup::Input) {
        let (mut actions, now) = (Vec::new(), self.now);
        let Machine::Backup(backup) = &mut self.host(side).machine else { return };
        backup.on(now, input, &mut actions);
        if *backup.state() == backup::State::Following {
            let (generation, received) = (backup.generation() as usize, backup.received());
            self.counted[generation] = self.counted[generation].max(received);
        }
        for action in actions {
            match action {
                backup::Action::Connect => self.host(side).connecting = true,
                backup::Action::Send(envelope) => self.send(side, envelope),
                backup::Action::Disconnect => {
                    if plant != Plant::AckAfterSuspicion || !self.host(side).gave_up() {
                        self.hang_up(side);
                    }
                }
                backup::Action::Load | backup::Action::Restore { .. } => {
                    self.host(side).held = HeldOutputs::default();
                    self.backup_on(plant, side, backup::Input::Loaded);
                }
                backup::Action::Replay { first, count, .. } => {
                    for entry in first..first + u64::from(count) {
                        self.host(side).held.push(entry, !side);
                    }
                }
                backup::Action::GoLive { alone, .. } => {
                    self.host(side).alone = alone;
                    if plant == Plant::ForgetTail && alone {
                        self.host(side).held = HeldOutputs::default();
                    }
                }
                backup::Action::Left { below } => self.host(side).left = below,
                backup::Action::Ask(question) => self.ask(plant, side, question),
                backup::Action::BecomePrimary => self.become_primary(plant, side),
                backup::Action::Suspect(suspicion) => self.suspects(side, &suspicion),
                backup::Action::Stop(_) => self.hang_up(side),
                backup::Action::RunTo { .. } | backup::Action::LoadBlank | backup::Action::Apply => {}
            }
        }
    }

    fn deliver(&mut self, plant: Plant, side: Side) -> bool {
        let Some(item) = self.host(side).incoming.pop_front() else { return false };
        let primary = self.host(side).primary().is_some();
        match item {
            Item::Opened if primary => self.primary_on(plant, side, primary::Input::Connected),
            Item::Opened => self.backup_on(plant, side, backup::Input::Connected),
            Item::Closed => {
                self.host(side).close();
                if primary {
                    self.primary_on(plant, side, primary::Input::Disconnected);
                } else {
                    self.backup_on(plant, side, backup::Input::Disconnected);
                }
            }
            Item::Message(envelope) if primary => {
                if let (Plant::LeaseFromArrival, Message::Ack { .. }) = (plant, &envelope.message) {
                    self.host(side).lease_until = self.now + TIMEOUT - Lease::margin_ns(TIMEOUT);
                }
                self.primary_on(plant, side, primary::Input::Received(envelope));
                self.host(side).heard_at = self.now;
            }
            Item::Message(envelope) => {
                if let (Plant::AckAfterSuspicion, true, Message::Entries { first, count, .. }) =
                    (plant, self.host(side).gave_up(), &envelope.message)
                {
                    let (received, received_stamp) = (first + u64::from(*count), self.now);
                    let message = Message::Ack { received, executed: 0, executed_stamp: 0, received_stamp };
                    self.send(side, Envelope { generation: envelope.generation, message });
                }
                self.backup_on(plant, side, backup::Input::Received(envelope));
                self.host(side).heard_at = self.now;
            }
        }
        true
    }

    fn fenced_so_far(&self, side: Side) -> u64 {
        let host = &self.hosts[side as usize];
        host.primary().map_or(0, Primary::fenced) + host.backup().map_or(0, Backup::fenced)
    }

    /// The connection ends without either side closing it.
    fn end_connection(&mut self, ending: Ending) {
        for host in &mut self.hosts {
            if host.connected && !host.dead {
                if ending == Ending::Cut {
                    host.incoming.clear();
                }
                if ending != Ending::Silence {
                    host.incoming.push_back(Item::Closed);
                }
            }
        }
    }

    /// False: there is nothing to do.
    pub fn act(&mut self, plant: Plant, action: Action) -> bool {
        let done = self.do_act(plant, action);
        // A claim on what the register does not hold any more changes nothing, whenever it comes. Equal states should be equal.
        if !matches!(plant, Plant::ClaimUnasked | Plant::StaleReadBelieved) {
            let (register, before) = (self.register.0, self.overdue.len());
            self.overdue.retain(|(_, question)| match question {
                Question::Claim { expected, .. } => expected.unwrap_or(0) >= register,
                Question::Read => false,
            });
            self.came_too_late |= self.overdue.len() < before;
        }
        done
    }

    fn do_act(&mut self, plant: Plant, action: Action) -> bool {
        match action {
            Action::Step => self.now += super::STEP,
            Action::Tick(side) => {
                self.primary_on(plant, side, primary::Input::Tick { guest_clock_ns: 0 });
                self.backup_on(plant, side, backup::Input::Tick);
            }
            Action::Deliver(side) => return self.deliver(plant, side),
            Action::Connect(side) => self.connect(plant, side),
            Action::Append(side) => self.append(plant, side),
            Action::Write(side) => self.let_out(plant, side),
            Action::WentLive(side) => self.backup_on(plant, side, backup::Input::WentLive),
            Action::Switch => {
                self.switched = true;
                self.primary_on(plant, A, primary::Input::SwitchRequested);
            }
            Action::Park(side) => {
                let host = self.host(side);
                (host.park, host.parked) = (false, true);
                if host.running {
                    self.append(plant, side);
                    self.primary_on(plant, side, primary::Input::Parked);
                }
            }
            Action::Capture(side) => {
                let host = self.host(side);
                let Some(transfer) = host.capture.take() else { return false };
                let entries = host.primary().map_or(0, Primary::appended);
                host.base = entries;
                if plant != Plant::JoiningLeaks {
                    host.held.release(entries);
                }
                self.primary_on(plant, side, primary::Input::Captured { transfer, entries });
            }
            Action::Arbitrate(side) => {
                let Some(question) = self.host(side).question.take() else { return false };
                let answer = self.arbitrate(plant, side, question);
                let claimed = if answer == Answer::Won { self.register.0 } else { 0 };
                let host = self.host(side);
                (host.answer, host.claimed) = (Some(answer), claimed);
            }
            Action::ReadStale(side) => {
                let held = self.register_before.0;
                let host = self.host(side);
                host.question = None;
                (host.answer, host.claimed) = (Some(Answer::Holds((held > 0).then_some(held))), 0);
            }
            Action::GiveUp(side) => {
                self.give_ups += 1;
                let host = self.host(side);
                let question = host.question.take();
                (host.answer, host.claimed) = (Some(Answer::Unreachable), 0);
                if let Some(claim @ Question::Claim { .. }) = question {
                    self.overdue.push((side, claim));
                }
            }
            Action::CarryOut(which) => {
                let (side, question) = self.overdue.remove(which);
                self.won_late |= self.arbitrate(plant, side, question) == Answer::Won;
            }
            Action::AnswerOvertaken(side) => {
                let lost = self.lost(plant, side);
                self.overtaken = true;
                self.host(side).answer = Some(lost);
                return self.act(plant, Action::Answer(side));
            }
            Action::Late(which) => {
                let (side, mut envelope) = self.late.remove(which);
                if plant == Plant::NoFence {
                    envelope = self.hosts[side as usize].unfenced(envelope);
                }
                let before = self.fenced_so_far(side);
                self.primary_on(plant, side, primary::Input::Received(envelope.clone()));
                self.backup_on(plant, side, backup::Input::Received(envelope));
                self.fenced |= self.fenced_so_far(side) > before;
            }
            Action::Answer(side) => {
                let Some(answer) = self.host(side).answer.take() else { return false };
                self.host(side).claimed = 0;
                if self.host(side).primary().is_some() {
                    self.primary_on(plant, side, primary::Input::Arbiter(answer));
                } else {
                    self.backup_on(plant, side, backup::Input::Arbiter(answer));
                }
            }
            Action::Crash(side, ending) => {
                self.crashes += 1;
                let host = self.host(side);
                host.dead = true;
                host.incoming.clear();
                if host.connected {
                    self.end_connection(ending);
                }
            }
            Action::Break(ending) => {
                self.breaks += 1;
                self.end_connection(ending);
            }
        }
        true
    }

    fn connect(&mut self, plant: Plant, side: Side) {
        self.host(side).connecting = false;
        let other = &self.hosts[!side as usize];
        let stopped = other.primary().is_none_or(|primary| matches!(primary.state(), primary::State::Stopped(_)));
        if other.dead || other.connected || stopped {
            return self.backup_on(plant, side, backup::Input::Disconnected);
        }
        for host in &mut self.hosts {
            host.connected = true;
            host.incoming.push_back(Item::Opened);
        }
    }

    fn append(&mut self, plant: Plant, side: Side) {
        let Some(entry) = self.host(side).primary().map(Primary::appended) else { return };
        self.primary_on(plant, side, primary::Input::Appended { entries: 1, bytes: 1 });
        // A primary that finds out only now that it must not go on has not logged it.
        if self.host(side).primary().is_some_and(|primary| primary.appended() > entry) {
            self.host(side).held.push(entry, side);
        }
    }
}
