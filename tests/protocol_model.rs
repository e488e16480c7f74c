//! Promise: within bounds, *every* order of events keeps "never two live" and "no output lost or contradicted".
//!
//! A stateright model whose hosts are the real state machines. The guest makes an output with every entry; time moves
//! in steps of half the time-out, so every process may be slow or asleep, and whatever has been sent may come late. Bounds:
//! two entries, one and a half time-outs, one crash, one broken connection, one lost verdict.

use lockstep::replication::backup::{self, Backup};
use lockstep::replication::election::{Answer, Question};
use lockstep::replication::held::HeldOutputs;
use lockstep::replication::lease::Lease;
use lockstep::replication::message::Message;
use lockstep::replication::primary::{self, Primary};
use lockstep::replication::{Identity, Settings, StopReason, Suspicion};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::collections::VecDeque;

/// Far above the number of frames that are ever sent at one time: stamps differ by one there.
const TIMEOUT: u64 = 1000;
const ENTRIES: u64 = 2;
/// Time moves by half a time-out, so that one side may be silent while the other is heard.
const STEP: u64 = TIMEOUT / 2;
const STEPS: u64 = 3;
/// Enough for every way through the faults, few enough to visit every state in seconds.
const ONCE: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Side {
    P,
    B,
}
use Side::{B, P};

/// Mistakes, to see the properties find them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plant {
    Nothing,
    ReleaseOnSent,
    SkipArbiter,
    AckAfterSuspicion,
    IgnoreTime,
    ForgetTail,
    IgnoreLease,
    LeaseFromArrival,
    RepeatNothing,
    LeftFromAcks,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    Opened,
    Message(Message),
    Closed,
}

/// A host apart from its state machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Host {
    dead: bool,
    connected: bool,
    incoming: VecDeque<Item>,
    question: Option<Question>,
    answer: Option<Answer>,
    /// Who made the output; its entry number is its position.
    held: HeldOutputs<Side>,
}

impl Host {
    /// The connection is over, and so is whatever it would still deliver.
    fn close(&mut self) -> bool {
        self.incoming.clear();
        std::mem::take(&mut self.connected)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    now: u64,
    primary: Primary,
    backup: Backup,
    p: Host,
    b: Host,
    connecting: bool,
    guest_started: bool,
    made_live: bool,
    /// What P has released may be written before this.
    lease_until: u64,
    /// How far outputs have left P, by what B was told.
    left: u64,
    /// P's state machine is just being told how far outputs have left.
    asked: bool,
    /// B gave P up for silence.
    silence: bool,
    /// Generation and its winner.
    register: (u64, Side),
    crashes: u8,
    breaks: u8,
    lost_verdicts: u8,
    /// Who made the output that has left at each position.
    seen: Vec<Side>,
    /// When the primary last processed a message.
    heard_at: u64,
    contradicted: bool,
    out_of_order: bool,
    released_late: bool,
    left_after_the_survivor: bool,
    missing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Time moves.
    Step,
    Tick(Side),
    Deliver(Side),
    Connect,
    Append,
    MakeLive,
    WentLive,
    /// P comes to writing what was released; it may have been stopped since.
    Write,
    /// The register is set and the answer is on its way.
    Arbitrate(Side),
    /// The answer is lost, after or before the register is set.
    LoseAnswer(Side, bool),
    Answer(Side),
    /// How a process ends: its kernel sends the rest and closes; cuts off what is under way; says nothing.
    Crash(Side, Ending),
    Break(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Close,
    Cut,
    Silence,
}

struct Pair {
    plant: Plant,
}

impl State {
    fn host(&mut self, side: Side) -> &mut Host {
        match side {
            P => &mut self.p,
            B => &mut self.b,
        }
    }

    fn other(&mut self, side: Side) -> &mut Host {
        match side {
            P => &mut self.b,
            B => &mut self.p,
        }
    }

    fn gave_up(&self) -> bool {
        matches!(self.backup.state(), backup::State::Asking(_) | backup::State::GoingLive | backup::State::Live)
    }

    fn send(&mut self, from: Side, message: Message) {
        let heartbeat = matches!(message, Message::Heartbeat { .. });
        if !self.host(from).connected {
            return;
        }
        let to = self.other(from);
        // One heartbeat says as much as many, and any other message says it as well.
        if to.connected && !to.dead && (!heartbeat || to.incoming.is_empty()) {
            to.incoming.push_back(Item::Message(message));
        }
    }

    fn hang_up(&mut self, side: Side) {
        if self.host(side).close() && self.other(side).connected {
            self.other(side).incoming.push_back(Item::Closed);
        }
    }

    fn ask(&mut self, plant: Plant, side: Side, question: Question) {
        match (plant, question) {
            (Plant::SkipArbiter, Question::Claim { generation, .. }) if generation > 1 => {
                self.host(side).answer = Some(Answer::Won);
            }
            (_, question) => self.host(side).question = Some(question),
        }
    }

    /// What may leave now leaves.
    fn let_out(&mut self, plant: Plant, side: Side) {
        if side == P && !self.lease_holds(plant) {
            return;
        }
        while let Some((entry, maker)) = self.host(side).held.pop() {
            self.left_after_the_survivor |= side == P && self.silence && *self.backup.state() == backup::State::Live;
            match self.seen.get(entry as usize) {
                Some(before) => self.contradicted |= *before != maker,
                None if entry == self.seen.len() as u64 => self.seen.push(maker),
                None => self.out_of_order = true,
            }
            self.released_late |= side == P && !self.live_primary() && self.now - self.heard_at >= TIMEOUT;
        }
    }

    /// What P finds when it looks at its clock.
    fn lease_holds(&self, plant: Plant) -> bool {
        plant == Plant::IgnoreTime || self.now < self.lease_until
    }

    /// The survivor leaves out what has left its primary.
    fn repeat(&mut self) {
        while self.b.held.left_below() < self.left {
            let Some((entry, _)) = self.b.held.pop() else { break };
            self.missing |= entry >= self.seen.len() as u64;
        }
    }

    fn primary_on(&mut self, plant: Plant, input: primary::Input) {
        let mut actions = Vec::new();
        self.primary.on(if plant == Plant::IgnoreTime { 0 } else { self.now }, input, &mut actions);
        for action in actions {
            match action {
                primary::Action::Send(message) => {
                    if let (Plant::ReleaseOnSent, Message::Entries { first, count, .. }) = (plant, &message) {
                        self.p.held.release(first + u64::from(*count));
                    }
                    self.send(P, message);
                }
                primary::Action::Disconnect => self.hang_up(P),
                primary::Action::StartGuest => self.guest_started = true,
                primary::Action::Lease { until_ns } => {
                    if plant != Plant::IgnoreLease && (plant != Plant::LeaseFromArrival || until_ns == u64::MAX) {
                        self.lease_until = until_ns;
                    }
                }
                primary::Action::Release { below } => self.p.held.release(below),
                primary::Action::Hold => self.p.held.hold(),
                primary::Action::Ask(question) => self.ask(plant, P, question),
                primary::Action::Stop(_) => self.hang_up(P),
                primary::Action::Stall
                | primary::Action::Resume
                | primary::Action::SlowDown { .. }
                | primary::Action::StopGuest
                | primary::Action::Suspect(_) => {}
            }
        }
        let below = if plant == Plant::LeftFromAcks { u64::MAX } else { self.p.held.left_below() };
        if below > self.primary.left() && !self.asked {
            self.asked = true;
            self.primary_on(plant, primary::Input::Left { below });
            self.asked = false;
        }
    }

    fn backup_on(&mut self, plant: Plant, input: backup::Input) {
        let mut actions = Vec::new();
        self.backup.on(self.now, input, &mut actions);
        for action in actions {
            match action {
                backup::Action::Connect => self.connecting = true,
                backup::Action::Send(message) => self.send(B, message),
                backup::Action::Disconnect => {
                    if plant != Plant::AckAfterSuspicion || !self.gave_up() {
                        self.hang_up(B);
                    }
                }
                backup::Action::Load => self.backup_on(plant, backup::Input::Loaded),
                backup::Action::Replay { first, count, .. } => {
                    for entry in first..first + u64::from(count) {
                        self.b.held.push(entry, P);
                    }
                }
                backup::Action::GoLive { .. } if plant == Plant::ForgetTail => {
                    self.b.held = HeldOutputs::default();
                }
                backup::Action::Left { below } => self.left = below,
                backup::Action::Ask(question) => self.ask(plant, B, question),
                backup::Action::Release { below } => {
                    self.b.held.release(below);
                    if plant == Plant::RepeatNothing {
                        self.left = self.backup.received();
                    }
                    self.repeat();
                }
                backup::Action::Suspect(suspicion) => self.silence = matches!(suspicion, Suspicion::Silence { .. }),
                backup::Action::Stop(_) => self.hang_up(B),
                backup::Action::GoLive { .. } | backup::Action::RunTo { .. } | backup::Action::StopGuest => {}
            }
            self.let_out(plant, B);
        }
    }

    fn deliver(&mut self, plant: Plant, side: Side) {
        let Some(item) = self.host(side).incoming.pop_front() else { return };
        match (side, item) {
            (P, Item::Opened) => self.primary_on(plant, primary::Input::Connected),
            (P, Item::Message(message)) => {
                if let (Plant::LeaseFromArrival, Message::Ack { .. }) = (plant, &message) {
                    self.lease_until = self.now + TIMEOUT - Lease::margin_ns(TIMEOUT);
                }
                self.primary_on(plant, primary::Input::Received(message));
                self.heard_at = self.now;
            }
            (P, Item::Closed) => {
                self.p.close();
                self.primary_on(plant, primary::Input::Disconnected);
            }
            (B, Item::Opened) => self.backup_on(plant, backup::Input::Connected),
            (B, Item::Message(message)) => {
                if let (Plant::AckAfterSuspicion, true, Message::Entries { first, count, .. }) =
                    (plant, self.gave_up(), &message)
                {
                    let received = first + u64::from(*count);
                    let received_stamp = self.now;
                    self.send(B, Message::Ack { received, executed: 0, executed_stamp: 0, received_stamp });
                }
                self.backup_on(plant, backup::Input::Received(message));
            }
            (B, Item::Closed) => {
                self.b.close();
                self.backup_on(plant, backup::Input::Disconnected);
            }
        }
    }

    /// What the register answers; it may be set by that.
    fn arbitrate(&mut self, side: Side) -> Answer {
        match self.host(side).question.take() {
            Some(Question::Read) => Answer::Holds((self.register.0 > 0).then_some(self.register.0)),
            Some(Question::Claim { expected, generation }) => {
                if self.register.0 == expected.unwrap_or(0) {
                    self.register = (generation, side);
                }
                if self.register == (generation, side) { Answer::Won } else { Answer::Lost(None) }
            }
            None => Answer::Unreachable,
        }
    }

    /// The connection ends without either side closing it.
    fn end_connection(&mut self, ending: Ending) {
        for host in [&mut self.p, &mut self.b] {
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

    fn live_primary(&self) -> bool {
        matches!(self.primary.state(), primary::State::Unprotected)
    }

    fn live_backup(&self) -> bool {
        matches!(self.backup.state(), backup::State::GoingLive | backup::State::Live)
    }

    fn lost(reason: &StopReason) -> bool {
        matches!(reason, StopReason::Lost { .. })
    }
}

impl Model for Pair {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let settings =
            Settings { heartbeat_ns: TIMEOUT / 2, timeout_ns: TIMEOUT, retry_ns: TIMEOUT, ..Settings::default() };
        let identity = |host, name| Identity::new("vm", host, name, "cpu").unwrap();
        let mut state = State {
            now: 0,
            primary: Primary::new(identity(1, "p"), settings),
            backup: Backup::new(identity(2, "b"), settings),
            p: Host::default(),
            b: Host::default(),
            connecting: false,
            guest_started: false,
            made_live: false,
            lease_until: u64::MAX,
            left: 0,
            asked: false,
            silence: false,
            register: (0, P),
            crashes: 0,
            breaks: 0,
            lost_verdicts: 0,
            seen: Vec::new(),
            heard_at: 0,
            contradicted: false,
            out_of_order: false,
            released_late: false,
            left_after_the_survivor: false,
            missing: false,
        };
        state.primary_on(self.plant, primary::Input::Start);
        state.backup_on(self.plant, backup::Input::Start);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.now < STEPS * STEP {
            actions.push(Action::Step);
        }
        let deadlines = [(P, state.primary.next_deadline()), (B, state.backup.next_deadline())];
        for (side, deadline) in deadlines {
            let host = if side == P { &state.p } else { &state.b };
            if let (Some(_), true) = (&host.question, state.lost_verdicts < ONCE) {
                actions.push(Action::LoseAnswer(side, true));
                actions.push(Action::LoseAnswer(side, false));
            }
            // A question that has been asked has its effect even if whoever asked is dead by then.
            if host.question.is_some() {
                actions.push(Action::Arbitrate(side));
            }
            if host.dead {
                continue;
            }
            if deadline.is_some_and(|deadline| deadline <= state.now) {
                actions.push(Action::Tick(side));
            }
            if !host.incoming.is_empty() {
                actions.push(Action::Deliver(side));
            }
            if host.answer.is_some() {
                actions.push(Action::Answer(side));
            }
            if state.crashes < ONCE {
                actions.extend([Ending::Close, Ending::Cut, Ending::Silence].map(|ending| Action::Crash(side, ending)));
            }
        }
        if state.connecting && !state.b.dead && state.b.incoming.is_empty() {
            actions.push(Action::Connect);
        }
        let waits = state.p.held.left_below() < state.p.held.released_below();
        if !state.p.dead && waits && state.lease_holds(self.plant) {
            actions.push(Action::Write);
        }
        if state.guest_started && !state.p.dead && state.primary.appended() < ENTRIES {
            actions.push(Action::Append);
        }
        if !state.b.dead {
            match state.backup.state() {
                backup::State::GoingLive => actions.push(Action::WentLive),
                backup::State::Live if !state.made_live => actions.push(Action::MakeLive),
                _ => {}
            }
        }
        if state.breaks < ONCE && state.p.connected && state.b.connected {
            actions.extend([Ending::Close, Ending::Cut].map(Action::Break));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let plant = self.plant;
        match action {
            Action::Step => state.now += STEP,
            Action::Tick(P) => state.primary_on(plant, primary::Input::Tick { guest_clock_ns: 0 }),
            Action::Tick(B) => state.backup_on(plant, backup::Input::Tick),
            Action::Deliver(side) => state.deliver(plant, side),
            Action::Connect => {
                state.connecting = false;
                if state.p.dead || state.p.connected || matches!(state.primary.state(), primary::State::Stopped(_)) {
                    state.backup_on(plant, backup::Input::Disconnected);
                } else {
                    for host in [&mut state.p, &mut state.b] {
                        host.connected = true;
                        host.incoming.push_back(Item::Opened);
                    }
                }
            }
            Action::Append => {
                let entry = state.primary.appended();
                state.primary_on(plant, primary::Input::Appended { entries: 1, bytes: 1 });
                // A primary that finds out only now that it must not go on has not logged it.
                if state.primary.appended() > entry {
                    state.p.held.push(entry, P);
                }
            }
            Action::Write => state.let_out(plant, P),
            Action::WentLive => state.backup_on(plant, backup::Input::WentLive),
            Action::MakeLive => {
                state.made_live = true;
                let entry = if plant == Plant::ForgetTail { 0 } else { state.backup.received() };
                state.b.held.push(entry, B);
                state.let_out(plant, B);
            }
            Action::Arbitrate(side) => {
                let answer = state.arbitrate(side);
                state.host(side).answer = Some(answer);
            }
            Action::LoseAnswer(side, set) => {
                state.lost_verdicts += 1;
                if set {
                    state.arbitrate(side);
                }
                let host = state.host(side);
                host.question = None;
                host.answer = Some(Answer::Unreachable);
            }
            Action::Answer(side) => {
                let answer = state.host(side).answer.take()?;
                match side {
                    P => state.primary_on(plant, primary::Input::Arbiter(answer)),
                    B => state.backup_on(plant, backup::Input::Arbiter(answer)),
                }
            }
            Action::Crash(side, ending) => {
                state.crashes += 1;
                let host = state.host(side);
                host.dead = true;
                host.incoming.clear();
                if host.connected {
                    state.end_connection(ending);
                }
            }
            Action::Break(ending) => {
                state.breaks += 1;
                state.end_connection(ending);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two live", |_, state: &State| !(state.live_primary() && state.live_backup())),
            Property::always("no backup lives before the guest has started", |_, state: &State| {
                !state.live_backup() || state.guest_started
            }),
            Property::always("no output contradicted", |_, state: &State| !state.contradicted && !state.out_of_order),
            Property::always("no output lost", |_, state: &State| {
                // Whatever the primary let out while it had a backup, the backup holds.
                let alone = state.primary.generation() > 1;
                let let_out = state.seen.iter().filter(|maker| **maker == P).count() as u64;
                alone || let_out <= state.backup.received()
            }),
            Property::always("nothing leaves after a time-out", |_, state: &State| !state.released_late),
            Property::always("nothing leaves a silent primary after its survivor is live", |_, state: &State| {
                !state.left_after_the_survivor
            }),
            Property::always("no output missing", |_, state: &State| !state.missing),
            Property::always("silent after suspicion", |_, state: &State| !state.gave_up() || !state.b.connected),
            Property::sometimes("the backup lives on after a crash", |_, state: &State| {
                state.p.dead && *state.backup.state() == backup::State::Live && state.seen.contains(&B)
            }),
            Property::sometimes("the primary goes on alone", |_, state: &State| {
                state.live_primary() && state.seen.len() as u64 == ENTRIES
            }),
            Property::sometimes(
                "the primary loses and stops",
                |_, state: &State| matches!(state.primary.state(), primary::State::Stopped(reason) if State::lost(reason)),
            ),
            Property::sometimes(
                "the backup loses and stops",
                |_, state: &State| matches!(state.backup.state(), backup::State::Stopped(reason) if State::lost(reason)),
            ),
            Property::sometimes("released outputs wait for a lease that has lapsed", |_, state: &State| {
                state.now >= state.lease_until && state.p.held.left_below() < state.p.held.released_below()
            }),
            Property::sometimes("a survivor need not repeat an output", |_, state: &State| {
                state.left > 0 && *state.backup.state() == backup::State::Live
            }),
            Property::sometimes("an acknowledged output leaves", |_, state: &State| {
                *state.primary.state() == primary::State::Protected && !state.seen.is_empty()
            }),
            Property::sometimes("a verdict is lost, asked for again, and won", |_, state: &State| {
                state.lost_verdicts > 0 && state.register.0 > 1 && (state.live_primary() || state.live_backup())
            }),
        ]
    }
}

#[test]
fn every_order_of_events_keeps_the_promises() {
    let checker = Pair { plant: Plant::Nothing }.checker().threads(2).spawn_dfs().join();
    println!(
        "{} states, {} of them different, depth {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
    assert!(checker.is_done());
}

/// The model with the mistake breaks this property.
fn finds(plant: Plant, property: &'static str) {
    let checker =
        Pair { plant }.checker().threads(2).finish_when(HasDiscoveries::AllOf([property].into())).spawn_bfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{plant:?} keeps `{property}`"));
    println!(
        "{plant:?} breaks `{property}` after {} steps: {:?}",
        path.clone().into_actions().len(),
        path.into_actions()
    );
}

#[test]
fn releasing_what_is_only_sent_is_found() {
    finds(Plant::ReleaseOnSent, "no output lost");
}

#[test]
fn going_on_without_the_arbiter_is_found() {
    finds(Plant::SkipArbiter, "never two live");
}

#[test]
fn acknowledging_after_the_suspicion_is_found() {
    finds(Plant::AckAfterSuspicion, "no output lost");
}

#[test]
fn a_primary_that_ignores_time_is_found() {
    finds(Plant::IgnoreTime, "nothing leaves after a time-out");
}

#[test]
fn going_live_without_the_tail_is_found() {
    finds(Plant::ForgetTail, "no output contradicted");
}

#[test]
fn a_primary_without_a_lease_is_found() {
    finds(Plant::IgnoreLease, "nothing leaves a silent primary after its survivor is live");
}

#[test]
fn a_lease_that_runs_from_the_arrival_of_the_acknowledgement_is_found() {
    finds(Plant::LeaseFromArrival, "nothing leaves a silent primary after its survivor is live");
}

#[test]
fn a_survivor_that_repeats_nothing_is_found() {
    finds(Plant::RepeatNothing, "no output missing");
}

#[test]
fn a_primary_that_takes_acknowledged_for_left_is_found() {
    finds(Plant::LeftFromAcks, "no output missing");
}
