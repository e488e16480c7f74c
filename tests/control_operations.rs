//! Promise: what an operator does to a machine (pause, resume, reset) is part of its execution. It is in the log, and the replay does the same,
//! with all digests equal. While a machine is paused nothing happens to it, and its clock stands still.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod recording;

use std::sync::Arc;
use std::time::Duration;

use lockstep::backends::world::World;
use lockstep::doors::Behind;
use lockstep::doors::live::LiveDoor;
use lockstep::host::file_log::FileLog;
use lockstep::host::vcpu_thread::VcpuThread;
use lockstep::log::entry::{Body, Entry};
use lockstep::log::file::LogWriter;
use lockstep::machine::doors::{Control, EndReason, Event};
use lockstep::machine::instant::Instant;
use lockstep::machine::safepoint::Safepoints;
use lockstep::machine::{Machine, Tracking};
use recording::machine::{Terminal, boot, digests, read_log, replay};
use recording::moving::replay_moving;
use recording::process::until;
use recording::script::Script;

/// A recorded guest that runs, and what it says.
struct Guest {
    world: Arc<World>,
    terminal: Arc<Terminal>,
    safepoints: Safepoints,
    thread: Option<VcpuThread<EndReason>>,
    file: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl Guest {
    fn start(command_line: &str) -> Guest {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("guest.log");
        let boot = boot(command_line);
        let mut machine = Machine::new(&boot, Tracking::On).expect("a machine");
        let safepoints = machine.safepoints();
        let world = World::new(safepoints.clone(), 0, 0);
        let terminal = Arc::new(Terminal::default());
        let log = FileLog::new(LogWriter::create(&file, &boot).expect("a log file"));
        let mut door = LiveDoor::new(world.clone(), Behind::console(terminal.clone()), log, 2_000_000);
        let thread = VcpuThread::spawn(move || {
            let end = machine.run(&mut door).expect("it ends by itself");
            door.into_log().close().expect("the log closes");
            end
        });
        Guest { world, terminal, safepoints, thread: Some(thread.expect("a thread")), file, _directory: directory }
    }

    /// Waits until the guest has written `text` so many times.
    fn says(&self, text: &str, times: usize) {
        let what = format!("{times} times {text:?}");
        until(&what, || (self.terminal.screen().matches(text).count() >= times).then_some(()));
    }

    fn instant(&self) -> (u64, u64) {
        (self.safepoints.exits(), self.safepoints.count())
    }

    fn pause(&self) {
        self.world.control(Control::Pause);
        until("the pause", || self.world.paused().then_some(()));
    }

    fn resume(&self) {
        self.world.control(Control::Resume);
        until("the resumption", || (!self.world.paused()).then_some(()));
    }

    /// Stops it; its entries.
    fn stop(&mut self) -> Vec<Entry> {
        self.world.stop();
        let thread = self.thread.take().expect("stopped once");
        until("the guest to stop", || thread.finished().then_some(()));
        assert_eq!(thread.join().expect("the vCPU thread does not panic"), EndReason::Stopped);
        self.world.end();
        read_log(&self.file).1
    }

    /// Replays it, straight and from machine to machine.
    fn replays(&self, entries: &[Entry]) {
        let replayed = replay(&self.file);
        assert_eq!(replayed.end.as_ref().ok(), Some(&EndReason::Stopped), "{replayed:?}");
        assert_eq!(replayed.tally.digests, digests(entries));
        assert_eq!(replayed.screen, self.terminal.screen());
        assert!(replayed.complete);
        let (end, moves, tally, screen) = replay_moving(&self.file, 77, 60);
        assert!(matches!(end, Ok(EndReason::Stopped)), "{end:?} {moves:?}");
        assert_eq!((tally.digests, &screen), (digests(entries), &self.terminal.screen()));
        println!("{} entries, {} digests, {moves:?}", entries.len(), tally.digests);
    }
}

fn controls(entries: &[Entry]) -> Vec<Control> {
    let control = |entry: &Entry| if let Body::Control(control) = entry.body { Some(control) } else { None };
    entries.iter().filter_map(control).collect()
}

#[test]
fn a_reset_machine_boots_again_and_replays() {
    for command_line in ["mix 5 1000 hz=1000", "compute 1000 seed=3 hz=1000", "ticker hz=100"] {
        let mut guest = Guest::start(command_line);
        let began = command_line.split(' ').next().expect("a word");
        // Once early, wherever it then is, and once in the middle of its work.
        guest.world.control(Control::Reset);
        for resets in 1..=4 {
            guest.says(if began == "ticker" { "tick" } else { "\n" }, 4 * resets);
            guest.world.control(Control::Reset);
        }
        until("the resets", || (guest.safepoints.exits() > 0).then_some(()));
        guest.says("\n", 20);
        let entries = guest.stop();
        assert_eq!(controls(&entries), [Control::Reset; 5]);
        // Behind a reset, an exit further, the count begins anew.
        let fell = entries.windows(2).filter(|pair| pair[1].at.polls < pair[0].at.polls).count();
        assert!(fell >= 3, "{fell} of 5 resets set the count back");
        guest.replays(&entries);
    }
}

/// Nothing of the first life is left: two machines with different pasts are one after their resets.
#[test]
fn a_reset_machine_is_as_at_its_boot() {
    let boot = boot("mix 9 1");
    let life = |exits: usize| {
        let mut machine = Machine::new(&boot, Tracking::On).expect("a machine");
        let past = (0..exits).map(|i| (i % 3 == 2).then_some(Event::Digest));
        let reset = [Some(Event::Control(Control::Reset)), Some(Event::Digest), None, None, None, Some(Event::Digest)];
        let mut door = Script::new(past.chain(reset).chain([Some(Event::Stop)]));
        assert_eq!(machine.run(&mut door).expect("it ends"), EndReason::Stopped);
        let n = door.digests.len();
        door.digests.drain(n - 2..).map(|(at, digest)| (at.polls, digest)).collect::<Vec<_>>()
    };
    let (fresh, worn) = (life(0), life(90));
    for ((polls, one), (other_polls, other)) in fresh.iter().zip(&worn) {
        assert_eq!(polls, other_polls);
        assert!(one.same_state(other), "{one:?}\n{other:?}");
    }
    // And that is the boot's: a machine that was never reset.
    let mut machine = Machine::new(&boot, Tracking::On).expect("a machine");
    let mut door = Script::new([Some(Event::Digest), Some(Event::Stop)]);
    machine.run(&mut door).expect("it ends");
    assert!(door.digests[0].1.same_state(&fresh[0].1), "{:?}\n{:?}", door.digests[0].1, fresh[0].1);
    assert_eq!(machine.at(), Instant::BOOT);
}

#[test]
fn a_paused_machine_stands_still_and_its_clock_with_it() {
    let mut guest = Guest::start("mix 6 1000 hz=1000");
    for round in 1..=5 {
        guest.says("mix", round);
        guest.pause();
        let (at, clock) = (guest.instant(), guest.world.guest_ns());
        // Whatever comes meanwhile.
        guest.world.input_waits();
        guest.world.packets_wait();
        guest.world.disk_done();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!((guest.instant(), guest.world.guest_ns()), (at, clock));
        guest.resume();
        until("the guest to go on", || (guest.instant() > at && guest.world.guest_ns() > clock).then_some(()));
    }
    // A paused machine can be reset, and stopped.
    guest.pause();
    let at = guest.instant();
    guest.world.control(Control::Reset);
    until("the reset", || (guest.safepoints.exits() > at.0).then_some(()));
    let at = guest.instant();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.instant(), at, "it does not boot before it is resumed");
    let entries = guest.stop();
    let mut expected = [Control::Pause, Control::Resume].repeat(5);
    expected.extend([Control::Pause, Control::Reset]);
    assert_eq!(controls(&entries), expected);
    // Between a pause and its end there is nothing in the log.
    for (i, entry) in entries.iter().enumerate() {
        if entry.body == Body::Control(Control::Pause) {
            assert!(matches!(entries[i + 1].body, Body::Control(_)), "{:?}", &entries[i..i + 3]);
        }
    }
    guest.replays(&entries);
}
