//! Guests recorded into a log file and replayed from it in this process, through the same doors, log and reader as
//! `lockstep record` and `lockstep replay`.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use lockstep::backends::world::World;
use lockstep::doors::live::LiveDoor;
use lockstep::doors::replay::{ReplayDoor, Tally};
use lockstep::doors::{Behind, Console, Disk, NoDisk};
use lockstep::guest;
use lockstep::host::file_log::{FileLog, FileSource, Watch};
use lockstep::host::vcpu_thread::VcpuThread;
use lockstep::log::entry::{Body, Entry};
use lockstep::log::file::{LogReader, LogWriter};
use lockstep::machine::divergence::Divergence;
use lockstep::machine::doors::{ConsoleInput, EndReason, Halt};
use lockstep::machine::instant;
use lockstep::machine::snapshot::Boot;
use lockstep::machine::{Machine, Tracking, cpuid, vcpu};

/// How long a guest may take that should end by itself.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The built-in image with this command line, on this host's processor.
pub fn boot(command_line: &str) -> Boot {
    boot_image(guest::IMAGE.to_vec(), command_line)
}

/// An image with this command line, on this host's processor.
pub fn boot_image(image: Vec<u8>, command_line: &str) -> Boot {
    let host = vcpu::host_cpuid().unwrap_or_else(|error| panic!("this test needs KVM: {error}"));
    Boot {
        name: "test".into(),
        memory_bytes: 32 << 20,
        command_line: command_line.into(),
        boot_time_ns: 1_700_000_000_000_000_000,
        net: None,
        disk: None,
        cpuid: cpuid::template(&host),
        image,
    }
}

/// The console of a guest under test: keeps what it writes, gives it what is typed.
#[derive(Default)]
pub struct Terminal(Mutex<Typed>);

#[derive(Default)]
struct Typed {
    screen: Vec<u8>,
    waiting: Vec<u8>,
    taken: u64,
}

impl Terminal {
    fn state(&self) -> MutexGuard<'_, Typed> {
        self.0.lock().expect("no thread panics while it holds this lock")
    }

    /// What the guest has written.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.state().screen).into_owned()
    }

    /// Bytes that were typed and not taken yet.
    fn waiting(&self) -> usize {
        self.state().waiting.len()
    }
}

impl Console for Terminal {
    fn output(&self, _: u64, bytes: &[u8]) {
        self.state().screen.extend(bytes);
    }

    fn take(&self, room: usize) -> Option<ConsoleInput> {
        let mut state = self.state();
        let length = state.waiting.len().min(room).min(ConsoleInput::MAX);
        let bytes: Vec<u8> = state.waiting.drain(..length).collect();
        let offset = state.taken;
        state.taken += bytes.len() as u64;
        (!bytes.is_empty()).then_some(ConsoleInput { session: 1, offset, bytes })
    }

    fn logged(&self, _: &ConsoleInput, _: u64) {}

    fn ended(&self, _: u64, _: &EndReason) {}

    fn replayed_output(&self, _: u64, bytes: &[u8]) {
        self.state().screen.extend(bytes);
    }

    fn replayed_input(&self, _: &ConsoleInput, _: u64) {}
}

/// How to record.
#[derive(Clone, Copy, Debug)]
pub struct Recording {
    /// Time between two digests.
    pub digest_every: Duration,
    /// Seed of somebody who types all the time; `None`: nobody does.
    pub typist: Option<u64>,
    /// After how many bytes that is enough. A byte costs the guest two exits, and a guest that gets bytes as fast as it can
    /// read them does nothing else.
    pub typed_bytes: u64,
    /// How long the guest may take before it is asked to stop, and then given up.
    pub deadline: Duration,
}

impl Default for Recording {
    fn default() -> Self {
        Recording { digest_every: Duration::from_millis(10), typist: None, typed_bytes: 600, deadline: DEADLINE }
    }
}

/// What became of a recording or a replay.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub end: Result<EndReason, Halt>,
    /// Where it ended.
    pub at: instant::Instant,
    /// What the guest wrote.
    pub screen: String,
    /// Replay: what was met.
    pub tally: Tally,
    /// Replay: the log was closed by its writer.
    pub complete: bool,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// The divergence with which it ended.
    pub fn divergence(&self) -> &Divergence {
        match &self.end {
            Err(Halt::Diverged(divergence)) => divergence,
            end => panic!("no divergence: {end:?}"),
        }
    }
}

/// Records a guest into `file`.
pub fn record(boot: &Boot, file: &Path, how: Recording) -> Ran {
    record_with(boot, file, how, |_| Arc::new(NoDisk))
}

/// Records a guest into `file` that has the disk that `disk` makes for this world.
pub fn record_with(boot: &Boot, file: &Path, how: Recording, disk: impl FnOnce(&Arc<World>) -> Arc<dyn Disk>) -> Ran {
    let mut machine = Machine::new(boot, Tracking::On).expect("a machine");
    let world = World::new(machine.safepoints(), 0, 0);
    let disk = disk(&world);
    let terminal = Arc::new(Terminal::default());
    let log = FileLog::new(LogWriter::create(file, boot).expect("a log file"));
    let (say, done) = channel();
    let thread = {
        let (world, terminal) = (world.clone(), terminal.clone());
        VcpuThread::spawn(move || {
            let every = how.digest_every.as_nanos() as u64;
            let behind = Behind { disk, ..Behind::console(terminal) };
            let mut door = LiveDoor::new(world, behind, log, every);
            let began = Instant::now();
            let end = machine.run(&mut door);
            let took = began.elapsed();
            door.into_log().close().expect("the log closes");
            // The receiver lives until the thread has ended.
            let _ = say.send(());
            (end, machine.at(), took)
        })
        .expect("a thread")
    };
    let mut random = how.typist.unwrap_or(1) | 1;
    let mut typed = 0;
    let began = Instant::now();
    loop {
        let pause = match how.typist {
            Some(_) => Duration::from_micros(super::load::next(&mut random) % 4000),
            None => how.deadline.saturating_sub(began.elapsed()),
        };
        match done.recv_timeout(pause) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if began.elapsed() >= how.deadline {
            give_up(&world, &thread);
            break;
        }
        if how.typist.is_some() && typed < how.typed_bytes && terminal.waiting() < 64 {
            let length = 1 + super::load::next(&mut random) % 80;
            typed += length;
            let bytes = (0..length).map(|_| super::load::next(&mut random) as u8);
            terminal.state().waiting.extend(bytes);
            world.input_waits();
        }
    }
    let (end, at, took) = thread.join().expect("the vCPU thread does not panic");
    world.end();
    Ran { end, at, screen: terminal.screen(), tally: Tally::default(), complete: true, took }
}

/// As an operator who wants a guest gone: asks it to stop, and when that takes too long, gives it up where it stands.
fn give_up<T: Send + 'static>(world: &World, thread: &VcpuThread<T>) {
    world.stop();
    let began = Instant::now();
    while !thread.finished() {
        if began.elapsed() > Duration::from_secs(1) {
            world.abandon();
            thread.kick();
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the vCPU thread does not leave the guest");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Replays the log in `file`.
pub fn replay(file: &Path) -> Ran {
    replay_with(file, Arc::new(NoDisk))
}

/// Replays the log in `file`, with a disk that may be asked for what was read.
pub fn replay_with(file: &Path, disk: Arc<dyn Disk>) -> Ran {
    let reader = LogReader::open(file).expect("a log");
    let mut machine = Machine::new(&reader.boot().clone(), Tracking::On).expect("a machine");
    let watch = Arc::new(Watch::default());
    let terminal = Arc::new(Terminal::default());
    let (say, done) = channel();
    let thread = {
        let (watch, terminal) = (watch.clone(), terminal.clone());
        VcpuThread::spawn(move || {
            let behind = Behind { disk, ..Behind::console(terminal) };
            let mut door = ReplayDoor::new(FileSource::new(reader, watch), behind);
            let began = Instant::now();
            let end = machine.run(&mut door);
            let took = began.elapsed();
            let finished = matches!(end, Ok(_) | Err(Halt::EndOfLog(_)));
            let complete = finished && door.source_mut().finish().expect("the log ends as it should");
            // The receiver lives until the thread has ended.
            let _ = say.send(());
            (end, machine.at(), door.tally(), complete, took)
        })
        .expect("a thread")
    };
    if done.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
        watch.abandon.store(true, std::sync::atomic::Ordering::SeqCst);
        while !thread.finished() {
            thread.kick();
            thread::sleep(Duration::from_millis(5));
        }
    }
    let (end, at, tally, complete, took) = thread.join().expect("the vCPU thread does not panic");
    Ran { end, at, screen: terminal.screen(), tally, complete, took }
}

/// A log's boot and entries.
pub fn read_log(file: &Path) -> (Boot, Vec<Entry>) {
    let mut reader = LogReader::open(file).expect("a log");
    let boot = reader.boot().clone();
    lockstep::transfer::file::skip_state(&mut reader).expect("a state");
    (boot, reader.map(|entry| entry.expect("a readable entry")).collect())
}

/// Writes a complete log.
pub fn write_log(file: &Path, boot: &Boot, entries: &[Entry]) {
    let mut writer = LogWriter::create(file, boot).expect("a log file");
    for entry in entries {
        writer.append(entry).expect("an entry that can follow");
    }
    writer.close().expect("the log closes");
}

/// How many digests a log has.
pub fn digests(entries: &[Entry]) -> u64 {
    entries.iter().filter(|entry| matches!(entry.body, Body::Digest(_))).count() as u64
}
