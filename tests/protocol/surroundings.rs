//! What surrounds the two hosts: the network, the arbiter, the faults, and what must be so when they are over.

use super::world::{B, Event, HEAL, In, Item, MS, P, Plant, World};
use super::{Broken, Side};
use lockstep::arbiter::Claim;
use lockstep::replication::election::{Answer, Question};
use lockstep::replication::message::{Kind, Message};
use lockstep::replication::{Settings, StopReason, backup, primary};

impl World {
    // ---- the network ----

    pub(super) fn delay(&mut self) -> u64 {
        self.delay_ns + self.rng.range(0, self.jitter_ns)
    }

    pub(super) fn put(&mut self, from: Side, connection: u64, item: Item) {
        let delay = self.delay();
        let (wire, to) = match from {
            Side::P => (&mut self.wires[0], B),
            Side::B => (&mut self.wires[1], P),
        };
        let at = wire.last_at.max(wire.blocked_until).max(self.now + delay);
        wire.last_at = at;
        self.at(at, Event::Arrive { to, connection, item });
    }

    pub(super) fn send(&mut self, from: Side, message: &Message, bulk: &[u8]) {
        let Some(connection) = self.process(from).connection else { return };
        if self.broken.contains_key(&connection) {
            return;
        }
        let mut payload = Vec::new();
        let head = message.encode(&mut payload);
        match head.kind {
            Kind::Entries => payload.extend_from_slice(bulk),
            Kind::Boot => payload.extend_from_slice(b"boot"),
            Kind::Hello
            | Kind::Welcome
            | Kind::Refuse
            | Kind::Horizon
            | Kind::Ack
            | Kind::Heartbeat
            | Kind::Diverged
            | Kind::Goodbye => {}
        }
        self.put(from, connection, Item::Frame(head, payload));
    }

    pub(super) fn hang_up(&mut self, side: Side) {
        if let Some(connection) = self.process(side).connection.take() {
            self.put(side, connection, Item::Closed);
        }
    }

    /// The backup's connection attempt arrives.
    pub(super) fn connect(&mut self) {
        let gone = self.p.dead || matches!(self.primary.state(), primary::State::Stopped(_));
        if gone || self.p.connection.is_some() || self.wires.iter().any(|wire| wire.blocked_until > self.now) {
            return self.deliver(B, In::Disconnected(self.b.connection));
        }
        self.connections += 1;
        for side in [P, B] {
            self.deliver(side, In::Connected(self.connections));
        }
    }

    // ---- the arbiter ----

    pub(super) fn ask(&mut self, side: Side, question: Question) {
        if let (Plant::SkipArbiter, Question::Claim { generation, .. }) = (self.plant, question)
            && generation > self.first_generation
        {
            return self.after(MS, Event::Answered { side, answer: Answer::Won });
        }
        let delay = self.rng.range(MS / 10, self.arbiter_delay_ns);
        // The answer may be given up before the question has had its effect, or get lost after.
        let (early, late) = (self.lose_verdicts && self.rng.one_in(4), self.lose_verdicts && self.rng.one_in(3));
        if early {
            self.after(delay / 2, Event::Answered { side, answer: Answer::Unreachable });
        } else if late {
            self.after(delay + MS, Event::Answered { side, answer: Answer::Unreachable });
        }
        self.after(delay, Event::Arbitrate { side, question, silent: early || late });
    }

    pub(super) fn arbitrate(&mut self, side: Side, question: Question, silent: bool) {
        let answer = if self.arbiter_down {
            self.fact("the arbiter is not reachable");
            Answer::Unreachable
        } else {
            self.answer(side, question)
        };
        self.log(|| format!("arbiter: {side:?} {question:?} -> {answer:?}{}", if silent { " (unheard)" } else { "" }));
        if silent {
            self.fact("a verdict gets lost");
        } else {
            let delay = self.rng.range(0, self.arbiter_delay_ns);
            self.after(delay, Event::Answered { side, answer });
        }
    }

    fn answer(&mut self, side: Side, question: Question) -> Answer {
        let held = self.register.as_ref().map(|claim| claim.generation);
        let host = if side == P { 1 } else { 2 };
        match question {
            Question::Read => Answer::Holds(held),
            Question::Claim { expected, generation } => {
                let claim = Claim { generation, host, host_name: format!("{side:?}") };
                if self.register.as_ref() == Some(&claim) {
                    Answer::Won
                } else if held == expected {
                    self.register = Some(claim);
                    Answer::Won
                } else {
                    Answer::Lost(self.register.clone())
                }
            }
        }
    }

    // ---- the faults ----

    pub(super) fn strike(&mut self) {
        if self.healed {
            return;
        }
        let side = if self.rng.one_in(3) { B } else { P };
        match self.rng.range(0, 9) {
            0 | 1 => self.kill(side),
            2 | 3 => self.pause(side),
            4 => {
                let keep = self.rng.one_in(2);
                self.break_connection(keep);
            }
            5 | 6 => {
                // A cut cable: what was sent is sent again when it is mended, unless somebody gave up.
                let until = self.now + self.rng.range(20 * MS, 900 * MS);
                let both = self.rng.one_in(2);
                let first = self.rng.range(0, 2) as usize;
                for wire in if both { vec![0, 1] } else { vec![first] } {
                    self.cut(wire, until);
                }
            }
            7 => {
                // One way after the other: the acknowledgements get through a while longer.
                let (later, until) = (self.rng.range(MS, 200 * MS), self.now + self.rng.range(300 * MS, 900 * MS));
                self.cut(0, until);
                self.after(later, Event::Cut { wire: 1, until });
            }
            _ => {
                self.log(|| "the arbiter goes away".into());
                self.arbiter_down = true;
            }
        }
    }

    pub(super) fn cut(&mut self, wire: usize, until: u64) {
        self.log(|| format!("{} hears nothing up to {} ms", ["B", "P"][wire], until / MS));
        self.wires[wire].blocked_until = until.min(HEAL);
        self.fact("a cable is cut");
    }

    fn kill(&mut self, side: Side) {
        if self.process(side).dead {
            return;
        }
        self.log(|| format!("{side:?} is killed"));
        self.fact("a host dies");
        let process = self.process(side);
        if process.held.left_below() < process.held.released_below() || process.unqueued.is_some() {
            self.fact("a host dies with released outputs in its hands");
        }
        self.process(side).dead = true;
        let connection = self.process(side).connection;
        match (connection, self.rng.range(0, 3)) {
            // The kernel delivers the rest, then closes.
            (Some(_), 0) => self.hang_up(side),
            // The kernel cuts off what is under way.
            (Some(_), 1) => self.break_connection(false),
            // The power is gone: nothing more is heard.
            (Some(connection), _) => {
                let keep = self.rng.one_in(2);
                self.broken.insert(connection, keep);
            }
            (None, _) => {}
        }
    }

    fn pause(&mut self, side: Side) {
        let process = self.process(side);
        if process.dead || process.paused {
            return;
        }
        process.paused = true;
        if process.writing {
            self.fact("a host is stopped with released outputs in its hands");
        }
        let length = if self.rng.one_in(3) { self.rng.range(MS, 190 * MS) } else { self.rng.range(190 * MS, 900 * MS) };
        self.log(|| format!("{side:?} is stopped for {} ms", length / MS));
        self.after(length, Event::Wake(side));
    }

    pub(super) fn wake(&mut self, side: Side) {
        let now = self.now;
        if !self.process(side).paused {
            return;
        }
        self.log(|| format!("{side:?} wakes"));
        let protected = matches!(self.primary.state(), primary::State::Protected);
        let process = self.process(side);
        process.paused = false;
        let asleep = now - process.active_at;
        process.slept_ns += asleep;
        if asleep >= Settings::default().timeout_ns {
            if side == P && protected {
                process.overslept = true;
                self.fact("a protected primary wakes from a long sleep");
            } else {
                self.fact("a process wakes from a long sleep");
            }
        }
        // It goes on where it was stopped, which may be just before it writes.
        self.write(side);
        let inbox = std::mem::take(&mut self.process(side).inbox);
        // Its timer and what waits in its buffers race.
        if self.rng.one_in(3) {
            self.deliver(side, In::Tick);
        }
        for input in inbox {
            self.deliver(side, input);
        }
        self.deliver(side, In::Tick);
    }

    fn break_connection(&mut self, keep: bool) {
        let connection = self.connections;
        if self.broken.contains_key(&connection) {
            return;
        }
        self.log(|| format!("the connection breaks, data under way is {}", if keep { "kept" } else { "lost" }));
        self.fact("a connection breaks");
        self.put(P, connection, Item::Closed);
        self.put(B, connection, Item::Closed);
        self.broken.insert(connection, keep);
    }

    /// The faults are over, and some time has passed: the guest must live wherever it can.
    pub(super) fn demand_progress(&mut self) {
        let (primary, backup) = (self.primary.state().clone(), self.backup.state().clone());
        let won =
            self.register.as_ref().filter(|claim| claim.generation > self.first_generation).map(|claim| claim.host);
        let ended = |stop: &StopReason| *stop == StopReason::Ended;
        let p_ended = matches!(&primary, primary::State::Stopped(reason) if ended(reason));
        let b_ended = matches!(&backup, backup::State::Stopped(reason) if ended(reason));
        let grows = self.checker.outputs_seen() > self.seen_before_progress;
        let fine = match won {
            Some(1) => self.p.dead || p_ended || (primary == primary::State::Unprotected && grows),
            Some(_) => self.b.dead || b_ended || (backup == backup::State::Live && grows),
            None => match (self.p.dead, self.b.dead) {
                (false, false) => (p_ended && b_ended) || (primary == primary::State::Protected && grows),
                (false, true) => p_ended || primary == primary::State::Waiting,
                (true, false) => {
                    b_ended
                        || matches!(
                            backup,
                            backup::State::Connecting { .. } | backup::State::Loading | backup::State::Ready
                        )
                }
                (true, true) => true,
            },
        };
        if !fine {
            let what = format!("seed {}: won by {won:?}, P {primary:?}, B {backup:?}, new output: {grows}", self.seed);
            self.checker.broke(Broken::NoProgress(what), self.now);
        }
    }
}
