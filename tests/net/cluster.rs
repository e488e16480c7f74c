//! A guest on the two hosts of a site whose processes come and go: whoever has it takes the next backup, hands it over, dies, sleeps.
//! Addresses stay, so a host that comes back is where it was.

use std::process::{Command, Output};
use std::sync::MutexGuard;
use std::time::Duration;

use lockstep::console::status::Status;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::pair::{lockstep_in, net_option};
use super::site::{CHANNEL, Site};
use crate::common::console::{Console, status};
use crate::common::eventually;
use crate::common::pair::{needs_kvm, turn};
use crate::common::process::Side;

/// The exit status of a backup that found a difference.
const DIVERGED: i32 = 3;

/// What kind of guest, and how its hosts are told to treat it.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The guest's application and its arguments.
    pub guest: Vec<String>,
    /// Whether it has a network card.
    pub net: bool,
    /// Its memory.
    pub memory_mib: u64,
    /// Silence after which the other side is suspected. See [`super::pair::Setup`].
    pub timeout_ms: u64,
    /// The most that a transfer may take of the link, MiB a second.
    pub transfer_mib_s: Option<u64>,
    /// Whether a host that has lost the guest becomes a backup by itself.
    pub rejoin: bool,
}

impl Setup {
    /// One that serves Redis clients.
    pub fn kv() -> Setup {
        Setup { net: true, memory_mib: 64, ..Setup::console("kv") }
    }

    /// One that speaks to the console only: `guest` is a name and arguments.
    pub fn console(guest: &str) -> Setup {
        Setup {
            guest: guest.split(' ').map(str::to_owned).collect(),
            net: false,
            memory_mib: 32,
            timeout_ms: 1000,
            transfer_mib_s: None,
            rejoin: false,
        }
    }
}

/// The guest and its hosts.
pub struct Cluster<'a> {
    /// What runs on host a and on host b.
    sides: [Option<Side>; 2],
    /// Which of them sleep: they answer nobody, and need not be asked.
    asleep: [bool; 2],
    /// How many processes were started.
    pub started: u64,
    site: &'a Site,
    setup: Setup,
    directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// Where a host's console is.
pub fn console_of(side: usize) -> String {
    format!("{}:7701", CHANNEL[side])
}

fn channel_of(side: usize) -> String {
    format!("{}:7700", CHANNEL[side])
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

impl<'a> Cluster<'a> {
    /// Nothing runs yet.
    #[track_caller]
    pub fn new(site: &'a Site, setup: &Setup) -> Cluster<'a> {
        needs_kvm();
        let turn = turn();
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("arbiter")).expect("a directory in it");
        Cluster {
            sides: [None, None],
            asleep: [false; 2],
            started: 0,
            site,
            setup: setup.clone(),
            directory,
            _turn: turn,
        }
    }

    /// One whose guest runs on host a, alone.
    #[track_caller]
    pub fn alone(site: &'a Site, setup: &Setup) -> Cluster<'a> {
        let mut cluster = Cluster::new(site, setup);
        cluster.boots(0, true);
        cluster.waits_for(0, "unprotected");
        cluster
    }

    /// The arbiter's directory.
    pub fn arbiter(&self) -> std::path::PathBuf {
        self.directory.path().join("arbiter")
    }

    fn common(&self, side: usize) -> String {
        let mut text = format!(
            "--name vm --host {} --arbiter {} --control {} --channel {} --digest-interval 200",
            ["a", "b"][side],
            self.arbiter().display(),
            console_of(side),
            channel_of(side)
        );
        if let Some(rate) = self.setup.transfer_mib_s {
            text += &format!(" --transfer-rate {rate}");
        }
        if self.setup.rejoin {
            text += " --rejoin";
        }
        text
    }

    #[track_caller]
    fn spawn(&mut self, side: usize, arguments: &[String]) {
        self.look_back(side);
        self.started += 1;
        self.sides[side] =
            Some(Side::spawn(["side a", "side b"][side], &lockstep_in(&self.site.host(side)), arguments));
    }

    /// The command that boots the guest on a host; with `alone`, at once.
    #[track_caller]
    pub fn boots(&mut self, side: usize, alone: bool) {
        let mut arguments = words(&format!(
            "primary {} --timeout {} --memory {} --guest {}",
            self.common(side),
            self.setup.timeout_ms,
            self.setup.memory_mib,
            self.setup.guest[0]
        ));
        if alone {
            arguments.push("--start-alone".into());
        }
        if self.setup.net {
            arguments.extend(["--net".into(), net_option()]);
        }
        if self.setup.rejoin {
            arguments.extend(["--peer".into(), channel_of(1 - side)]);
        }
        arguments.push("--".into());
        arguments.extend(self.setup.guest[1..].iter().cloned());
        self.spawn(side, &arguments);
    }

    /// A backup comes up on a host.
    #[track_caller]
    pub fn joins(&mut self, side: usize) {
        // The copy of the log goes where it is removed with all else, also after SIGKILL.
        let log = self.directory.path().join(format!("{}.lslog", self.started));
        let mut arguments = words(&format!(
            "backup {} --primary {} --log {} --log-limit 64",
            self.common(side),
            channel_of(1 - side),
            log.display()
        ));
        if self.setup.net {
            arguments.extend(words("--net tap=tap0"));
        }
        self.spawn(side, &arguments);
    }

    /// The process on a host.
    #[track_caller]
    pub fn side(&mut self, side: usize) -> &mut Side {
        self.sides[side].as_mut().expect("something runs on this host")
    }

    /// The status of a side.
    pub fn status(&self, side: usize) -> Option<Status> {
        self.sides[side].as_ref().filter(|_| !self.asleep[side])?;
        status(&console_of(side), Some(&self.site.host(side)))
    }

    /// What a side says it is doing; `-`: nothing.
    pub fn state(&self, side: usize) -> String {
        self.status(side).map_or_else(|| "-".into(), |status| status.state)
    }

    /// Waits until a side says what is wanted; fails at once where it has ended meanwhile.
    #[track_caller]
    pub fn says<T>(&mut self, side: usize, what: &str, mut wanted: impl FnMut(&Status) -> Option<T>) -> T {
        let what = format!("side {side} {what}");
        eventually(&what, || {
            let ended = self.side(side).status();
            assert!(ended.is_none(), "{what}: it has ended, {ended:?}: {:?}", self.side(side).said());
            wanted(&self.status(side)?)
        })
    }

    /// Waits until a side is in a state of the protocol.
    #[track_caller]
    pub fn waits_for(&mut self, side: usize, state: &str) {
        self.says(side, &format!("is {state}"), |status| (status.state == state).then_some(()));
    }

    /// Waits until the guest on `primary` is protected by the other host.
    #[track_caller]
    pub fn protected(&mut self, primary: usize) {
        self.waits_for(primary, "protected");
        self.waits_for(1 - primary, "following");
    }

    /// Waits until the backup of a protected guest has replayed all that its primary has logged up to now, at least that many entries (and
    /// so digests) and with nothing to say against it.
    #[track_caller]
    pub fn agrees(&mut self, primary: usize) {
        let begun = std::time::Instant::now();
        let entries = self.says(primary, "is protected for three digests", |status| {
            assert_eq!(status.state, "protected", "{status}");
            (begun.elapsed() > Duration::from_millis(700)).then_some(status.entries)
        });
        self.says(1 - primary, "has replayed what there was", |status| {
            let executed = status.entries.checked_sub(status.execution_lag_entries.unwrap_or(0))?;
            (executed >= entries).then_some(())
        });
    }

    /// SIGKILL.
    #[track_caller]
    pub fn kill(&mut self, side: usize) {
        self.side(side).kill();
        self.asleep[side] = false;
        self.look_back(side);
    }

    /// A signal.
    #[track_caller]
    pub fn signal(&mut self, side: usize, signal: Signal) {
        self.side(side).signal(signal);
        self.asleep[side] = signal == Signal::SIGSTOP;
    }

    /// What ran on a host did not find a difference.
    #[track_caller]
    fn look_back(&mut self, side: usize) {
        let Some(mut before) = self.sides[side].take() else { return };
        let (status, said) = (before.status(), before.said());
        let wrong = |line: &String| line.contains("diverge") || line.contains("panicked");
        assert!(
            status.is_none_or(|status| status.code() != Some(DIVERGED)) && !said.iter().any(wrong),
            "host {side}: {status:?}: {said:?}"
        );
        self.sides[side] = Some(before);
    }

    /// Neither side has found a difference or panicked so far.
    #[track_caller]
    pub fn nothing_is_wrong(&mut self) {
        self.look_back(0);
        self.look_back(1);
    }

    /// A command of lockstep, given on host a.
    #[track_caller]
    pub fn lockstep(&self, arguments: &[&str]) -> Output {
        let words = lockstep_in(&self.site.host(0));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments);
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// `lockstep COMMAND` with both hosts' addresses, which must succeed.
    #[track_caller]
    pub fn operates(&self, command: &str) {
        let output = self.lockstep(&[command, &format!("{},{}", console_of(0), console_of(1))]);
        assert!(output.status.success(), "lockstep {command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A console client that knows both hosts.
    pub fn console(&self) -> Console {
        Console::attach(&[console_of(0), console_of(1)], Some(&self.site.host(0)))
    }
}
