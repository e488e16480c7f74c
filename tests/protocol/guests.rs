//! The guests' turns on the two hosts, and how what they say leaves.

use super::world::{A, B, MS, Own, US, World};
use super::{Broken, Entry, Side};
use lockstep::machine::instant::Instant;
use lockstep::replication::{backup, primary};

impl World {
    /// The guest's turn.
    pub(super) fn work(&mut self, side: Side) {
        if self.host(side).dead {
            return;
        }
        let taking_over =
            matches!(self.host(side).backup_state(), Some(backup::State::Taking(_) | backup::State::GoingLive));
        let idle = self.guest_idles && !self.healed && !taking_over;
        let longest = if idle { 500 * MS } else { [6 * MS, 30 * MS][usize::from(self.rng.one_in(40))] };
        let pause = self.rng.range(300 * US, longest);
        self.own(side, pause, Own::Work);
        if self.host(side).paused {
            return;
        }
        if self.host(side).running {
            self.work_live(side);
        } else if self.host(side).loaded {
            self.replay(side);
        }
    }

    fn make(&mut self, side: Side, bytes: &mut Vec<u8>) -> (u32, Vec<(u64, u64)>) {
        let (mut entries, mut outputs) = (0, Vec::new());
        for _ in 0..self.rng.range(1, 4) {
            let (output, value) = (self.rng.one_in(2), self.rng.next());
            let guest = &mut self.host(side).guest;
            let entry = if output { guest.output() } else { guest.event(value) };
            outputs.extend(guest.outputs.last().filter(|_| output));
            entry.encode(bytes);
            entries += 1;
        }
        (entries, outputs)
    }

    fn work_live(&mut self, side: Side) {
        self.queue_outputs(side);
        let host = self.host(side);
        if host.stalled || host.ended || host.parked {
            return;
        }
        let mut bytes = Vec::new();
        let (entries, outputs) = self.make(side, &mut bytes);
        // An output is queued after its entry was logged and before the next one is; the last one now and then so late that
        // it is acknowledged by then.
        let host = self.host(side);
        let last = host.guest.passed - 1;
        for (entry, content) in outputs {
            if entry < last { host.held.push(entry, content) } else { host.unqueued = Some((entry, content)) }
        }
        let length = bytes.len() as u32;
        self.primary_on(side, primary::Input::Appended { entries, bytes: length }, &bytes);
        if !self.rng.one_in(4) {
            self.queue_outputs(side);
        }
        if self.rng.one_in(4) {
            let entries = self.host(side).guest.passed;
            let at = Instant::new(entries, self.now);
            self.primary_on(side, primary::Input::Horizon { entries, at }, &[]);
        }
        if self.guest_ends && self.now > 300 * MS && self.rng.one_in(50) && self.host(side).running {
            self.host(side).ended = true;
            self.queue_outputs(side);
            self.primary_on(side, primary::Input::GuestEnded, &[]);
        }
    }

    pub(super) fn queue_outputs(&mut self, side: Side) {
        let host = self.host(side);
        if let Some((entry, content)) = host.unqueued.take() {
            host.held.push(entry, content);
        }
        if !host.writing {
            self.write(side);
        }
    }

    fn replay(&mut self, side: Side) {
        for _ in 0..self.rng.range(0, 12) {
            let host = self.host(side);
            let Some(&entry) = host.log.get((host.guest.passed - host.log_base) as usize) else { break };
            host.guest.replay(entry);
            if let Entry::Output(content) = entry {
                host.held.push(host.guest.passed - 1, content);
            }
        }
        let host = self.host(side);
        let (entries, mut newest) = (host.guest.passed, None);
        while let Some((_, stamp)) = host.stamps.pop_front_if(|(last, _)| *last <= entries) {
            newest = Some(stamp);
        }
        let all = entries == host.entries();
        if let Some(stamp) = newest {
            self.backup_on(side, backup::Input::Executed { entries, stamp }, &[]);
        }
        match self.host(side).backup_state() {
            Some(backup::State::GoingLive) if all => self.backup_on(side, backup::Input::WentLive, &[]),
            Some(backup::State::Finishing) if all => self.backup_on(side, backup::Input::GuestEnded, &[]),
            _ => {}
        }
    }

    /// What may leave leaves, as soon as the process comes to it: mostly at once.
    pub(super) fn write_soon(&mut self, side: Side) {
        let (one_in, longest) = if self.slow_writes { (2, 400 * MS) } else { (8, MS) };
        if self.host(side).writing {
            return;
        }
        if !self.rng.one_in(one_in) {
            return self.write(side);
        }
        self.host(side).writing = true;
        let delay = self.rng.range(US, longest);
        self.own(side, delay, Own::Write);
    }

    /// What may leave now leaves.
    pub(super) fn write(&mut self, side: Side) {
        let now = self.clock(side);
        let host = self.host(side);
        if host.dead || host.paused {
            return;
        }
        host.writing = false;
        if now >= host.lease_until_ns {
            if host.held.left_below() < host.held.released_below() {
                self.fact("released outputs wait for a new lease");
            }
            return;
        }
        while let Some((entry, content)) = self.host(side).held.pop() {
            self.let_out(side, entry, content);
        }
    }

    /// Which of the guest's outputs that of this entry is.
    pub(super) fn position(&mut self, side: Side, entry: u64) -> usize {
        let position = self.host(side).guest.outputs.iter().rposition(|(number, _)| *number == entry);
        position.expect("an output of this guest")
    }

    fn let_out(&mut self, side: Side, entry: u64, content: u64) {
        let position = self.position(side, entry);
        let state = self.host(side).state_name();
        self.log(|| format!("{side:?}, {state}, lets out output {position} of entry {entry}"));
        self.checker.on_release(self.now, position, content);
        let host = &self.hosts[side as usize];
        let held = self.held_by_backup.get(&host.generation()).copied().unwrap_or(0);
        let otherwise = match host.primary_state() {
            Some(primary::State::Unprotected | primary::State::Transferring) => None,
            Some(primary::State::Joining { .. }) => (entry >= host.base).then_some(Broken::ReleasedUnheld),
            Some(primary::State::Protected) => (entry >= host.base && entry >= held).then_some(Broken::ReleasedUnheld),
            // The last ones of a guest that has ended, slow to leave.
            Some(primary::State::Stopped(_)) if host.ended => None,
            // An acknowledgement may release the last ones and begin the handover: they leave before the hold.
            Some(primary::State::HandingOver { .. }) if !host.on_hold => None,
            _ => Some(Broken::ReleasedWhileAsking),
        };
        let overslept = host.overslept;
        let other = &self.hosts[!side as usize];
        let survived = other.lives_alone() && other.for_silence && other.generation() > host.generation();
        if let Some(broken) = otherwise {
            self.broke(broken);
        }
        self.checker.expect(!overslept, Broken::ReleasedAfterSleep, self.now);
        self.checker.expect(!survived, Broken::LeftAfterTheSurvivor, self.now);
    }

    pub(super) fn check_live(&mut self) {
        let two = [A, B].into_iter().all(|side| self.host(side).lives_alone());
        self.checker.expect(!two, Broken::TwoLive, self.now);
    }
}
