//! What surrounds the two hosts: the network, the arbiter, and what must be so when the faults are over.

use super::process::Machine;
use super::world::{Event, In, Item, MS, Own, Plant, Won, World};
use super::{Broken, Side};
use lockstep::arbiter::Claim;
use lockstep::replication::election::{Answer, Question};
use lockstep::replication::message::{Envelope, Kind};
use lockstep::replication::primary;

impl World {
    // ---- the network ----

    pub(super) fn delay(&mut self) -> u64 {
        self.delay_ns + self.rng.range(0, self.jitter_ns)
    }

    pub(super) fn put(&mut self, from: Side, connection: u64, item: Item) {
        let delay = self.delay();
        let wire = &mut self.wires[from as usize];
        let at = wire.last_at.max(wire.blocked_until).max(self.now + delay);
        wire.last_at = at;
        self.at(at, Event::Arrive { to: !from, connection, item });
    }

    pub(super) fn send(&mut self, from: Side, envelope: &Envelope, bulk: &[u8]) {
        let Some(connection) = self.host(from).connection else { return };
        if self.broken.contains_key(&connection) {
            return;
        }
        let mut payload = Vec::new();
        let head = envelope.encode(&mut payload);
        match head.kind {
            Kind::Entries | Kind::State | Kind::Chunk => payload.extend_from_slice(bulk),
            Kind::Boot | Kind::Transfer => payload.extend_from_slice(b"boot"),
            Kind::Hello
            | Kind::Welcome
            | Kind::Refuse
            | Kind::Horizon
            | Kind::Ack
            | Kind::Heartbeat
            | Kind::Diverged
            | Kind::Goodbye
            | Kind::Handover
            | Kind::Took
            | Kind::Strays => {}
        }
        self.put(from, connection, Item::Frame(head, payload));
    }

    pub(super) fn hang_up(&mut self, side: Side) {
        if let Some(connection) = self.host(side).connection.take() {
            self.close(side, connection);
        }
    }

    pub(super) fn close(&mut self, side: Side, connection: u64) {
        self.put(side, connection, Item::Closed);
    }

    /// A backup's connection attempt arrives.
    pub(super) fn connect(&mut self, side: Side) {
        let blocked = self.wires.iter().any(|wire| wire.blocked_until > self.now);
        let other = &self.hosts[!side as usize];
        let listens = matches!(other.machine, Machine::Primary(_)) && !other.has_stopped() && !other.dead;
        if blocked || !listens || other.connection.is_some() {
            let connection = self.host(side).connection;
            return self.deliver(side, In::Disconnected(connection));
        }
        self.connections += 1;
        self.deliver(!side, In::Accepted(self.connections));
        self.deliver(side, In::Connected(self.connections));
    }

    // ---- the arbiter ----

    pub(super) fn ask(&mut self, side: Side, question: Question) {
        let host = self.host(side);
        host.asked += 1;
        let (number, id) = (host.asked, host.id);
        let (primary, handed_over) = (host.primary().is_some(), host.handed_over);
        let Question::Claim { expected, .. } = question else {
            return self.ask_arbiter(side, question);
        };
        let holds = self.register.as_ref().is_some_and(|claim| claim.host == id && Some(claim.generation) == expected);
        let first = self.won.is_empty();
        let skips = match self.plant {
            Plant::SkipArbiter => !first,
            Plant::TakeBackUnasked => primary && handed_over,
            Plant::HeirAlone => !primary && holds,
            _ => false,
        };
        if skips {
            let delay = self.rng.range(MS / 10, MS);
            return self.own(side, delay, Own::Deliver(In::Answer(number, Answer::Won)));
        }
        self.ask_arbiter(side, question);
    }

    fn ask_arbiter(&mut self, side: Side, question: Question) {
        let other = self.host(!side).life;
        let host = self.host(side);
        let (life, host, number) = (host.life, host.id, host.asked);
        let delay = self.rng.range(MS / 10, self.arbiter_delay_ns);
        // The answer may be given up before the question has had its effect, or get lost after.
        let (early, late) = (self.lose_verdicts && self.rng.one_in(4), self.lose_verdicts && self.rng.one_in(3));
        let lost = Own::Deliver(In::Answer(number, Answer::Unreachable));
        if early {
            self.own(side, delay / 2, lost);
        } else if late {
            self.own(side, delay + MS, lost);
        }
        let silent = early || late;
        self.after(delay, Event::Arbitrate { side, life, host, number, question, silent, other });
    }

    pub(super) fn arbitrate(
        &mut self,
        (side, life, host, other): (Side, u64, u64, u64),
        number: u64,
        question: Question,
        silent: bool,
    ) {
        let answer = if self.arbiter_down {
            self.fact("the arbiter is not reachable");
            Answer::Unreachable
        } else {
            self.answer((host, life, other), question)
        };
        self.log(|| format!("arbiter: {side:?} {question:?} -> {answer:?}{}", if silent { " (unheard)" } else { "" }));
        if silent {
            self.fact("a verdict gets lost");
        } else {
            let delay = self.rng.range(0, self.arbiter_delay_ns);
            let at = self.now + delay;
            self.at(at, Event::Own(side, life, Own::Deliver(In::Answer(number, answer))));
        }
    }

    fn answer(&mut self, (host, life, other): (u64, u64, u64), question: Question) -> Answer {
        let held = self.register.as_ref().map(|claim| claim.generation);
        match question {
            Question::Read => Answer::Holds(held),
            Question::Claim { expected, generation, shared_with } => {
                let claim = Claim { generation, host, host_name: format!("host {host}"), shared_with };
                if self.register.as_ref() == Some(&claim) {
                    Answer::Won
                } else if held == expected {
                    self.register = Some(claim);
                    self.won.insert(generation, Won { by: life, pair_with: shared_with.map(|_| other) });
                    Answer::Won
                } else {
                    Answer::Lost(self.register.clone())
                }
            }
        }
    }

    // ---- what must be so ----

    fn process_of(&self, life: u64) -> Option<&super::process::Process> {
        self.hosts.iter().find(|host| host.life == life && !host.dead)
    }

    fn newest(&self) -> Option<&Won> {
        self.won.get(&self.register.as_ref()?.generation)
    }

    /// Whoever shares the newest generation with the one that won it may not take itself for a loser.
    pub(super) fn judge_loser(&mut self, side: Side) {
        let life = self.host(side).life;
        if self.newest().is_some_and(|won| won.by == life || won.pair_with == Some(life)) {
            let what = format!("seed {}: {side:?} stops, and shares the newest generation", self.seed);
            self.broke(Broken::NoProgress(what));
        }
    }

    /// The faults are over, and some time has passed: the guest must live wherever it can, and with a backup if there are two hosts.
    pub(super) fn demand_progress(&mut self) {
        // Whoever won last has the guest, or shares it. Where these are dead, it is gone.
        let heirs = self.newest().map(|won| [Some(won.by), won.pair_with]);
        let first_is_dead = self.hosts[0].life != 1 || self.hosts[0].dead;
        let gone = match heirs {
            Some(heirs) if self.guest_started => {
                heirs.into_iter().flatten().all(|life| self.process_of(life).is_none())
            }
            _ => first_is_dead,
        };
        let grows = self.checker.outputs_seen() > self.seen_before_progress;
        let alive = self.hosts.iter().filter(|host| !host.dead).count();
        let protected = self.hosts.iter().any(|host| host.primary_state() == Some(&primary::State::Protected));
        let waits = !self.guest_started && alive < 2;
        if !(gone || self.guest_ended || waits || (grows && (protected || alive < 2))) {
            let states = self.hosts.each_ref().map(|host| host.state_name());
            let what = format!("seed {}: {states:?}, new output: {grows}, alive: {alive}", self.seed);
            self.broke(Broken::NoProgress(what));
        }
        if protected && grows && self.lives > 2 {
            self.fact("protection restores itself");
        }
    }
}
