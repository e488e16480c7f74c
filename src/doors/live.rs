//! The world at the doors: clock, entropy, timer, console, network. Everything that comes in goes to the log before the guest gets it,
//! and everything that goes out is logged before it is handed on.

use std::sync::Arc;

use super::Behind;
use crate::backends::entropy;
use crate::backends::world::{Captured, World};
use crate::log::codec::Encoder;
use crate::log::entry::{Body, Entry, output_check};
use crate::machine::blocks::{Completion, Completions, Outcome, Requests};
use crate::machine::digest::Digest;
use crate::machine::doors::{Control, EndReason, Event, Halt, Inputs, Outputs, Readiness, Until};
use crate::machine::instant::Instant;
use crate::machine::packets::{Offloads, Packets};
use crate::machine::snapshot::MachineState;

/// Where a live machine's entries go.
pub trait Log {
    /// Whether this log wants digests.
    const DIGESTS: bool;
    /// Appends an entry and returns its number. May block while the log is full.
    fn append(&mut self, entry: &Entry) -> Result<u64, Halt>;
    /// The same for an entry whose acknowledgement nobody waits for: it may leave with the next one that somebody does.
    fn append_at_leisure(&mut self, entry: &Entry) -> Result<u64, Halt> {
        self.append(entry)
    }
    /// Where this log stands: an encoder that would write the next entry.
    fn position(&self) -> Encoder;
}

/// No log: an unprotected, unrecorded run.
pub struct NoLog;

impl Log for NoLog {
    const DIGESTS: bool = false;

    fn append(&mut self, _: &Entry) -> Result<u64, Halt> {
        Ok(0)
    }

    fn position(&self) -> Encoder {
        Encoder::new()
    }
}

/// The doors of a machine that lives in the world.
pub struct LiveDoor<L> {
    world: Arc<World>,
    behind: Behind,
    log: L,
    digest_every_ns: u64,
    last_digest_ns: u64,
    digest_due: bool,
    /// What the network knows of the guest.
    offloads: Option<Offloads>,
}

impl<L: Log> LiveDoor<L> {
    /// Doors to `world` and what is `behind` them that log to `log` and take a digest about every `digest_every_ns`.
    pub fn new(world: Arc<World>, behind: Behind, log: L, digest_every_ns: u64) -> Self {
        let last_digest_ns = world.now_ns();
        LiveDoor { world, behind, log, digest_every_ns, last_digest_ns, digest_due: false, offloads: None }
    }

    /// Whether the machine is paused.
    pub fn paused(&self) -> bool {
        self.world.paused()
    }

    /// Whether the machine, which has run before, is paused.
    pub fn set_paused(&mut self, paused: bool) {
        self.world.set_paused(paused);
    }

    /// The world at this door.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The log, when the machine has ended or others stand at its doors.
    pub fn into_log(self) -> L {
        self.log
    }

    fn log(&mut self, at: Instant, body: Body) -> Result<u64, Halt> {
        self.log.append(&Entry { at, body })
    }

    /// Takes what has come in for the card, as much as it has room for, and logs it.
    fn packets(&mut self, at: Instant, room: usize) -> Result<Option<Event>, Halt> {
        self.world.looking_for_packets();
        let Some(packets) = self.behind.network.take(room) else { return Ok(None) };
        self.world.packets_may_remain();
        let entry = Entry { at, body: Body::Packets(packets) };
        self.log.append(&entry)?;
        let Body::Packets(packets) = entry.body else { unreachable!("made just above") };
        Ok(Some(Event::Packets(packets)))
    }

    /// Logs what has become of disk requests, and hands it on.
    fn disk_completions(&mut self, at: Instant, completions: Completions) -> Result<Event, Halt> {
        let mut logged = completions.clone();
        if self.behind.disk.backup_reads() {
            logged.iter_mut().for_each(leave_to_the_backup);
        }
        let entry = self.log(at, Body::Disk(logged))?;
        self.behind.disk.completed(entry, &completions);
        Ok(Event::Disk(completions))
    }

    /// A tick is where the timer thread has already stopped the guest: the cheapest place for a digest.
    fn schedule_digest(&mut self) {
        let now = self.world.now_ns();
        if L::DIGESTS && now.saturating_sub(self.last_digest_ns) >= self.digest_every_ns {
            self.last_digest_ns = now;
            self.digest_due = true;
        }
    }
}

/// Puts a check in the place of what was read.
fn leave_to_the_backup(completion: &mut Completion) {
    if let Outcome::Read(bytes) = &completion.outcome {
        let check = xxhash_rust::xxh3::xxh3_64(bytes);
        completion.outcome = Outcome::ReadElsewhere { bytes: bytes.len() as u32, check };
    }
}

impl<L: Log> Inputs for LiveDoor<L> {
    fn clock(&mut self, at: Instant) -> Result<u64, Halt> {
        let value = self.world.guest_ns();
        self.log(at, Body::Clock(value))?;
        Ok(value)
    }

    fn entropy(&mut self, at: Instant) -> Result<u64, Halt> {
        let value = entropy::random().map_err(|e| Halt::Failed { what: "get random numbers", source: Box::new(e) })?;
        self.log(at, Body::Entropy(value))?;
        Ok(value)
    }

    fn host_name(&mut self, at: Instant, word: usize) -> Result<u64, Halt> {
        let value = self.world.host_name(word);
        self.log(at, Body::HostName(value))?;
        Ok(value)
    }

    fn run_until(&mut self, _: Instant) -> Result<Until, Halt> {
        Ok(Until::Exit)
    }

    fn event(&mut self, at: Instant, ready: Readiness) -> Result<Option<Event>, Halt> {
        if self.offloads != Some(ready.offloads) {
            self.offloads = Some(ready.offloads);
            self.behind.network.set_offloads(ready.offloads);
        }
        if std::mem::take(&mut self.digest_due) {
            return Ok(Some(Event::Digest));
        }
        loop {
            let due = self.world.take_due(ready.timer_period_ns);
            if due.stop {
                return Ok(Some(Event::Stop));
            }
            if due.capture {
                self.world.about_to_capture();
                return Ok(Some(Event::Capture));
            }
            // Before the roles change: what waits here would be lost to the guest, and its senders would find that out by their time-outs alone.
            // It ends, for the guest has so much room and makes none meanwhile.
            if due.control
                && due.packets
                && !due.paused
                && ready.packet_room > 0
                && self.world.next_control() == Some(Control::Switch)
                && let Some(packets) = self.packets(at, ready.packet_room)?
            {
                return Ok(Some(packets));
            }
            if due.control
                && let Some(control) = self.world.take_control()
            {
                self.log(at, Body::Control(control))?;
                match control {
                    Control::Pause => self.world.set_paused(true),
                    Control::Resume => self.world.set_paused(false),
                    Control::Reset | Control::Switch => {}
                }
                return Ok(Some(Event::Control(control)));
            }
            if due.paused {
                self.world.wait(false, false);
                continue;
            }
            if due.tick {
                self.world.slow_down();
                self.log(at, Body::Tick)?;
                self.schedule_digest();
                return Ok(Some(Event::Tick));
            }
            if due.input && ready.console_room > 0 {
                self.world.looking_for_input();
                if let Some(input) = self.behind.console.take(ready.console_room) {
                    self.world.input_may_remain();
                    let entry = self.log(at, Body::Console(input.clone()))?;
                    self.behind.console.logged(&input, entry);
                    return Ok(Some(Event::Console(input)));
                }
                continue;
            }
            if due.packets && ready.packet_room > 0 {
                if let Some(packets) = self.packets(at, ready.packet_room)? {
                    return Ok(Some(packets));
                }
                continue;
            }
            if due.disk {
                self.world.looking_for_disk();
                if let Some(completions) = self.behind.disk.take() {
                    self.world.disk_may_remain();
                    return self.disk_completions(at, completions).map(Some);
                }
                continue;
            }
            if !ready.idle {
                return Ok(None);
            }
            self.world.wait(ready.console_room > 0, ready.packet_room > 0);
        }
    }

    fn interrupted(&mut self, at: Instant) -> Result<(), Halt> {
        if self.world.abandoned() { Err(Halt::Requested(at)) } else { Ok(()) }
    }
}

impl<L: Log> Outputs for LiveDoor<L> {
    fn console(&mut self, at: Instant, bytes: &[u8]) -> Result<(), Halt> {
        let entry = self.log(at, Body::Output { length: bytes.len() as u32, check: output_check(bytes) })?;
        self.behind.console.output(entry, bytes);
        Ok(())
    }

    fn network(&mut self, at: Instant, packets: &mut Packets) -> Result<(), Halt> {
        let body = Body::sent(packets);
        let entry = self.log(at, body)?;
        self.behind.network.sent(entry, std::mem::take(packets));
        Ok(())
    }

    fn disk(&mut self, at: Instant, requests: &mut Requests) -> Result<(), Halt> {
        // Reads are carried out at once, and so is all that goes to an image of this host's own.
        let waits = self.behind.disk.holds_changes() && requests.iter().any(|request| request.ask.changes());
        let asked = Entry { at, body: Body::asked(requests) };
        let entry = if waits { self.log.append(&asked) } else { self.log.append_at_leisure(&asked) }?;
        self.behind.disk.submit(entry, std::mem::take(requests));
        Ok(())
    }

    fn captured(&mut self, _: Instant, state: Box<MachineState>) -> Result<(), Halt> {
        let position = self.log.position();
        self.world.captured(Captured { state, position, guest_clock_ns: self.world.guest_ns() });
        Ok(())
    }

    fn digest(&mut self, at: Instant, digest: Digest) -> Result<(), Halt> {
        self.log(at, Body::Digest(Box::new(digest))).map(|_| ())
    }

    fn ended(&mut self, at: Instant, reason: &EndReason) -> Result<(), Halt> {
        let entry = self.log(at, Body::End(reason.clone()))?;
        self.behind.console.ended(entry, reason);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doors::Console;
    use crate::machine::doors::ConsoleInput;
    use crate::machine::memory;
    use crate::machine::safepoint::Safepoints;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    /// A console whose first look finds nothing, and to which somebody types just then.
    struct TypedMeanwhile {
        world: Arc<World>,
        looks: AtomicU64,
    }

    impl Console for TypedMeanwhile {
        fn output(&self, _: u64, _: &[u8]) {}
        fn take(&self, _: usize) -> Option<ConsoleInput> {
            if self.looks.fetch_add(1, SeqCst) == 0 {
                self.world.input_waits();
                return None;
            }
            Some(ConsoleInput { session: 1, offset: 0, bytes: vec![b'x'] })
        }
        fn logged(&self, _: &ConsoleInput, _: u64) {}
        fn ended(&self, _: u64, _: &EndReason) {}
        fn replayed_output(&self, _: u64, _: &[u8]) {}
        fn replayed_input(&self, _: &ConsoleInput, _: u64) {}
    }

    #[test]
    fn what_is_typed_while_the_vcpu_looks_for_input_is_found() {
        let world = World::new(Safepoints::new(memory::map(memory::MIN).unwrap()), 0, 0);
        let console = Arc::new(TypedMeanwhile { world: world.clone(), looks: AtomicU64::new(0) });
        let mut door = LiveDoor::new(world.clone(), Behind::console(console), NoLog, u64::MAX);
        world.input_waits();
        let ready = Readiness {
            idle: false,
            console_room: 64,
            packet_room: 0,
            offloads: Offloads::default(),
            timer_period_ns: 0,
        };
        let event = door.event(Instant::BOOT, ready).unwrap();
        assert!(matches!(event, Some(Event::Console(_))), "the guest would wait for the next key: {event:?}");
    }
}
