//! What the drivers do when a backup joins a running guest and when the roles change.

use super::process::Machine;
use super::world::{In, MS, Own, Plant, US, World};
use super::{Broken, Side};
use lockstep::replication::backup::{self, Backup};
use lockstep::replication::message::{Envelope, Message};
use lockstep::replication::primary::{self, Primary};

impl World {
    // ---- a new backup ----

    pub(super) fn begin_transfer(&mut self, side: Side, transfer: u64) {
        self.host(side).transfer = Some(transfer);
        let mut delay = 0;
        for _ in 0..self.rng.range(0, 4) {
            delay += self.rng.range(10 * US, 30 * MS);
            self.own(side, delay, Own::Deliver(In::Chunk(transfer)));
        }
        delay += self.rng.range(10 * US, 20 * MS);
        self.own(side, delay, Own::Deliver(In::Capture(transfer)));
    }

    pub(super) fn send_chunk(&mut self, side: Side, transfer: u64) {
        if self.host(side).transfer == Some(transfer) {
            let generation = self.host(side).generation();
            self.send(side, &Envelope { generation, message: Message::Chunk }, b"pages");
        }
    }

    /// The vCPU stands still for a moment. It may get there when the transfer is over.
    pub(super) fn capture(&mut self, side: Side, transfer: u64) {
        let host = self.host(side);
        let Some(state) = host.primary_state() else { return };
        let current = host.transfer == Some(transfer);
        let late = !current && matches!(state, primary::State::Unprotected | primary::State::Transferring);
        if host.ended || !(current || late) {
            return;
        }
        self.queue_outputs(side);
        let leaks = self.plant == Plant::JoiningLeaks;
        let host = self.host(side);
        let entries = host.guest.passed;
        if !leaks {
            host.held.release(entries);
        }
        if current {
            host.base = entries;
        } else {
            self.fact("a state is taken for a transfer that is over");
        }
        let (guest, number) = (self.host(side).guest.clone(), self.states.len() as u64);
        self.states.push(guest);
        self.primary_on(side, primary::Input::Captured { transfer, entries }, &number.to_le_bytes());
    }

    // ---- a switch ----

    /// The vCPU stands still behind one last entry.
    pub(super) fn park(&mut self, side: Side) {
        let host = self.host(side);
        if host.ended || !host.running {
            return;
        }
        self.queue_outputs(side);
        let (mut bytes, value) = (Vec::new(), self.rng.next());
        self.host(side).guest.event(value).encode(&mut bytes);
        self.host(side).parked = true;
        let appended = primary::Input::Appended { entries: 1, bytes: bytes.len() as u32 };
        self.primary_on(side, appended, &bytes);
        if let (Plant::EarlyHandover, Some(Message::Ack { executed, executed_stamp, received_stamp, .. })) =
            (self.plant, self.host(side).last_ack.clone())
        {
            let received = self.host(side).guest.passed;
            let generation = self.host(side).generation();
            let message = Message::Ack { received, executed, executed_stamp, received_stamp };
            self.primary_on(side, primary::Input::Received(Envelope { generation, message }), &[]);
        }
        self.primary_on(side, primary::Input::Parked, &[]);
    }

    // ---- the other role ----

    pub(super) fn become_backup(&mut self, side: Side) {
        self.fact("the roles change");
        let host = self.host(side);
        let Machine::Primary(primary) = std::mem::replace(&mut host.machine, Machine::Changing) else {
            panic!("only a primary becomes a backup");
        };
        host.machine = Machine::Backup(Backup::handed_over(primary));
        (host.running, host.parked, host.stalled, host.handed_over) = (false, false, false, false);
        (host.loaded, host.alone, host.for_silence) = (true, false, false);
        host.log.clear();
        host.stamps.clear();
        host.log_base = host.guest.passed;
        host.left = 0;
        host.held.hold();
        self.backup_on(side, backup::Input::Start, &[]);
    }

    pub(super) fn go_live(&mut self, side: Side, entries: u64, alone: bool) {
        let forget = self.plant == Plant::ForgetTail && alone;
        let other_is_dead = self.host(!side).dead;
        let host = self.host(side);
        host.alone = alone;
        if forget {
            let passed = host.guest.passed - host.log_base;
            host.log.truncate(passed as usize);
            // What it does from here on is another guest's life.
            self.over = true;
        } else {
            assert_eq!(entries, host.entries());
        }
        let host = self.host(side);
        let mut guest = host.guest.clone();
        for entry in &host.log[(guest.passed - host.log_base) as usize..] {
            guest.replay(*entry);
        }
        self.checker.on_survivor(self.now, &guest.outputs);
        // However little the guest had to do until now.
        self.own(side, MS, Own::Work);
        if alone && other_is_dead {
            self.fact("a backup takes over from a dead primary");
        }
    }

    pub(super) fn become_primary(&mut self, side: Side) {
        let (repeats_nothing, no_lease) = (self.plant == Plant::RepeatNothing, self.plant == Plant::IgnoreLease);
        let host = self.host(side);
        let Machine::Backup(backup) = std::mem::replace(&mut host.machine, Machine::Changing) else {
            panic!("only a backup becomes a primary");
        };
        let alone = host.alone;
        host.machine = Machine::Primary(Primary::from_backup(backup));
        (host.running, host.parked, host.stalled, host.transfer) = (!host.ended, false, false, None);
        (host.last_ack, host.base) = (None, host.guest.passed);
        host.lease_until_ns = if no_lease { u64::MAX } else { 0 };
        if repeats_nothing {
            host.left = host.guest.passed;
        }
        if alone {
            self.fact("a backup goes live");
        }
        self.repeat(side);
        if self.plant == Plant::HeirLeaks && !alone {
            let host = self.host(side);
            host.lease_until_ns = u64::MAX;
            host.held.release(u64::MAX);
        }
        self.primary_on(side, primary::Input::Start, &[]);
    }

    /// Whoever goes live leaves out what has left the other side, and nothing else.
    fn repeat(&mut self, side: Side) {
        let host = self.host(side);
        let left = host.left;
        host.held.release(left);
        while let Some((entry, _)) = self.host(side).held.pop() {
            self.fact("an output need not be repeated");
            let position = self.position(side, entry);
            self.checker.expect(position < self.checker.outputs_seen(), Broken::Missing, self.now);
        }
        self.host(side).held.hold();
        if !self.host(side).held.is_empty() {
            self.fact("an output may be missing and is repeated");
        }
    }

    /// A side goes on alone: it must have whatever has left, and nobody else may.
    pub(super) fn on_alone(&mut self, side: Side) {
        self.fact("a host goes on alone");
        let outputs = self.host(side).guest.outputs.clone();
        self.checker.on_survivor(self.now, &outputs);
        self.host(side).overslept = false;
    }

    /// A process has come to a new state. Faults like to strike where something is changing.
    pub(super) fn on_state(&mut self, side: Side, state: &'static str) {
        match state {
            "following" => {
                let host = self.host(side);
                let (life, generation) = (host.life, host.generation());
                if let Some(won) = self.won.get_mut(&generation) {
                    won.pair_with = Some(life);
                }
            }
            "joining" => self.fact("a backup joins a running guest"),
            "protected" if self.host(side).base > 0 => {
                self.fact("a running guest is protected");
                let host = self.host(side);
                if host.held.left_below() < host.base {
                    let given_up = host.guest.outputs.partition_point(|(entry, _)| *entry < host.base);
                    self.checker.given_up = given_up;
                    self.fact("a network that takes nothing keeps no guest unprotected");
                }
            }
            _ => {}
        }
        let changing =
            ["transferring", "joining", "receiving", "restoring", "handing over", "taking over", "going live"];
        let aims = !self.faultless && !self.healed;
        if aims
            && (changing.contains(&state) || (state == "protected" && self.host(side).base > 0))
            && self.rng.one_in(10)
        {
            let delay = self.rng.range(0, 4 * MS);
            self.after(delay, super::world::Event::Fault);
            self.fact("a fault strikes while something is changing");
        }
    }
}
