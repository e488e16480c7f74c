//! A log at the doors: every answer and every event comes out of it, and everything the machine does is held against it.

use super::{Behind, DiskReplayError};
use crate::log::describe::describe;
use crate::log::entry::{Body, Entry, output_check};
use crate::machine::blocks::{Completion, Completions, Outcome, Requests};
use crate::machine::digest::Digest;
use crate::machine::divergence::{Difference, Divergence};
use crate::machine::doors::{Control, EndReason, Event, Halt, Inputs, Outputs, Readiness, Until};
use crate::machine::instant::Instant;
use crate::machine::packets::Packets;
use crate::machine::snapshot::MachineState;

/// What a source of entries knows to come next.
#[derive(Debug)]
pub enum Next<'a> {
    /// This entry, with its number.
    Entry(u64, &'a Entry),
    /// No entry yet, and none will come at or before this instant.
    ClearUpTo(Instant),
}

/// Where a replay gets its entries.
pub trait Source {
    /// What comes next, without taking it. Blocks until that is an entry or says something about instants after `at`.
    /// [`Halt::EndOfLog`] at the end.
    fn next(&mut self, at: Instant) -> Result<Next<'_>, Halt>;
    /// The next entry, without taking it. Blocks until there is one.
    fn next_entry(&mut self, at: Instant) -> Result<(u64, &Entry), Halt>;
    /// Takes the next entry, after one of the calls above showed it.
    fn take(&mut self) -> Option<Entry>;
    /// The owner of the machine wants it to stop.
    fn abandoned(&self) -> bool;
}

/// What a replay has met so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events delivered and answers given.
    pub events: u64,
    /// Outputs that were the same as in the log.
    pub outputs: u64,
    /// Digests that were the same as in the log.
    pub digests: u64,
    /// The newest clock value in the log, nanoseconds since boot.
    pub clock_ns: u64,
    /// The operator has paused the machine.
    pub paused: bool,
}

/// The doors of a machine that replays a log.
pub struct ReplayDoor<S> {
    source: S,
    behind: Behind,
    tally: Tally,
}

impl<S: Source> ReplayDoor<S> {
    /// Doors that replay `source`, with what comes out shown to what is `behind` them.
    pub fn new(source: S, behind: Behind) -> Self {
        ReplayDoor { source, behind, tally: Tally::default() }
    }

    /// The same, for a guest that has read its clock up to `clock_ns` before.
    pub fn from_clock(mut self, clock_ns: u64) -> Self {
        self.tally.clock_ns = clock_ns;
        self
    }

    /// The same, for a machine that has run before and is paused, or not.
    pub fn starting_paused(mut self, paused: bool) -> Self {
        self.tally.paused = paused;
        self
    }

    /// What was met so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Where the entries come from.
    pub fn source_mut(&mut self) -> &mut S {
        &mut self.source
    }

    /// Delivers the packets that are the next entry, without copying them.
    fn packets(&mut self) -> Result<Option<Event>, Halt> {
        self.tally.events += 1;
        Ok(match self.source.take().map(|entry| entry.body) {
            Some(Body::Packets(packets)) => Some(Event::Packets(packets)),
            _ => None,
        })
    }

    /// Delivers the disk completions that are the next entry, with the bytes that the log may have left to this side.
    fn disk_completions(&mut self, at: Instant, number: u64) -> Result<Option<Event>, Halt> {
        let elsewhere = |completion: &Completion| matches!(completion.outcome, Outcome::ReadElsewhere { .. });
        let left_here = match &self.source.next_entry(at)?.1.body {
            Body::Disk(completions) => completions.iter().any(elsewhere).then(|| completions.clone()),
            _ => None,
        };
        // What is taken counts as executed, and then the primary may write where this side has yet to read. So it reads first.
        let filled = left_here.map(|completions| self.disk_completed(at, number, completions)).transpose()?;
        let taken = self.source.take().map(|entry| entry.body);
        self.tally.events += 1;
        Ok(match (filled, taken) {
            (Some(completions), _) => Some(Event::Disk(completions)),
            (None, Some(Body::Disk(completions))) => Some(Event::Disk(self.disk_completed(at, number, completions)?)),
            (None, _) => None,
        })
    }

    /// Tells the disk what the log says of it, and has it fill in what it does not say.
    fn disk_completed(&mut self, at: Instant, number: u64, mut completions: Completions) -> Result<Completions, Halt> {
        self.behind.disk.replayed_completed(number, &mut completions).map_err(|error| match error {
            DiskReplayError::OtherBytes(_) | DiskReplayError::NoSuchRequest(_) => {
                let difference = Difference::Kind { logged: error.to_string(), found: "the disk's own answer".into() };
                Halt::Diverged(Box::new(Divergence { entry: number, at, difference }))
            }
            DiskReplayError::NoDisk | DiskReplayError::NotHere | DiskReplayError::Read(_) => {
                Halt::Failed { what: "replay a disk read", source: Box::new(error) }
            }
        })?;
        Ok(completions)
    }

    /// Takes the next entry for something that the machine does at `at`; `pick` says whether it is that.
    fn meet<T>(
        &mut self,
        at: Instant,
        found: impl Fn() -> String,
        pick: impl Fn(&Body) -> Option<T>,
    ) -> Result<(u64, T), Halt> {
        let (number, entry) = self.source.next_entry(at)?;
        let picked = if entry.at == at { pick(&entry.body) } else { None };
        let Some(value) = picked else { return Err(diverged(number, at, entry, found())) };
        self.source.take();
        Ok((number, value))
    }
}

fn diverged(number: u64, at: Instant, entry: &Entry, found: String) -> Halt {
    let logged = format!("{} at {}", describe(&entry.body), entry.at);
    Halt::Diverged(Box::new(Divergence { entry: number, at, difference: Difference::Kind { logged, found } }))
}

impl<S: Source> Inputs for ReplayDoor<S> {
    fn clock(&mut self, at: Instant) -> Result<u64, Halt> {
        let pick = |body: &Body| if let Body::Clock(value) = body { Some(*value) } else { None };
        let (_, value) = self.meet(at, || "the guest reads the clock".into(), pick)?;
        self.tally.events += 1;
        self.tally.clock_ns = value;
        Ok(value)
    }

    fn entropy(&mut self, at: Instant) -> Result<u64, Halt> {
        let pick = |body: &Body| if let Body::Entropy(value) = body { Some(*value) } else { None };
        let (_, value) = self.meet(at, || "the guest reads entropy".into(), pick)?;
        self.tally.events += 1;
        Ok(value)
    }

    fn host_name(&mut self, at: Instant, _: usize) -> Result<u64, Halt> {
        let pick = |body: &Body| if let Body::HostName(value) = body { Some(*value) } else { None };
        let (_, value) = self.meet(at, || "the guest reads the host's name".into(), pick)?;
        self.tally.events += 1;
        Ok(value)
    }

    fn run_until(&mut self, at: Instant) -> Result<Until, Halt> {
        let stop = match self.source.next(at)? {
            Next::Entry(_, entry) => entry.at,
            Next::ClearUpTo(instant) => instant,
        };
        Ok(if stop.exits == at.exits { Until::Poll(stop.polls) } else { Until::Exit })
    }

    fn event(&mut self, at: Instant, ready: Readiness) -> Result<Option<Event>, Halt> {
        let (number, entry) = match self.source.next(at)? {
            Next::Entry(number, entry) => (number, entry),
            Next::ClearUpTo(_) if ready.idle => self.source.next_entry(at)?,
            Next::ClearUpTo(_) => return Ok(None),
        };
        if entry.at > at {
            return if ready.idle { Err(diverged(number, at, entry, "the guest is idle".into())) } else { Ok(None) };
        }
        if entry.at < at {
            return Err(diverged(number, at, entry, "the guest went past it".into()));
        }
        let event = match &entry.body {
            Body::Tick => Event::Tick,
            Body::Control(control) => {
                match control {
                    Control::Pause => self.tally.paused = true,
                    Control::Resume => self.tally.paused = false,
                    Control::Reset | Control::Switch => {}
                }
                Event::Control(*control)
            }
            Body::Disk(_) => return self.disk_completions(at, number),
            Body::Console(input) => Event::Console(input.clone()),
            Body::Packets(_) => return self.packets(),
            // These two stay in the log until the machine has done what they say.
            Body::Digest(_) => return Ok(Some(Event::Digest)),
            Body::End(EndReason::Stopped) => return Ok(Some(Event::Stop)),
            Body::Clock(_)
            | Body::Entropy(_)
            | Body::HostName(_)
            | Body::Output { .. }
            | Body::Sent { .. }
            | Body::Asked { .. }
            | Body::End(_) => {
                return Err(diverged(number, at, entry, "the guest did nothing of the kind".into()));
            }
        };
        self.source.take();
        self.tally.events += 1;
        if let Event::Console(input) = &event {
            self.behind.console.replayed_input(input, number);
        }
        Ok(Some(event))
    }

    fn interrupted(&mut self, at: Instant) -> Result<(), Halt> {
        if self.source.abandoned() { Err(Halt::Requested(at)) } else { Ok(()) }
    }
}

impl<S: Source> Outputs for ReplayDoor<S> {
    fn console(&mut self, at: Instant, bytes: &[u8]) -> Result<(), Halt> {
        let own = Body::Output { length: bytes.len() as u32, check: output_check(bytes) };
        let (number, ()) = self.meet(at, || describe(&own), |body| (*body == own).then_some(()))?;
        self.tally.outputs += 1;
        self.behind.console.replayed_output(number, bytes);
        Ok(())
    }

    fn network(&mut self, at: Instant, packets: &mut Packets) -> Result<(), Halt> {
        let own = Body::sent(packets);
        let (number, ()) = self.meet(at, || describe(&own), |body| (*body == own).then_some(()))?;
        self.tally.outputs += 1;
        self.behind.network.replayed_sent(number, packets);
        Ok(())
    }

    fn disk(&mut self, at: Instant, requests: &mut Requests) -> Result<(), Halt> {
        let own = Body::asked(requests);
        let (number, ()) = self.meet(at, || describe(&own), |body| (*body == own).then_some(()))?;
        self.tally.outputs += 1;
        self.behind.disk.replayed(number, requests);
        Ok(())
    }

    fn captured(&mut self, _: Instant, _: Box<MachineState>) -> Result<(), Halt> {
        unreachable!("a log asks for no capture")
    }

    fn digest(&mut self, at: Instant, digest: Digest) -> Result<(), Halt> {
        let pick = |body: &Body| if let Body::Digest(logged) = body { Some(logged.clone()) } else { None };
        let (number, logged) = self.meet(at, || "a digest".into(), pick)?;
        if !logged.same_state(&digest) {
            let difference = Difference::Digest { logged, found: Box::new(digest) };
            return Err(Halt::Diverged(Box::new(Divergence { entry: number, at, difference })));
        }
        self.tally.digests += 1;
        Ok(())
    }

    fn ended(&mut self, at: Instant, reason: &EndReason) -> Result<(), Halt> {
        let own = Body::End(reason.clone());
        self.meet(at, || describe(&own), |body| (*body == own).then_some(())).map(|_| ())
    }
}
