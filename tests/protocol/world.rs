//! The simulated world: two hosts that run the real state machines, the network between them, the arbiter's
//! register, and the faults. One seed, one run.

use super::{Checker, Entry, Guest, Rng, Side};
use lockstep::arbiter::Claim;
use lockstep::replication::backup::{self, Backup};
use lockstep::replication::election::{Answer, Question};
use lockstep::replication::held::HeldOutputs;
use lockstep::replication::message::Head;
use lockstep::replication::primary::{self, Primary};
use lockstep::replication::{Identity, Settings};
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
    /// Outputs that were released leave whenever the process gets to it.
    IgnoreLease,
    /// The lease runs from the arrival of what the backup says.
    LeaseFromArrival,
    /// The backup repeats nothing of what it had acknowledged.
    RepeatNothing,
    /// The primary tells what was acknowledged in place of what has left.
    LeftFromAcks,
}

pub(super) enum Item {
    Frame(Head, Vec<u8>),
    Closed,
}

pub(super) enum Event {
    Arrive {
        to: Side,
        connection: u64,
        item: Item,
    },
    Connect,
    Tick(Side),
    Work(Side),
    Wake(Side),
    /// What was released is written.
    Write(Side),
    Loaded {
        connection: u64,
    },
    Arbitrate {
        side: Side,
        question: Question,
        silent: bool,
    },
    Answered {
        side: Side,
        answer: Answer,
    },
    Cut {
        wire: usize,
        until: u64,
    },
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
    /// Outputs were released, and the process has not come to writing them.
    pub(super) writing: bool,
    /// Released outputs may be written before this.
    pub(super) lease_until_ns: u64,
    /// B: how far outputs have left P, by what P says.
    pub(super) left: u64,
    pub(super) running: bool,
    pub(super) stalled: bool,
    pub(super) ended: bool,
    /// The output that is logged and that the vCPU has not queued yet.
    pub(super) unqueued: Option<(u64, u64)>,
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
    /// Whoever writes outputs is often held up.
    pub(super) slow_writes: bool,
    pub(super) faultless: bool,
    pub(super) seen_before_progress: usize,
    /// The primary's state machine is just being told how far outputs have left.
    pub(super) asked: bool,
    /// The backup gave its primary up for silence.
    pub(super) silence: bool,
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
            p: Process { lease_until_ns: u64::MAX, ..Process::default() },
            b: Process { lease_until_ns: u64::MAX, ..Process::default() },
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
            slow_writes: rng.one_in(4),
            faultless: true,
            seen_before_progress: 0,
            asked: false,
            silence: false,
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
            Event::Write(side) => self.write(side),
            Event::Loaded { connection } => self.deliver(B, In::Loaded(connection)),
            Event::Arbitrate { side, question, silent } => self.arbitrate(side, question, silent),
            Event::Answered { side, answer } => self.deliver(side, In::Answer(answer)),
            Event::Cut { wire, until } => self.cut(wire, until),
            Event::Fault => self.strike(),
            Event::Heal => {
                self.healed = true;
                self.arbiter_down = false;
                (self.lose_verdicts, self.slow_writes) = (false, false);
                (self.delay_ns, self.jitter_ns, self.arbiter_delay_ns) = (100 * US, 100 * US, 5 * MS);
                for side in [P, B] {
                    self.wake(side);
                }
            }
            Event::MarkProgress => self.seen_before_progress = self.checker.outputs_seen(),
        }
    }
}
