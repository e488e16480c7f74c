//! A primary and its backup as processes, with an arbiter's directory and a relay between them.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use lockstep::arbiter::register::RegisterFile;
use lockstep::console::status::Status;

use super::console::{Console, status};
use super::process::Side;
use super::relay::Relay;
use super::{PATIENCE, eventually};

/// What kind of pair.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The guest's application.
    pub guest: &'static str,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Heartbeat and time-out, in milliseconds.
    pub times_ms: (u64, u64),
    /// More options of the primary.
    pub primary_options: Vec<String>,
    /// The arbiter, where it is not a directory of the pair's own.
    pub arbiter: Option<String>,
}

impl Setup {
    /// A pair that runs `guest`, a name and its arguments. The time-out is longer than in production, since the tests share two
    /// processors with others: a false alarm is safe, but is not what they want to see.
    pub fn of(guest: &'static str) -> Setup {
        let mut words = guest.split(' ');
        let guest = words.next().unwrap_or_default();
        Setup {
            guest,
            arguments: words.map(str::to_owned).collect(),
            times_ms: (20, 1000),
            primary_options: Vec::new(),
            arbiter: None,
        }
    }
}

/// A running pair.
pub struct Pair {
    /// The primary.
    pub primary: Side,
    /// The backup.
    pub backup: Side,
    /// Between them.
    pub relay: Relay,
    /// Console ports: the primary's, the backup's.
    pub consoles: [String; 2],
    /// Holds the arbiter's directory, `arbiter`.
    pub directory: TempDir,
    /// One pair at a time in a test's process: two of them on two processors would only test the scheduler.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

/// Waits until no other pair of this process runs.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails where machines cannot run.
#[track_caller]
pub fn needs_kvm() {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    assert!(kvm.is_ok(), "/dev/kvm cannot be opened: this test runs machines and needs KVM");
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

impl Pair {
    /// Starts a pair and waits until the guest runs, protected.
    #[track_caller]
    pub fn start(setup: &Setup) -> Pair {
        needs_kvm();
        let turn = turn();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let arbiter = directory.path().join("arbiter");
        std::fs::create_dir(&arbiter).expect("a directory in it");
        let arbiter = setup.arbiter.clone().unwrap_or_else(|| arbiter.display().to_string());
        let (heartbeat, timeout) = setup.times_ms;
        let mut arguments = words(&format!(
            "primary --name vm --host first --arbiter {arbiter} --control 127.0.0.1:0 --channel 127.0.0.1:0 \
             --heartbeat {heartbeat} --timeout {timeout} --memory 32 --guest {}",
            setup.guest
        ));
        arguments.extend(setup.primary_options.iter().cloned());
        arguments.push("--".into());
        arguments.extend(setup.arguments.iter().cloned());
        let primary = Side::spawn("primary", &[], &arguments);
        let relay = Relay::to(&primary.address("logging channel"));
        let arguments = words(&format!(
            "backup --name vm --host second --arbiter {arbiter} --control 127.0.0.1:0 --primary {}",
            relay.address()
        ));
        let backup = Side::spawn("backup", &[], &arguments);
        let consoles = [primary.address("console"), backup.address("console")];
        let pair = Pair { primary, backup, relay, consoles, directory, _turn: turn };
        pair.waits_for(0, "protected");
        pair
    }

    /// A console client that knows both hosts.
    pub fn console(&self) -> Console {
        Console::attach(&self.consoles, None)
    }

    /// A console client that knows one host only.
    pub fn witness(&self, side: usize) -> Console {
        Console::attach(&self.consoles[side..=side], None)
    }

    /// The status of a side: 0 is the first primary, 1 its backup.
    pub fn status(&self, side: usize) -> Option<Status> {
        status(&self.consoles[side], None)
    }

    /// Waits until a side's status says what is wanted.
    #[track_caller]
    pub fn says<T>(&self, side: usize, what: &str, mut wanted: impl FnMut(&Status) -> Option<T>) -> T {
        let mut last = None;
        let begun = std::time::Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.status(side) {
                if let Some(found) = wanted(&status) {
                    return found;
                }
                last = Some(status);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("side {side} never says {what}; its last status: {last:?}")
    }

    /// Waits until a side is in a state of the protocol.
    #[track_caller]
    pub fn waits_for(&self, side: usize, state: &str) {
        self.says(side, state, |status| (status.state == state).then_some(()));
    }

    /// What the arbiter's register says.
    pub fn register(&self) -> String {
        eventually("the register can be read", || std::fs::read_to_string(self.register_file()).ok())
    }

    /// The file that the arbiter's register is in now.
    pub fn register_file(&self) -> PathBuf {
        let register = RegisterFile::open(&self.directory.path().join("arbiter")).and_then(|file| file.path("vm"));
        register.expect("the arbiter's directory is there")
    }
}
