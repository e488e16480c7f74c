//! The simulated world: two hosts whose processes run the real state machines in either role, the network between them, the
//! arbiter's register, and the faults. One seed, one run.

use super::process::{Machine, Process};
use super::{Broken, Checker, Entry, Guest, Rng, Side};
use lockstep::arbiter::Claim;
use lockstep::replication::backup::{self, Backup};
use lockstep::replication::election::{Answer, Question};
use lockstep::replication::message::Head;
use lockstep::replication::primary::{self, Primary};
use lockstep::replication::{Identity, Settings};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;
/// Faults strike, and roles change, before this.
pub(super) const HEAL: u64 = 1_800 * MS;
/// The guest must have made new output after this, and have its backup again.
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
    /// Outputs leave at once while a new backup joins.
    JoiningLeaks,
    /// The welcome of a new backup goes out, and the lease is still that of a guest without one.
    NoLeaseAtTheWelcome,
    /// The backup is asked to take over before it has every entry.
    EarlyHandover,
    /// A primary that has handed over takes the guest back without asking the arbiter.
    TakeBackUnasked,
    /// A new primary that loses the old one while it takes over thinks that it has won alone.
    HeirAlone,
    /// A new primary lets out at once what the old one has not acknowledged.
    HeirLeaks,
    /// A claim is set whatever the register holds.
    ClaimUnasked,
    /// A claim is set if a member of the arbiter that lags behind says that the register holds what it should.
    StaleReadBelieved,
    /// A primary does not look at the generation that a message speaks for.
    NoFence,
}

pub(super) enum Item {
    Frame(Head, Vec<u8>),
    Closed,
}

/// What happens to a process; it is lost with the process.
pub(super) enum Own {
    Connect,
    Tick,
    Work,
    Wake,
    /// What was released is written.
    Write,
    Deliver(In),
}

pub(super) enum Event {
    Arrive {
        to: Side,
        connection: u64,
        item: Item,
    },
    /// To the process that had this life.
    Own(Side, u64, Own),
    Arbitrate {
        side: Side,
        life: u64,
        host: u64,
        number: u64,
        question: Question,
        silent: bool,
        /// The other side's process.
        other: u64,
    },
    /// A member of the arbiter learns what the others know.
    CatchUp(usize),
    /// It is back.
    MemberReturns(usize),
    Cut {
        wire: usize,
        until: u64,
    },
    Fault,
    Switch,
    Return(Side),
    Heal,
    MarkProgress,
}

#[derive(Clone)]
pub(super) enum In {
    /// The connection asked for stands.
    Connected(u64),
    /// A backup has connected.
    Accepted(u64),
    Disconnected(Option<u64>),
    Frame(u64, Head, Vec<u8>),
    Tick,
    Loaded(u64),
    Answer(u64, Answer),
    Chunk(u64),
    Capture(u64),
    Switch,
    Park,
}

/// A member of the arbiter.
pub(super) struct Member {
    pub(super) up: bool,
    /// What it knows of the register.
    pub(super) holds: Option<Claim>,
}

/// One direction of the network.
#[derive(Default)]
pub(super) struct Wire {
    /// Nothing arrives earlier than this: streams keep their order.
    pub(super) last_at: u64,
    /// Nothing arrives before this: the cable is cut, and the stream's data is sent again afterwards.
    pub(super) blocked_until: u64,
}

/// Who won a generation, by lives.
pub(super) struct Won {
    pub(super) by: u64,
    /// Who else may go on from it.
    pub(super) pair_with: Option<u64>,
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
    pub(super) settings: Settings,
    pub(super) hosts: [Process; 2],
    /// Lives of processes so far.
    pub(super) lives: u64,
    /// How far the hosts' clocks are ahead of the world's.
    pub(super) clocks: [u64; 2],
    /// States that were taken.
    pub(super) states: Vec<Guest>,
    pub(super) connections: u64,
    /// Connections that broke, and whether what was under way still arrives.
    pub(super) broken: BTreeMap<u64, bool>,
    pub(super) wires: [Wire; 2],
    pub(super) delay_ns: u64,
    pub(super) jitter_ns: u64,
    pub(super) register: Option<Claim>,
    pub(super) won: BTreeMap<u64, Won>,
    /// Entries that a backup that counts has held, by generation.
    pub(super) held_by_backup: BTreeMap<u64, u64>,
    pub(super) members: [Member; 3],
    /// The arbiter does not come back by itself.
    pub(super) arbiter_down: bool,
    /// Frames that came too late for their connection, or that the network has copied: they may come on a later one, to this side.
    pub(super) strayed: Vec<(Side, Head, Vec<u8>)>,
    pub(super) frames_stray: bool,
    pub(super) arbiter_delay_ns: u64,
    pub(super) lose_verdicts: bool,
    pub(super) guest_ends: bool,
    /// The guest has little to do: only heartbeats tell the hosts of each other.
    pub(super) guest_idles: bool,
    /// Whoever writes outputs is often held up.
    pub(super) slow_writes: bool,
    pub(super) faultless: bool,
    pub(super) guest_started: bool,
    pub(super) guest_ended: bool,
    pub(super) seen_before_progress: usize,
    /// The rest says nothing.
    pub(super) over: bool,
    pub checker: Checker,
    /// What happened, for the "sometimes" facts.
    pub facts: BTreeMap<&'static str, u64>,
}

pub(super) const A: Side = Side::A;
pub(super) const B: Side = Side::B;

fn identity(host: u64) -> Identity {
    Identity::new("vm", host, &format!("host {host}"), "cpu").unwrap()
}

impl World {
    pub fn new(seed: u64, plant: Plant, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let settings = Settings {
            window_bytes: if rng.one_in(4) { 20 * Entry::BYTES as u64 } else { 1 << 20 },
            start_alone: rng.one_in(3),
            ..Settings::default()
        };
        let register =
            rng.one_in(3).then(|| Claim { generation: 6, host: 99, host_name: "earlier".into(), shared_with: None });
        World {
            seed,
            plant,
            trace,
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            healed: false,
            settings,
            hosts: [
                Process::new(1, 1, Machine::Primary(Primary::new(identity(1), settings))),
                Process::new(2, 2, Machine::Backup(Backup::new(identity(2), settings))),
            ],
            lives: 2,
            clocks: [rng.range(0, 10_000 * MS), rng.range(0, 10_000 * MS)],
            states: Vec::new(),
            connections: 0,
            broken: BTreeMap::new(),
            wires: Default::default(),
            // A round trip stays below the time-out, as the protocol asks for.
            delay_ns: if rng.one_in(5) { rng.range(MS, 50 * MS) } else { rng.range(30 * US, 3 * MS) },
            jitter_ns: if rng.one_in(3) { rng.range(MS, 30 * MS) } else { rng.range(10 * US, MS) },
            members: [(); 3].map(|()| Member { up: true, holds: register.clone() }),
            strayed: Vec::new(),
            frames_stray: rng.one_in(4),
            register,
            won: BTreeMap::new(),
            held_by_backup: BTreeMap::new(),
            arbiter_down: false,
            arbiter_delay_ns: if rng.one_in(4) { rng.range(50 * MS, 400 * MS) } else { rng.range(MS, 20 * MS) },
            lose_verdicts: rng.one_in(5),
            guest_ends: rng.one_in(8),
            guest_idles: rng.one_in(6),
            slow_writes: rng.one_in(4),
            faultless: true,
            guest_started: false,
            guest_ended: false,
            seen_before_progress: 0,
            over: false,
            checker: Checker::default(),
            facts: BTreeMap::new(),
            rng,
        }
    }

    /// Runs to the end, and demands progress once the faults are over.
    pub fn run(&mut self) {
        for side in [A, B] {
            self.begin(side);
        }
        let faults = self.rng.range(0, 6);
        self.frames_stray &= faults > 0;
        self.faultless = faults == 0;
        for _ in 0..faults {
            let at = self.rng.range(5 * MS, HEAL);
            self.at(at, Event::Fault);
        }
        for _ in 0..self.rng.range(0, 4) {
            // An arbiter that is slow for a switch is no fault, and leads to one being given up.
            self.faultless &= !self.lose_verdicts && self.arbiter_delay_ns <= 50 * MS;
            let at = self.rng.range(100 * MS, HEAL);
            self.at(at, Event::Switch);
        }
        self.at(HEAL, Event::Heal);
        self.at(PROGRESS_FROM, Event::MarkProgress);
        while let Some(Reverse((at, sequence))) = self.queue.pop() {
            if at > END || self.over || !self.checker.broken.is_empty() {
                break;
            }
            self.now = at;
            let event = self.events.remove(&sequence).expect("every queued event is kept");
            self.on_event(event);
        }
        if !self.over && self.checker.broken.is_empty() {
            self.demand_progress();
        }
    }

    /// A process starts.
    fn begin(&mut self, side: Side) {
        self.own(side, MS, Own::Work);
        self.primary_on(side, primary::Input::Start, &[]);
        self.backup_on(side, backup::Input::Start, &[]);
    }

    /// A host comes back as a backup.
    pub(super) fn come_back(&mut self, side: Side, host: u64) {
        self.lives += 1;
        self.log(|| format!("{side:?} comes back as a backup"));
        let settings = Settings { start_alone: false, ..self.settings };
        let slept_ns = self.host(side).slept_ns;
        let machine = Machine::Backup(Backup::new(identity(host), settings));
        *self.host(side) = Process { slept_ns, ..Process::new(self.lives, host, machine) };
        self.begin(side);
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at.max(self.now), self.sequence)));
        self.events.insert(self.sequence, event);
    }

    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    /// For the process that this host has now.
    pub(super) fn own(&mut self, side: Side, delay: u64, own: Own) {
        let life = self.host(side).life;
        self.after(delay, Event::Own(side, life, own));
    }

    pub(super) fn fact(&mut self, fact: &'static str) {
        *self.facts.entry(fact).or_default() += 1;
    }

    pub(super) fn log(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10.3} ms  {}", self.now as f64 / MS as f64, what());
        }
    }

    pub(super) fn broke(&mut self, what: Broken) {
        self.checker.broke(what, self.now);
    }

    pub(super) fn host(&mut self, side: Side) -> &mut Process {
        &mut self.hosts[side as usize]
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
            Event::Own(side, life, own) if self.host(side).life == life => match own {
                Own::Connect => self.connect(side),
                Own::Tick => {
                    self.host(side).tick_at = None;
                    if !self.host(side).paused {
                        self.deliver(side, In::Tick);
                    }
                }
                Own::Work => self.work(side),
                Own::Wake => self.wake(side),
                Own::Write => self.write(side),
                Own::Deliver(input) => self.deliver(side, input),
            },
            Event::Own(..) => {}
            Event::Arbitrate { side, life, host, number, question, silent, other } => {
                self.arbitrate((side, life, host, other), number, question, silent);
            }
            Event::CatchUp(member) => self.catch_up(member),
            Event::MemberReturns(member) => self.member_returns(member),
            Event::Cut { wire, until } => self.cut(wire, until),
            Event::Fault => self.strike(),
            Event::Switch => {
                for side in [A, B] {
                    self.deliver(side, In::Switch);
                }
            }
            Event::Return(side) => {
                let host = if self.host(side).dead { self.lives + 100 } else { self.host(side).id };
                self.come_back(side, host);
            }
            Event::Heal => {
                self.healed = true;
                self.arbiter_down = false;
                for member in 0..self.members.len() {
                    self.member_returns(member);
                }
                (self.lose_verdicts, self.slow_writes, self.frames_stray) = (false, false, false);
                (self.delay_ns, self.jitter_ns, self.arbiter_delay_ns) = (100 * US, 100 * US, 5 * MS);
                for side in [A, B] {
                    self.wake(side);
                }
            }
            Event::MarkProgress => self.seen_before_progress = self.checker.outputs_seen(),
        }
    }
}
