//! The doors of a backup: the log first, and the world from the moment on at which it goes live.

use super::live::{LiveDoor, Log};
use super::replay::{ReplayDoor, Source};
use crate::machine::blocks::Requests;
use crate::machine::digest::Digest;
use crate::machine::doors::{EndReason, Event, Halt, Inputs, Outputs, Readiness, Until};
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

/// The doors of a backup. When its log ends with permission to go live, `go_live` makes the world's doors,
/// and the machine keeps running: the very call that found the log at its end is answered by the world.
pub struct TakeoverDoor<S, L, F> {
    who: Who<S, L>,
    go_live: Option<F>,
}

impl<S: Source, L: Log, F: FnOnce(ReplayDoor<S>, Instant) -> Result<LiveDoor<L>, Halt>> TakeoverDoor<S, L, F> {
    /// Doors that replay until the log ends, and then are what `go_live` makes of it.
    pub fn new(replay: ReplayDoor<S>, go_live: F) -> Self {
        TakeoverDoor { who: Who::Log(replay), go_live: Some(go_live) }
    }

    /// The log at its end gives way to the world.
    fn take_over(&mut self, at: Instant) -> Result<(), Halt> {
        let (Who::Log(replay), Some(go_live)) = (std::mem::replace(&mut self.who, Who::Nobody), self.go_live.take())
        else {
            return Err(Halt::EndOfLog(at));
        };
        let paused = replay.tally().paused;
        let mut live = go_live(replay, at)?;
        live.set_paused(paused);
        self.who = Who::World(live);
        Ok(())
    }

    /// [`ask`](Self::ask) for an output that the door may take out of the machine's hands.
    fn hand_out<T>(
        &mut self,
        at: Instant,
        output: &mut T,
        log: impl Fn(&mut ReplayDoor<S>, Instant, &mut T) -> Result<(), Halt>,
        world: impl Fn(&mut LiveDoor<L>, Instant, &mut T) -> Result<(), Halt>,
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

    fn ask<T>(
        &mut self,
        at: Instant,
        mut log: impl FnMut(&mut ReplayDoor<S>) -> Result<T, Halt>,
        mut world: impl FnMut(&mut LiveDoor<L>) -> Result<T, Halt>,
    ) -> Result<T, Halt> {
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

impl<S: Source, L: Log, F: FnOnce(ReplayDoor<S>, Instant) -> Result<LiveDoor<L>, Halt>> Inputs
    for TakeoverDoor<S, L, F>
{
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
        self.ask(at, |log| log.event(at, ready), |world| world.event(at, ready))
    }

    fn interrupted(&mut self, at: Instant) -> Result<(), Halt> {
        self.ask(at, |log| log.interrupted(at), |world| world.interrupted(at))
    }
}

impl<S: Source, L: Log, F: FnOnce(ReplayDoor<S>, Instant) -> Result<LiveDoor<L>, Halt>> Outputs
    for TakeoverDoor<S, L, F>
{
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
