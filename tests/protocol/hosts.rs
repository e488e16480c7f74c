//! The two hosts' drivers: what arrives goes to the real state machines, and what these say is done.

use super::process::Machine;
use super::world::{A, Event, In, MS, Own, Plant, US, World};
use super::{Broken, Entry, Guest, Side};
use lockstep::replication::held::HeldOutputs;
use lockstep::replication::lease::Lease;
use lockstep::replication::message::{Envelope, Message, Refusal};
use lockstep::replication::{Settings, StopReason, Suspicion, backup, primary};

impl World {
    pub(super) fn deliver(&mut self, side: Side, input: In) {
        let host = self.host(side);
        if host.dead {
            return;
        }
        if host.paused {
            host.inbox.push_back(input);
            return;
        }
        match (input, &host.machine) {
            (In::Accepted(connection), Machine::Primary(_)) if host.connection.is_none() => {
                host.connection = Some(connection);
                self.primary_on(side, primary::Input::Connected, &[]);
            }
            // Nobody listens, or the primary is busy.
            (In::Accepted(connection), _) => self.close(side, connection),
            (In::Connected(connection), Machine::Backup(_)) => {
                host.connection = Some(connection);
                self.backup_on(side, backup::Input::Connected, &[]);
            }
            (In::Connected(connection), _) => self.close(side, connection),
            (In::Disconnected(connection), machine) => {
                if host.connection == connection {
                    let primary = matches!(machine, Machine::Primary(_));
                    host.connection = None;
                    if primary {
                        self.primary_on(side, primary::Input::Disconnected, &[]);
                    } else {
                        self.backup_on(side, backup::Input::Disconnected, &[]);
                    }
                }
            }
            (In::Frame(connection, head, payload), _) => {
                if host.connection == Some(connection) {
                    let (envelope, bulk) = Envelope::decode(head, &payload).expect("the network changes nothing");
                    self.on_frame(side, envelope, bulk);
                }
            }
            (In::Tick, Machine::Primary(_)) => {
                let guest_clock_ns = self.now;
                self.primary_on(side, primary::Input::Tick { guest_clock_ns }, &[]);
            }
            (In::Tick, _) => self.backup_on(side, backup::Input::Tick, &[]),
            (In::Loaded(connection), _) => {
                if host.connection == Some(connection) {
                    host.loaded = true;
                    self.backup_on(side, backup::Input::Loaded, &[]);
                }
            }
            (In::Answer(number, answer), machine) => {
                // Only the newest question is still asked.
                match machine {
                    _ if number != host.asked => {}
                    Machine::Primary(_) => self.primary_on(side, primary::Input::Arbiter(answer), &[]),
                    _ => self.backup_on(side, backup::Input::Arbiter(answer), &[]),
                }
            }
            (In::Chunk(transfer), _) => self.send_chunk(side, transfer),
            (In::Capture(transfer), _) => self.capture(side, transfer),
            (In::Switch, Machine::Primary(_)) => self.primary_on(side, primary::Input::SwitchRequested, &[]),
            (In::Switch, _) => {}
            (In::Park, _) => self.park(side),
        }
    }

    fn on_frame(&mut self, side: Side, envelope: Envelope, bulk: &[u8]) {
        let message = &envelope.message;
        if let Machine::Primary(_) = self.host(side).machine {
            let ack = matches!(message, Message::Ack { .. });
            if self.plant == Plant::LeaseFromArrival && (ack || matches!(message, Message::Heartbeat { .. })) {
                let timeout_ns = Settings::default().timeout_ns;
                self.host(side).lease_until_ns = self.clock(side) + timeout_ns - Lease::margin_ns(timeout_ns);
            }
            if ack {
                self.host(side).last_ack = Some(message.clone());
            }
            return self.primary_on(side, primary::Input::Received(envelope), &[]);
        }
        if let (Plant::AckAfterSuspicion, true, Message::Entries { first, count, .. }) =
            (self.plant, self.host(side).gave_up(), message)
        {
            let (received, executed) = (first + u64::from(*count), 0);
            let received_stamp = self.clock(!side);
            let message = Message::Ack { received, executed, executed_stamp: 0, received_stamp };
            self.send(side, &Envelope { generation: envelope.generation, message }, &[]);
        }
        self.backup_on(side, backup::Input::Received(envelope), bulk);
    }

    pub(super) fn primary_on(&mut self, side: Side, input: primary::Input, bulk: &[u8]) {
        let now = self.clock(side);
        let mut actions = Vec::new();
        let before = self.host(side).state_name();
        let Machine::Primary(primary) = &mut self.host(side).machine else { return };
        primary.on(now, input, &mut actions);
        self.moved(side, before);
        for action in actions {
            self.log(|| format!("{side:?} {action:?}"));
            self.do_primary(side, action, bulk);
        }
        self.after_input(side);
        let Some(told) = self.host(side).primary().map(primary::Primary::left) else { return };
        let below = match self.plant {
            Plant::LeftFromAcks => u64::MAX,
            _ => self.host(side).held.left_below(),
        };
        if below > told && !self.host(side).telling {
            self.host(side).telling = true;
            self.primary_on(side, primary::Input::Left { below }, &[]);
            self.host(side).telling = false;
        }
    }

    pub(super) fn backup_on(&mut self, side: Side, input: backup::Input, bulk: &[u8]) {
        let now = self.clock(side);
        let mut actions = Vec::new();
        let before = self.host(side).state_name();
        let Machine::Backup(backup) = &mut self.host(side).machine else { return };
        backup.on(now, input, &mut actions);
        let (generation, received) = (backup.generation(), backup.received());
        if *backup.state() == backup::State::Following {
            let held = self.held_by_backup.entry(generation).or_default();
            *held = received.max(*held);
        }
        self.moved(side, before);
        for action in actions {
            self.log(|| format!("{side:?} {action:?}"));
            self.do_backup(side, action, bulk);
        }
        self.after_input(side);
    }

    /// The state may have changed.
    fn moved(&mut self, side: Side, before: &'static str) {
        let now = self.now;
        self.host(side).active_at = now;
        let after = self.host(side).state_name();
        if before != after {
            self.log(|| format!("{side:?} {before} -> {after}"));
            self.on_state(side, after);
        }
    }

    fn after_input(&mut self, side: Side) {
        self.check_live();
        let deadline = match &self.host(side).machine {
            Machine::Primary(primary) => primary.next_deadline(),
            Machine::Backup(backup) => backup.next_deadline(),
            Machine::Changing => None,
        };
        self.schedule_tick(side, deadline);
    }

    /// What the clock of a host shows.
    pub(super) fn clock(&self, side: Side) -> u64 {
        let slept_ns = match (side, self.plant) {
            (Side::A, Plant::IgnoreTimeJump) => self.hosts[A as usize].slept_ns,
            _ => 0,
        };
        self.now + self.clocks[side as usize] - slept_ns
    }

    fn do_primary(&mut self, side: Side, action: primary::Action, bulk: &[u8]) {
        match action {
            primary::Action::Send(envelope) => {
                self.send(side, &envelope, bulk);
                match (self.plant, &envelope.message) {
                    (Plant::ReleaseOnSent, Message::Entries { first, count, .. }) => {
                        self.host(side).held.release(first + u64::from(*count));
                    }
                    (_, Message::Handover { .. }) => self.host(side).handed_over = true,
                    _ => {}
                }
            }
            primary::Action::Disconnect => self.hang_up(side),
            primary::Action::StartGuest => {
                self.guest_started = true;
                self.host(side).running = true;
            }
            primary::Action::Lease { until_ns } => {
                let host = self.host(side);
                let welcome = host.base > 0 && host.lease_until_ns == u64::MAX && until_ns < u64::MAX;
                match self.plant {
                    Plant::IgnoreLease => {}
                    Plant::NoLeaseAtTheWelcome if welcome => {}
                    Plant::LeaseFromArrival if until_ns < u64::MAX => {}
                    _ => self.host(side).lease_until_ns = until_ns,
                }
            }
            primary::Action::Release { below } => {
                if below == u64::MAX {
                    self.on_alone(side);
                }
                self.host(side).on_hold = false;
                self.host(side).held.release(below);
                self.write_soon(side);
            }
            primary::Action::Hold => {
                self.host(side).on_hold = true;
                if self.plant == Plant::IgnoreHold {
                    self.host(side).held.release(u64::MAX);
                } else {
                    self.host(side).held.hold();
                }
            }
            primary::Action::Stall => {
                self.host(side).stalled = true;
                self.fact("the log's window fills");
            }
            primary::Action::Resume => self.host(side).stalled = false,
            primary::Action::SlowDown { .. } => self.fact("the primary is slowed down"),
            primary::Action::Ask(question) => self.ask(side, question),
            primary::Action::StopGuest => {}
            primary::Action::Suspect(suspicion) => {
                self.suspects(side, &suspicion);
                self.fact("the primary gives up its backup");
            }
            primary::Action::Stop(reason) => self.stopped(side, &reason),
            primary::Action::BeginTransfer { transfer } => self.begin_transfer(side, transfer),
            primary::Action::EndTransfer => {
                self.host(side).transfer = None;
                self.fact("a transfer is broken off");
            }
            primary::Action::SwitchGuest => {
                let delay = self.rng.range(10 * US, 20 * MS);
                self.own(side, delay, Own::Deliver(In::Park));
            }
            primary::Action::NoSwitch(_) => self.fact("a switch does not take place"),
            primary::Action::TakeBack => {
                if std::mem::take(&mut self.host(side).handed_over) {
                    self.fact("a guest that was handed over is taken back");
                }
                self.host(side).parked = false;
            }
            primary::Action::Inject => {}
            primary::Action::BecomeBackup => self.become_backup(side),
        }
    }

    fn do_backup(&mut self, side: Side, action: backup::Action, bulk: &[u8]) {
        match action {
            backup::Action::Connect => {
                let delay = self.delay();
                self.host(side).loaded = false;
                self.own(side, delay, Own::Connect);
            }
            backup::Action::Send(envelope) => {
                let gave_up = self.host(side).gave_up();
                self.checker.expect(!gave_up, Broken::SentAfterSuspicion, self.now);
                self.send(side, &envelope, bulk);
            }
            backup::Action::Disconnect => {
                if self.plant != Plant::AckAfterSuspicion || !self.host(side).gave_up() {
                    self.hang_up(side);
                }
            }
            backup::Action::Load => {
                self.put_machine(side, Guest::default());
                self.load_soon(side);
            }
            backup::Action::LoadBlank | backup::Action::Apply => {}
            backup::Action::Restore { entries } => {
                let state = u64::from_le_bytes(bulk.try_into().expect("the number of a state"));
                let guest = self.states[state as usize].clone();
                assert_eq!(guest.passed, entries);
                self.put_machine(side, guest);
                self.load_soon(side);
            }
            backup::Action::Replay { first, count, stamp } => {
                let host = self.host(side);
                assert_eq!((first, count as usize * Entry::BYTES), (host.entries(), bulk.len()));
                host.log.extend(bulk.chunks_exact(Entry::BYTES).map(Entry::decode));
                host.stamps.push_back((host.entries(), stamp));
            }
            backup::Action::RunTo { entries, stamp, .. } => self.host(side).stamps.push_back((entries, stamp)),
            backup::Action::Left { below } => {
                let host = self.host(side);
                let grows = below > host.left && below <= host.entries();
                assert!(grows, "{below} after {} of {}", host.left, host.entries());
                host.left = below;
            }
            backup::Action::Ask(question) => self.ask(side, question),
            backup::Action::GoLive { entries, alone, .. } => self.go_live(side, entries, alone),
            backup::Action::BecomePrimary => self.become_primary(side),
            backup::Action::Suspect(suspicion) => {
                self.suspects(side, &suspicion);
                if !self.host(!side).dead {
                    self.fact("a backup gives up a primary that is not dead");
                }
            }
            backup::Action::Stop(reason) => self.stopped(side, &reason),
        }
    }

    /// A machine of this host's own, at the place where the log that follows begins.
    fn put_machine(&mut self, side: Side, guest: Guest) {
        let host = self.host(side);
        host.log_base = guest.passed;
        (host.guest, host.held, host.left, host.loaded) = (guest, HeldOutputs::default(), 0, false);
        host.log.clear();
        host.stamps.clear();
    }

    fn load_soon(&mut self, side: Side) {
        let delay = self.rng.range(MS, 60 * MS);
        if let Some(connection) = self.host(side).connection {
            self.own(side, delay, Own::Deliver(In::Loaded(connection)));
        }
    }

    fn suspects(&mut self, side: Side, suspicion: &Suspicion) {
        self.host(side).for_silence = matches!(suspicion, Suspicion::Silence { .. } | Suspicion::NotTaken);
        let busy = *suspicion == Suspicion::Refused(Refusal::Busy);
        let fine = busy || self.guest_ended || !self.faultless;
        self.checker.expect(fine, Broken::Needless, self.now);
    }

    fn stopped(&mut self, side: Side, reason: &StopReason) {
        self.hang_up(side);
        self.host(side).running = false;
        self.host(side).held.hold();
        match reason {
            StopReason::Lost { .. } => {
                self.fact("a side loses at the arbiter and stops");
                self.judge_loser(side);
                if self.rng.one_in(5) {
                    self.host(side).dead = true;
                } else {
                    let delay = self.rng.range(MS, 100 * MS);
                    self.after(delay, Event::Return(side));
                }
            }
            StopReason::Ended => {
                self.guest_ended = true;
                self.fact("a guest ends");
            }
            StopReason::Fenced { .. }
            | StopReason::Refused(_)
            | StopReason::Mismatch(_)
            | StopReason::Diverged { .. }
            | StopReason::Operator => {
                self.broke(Broken::NoProgress(format!("seed {}: {side:?} stopped: {reason}", self.seed)));
            }
        }
    }

    fn schedule_tick(&mut self, side: Side, deadline: Option<u64>) {
        let Some(deadline) = deadline else { return };
        let deadline = self.now + deadline.saturating_sub(self.clock(side));
        if self.host(side).tick_at.is_none_or(|at| deadline < at) {
            self.host(side).tick_at = Some(deadline);
            let late = if self.rng.one_in(50) { self.rng.range(0, 30 * MS) } else { self.rng.range(0, 200 * US) };
            self.own(side, deadline - self.now + late, Own::Tick);
        }
    }
}
