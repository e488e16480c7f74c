//! The guests' turns on the two hosts, and how what they say leaves.

use super::world::{B, Event, MS, P, US, World};
use super::{Broken, Entry, Side};
use lockstep::machine::instant::Instant;
use lockstep::replication::{backup, primary};

impl World {
    /// The guest's turn.
    pub(super) fn work(&mut self, side: Side) {
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
        // An output is queued after its entry was logged and before the next one is; the last one now and then so late that
        // it is acknowledged by then.
        let last = self.p.guest.passed - 1;
        for (entry, content) in outputs {
            if entry < last { self.p.held.push(entry, content) } else { self.p.unqueued = Some((entry, content)) }
        }
        let length = bytes.len() as u32;
        self.primary_on(primary::Input::Appended { entries, bytes: length }, &bytes);
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

    pub(super) fn queue_outputs(&mut self) {
        if let Some((entry, content)) = self.p.unqueued.take() {
            self.p.held.push(entry, content);
        }
        if !self.p.writing {
            self.write(P);
        }
    }

    fn work_live(&mut self) {
        let (_, outputs) = self.make(B, &mut Vec::new());
        for (entry, content) in outputs {
            self.b.held.push(entry, content);
        }
        self.write(B);
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

    /// What may leave leaves, as soon as the process comes to it: mostly at once.
    pub(super) fn write_soon(&mut self, side: Side) {
        let (one_in, longest) = if self.slow_writes { (2, 400 * MS) } else { (8, MS) };
        if self.process(side).writing {
            return;
        }
        if !self.rng.one_in(one_in) {
            return self.write(side);
        }
        self.process(side).writing = true;
        let delay = self.rng.range(US, longest);
        self.after(delay, Event::Write(side));
    }

    /// What may leave now leaves.
    pub(super) fn write(&mut self, side: Side) {
        let now = self.clock(side);
        let process = self.process(side);
        if process.dead || process.paused {
            return;
        }
        process.writing = false;
        if now >= process.lease_until_ns {
            if process.held.left_below() < process.held.released_below() {
                self.fact("released outputs wait for a new lease");
            }
            return;
        }
        while let Some((entry, content)) = self.process(side).held.pop() {
            self.let_out(side, entry, content);
        }
    }

    /// The survivor leaves out what has left its primary, and nothing else.
    pub(super) fn repeat(&mut self) {
        while self.b.held.left_below() < self.b.left {
            let Some((entry, _)) = self.b.held.pop() else { break };
            self.fact("an output need not be repeated");
            let position = self.position(B, entry);
            self.checker.expect(position < self.checker.outputs_seen(), Broken::Missing, self.now);
        }
        if self.b.held.left_below() < self.history.len() as u64 {
            self.fact("an output may be missing and is repeated");
        }
    }

    /// Which of the guest's outputs that of this entry is.
    fn position(&mut self, side: Side, entry: u64) -> usize {
        let position = self.process(side).guest.outputs.iter().rposition(|(number, _)| *number == entry);
        position.expect("an output of this guest")
    }

    pub(super) fn let_out(&mut self, side: Side, entry: u64, content: u64) {
        let position = self.position(side, entry);
        self.log(|| format!("{side:?} lets out output {position} of entry {entry}"));
        self.checker.on_release(self.now, position, content);
        if side == P {
            let alone = self.primary.generation() > self.first_generation;
            let held = self.backup.received() > entry;
            self.checker.expect(held || alone, Broken::ReleasedUnheld, self.now);
            let asking = matches!(self.primary.state(), primary::State::Asking(_));
            self.checker.expect(!asking, Broken::ReleasedWhileAsking, self.now);
            self.checker.expect(!self.p.overslept, Broken::ReleasedAfterSleep, self.now);
            let survivor = matches!(self.backup.state(), backup::State::Live) && self.silence;
            self.checker.expect(!survivor, Broken::LeftAfterTheSurvivor, self.now);
        }
    }

    pub(super) fn check_live(&mut self) {
        let primary = matches!(self.primary.state(), primary::State::Unprotected);
        let backup = matches!(self.backup.state(), backup::State::GoingLive | backup::State::Live);
        self.checker.expect(!(primary && backup), Broken::TwoLive, self.now);
    }
}
