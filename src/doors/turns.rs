//! The doors of one side of a pair: the log and the world in turns. A backup goes live when its log ends and it may; a primary becomes
//! a backup where it has logged that the other host goes on.

use super::live::{LiveDoor, Log};
use super::replay::{ReplayDoor, Source};
use crate::machine::blocks::Requests;
use crate::machine::digest::Digest;
use crate::machine::doors::{Control, EndReason, Event, Halt, Inputs, Outputs, Readiness, Until};
use crate::machine::instant::Instant;
use crate::machine::packets::Packets;
use crate::machine::snapshot::MachineState;

/// Who stands at the doors now.
enum Who<S, L> {
    Log(ReplayDoor<S>),
    World(LiveDoor<L>),
    /// Only while the one goes and the other comes.
    Nobody,
}

/// What makes the doors of each turn.
pub trait Turns<S, L> {
    /// The log has ended, with permission to go live: the world's doors.
    fn go_live(&mut self, replay: ReplayDoor<S>, at: Instant) -> Result<LiveDoor<L>, Halt>;
    /// The other host goes on from `at`: the doors that replay what it does.
    fn follow(&mut self, live: LiveDoor<L>, at: Instant) -> Result<ReplayDoor<S>, Halt>;
}

/// The doors of one side of a pair. The machine keeps running through all turns: the very call that finds the log at its end is answered
/// by the world, and the one after the entry of a switch by the log.
pub struct TurnDoor<S, L, T> {
    who: Who<S, L>,
    turns: T,
}

impl<S: Source, L: Log, T: Turns<S, L>> TurnDoor<S, L, T> {
    /// Doors that replay first.
    pub fn replaying(replay: ReplayDoor<S>, turns: T) -> Self {
        TurnDoor { who: Who::Log(replay), turns }
    }

    /// Doors that live first.
    pub fn living(live: LiveDoor<L>, turns: T) -> Self {
        TurnDoor { who: Who::World(live), turns }
    }

    /// The log at its end gives way to the world.
    fn take_over(&mut self, at: Instant) -> Result<(), Halt> {
        let Who::Log(replay) = std::mem::replace(&mut self.who, Who::Nobody) else {
            return Err(Halt::EndOfLog(at));
        };
        let paused = replay.tally().paused;
        let mut live = self.turns.go_live(replay, at)?;
        live.set_paused(paused);
        self.who = Who::World(live);
        Ok(())
    }

    /// The world gives way to the log.
    fn follow(&mut self, at: Instant) -> Result<(), Halt> {
        if let Who::World(live) = std::mem::replace(&mut self.who, Who::Nobody) {
            let paused = live.paused();
            self.who = Who::Log(self.turns.follow(live, at)?.starting_paused(paused));
        }
        Ok(())
    }

    /// [`ask`](Self::ask) for an output that the door may take out of the machine's hands.
    fn hand_out<O>(
        &mut self,
        at: Instant,
        output: &mut O,
        log: impl Fn(&mut ReplayDoor<S>, Instant, &mut O) -> Result<(), Halt>,
        world: impl Fn(&mut LiveDoor<L>, Instant, &mut O) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        if let Who::Log(replay) = &mut self.who {
            match log(replay, at, output) {
                Err(Halt::EndOfLog(_)) => self.take_over(at)?,
                answered => return answered,
            }
        }
        match &mut self.who {
            Who::World(live) => world(live, at, output),
            Who::Log(_) | Who::Nobody => Err(Halt::EndOfLog(at)),
        }
    }

    fn ask<A>(
        &mut self,
        at: Instant,
        mut log: impl FnMut(&mut ReplayDoor<S>) -> Result<A, Halt>,
        mut world: impl FnMut(&mut LiveDoor<L>) -> Result<A, Halt>,
    ) -> Result<A, Halt> {
        if let Who::Log(replay) = &mut self.who {
            match log(replay) {
                Err(Halt::EndOfLog(_)) => self.take_over(at)?,
                answered => return answered,
            }
        }
        match &mut self.who {
            Who::World(live) => world(live),
            Who::Log(_) | Who::Nobody => Err(Halt::EndOfLog(at)),
        }
    }
}

impl<S: Source, L: Log, T: Turns<S, L>> Inputs for TurnDoor<S, L, T> {
    fn clock(&mut self, at: Instant) -> Result<u64, Halt> {
        self.ask(at, |log| log.clock(at), |world| world.clock(at))
    }

    fn entropy(&mut self, at: Instant) -> Result<u64, Halt> {
        self.ask(at, |log| log.entropy(at), |world| world.entropy(at))
    }

    fn host_name(&mut self, at: Instant, word: usize) -> Result<u64, Halt> {
        self.ask(at, |log| log.host_name(at, word), |world| world.host_name(at, word))
    }

    fn run_until(&mut self, at: Instant) -> Result<Until, Halt> {
        self.ask(at, |log| log.run_until(at), |world| world.run_until(at))
    }

    fn event(&mut self, at: Instant, ready: Readiness) -> Result<Option<Event>, Halt> {
        let event = self.ask(at, |log| log.event(at, ready), |world| world.event(at, ready))?;
        if event == Some(Event::Control(Control::Switch)) && matches!(self.who, Who::World(_)) {
            self.follow(at)?;
        }
        Ok(event)
    }

    fn interrupted(&mut self, at: Instant) -> Result<(), Halt> {
        self.ask(at, |log| log.interrupted(at), |world| world.interrupted(at))
    }
}

impl<S: Source, L: Log, T: Turns<S, L>> Outputs for TurnDoor<S, L, T> {
    fn console(&mut self, at: Instant, bytes: &[u8]) -> Result<(), Halt> {
        self.ask(at, |log| log.console(at, bytes), |world| world.console(at, bytes))
    }

    fn network(&mut self, at: Instant, packets: &mut Packets) -> Result<(), Halt> {
        self.hand_out(at, packets, ReplayDoor::network, LiveDoor::network)
    }

    fn disk(&mut self, at: Instant, requests: &mut Requests) -> Result<(), Halt> {
        self.hand_out(at, requests, ReplayDoor::disk, LiveDoor::disk)
    }

    fn captured(&mut self, at: Instant, state: Box<MachineState>) -> Result<(), Halt> {
        match &mut self.who {
            Who::World(live) => live.captured(at, state),
            Who::Log(_) | Who::Nobody => Err(Halt::EndOfLog(at)),
        }
    }

    fn digest(&mut self, at: Instant, digest: Digest) -> Result<(), Halt> {
        self.ask(at, |log| log.digest(at, digest.clone()), |world| world.digest(at, digest.clone()))
    }

    fn ended(&mut self, at: Instant, reason: &EndReason) -> Result<(), Halt> {
        self.ask(at, |log| log.ended(at, reason), |world| world.ended(at, reason))
    }
}
