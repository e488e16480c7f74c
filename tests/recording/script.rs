//! Doors that do what a test says: a list of events, one for each time that the machine asks.

use std::collections::VecDeque;

use lockstep::machine::blocks::Requests;
use lockstep::machine::digest::Digest;
use lockstep::machine::doors::{EndReason, Event, Halt, Inputs, Outputs, Readiness, Until};
use lockstep::machine::instant::Instant;
use lockstep::machine::packets::Packets;
use lockstep::machine::snapshot::MachineState;

/// The doors. The clock shows the exits, entropy is none.
#[derive(Default)]
pub struct Script {
    /// What comes next, at each question; then nothing, and a machine that waits is stopped.
    pub events: VecDeque<Option<Event>>,
    /// What came out.
    pub captured: Vec<(Instant, MachineState)>,
    pub digests: Vec<(Instant, Digest)>,
    pub screen: Vec<u8>,
    /// Leave the machine at the first capture.
    pub leave_at_capture: bool,
}

impl Script {
    /// Doors with these events.
    pub fn new(events: impl IntoIterator<Item = Option<Event>>) -> Self {
        Script { events: events.into_iter().collect(), ..Script::default() }
    }
}

impl Inputs for Script {
    fn clock(&mut self, at: Instant) -> Result<u64, Halt> {
        Ok(at.exits)
    }

    fn entropy(&mut self, _: Instant) -> Result<u64, Halt> {
        Ok(0)
    }

    fn host_name(&mut self, _: Instant, _: usize) -> Result<u64, Halt> {
        Ok(0)
    }

    fn run_until(&mut self, _: Instant) -> Result<Until, Halt> {
        Ok(Until::Exit)
    }

    fn event(&mut self, _: Instant, ready: Readiness) -> Result<Option<Event>, Halt> {
        match self.events.pop_front() {
            Some(event) => Ok(event),
            None => Ok(ready.idle.then_some(Event::Stop)),
        }
    }

    fn interrupted(&mut self, at: Instant) -> Result<(), Halt> {
        Err(Halt::Requested(at))
    }
}

impl Outputs for Script {
    fn console(&mut self, _: Instant, bytes: &[u8]) -> Result<(), Halt> {
        self.screen.extend(bytes);
        Ok(())
    }

    fn network(&mut self, _: Instant, _: &mut Packets) -> Result<(), Halt> {
        Ok(())
    }

    fn disk(&mut self, _: Instant, _: &mut Requests) -> Result<(), Halt> {
        Ok(())
    }

    fn captured(&mut self, at: Instant, state: Box<MachineState>) -> Result<(), Halt> {
        self.captured.push((at, *state));
        if self.leave_at_capture { Err(Halt::Requested(at)) } else { Ok(()) }
    }

    fn digest(&mut self, at: Instant, digest: Digest) -> Result<(), Halt> {
        self.digests.push((at, digest));
        Ok(())
    }

    fn ended(&mut self, _: Instant, _: &EndReason) -> Result<(), Halt> {
        Ok(())
    }
}
