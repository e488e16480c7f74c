//! Hosts one after the other that run one VM with a disk: primary, backup, and whoever comes next when one of them has died. They are on this machine's
//! loopback, or on the two hosts of a site if the guest has a network. What the torture says at the console is read on whichever lives.
#![allow(dead_code, reason = "every test is a crate of its own and uses the part it needs")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use lockstep::arbiter::Arbiter;
use lockstep::arbiter::register::RegisterFile;
use lockstep::console::status::Status;
use tempfile::TempDir;

use crate::common::console::{Console, status};
use crate::common::pair::{needs_kvm, turn};
use crate::common::process::Side;
use crate::common::{PATIENCE, eventually};
use crate::net::pair::{lockstep_in, net_option};
use crate::net::site::{CHANNEL, Site};

/// Bytes of an image.
pub const IMAGE: u64 = 16 << 20;

/// How the hosts have their disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    /// One image.
    Shared,
    /// One image, and the backup reads by itself.
    SharedBackupReads,
    /// Each its own.
    Separate,
}

/// All of them.
pub const DISKS: [Disks; 3] = [Disks::Shared, Disks::SharedBackupReads, Disks::Separate];

impl Disks {
    /// What `--disk` says of it behind the file.
    pub fn settings(self) -> &'static str {
        match self {
            Disks::Shared => ",mode=shared",
            Disks::SharedBackupReads => ",mode=shared,reads=backup",
            Disks::Separate => ",mode=separate",
        }
    }

    /// Whether each host has its own.
    pub fn are_two(self) -> bool {
        self == Disks::Separate
    }
}

/// A sparse image.
pub fn image(path: &Path) {
    std::fs::File::create(path).and_then(|file| file.set_len(IMAGE)).expect("a sparse image");
}

/// A host of the VM.
pub struct Host {
    /// The process.
    pub side: Side,
    /// Its console port.
    pub console: String,
    /// Its logging channel.
    pub channel: String,
    /// Its image.
    pub image: PathBuf,
    /// Which host of the site it is, and its namespace.
    number: usize,
    namespace: Option<String>,
}

impl Host {
    /// Its status.
    pub fn status(&self) -> Option<Status> {
        status(&self.console, self.namespace.as_deref())
    }

    /// `lockstep` with a command for it.
    #[track_caller]
    fn operates(&self, command: &str) {
        let inside = self.namespace.as_ref().map_or_else(Vec::new, |namespace| lockstep_in(namespace)[..4].to_vec());
        let lockstep = [env!("CARGO_BIN_EXE_lockstep"), command, &self.console].map(str::to_owned);
        let all = [inside, lockstep.to_vec()].concat();
        let done = Command::new(&all[0]).args(&all[1..]).output().expect("lockstep starts");
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// Waits until it is in one of these states of the protocol. It must not end.
    #[track_caller]
    pub fn waits_for(&mut self, states: &[&str]) {
        let (begun, mut last) = (Instant::now(), None);
        while begun.elapsed() < PATIENCE {
            if let Some(ended) = self.side.status() {
                panic!("a host that was to become {states:?} has ended: {ended:?}");
            }
            last = self.status().or(last);
            if last.as_ref().is_some_and(|last| states.contains(&last.state.as_str())) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("a host never is {states:?}; its last status: {last:?}")
    }

    /// Its execution was its primary's, and that of its backups its own. (One whose image could not do what was asked leaves as if it had
    /// diverged, and says why.)
    #[track_caller]
    pub fn is_sound(&self) {
        let said = self.side.said();
        for line in said.iter().filter(|line| !line.contains("could not do what the primary's did")) {
            let lower = line.to_lowercase();
            assert!(!lower.contains("diverge") && !lower.contains("panicked"), "{line}");
        }
    }
}

/// The chain of hosts.
pub struct Chain {
    disks: Disks,
    /// The host that runs the machine.
    pub live: Host,
    /// Its backup.
    pub backup: Option<Host>,
    /// Operations that the torture had done when it was last seen.
    operations: u64,
    images: u64,
    place: Place,
    _turn: MutexGuard<'static, ()>,
}

/// Where the hosts are.
struct Place {
    directory: TempDir,
    site: Option<Site>,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

impl Place {
    /// Starts a `lockstep` on host `number`; `line` is the rest of its command line.
    fn spawn(&self, name: &'static str, command: &str, number: usize, line: &str) -> Side {
        let through = self.site.as_ref().map_or_else(Vec::new, |site| lockstep_in(&site.host(number)));
        let address = if self.site.is_some() { CHANNEL[number] } else { "127.0.0.1" };
        let line = format!(
            "{command} --name vm --host {} --arbiter {}/arbiter --control 127.0.0.1:0 --channel {address}:0 {line}",
            ["a", "b"][number],
            self.directory.path().display(),
        );
        Side::spawn(name, &through, &words(&line))
    }

    /// Starts a primary.
    fn primary(&self, number: usize, disk: &str, guest: &str, options: &str) -> Side {
        let (guest, arguments) = guest.split_once(' ').unwrap_or((guest, ""));
        let net = self.site.as_ref().map_or_else(String::new, |_| format!("--net {}", net_option()));
        let line = format!("--timeout 1000 --memory 32 --disk {disk} {net} {options} --guest {guest} -- {arguments}");
        self.spawn("primary", "primary", number, &line)
    }

    fn host(&self, side: Side, image: PathBuf, number: usize) -> Host {
        let (console, channel) = (side.address("console"), side.address("logging channel"));
        let namespace = self.site.as_ref().map(|site| site.host(number));
        Host { side, console, channel, image, number, namespace }
    }
}

impl Chain {
    /// Starts the primary of a VM that runs `guest`, an application and its arguments; `faults` go behind its `--disk`. With a site it has a
    /// network. A guest that is not to wait for its [backup](Self::joins) is started with `options`.
    #[track_caller]
    pub fn start(site: Option<Site>, disks: Disks, guest: &str, faults: &str) -> Chain {
        needs_kvm();
        let turn = turn();
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
        std::fs::create_dir(directory.path().join("arbiter")).expect("a directory in it");
        let file = directory.path().join("0.img");
        image(&file);
        let place = Place { directory, site };
        let side = place.primary(0, &format!("{}{}{faults}", file.display(), disks.settings()), guest, "");
        let live = place.host(side, file, 0);
        Chain { disks, live, backup: None, operations: 0, images: 1, place, _turn: turn }
    }

    /// The site.
    pub fn site(&self) -> &Site {
        self.place.site.as_ref().expect("a chain with a network")
    }

    /// Boots the guest anew on `file`, on host a, as whoever starts a VM after a power failure does.
    pub fn boots(&self, file: &Path, settings: &str, guest: &str) -> Side {
        let disk = format!("{}{}{settings}", file.display(), self.disks.settings());
        self.place.primary(0, &disk, guest, "--start-alone")
    }

    /// The generation in the arbiter's register.
    pub fn register(&self) -> u64 {
        let register = RegisterFile::open(&self.file("arbiter")).and_then(|file| file.read("vm"));
        register.expect("the register can be read").map_or(0, |claim| claim.generation)
    }

    /// A file of this chain's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place.directory.path().join(name)
    }

    /// Starts another backup, with `file` as its own image if each host has one; it may take its time to join.
    #[track_caller]
    pub fn comes(&mut self, file: Option<PathBuf>, faults: &str) {
        let file = match (self.disks.are_two(), file) {
            (false, _) => self.live.image.clone(),
            (true, Some(file)) => file,
            (true, None) => {
                let file = self.file(&format!("{}.img", self.images));
                self.images += 1;
                image(&file);
                file
            }
        };
        let number = 1 - self.live.number;
        let net = self.place.site.as_ref().map_or("", |_| "--net tap=tap0");
        let disk = format!("{}{}{faults}", file.display(), self.disks.settings());
        // The copy of the log goes where it is removed with all else, also after SIGKILL.
        let log = self.file("backup.lslog");
        let line =
            format!("--primary {} --disk {disk} {net} --log {} --log-limit 64", self.live.channel, log.display());
        let side = self.place.spawn("backup", "backup", number, &line);
        self.backup = Some(self.place.host(side, file, number));
    }

    /// Another backup, and the guest is protected.
    #[track_caller]
    pub fn joins(&mut self, file: Option<PathBuf>, faults: &str) {
        self.comes(file, faults);
        self.live.waits_for(&["protected"]);
    }

    /// The machine's host is killed, and its backup goes on. Returns the dead one's image.
    #[track_caller]
    pub fn kills_live(&mut self) -> PathBuf {
        self.live.side.kill();
        self.live.is_sound();
        let mut survivor = self.backup.take().expect("a backup");
        survivor.waits_for(&["unprotected"]);
        std::mem::replace(&mut self.live, survivor).image
    }

    /// The machine's host is stopped in the middle of its work until its backup has gone on for a while, and then wakes. It ends, and says why. Returns its image.
    #[track_caller]
    pub fn stops_live_for_a_while(&mut self) -> PathBuf {
        self.live.side.signal(nix::sys::signal::Signal::SIGSTOP);
        let mut survivor = self.backup.take().expect("a backup");
        survivor.waits_for(&["unprotected"]);
        let mut old = std::mem::replace(&mut self.live, survivor);
        self.goes_on(400);
        old.side.signal(nix::sys::signal::Signal::SIGCONT);
        assert_eq!(old.side.ends().code(), Some(1), "{:?}", old.side.said());
        let said = old.side.said();
        assert!(said.iter().any(|line| line.contains("stopped: lost ")), "{said:?}");
        old.is_sound();
        old.image
    }

    /// The backup is killed. Returns its image.
    #[track_caller]
    pub fn kills_backup(&mut self) -> PathBuf {
        let mut dead = self.backup.take().expect("a backup");
        dead.side.kill();
        dead.is_sound();
        self.live.waits_for(&["unprotected"]);
        dead.image
    }

    /// The roles change.
    #[track_caller]
    pub fn switches(&mut self) {
        self.live.operates("switch");
        std::mem::swap(&mut self.live, self.backup.as_mut().expect("a backup"));
        self.live.waits_for(&["protected"]);
    }

    /// Waits until the torture has done more operations than at the last look, by `more` at least.
    #[track_caller]
    pub fn goes_on(&mut self, more: u64) {
        let console = Console::attach(std::slice::from_ref(&self.live.console), self.live.namespace.as_deref());
        let goal = self.operations + more;
        let begun = Instant::now();
        loop {
            let text = console.seen().text();
            let end = text.len().saturating_sub(2000);
            let tail = &text[text.ceil_char_boundary(end)..];
            assert!(!text.contains("WRONG"), "{tail}");
            if let Some(done) = text.lines().filter_map(operations).max().filter(|&done| done >= goal) {
                self.operations = done;
                break;
            }
            if let Some(ended) = self.live.side.status() {
                panic!("the machine has ended: {ended:?}: {tail}");
            }
            assert!(begun.elapsed() < PATIENCE, "the torture does not get to {goal} operations: {tail}");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.live.is_sound();
        self.backup.iter().for_each(Host::is_sound);
    }

    /// Every host dies at once. Returns their images, the machine's own first.
    pub fn power_fails(&mut self) -> Vec<PathBuf> {
        let backup = self.backup.take();
        for side in [Some(&self.live), backup.as_ref()].into_iter().flatten() {
            side.side.signal(nix::sys::signal::Signal::SIGKILL);
        }
        self.live.side.kill();
        let mut images = vec![self.live.image.clone()];
        if let Some(mut dead) = backup {
            dead.side.kill();
            dead.is_sound();
            images.push(dead.image.clone());
        }
        self.live.is_sound();
        images
    }

    /// Operations that the torture has done.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Stops the machine; both sides end as they should.
    #[track_caller]
    pub fn stops(&mut self) {
        self.live.operates("stop");
        let backup = self.backup.as_mut().map(|backup| &mut backup.side);
        for side in [Some(&mut self.live.side), backup].into_iter().flatten() {
            assert!(side.ends().success(), "{:?}", side.said());
        }
        self.live.is_sound();
        self.backup.iter().for_each(Host::is_sound);
    }
}

/// The number in `disk: N operations, ok (…)`; a line that is not whole yet has none.
fn operations(line: &str) -> Option<u64> {
    let (number, rest) = line.trim().strip_prefix("disk: ")?.split_once(" operations, ok (")?;
    number.parse().ok().filter(|_| rest.ends_with(')'))
}

/// Whether this image may be used as the VM's own, as far as its stamp says: its role, and its generation.
pub fn stamp(file: &Path) -> (String, u64) {
    let path = format!("{}.lockstep", file.display());
    let text = eventually("the stamp can be read", || std::fs::read_to_string(&path).ok());
    let sealed: serde_json::Value = serde_json::from_str(&text).expect("a stamp is JSON");
    let stamp = &sealed["stamp"];
    (stamp["role"].as_str().expect("a role").into(), stamp["generation"].as_u64().expect("a generation"))
}
