//! The simulated world: two hosts that run the real state machines, the network between them, the arbiter's
//! register, and the faults. One seed, one run.

use super::{Broken, Checker, Entry, Guest, Rng, Side};
use lockstep::arbiter::Claim;
use lockstep::machine::instant::Instant;
use lockstep::replication::backup::{self, Backup};
use lockstep::replication::election::{Answer, Question};
use lockstep::replication::held::HeldOutputs;
use lockstep::replication::message::{Head, Message};
use lockstep::replication::primary::{self, Primary};
use lockstep::replication::{Identity, Settings, StopReason};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;
/// Faults strike before this.
pub(super) const HEAL: u64 = 1_200 * MS;
/// The guest must have made new output after this.
const PROGRESS_FROM: u64 = HEAL + 1_300 * MS;
const END: u64 = PROGRESS_FROM + 300 * MS;

/// A mistake put in on purpose, to see the checker find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    /// Outputs leave when their entry has been sent.
    ReleaseOnSent,
    /// Whoever suspects takes itself for the winner.
    SkipArbiter,
    /// The backup keeps the connection and goes on acknowledging after it has given its primary up.
    AckAfterSuspicion,
    /// The primary's clock stands still while the primary is stopped.
    IgnoreTimeJump,
    /// The backup goes live without replaying what it had received.
    ForgetTail,
    /// Outputs leave while the primary asks the arbiter.
    IgnoreHold,
}

pub(super) enum Item {
    Frame(Head, Vec<u8>),
    Closed,
}

pub(super) enum Event {
    Arrive { to: Side, connection: u64, item: Item },
    Connect,
    Tick(Side),
    Work(Side),
    Wake(Side),
    Loaded { connection: u64 },
    Arbitrate { side: Side, question: Question, silent: bool },
    Answered { side: Side, answer: Answer },
    Fault,
    Heal,
    MarkProgress,
}

pub(super) enum In {
    Connected(u64),
    Disconnected(Option<u64>),
    Frame(u64, Head, Vec<u8>),
    Tick,
    Loaded(u64),
    Answer(Answer),
}

/// A host's process, apart from its state machine.
#[derive(Default)]
pub(super) struct Process {
    /// Killed, or its machine room burnt.
    pub(super) dead: bool,
    pub(super) paused: bool,
    /// What waits for a stopped process.
    pub(super) inbox: VecDeque<In>,
    pub(super) connection: Option<u64>,
    pub(super) tick_at: Option<u64>,
    /// When it last did anything.
    pub(super) active_at: u64,
    /// How long it has been stopped in all.
    pub(super) slept_ns: u64,
    /// It woke from longer than the time-out and has not won since.
    pub(super) overslept: bool,
    pub(super) guest: Guest,
    pub(super) held: HeldOutputs<u64>,
    pub(super) running: bool,
    pub(super) stalled: bool,
    pub(super) ended: bool,
    /// Outputs that are logged and that the vCPU has not queued yet.
    pub(super) unqueued: Vec<(u64, u64)>,
}

/// One direction of the network.
#[derive(Default)]
pub(super) struct Wire {
    /// Nothing arrives earlier than this: streams keep their order.
    pub(super) last_at: u64,
    /// Nothing arrives before this: the cable is cut, and the stream's data is sent again afterwards.
    pub(super) blocked_until: u64,
}

pub struct World {
    pub(super) seed: u64,
    pub(super) plant: Plant,
    pub(super) trace: bool,
    pub(super) rng: Rng,
    pub(super) now: u64,
    pub(super) queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub(super) events: BTreeMap<u64, Event>,
    pub(super) sequence: u64,
    pub(super) healed: bool,
    pub(super) primary: Primary,
    pub(super) backup: Backup,
    pub(super) p: Process,
    pub(super) b: Process,
    /// What the backup has received, in order.
    pub(super) history: Vec<Entry>,
    /// The stamps of frames by the entries they end with.
    pub(super) stamps: VecDeque<(u64, u64)>,
    pub(super) connections: u64,
    /// Connections that broke, and whether what was under way still arrives.
    pub(super) broken: BTreeMap<u64, bool>,
    pub(super) wires: [Wire; 2],
    pub(super) delay_ns: u64,
    pub(super) jitter_ns: u64,
    pub(super) register: Option<Claim>,
    pub(super) first_generation: u64,
    pub(super) arbiter_down: bool,
    pub(super) arbiter_delay_ns: u64,
    pub(super) lose_verdicts: bool,
    pub(super) guest_ends: bool,
    /// The guest has little to do: only heartbeats tell the hosts of each other.
    pub(super) guest_idles: bool,
    pub(super) faultless: bool,
    pub(super) seen_before_progress: usize,
    pub(super) p_actions: Vec<primary::Action>,
    pub(super) b_actions: Vec<backup::Action>,
    pub checker: Checker,
    /// What happened, for the "sometimes" facts.
    pub facts: BTreeMap<&'static str, u64>,
}

pub(super) const P: Side = Side::P;
pub(super) const B: Side = Side::B;

impl World {
    pub fn new(seed: u64, plant: Plant, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let settings = Settings {
            window_bytes: if rng.one_in(4) { 20 * Entry::BYTES as u64 } else { 1 << 20 },
            ..Settings::default()
        };
        let identity = |host: u64, name| Identity::new("vm", host, name, "cpu").unwrap();
        let register = rng.one_in(3).then(|| Claim { generation: 6, host: 99, host_name: "earlier".into() });
        World {
            seed,
            plant,
            trace,
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            healed: false,
            primary: Primary::new(identity(1, "alpha"), settings),
            backup: Backup::new(identity(2, "beta"), settings),
            p: Process::default(),
            b: Process::default(),
            history: Vec::new(),
            stamps: VecDeque::new(),
            connections: 0,
            broken: BTreeMap::new(),
            wires: Default::default(),
            // A round trip stays below the time-out, as the protocol asks for.
            delay_ns: if rng.one_in(5) { rng.range(MS, 50 * MS) } else { rng.range(30 * US, 3 * MS) },
            jitter_ns: if rng.one_in(3) { rng.range(MS, 30 * MS) } else { rng.range(10 * US, MS) },
            first_generation: register.as_ref().map_or(1, |claim| claim.generation + 1),
            register,
            arbiter_down: false,
            arbiter_delay_ns: if rng.one_in(4) { rng.range(50 * MS, 400 * MS) } else { rng.range(MS, 20 * MS) },
            lose_verdicts: rng.one_in(5),
            guest_ends: rng.one_in(8),
            guest_idles: rng.one_in(6),
            faultless: true,
            seen_before_progress: 0,
            p_actions: Vec::new(),
            b_actions: Vec::new(),
            checker: Checker::default(),
            facts: BTreeMap::new(),
            rng,
        }
    }

    /// Runs to the end, and demands progress once the faults are over.
    pub fn run(&mut self) {
        self.primary_on(primary::Input::Start, &[]);
        self.backup_on(backup::Input::Start, &[]);
        for _ in 0..self.rng.range(0, 4) {
            self.faultless = false;
            let at = self.rng.range(5 * MS, HEAL);
            self.at(at, Event::Fault);
        }
        self.at(HEAL, Event::Heal);
        self.at(PROGRESS_FROM, Event::MarkProgress);
        while let Some(Reverse((at, sequence))) = self.queue.pop() {
            if at > END || !self.checker.broken.is_empty() {
                break;
            }
            self.now = at;
            let event = self.events.remove(&sequence).expect("every queued event is kept");
            self.on_event(event);
        }
        if self.checker.broken.is_empty() {
            self.demand_progress();
        }
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at.max(self.now), self.sequence)));
        self.events.insert(self.sequence, event);
    }

    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub(super) fn fact(&mut self, fact: &'static str) {
        *self.facts.entry(fact).or_default() += 1;
    }

    pub(super) fn log(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10.3} ms  {}", self.now as f64 / MS as f64, what());
        }
    }

    pub(super) fn process(&mut self, side: Side) -> &mut Process {
        match side {
            Side::P => &mut self.p,
            Side::B => &mut self.b,
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Arrive { to, connection, item } => {
                if self.broken.get(&connection) == Some(&false) && matches!(item, Item::Frame(..)) {
                    return;
                }
                match item {
                    Item::Frame(head, payload) => self.deliver(to, In::Frame(connection, head, payload)),
                    Item::Closed => self.deliver(to, In::Disconnected(Some(connection))),
                }
            }
            Event::Connect => self.connect(),
            Event::Tick(side) => {
                self.process(side).tick_at = None;
                if !self.process(side).paused {
                    self.deliver(side, In::Tick);
                }
            }
            Event::Work(side) => self.work(side),
            Event::Wake(side) => self.wake(side),
            Event::Loaded { connection } => self.deliver(B, In::Loaded(connection)),
            Event::Arbitrate { side, question, silent } => self.arbitrate(side, question, silent),
            Event::Answered { side, answer } => self.deliver(side, In::Answer(answer)),
            Event::Fault => self.strike(),
            Event::Heal => {
                self.healed = true;
                self.arbiter_down = false;
                self.lose_verdicts = false;
                (self.delay_ns, self.jitter_ns, self.arbiter_delay_ns) = (100 * US, 100 * US, 5 * MS);
                for side in [P, B] {
                    self.wake(side);
                }
            }
            Event::MarkProgress => self.seen_before_progress = self.checker.outputs_seen(),
        }
    }

    // ---- the hosts ----

    pub(super) fn deliver(&mut self, side: Side, input: In) {
        let process = self.process(side);
        if process.dead {
            return;
        }
        if process.paused {
            process.inbox.push_back(input);
            return;
        }
        match side {
            Side::P => self.deliver_primary(input),
            Side::B => self.deliver_backup(input),
        }
    }

    pub(super) fn deliver_primary(&mut self, input: In) {
        match input {
            In::Connected(connection) => {
                self.p.connection = Some(connection);
                self.primary_on(primary::Input::Connected, &[]);
            }
            In::Disconnected(connection) => {
                if self.p.connection == connection {
                    self.p.connection = None;
                    self.primary_on(primary::Input::Disconnected, &[]);
                }
            }
            In::Frame(connection, head, payload) => {
                if self.p.connection == Some(connection) {
                    let (message, _) = Message::decode(head, &payload).expect("the network changes nothing");
                    self.primary_on(primary::Input::Received(message), &[]);
                }
            }
            In::Tick => self.primary_on(primary::Input::Tick { guest_clock_ns: self.now }, &[]),
            In::Loaded(_) => {}
            In::Answer(answer) => self.primary_on(primary::Input::Arbiter(answer), &[]),
        }
    }

    fn deliver_backup(&mut self, input: In) {
        match input {
            In::Connected(connection) => {
                self.b.connection = Some(connection);
                self.backup_on(backup::Input::Connected, &[]);
            }
            In::Disconnected(connection) => {
                if self.b.connection == connection {
                    self.b.connection = None;
                    self.backup_on(backup::Input::Disconnected, &[]);
                }
            }
            In::Frame(connection, head, payload) => {
                if self.b.connection != Some(connection) {
                    return;
                }
                let (message, bulk) = Message::decode(head, &payload).expect("the network changes nothing");
                if let (Plant::AckAfterSuspicion, true, Message::Entries { first, count, .. }) =
                    (self.plant, self.gave_up(), &message)
                {
                    let (received, executed) = (first + u64::from(*count), self.backup.executed());
                    self.send(B, &Message::Ack { received, executed, executed_stamp: 0 }, &[]);
                }
                self.backup_on(backup::Input::Received(message), bulk);
            }
            In::Tick => self.backup_on(backup::Input::Tick, &[]),
            In::Loaded(connection) => {
                if self.b.connection == Some(connection) {
                    self.backup_on(backup::Input::Loaded, &[]);
                }
            }
            In::Answer(answer) => self.backup_on(backup::Input::Arbiter(answer), &[]),
        }
    }

    fn primary_on(&mut self, input: primary::Input, bulk: &[u8]) {
        let now = if self.plant == Plant::IgnoreTimeJump { self.now - self.p.slept_ns } else { self.now };
        let mut actions = std::mem::take(&mut self.p_actions);
        let before = self.primary.state().name();
        self.primary.on(now, input, &mut actions);
        self.p.active_at = self.now;
        if before != self.primary.state().name() {
            self.log(|| format!("P {before} -> {}", self.primary.state().name()));
        }
        for action in actions.drain(..) {
            self.log(|| format!("P {action:?}"));
            self.do_primary(action, bulk);
        }
        self.p_actions = actions;
        self.check_live();
        self.schedule_tick(P, self.primary.next_deadline());
    }

    fn do_primary(&mut self, action: primary::Action, bulk: &[u8]) {
        match action {
            primary::Action::Send(message) => {
                self.send(P, &message, bulk);
                if let (Plant::ReleaseOnSent, Message::Entries { first, count, .. }) = (self.plant, &message) {
                    self.p.held.release(first + u64::from(*count));
                }
            }
            primary::Action::Disconnect => self.hang_up(P),
            primary::Action::StartGuest => {
                self.p.running = true;
                self.after(MS, Event::Work(P));
            }
            primary::Action::Release { below } => {
                if below == u64::MAX {
                    self.p.overslept = false;
                    self.fact("the primary goes on alone");
                }
                self.p.held.release(below);
                self.let_out(P);
            }
            primary::Action::Hold => {
                if self.plant == Plant::IgnoreHold {
                    self.p.held.release(u64::MAX);
                } else {
                    self.p.held.hold();
                }
            }
            primary::Action::Stall => {
                self.p.stalled = true;
                self.fact("the log's window fills");
            }
            primary::Action::Resume => self.p.stalled = false,
            primary::Action::SlowDown { .. } => self.fact("the primary is slowed down"),
            primary::Action::Ask(question) => self.ask(P, question),
            primary::Action::StopGuest => {}
            primary::Action::Suspect(_) => {
                self.fact("the primary gives up its backup");
                self.checker.expect(!self.faultless, Broken::Needless, self.now);
            }
            primary::Action::Stop(reason) => {
                self.p.running = false;
                self.stopped(P, &reason);
            }
        }
    }

    fn backup_on(&mut self, input: backup::Input, bulk: &[u8]) {
        let mut actions = std::mem::take(&mut self.b_actions);
        let before = self.backup.state().name();
        self.backup.on(self.now, input, &mut actions);
        self.b.active_at = self.now;
        if before != self.backup.state().name() {
            self.log(|| format!("B {before} -> {}", self.backup.state().name()));
        }
        for action in actions.drain(..) {
            self.log(|| format!("B {action:?}"));
            self.do_backup(action, bulk);
        }
        self.b_actions = actions;
        self.check_live();
        self.schedule_tick(B, self.backup.next_deadline());
    }

    fn do_backup(&mut self, action: backup::Action, bulk: &[u8]) {
        match action {
            backup::Action::Connect => {
                let delay = self.delay();
                self.after(delay, Event::Connect);
            }
            backup::Action::Send(message) => {
                self.checker.expect(!self.gave_up(), Broken::SentAfterSuspicion, self.now);
                self.send(B, &message, bulk);
            }
            backup::Action::Disconnect => {
                if self.plant != Plant::AckAfterSuspicion || !self.gave_up() {
                    self.hang_up(B);
                }
            }
            backup::Action::Load => {
                (self.b.guest, self.b.held) = (Guest::default(), HeldOutputs::default());
                self.history.clear();
                self.stamps.clear();
                let delay = self.rng.range(MS, 60 * MS);
                if let Some(connection) = self.b.connection {
                    self.after(delay, Event::Loaded { connection });
                }
                if !self.b.running {
                    self.b.running = true;
                    self.after(MS, Event::Work(B));
                }
            }
            backup::Action::Replay { first, count, stamp } => {
                assert_eq!((first, count as usize * Entry::BYTES), (self.history.len() as u64, bulk.len()));
                self.history.extend(bulk.chunks_exact(Entry::BYTES).map(Entry::decode));
                self.stamps.push_back((self.history.len() as u64, stamp));
            }
            backup::Action::RunTo { entries, stamp, .. } => self.stamps.push_back((entries, stamp)),
            backup::Action::Ask(question) => self.ask(B, question),
            backup::Action::GoLive { entries, .. } => {
                if self.plant == Plant::ForgetTail {
                    self.history.truncate(self.b.guest.passed as usize);
                } else {
                    assert_eq!(entries, self.history.len() as u64);
                }
                if self.p.dead {
                    self.fact("a backup takes over from a dead primary");
                }
                self.checker.on_survivor(self.now, &self.history);
            }
            backup::Action::Release { below } => {
                self.fact("a backup goes live");
                self.b.held.release(below);
                self.let_out(B);
            }
            backup::Action::StopGuest => {}
            backup::Action::Suspect(_) => {
                self.checker.expect(!self.faultless, Broken::Needless, self.now);
                if !self.p.dead {
                    self.fact("a backup gives up a primary that is not dead");
                }
            }
            backup::Action::Stop(reason) => {
                self.b.running = false;
                self.stopped(B, &reason);
            }
        }
    }

    /// Whether the backup has given up its primary.
    fn gave_up(&self) -> bool {
        matches!(self.backup.state(), backup::State::Asking(_) | backup::State::GoingLive | backup::State::Live)
    }

    fn stopped(&mut self, side: Side, reason: &StopReason) {
        self.hang_up(side);
        match reason {
            StopReason::Lost { .. } => self.fact("a side loses at the arbiter and stops"),
            StopReason::Ended => self.fact("a guest ends"),
            StopReason::Refused(_) => self.fact("a late backup is refused"),
            StopReason::Mismatch(_) | StopReason::Diverged { .. } | StopReason::Operator => {}
        }
    }

    fn schedule_tick(&mut self, side: Side, deadline: Option<u64>) {
        let Some(deadline) = deadline else { return };
        let deadline = deadline.max(self.now);
        if self.process(side).tick_at.is_none_or(|at| deadline < at) {
            self.process(side).tick_at = Some(deadline);
            let late = if self.rng.one_in(50) { self.rng.range(0, 30 * MS) } else { self.rng.range(0, 200 * US) };
            self.at(deadline + late, Event::Tick(side));
        }
    }

    /// The guest's turn.
    fn work(&mut self, side: Side) {
        let process = self.process(side);
        if process.dead || !process.running {
            return;
        }
        let idle = self.guest_idles && !self.healed;
        let longest = if idle { 500 * MS } else { [6 * MS, 30 * MS][usize::from(self.rng.one_in(40))] };
        let pause = self.rng.range(300 * US, longest);
        self.after(pause, Event::Work(side));
        if self.process(side).paused {
            return;
        }
        match side {
            Side::P => self.work_primary(),
            Side::B if matches!(self.backup.state(), backup::State::Live) => self.work_live(),
            Side::B => self.replay(),
        }
    }

    fn make(&mut self, side: Side, bytes: &mut Vec<u8>) -> (u32, Vec<(u64, u64)>) {
        let (mut entries, mut outputs) = (0, Vec::new());
        for _ in 0..self.rng.range(1, 4) {
            let (output, value) = (self.rng.one_in(2), self.rng.next());
            let guest = &mut self.process(side).guest;
            let entry = if output { guest.output() } else { guest.event(value) };
            outputs.extend(guest.outputs.last().filter(|_| output));
            entry.encode(bytes);
            entries += 1;
        }
        (entries, outputs)
    }

    fn work_primary(&mut self) {
        if self.p.stalled || self.p.ended {
            return self.queue_outputs();
        }
        self.queue_outputs();
        let mut bytes = Vec::new();
        let (entries, outputs) = self.make(P, &mut bytes);
        let length = bytes.len() as u32;
        self.primary_on(primary::Input::Appended { entries, bytes: length }, &bytes);
        // Queued after they were logged, now and then so late that they are acknowledged by then.
        self.p.unqueued = outputs;
        if !self.rng.one_in(4) {
            self.queue_outputs();
        }
        if self.rng.one_in(4) {
            let (entries, at) = (self.p.guest.passed, Instant::new(self.p.guest.passed, self.now));
            self.primary_on(primary::Input::Horizon { entries, at }, &[]);
        }
        if self.guest_ends && self.now > 300 * MS && self.rng.one_in(50) {
            self.p.ended = true;
            self.queue_outputs();
            self.primary_on(primary::Input::GuestEnded, &[]);
        }
    }

    fn queue_outputs(&mut self) {
        for (entry, content) in std::mem::take(&mut self.p.unqueued) {
            self.p.held.push(entry, content);
        }
        self.let_out(P);
    }

    fn work_live(&mut self) {
        let (_, outputs) = self.make(B, &mut Vec::new());
        for (entry, content) in outputs {
            self.b.held.push(entry, content);
        }
        self.let_out(B);
    }

    fn replay(&mut self) {
        for _ in 0..self.rng.range(0, 12) {
            let Some(&entry) = self.history.get(self.b.guest.passed as usize) else { break };
            self.b.guest.replay(entry);
            if let Entry::Output(content) = entry {
                self.b.held.push(self.b.guest.passed - 1, content);
            }
        }
        let (entries, mut newest) = (self.b.guest.passed, None);
        while let Some((_, stamp)) = self.stamps.pop_front_if(|(last, _)| *last <= entries) {
            newest = Some(stamp);
        }
        if let Some(stamp) = newest {
            self.backup_on(backup::Input::Executed { entries, stamp }, &[]);
        }
        if entries == self.history.len() as u64 && matches!(self.backup.state(), backup::State::GoingLive) {
            self.backup_on(backup::Input::WentLive, &[]);
        }
        if matches!(self.backup.state(), backup::State::Finishing) && entries == self.history.len() as u64 {
            self.backup_on(backup::Input::GuestEnded, &[]);
        }
    }

    /// What may leave leaves.
    fn let_out(&mut self, side: Side) {
        while let Some((entry, content)) = self.process(side).held.pop() {
            let position = self.process(side).guest.outputs.iter().rposition(|(number, _)| *number == entry);
            let position = position.expect("an output of this guest");
            self.log(|| format!("{side:?} lets out output {position} of entry {entry}"));
            self.checker.on_release(self.now, position, content);
            if side == P {
                let alone = self.primary.generation() > self.first_generation;
                let held = self.backup.received() > entry;
                self.checker.expect(held || alone, Broken::ReleasedUnheld, self.now);
                let asking = matches!(self.primary.state(), primary::State::Asking(_));
                self.checker.expect(!asking, Broken::ReleasedWhileAsking, self.now);
                self.checker.expect(!self.p.overslept, Broken::ReleasedAfterSleep, self.now);
            }
        }
    }

    fn check_live(&mut self) {
        let primary = matches!(self.primary.state(), primary::State::Unprotected);
        let backup = matches!(self.backup.state(), backup::State::GoingLive | backup::State::Live);
        self.checker.expect(!(primary && backup), Broken::TwoLive, self.now);
    }
}
