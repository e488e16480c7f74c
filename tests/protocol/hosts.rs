//! The two hosts' drivers: what arrives goes to the real state machines, and what these say is done.

use super::world::{B, Event, In, MS, P, Plant, US, World};
use super::{Broken, Entry, Guest, Side};
use lockstep::replication::held::HeldOutputs;
use lockstep::replication::lease::Lease;
use lockstep::replication::message::Message;
use lockstep::replication::{Settings, StopReason, Suspicion, backup, primary};

impl World {
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
                    if let (Plant::LeaseFromArrival, Message::Ack { .. } | Message::Heartbeat { .. }) =
                        (self.plant, &message)
                    {
                        let timeout_ns = Settings::default().timeout_ns;
                        self.p.lease_until_ns = self.now + timeout_ns - Lease::margin_ns(timeout_ns);
                    }
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
                    let received_stamp = self.now;
                    self.send(B, &Message::Ack { received, executed, executed_stamp: 0, received_stamp }, &[]);
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

    pub(super) fn primary_on(&mut self, input: primary::Input, bulk: &[u8]) {
        let now = self.clock(P);
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
        let below = if self.plant == Plant::LeftFromAcks { u64::MAX } else { self.p.held.left_below() };
        if below > self.primary.left() && !self.asked {
            self.asked = true;
            self.primary_on(primary::Input::Left { below }, &[]);
            self.asked = false;
        }
    }

    /// What the clock of a host shows.
    pub(super) fn clock(&self, side: Side) -> u64 {
        match (side, self.plant) {
            (Side::P, Plant::IgnoreTimeJump) => self.now - self.p.slept_ns,
            _ => self.now,
        }
    }

    pub(super) fn do_primary(&mut self, action: primary::Action, bulk: &[u8]) {
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
            primary::Action::Lease { until_ns } => {
                self.p.lease_until_ns = match self.plant {
                    Plant::IgnoreLease => u64::MAX,
                    Plant::LeaseFromArrival if until_ns < u64::MAX => self.p.lease_until_ns,
                    _ => until_ns,
                };
            }
            primary::Action::Release { below } => {
                if below == u64::MAX {
                    self.p.overslept = false;
                    self.fact("the primary goes on alone");
                }
                self.p.held.release(below);
                self.write_soon(P);
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
                self.p.held.hold();
                self.stopped(P, &reason);
            }
        }
    }

    pub(super) fn backup_on(&mut self, input: backup::Input, bulk: &[u8]) {
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

    pub(super) fn do_backup(&mut self, action: backup::Action, bulk: &[u8]) {
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
                (self.b.guest, self.b.held, self.b.left) = (Guest::default(), HeldOutputs::default(), 0);
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
            backup::Action::Left { below } => {
                let grows = below > self.b.left && below <= self.history.len() as u64;
                assert!(grows, "{below} after {} of {}", self.b.left, self.history.len());
                self.b.left = below;
            }
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
                if self.plant == Plant::RepeatNothing {
                    self.b.left = self.history.len() as u64;
                }
                self.repeat();
                self.write(B);
            }
            backup::Action::StopGuest => {}
            backup::Action::Suspect(suspicion) => {
                self.silence = matches!(suspicion, Suspicion::Silence { .. });
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
    pub(super) fn gave_up(&self) -> bool {
        matches!(self.backup.state(), backup::State::Asking(_) | backup::State::GoingLive | backup::State::Live)
    }

    pub(super) fn stopped(&mut self, side: Side, reason: &StopReason) {
        self.hang_up(side);
        match reason {
            StopReason::Lost { .. } => self.fact("a side loses at the arbiter and stops"),
            StopReason::Ended => self.fact("a guest ends"),
            StopReason::Refused(_) => self.fact("a late backup is refused"),
            StopReason::Mismatch(_) | StopReason::Diverged { .. } | StopReason::Operator => {}
        }
    }

    pub(super) fn schedule_tick(&mut self, side: Side, deadline: Option<u64>) {
        let Some(deadline) = deadline else { return };
        let deadline = deadline.max(self.now);
        if self.process(side).tick_at.is_none_or(|at| deadline < at) {
            self.process(side).tick_at = Some(deadline);
            let late = if self.rng.one_in(50) { self.rng.range(0, 30 * MS) } else { self.rng.range(0, 200 * US) };
            self.at(deadline + late, Event::Tick(side));
        }
    }
}
