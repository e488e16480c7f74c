//! The faults that strike the two hosts and what is between them.

use super::Side;
use super::world::{A, B, Event, HEAL, In, MS, Own, World};
use lockstep::replication::{Settings, primary};

impl World {
    pub(super) fn strike(&mut self) {
        if self.healed {
            return;
        }
        let primary = if self.hosts[0].primary().is_some() { A } else { B };
        let side = if self.rng.one_in(3) { !primary } else { primary };
        match self.rng.range(0, 9) {
            0 | 1 => self.kill(side),
            2 | 3 => self.pause(side),
            4 => {
                let keep = self.rng.one_in(2);
                self.break_connection(keep);
            }
            5 | 6 => {
                // A cut cable: what was sent is sent again when it is mended, unless somebody gave up.
                // Now and then just long enough for one side to give the other up while that still hears it.
                let (least, most) = if self.rng.one_in(3) { (190 * MS, 420 * MS) } else { (20 * MS, 900 * MS) };
                let until = self.now + self.rng.range(least, most);
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
            _ if self.rng.one_in(2) => {
                self.log(|| "the arbiter goes away".into());
                self.arbiter_down = true;
            }
            _ => {
                for _ in 0..self.rng.range(1, 4) {
                    self.member_fails();
                }
            }
        }
    }

    /// A member of the arbiter fails, and returns after a while. It knows what it knew.
    fn member_fails(&mut self) {
        let member = self.rng.range(0, self.members.len() as u64) as usize;
        self.log(|| format!("member {member} of the arbiter fails"));
        self.members[member].up = false;
        let away = self.rng.range(10 * MS, 700 * MS);
        self.after(away, Event::MemberReturns(member));
    }

    pub(super) fn member_returns(&mut self, member: usize) {
        if !std::mem::replace(&mut self.members[member].up, true) {
            self.fact("a member of the arbiter fails and returns");
            let delay = self.rng.range(0, 300 * MS);
            self.after(delay, Event::CatchUp(member));
        }
    }

    pub(super) fn catch_up(&mut self, member: usize) {
        if self.members[member].up {
            self.members[member].holds = self.register.clone();
        }
    }

    pub(super) fn cut(&mut self, wire: usize, until: u64) {
        self.log(|| format!("{} hears nothing up to {} ms", ["B", "A"][wire], until / MS));
        self.wires[wire].blocked_until = until.min(HEAL);
        self.fact("a cable is cut");
    }

    fn kill(&mut self, side: Side) {
        if self.host(side).dead {
            return;
        }
        self.log(|| format!("{side:?} is killed"));
        self.fact("a host dies");
        let process = self.host(side);
        if process.held.left_below() < process.held.released_below() || process.unqueued.is_some() {
            self.fact("a host dies with released outputs in its hands");
        }
        self.host(side).dead = true;
        if !self.rng.one_in(4) {
            let delay = self.rng.range(MS, 400 * MS);
            self.after(delay, Event::Return(side));
        }
        let connection = self.host(side).connection;
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
        let process = self.host(side);
        if process.dead || process.paused {
            return;
        }
        process.paused = true;
        if process.writing {
            self.fact("a host is stopped with released outputs in its hands");
        }
        let length = if self.rng.one_in(3) { self.rng.range(MS, 190 * MS) } else { self.rng.range(190 * MS, 900 * MS) };
        self.log(|| format!("{side:?} is stopped for {} ms", length / MS));
        self.own(side, length, Own::Wake);
    }

    pub(super) fn wake(&mut self, side: Side) {
        let now = self.now;
        if !self.host(side).paused {
            return;
        }
        self.log(|| format!("{side:?} wakes"));
        let process = self.host(side);
        let protected = matches!(process.primary_state(), Some(primary::State::Protected));
        process.paused = false;
        let asleep = now - process.active_at;
        process.slept_ns += asleep;
        if asleep >= Settings::default().timeout_ns {
            if protected {
                process.overslept = true;
                self.fact("a protected primary wakes from a long sleep");
            } else {
                self.fact("a process wakes from a long sleep");
            }
        }
        // It goes on where it was stopped, which may be just before it writes.
        self.write(side);
        let inbox = std::mem::take(&mut self.host(side).inbox);
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
        self.close(A, connection);
        self.close(B, connection);
        self.broken.insert(connection, keep);
    }
}
