//! Promise: what holds between two processes holds between two hosts. In network namespaces with addresses and cables of
//! their own (`scripts/two-hosts`), the guest survives a killed host, a host cut off from everything, a pulled cable of
//! the logging channel, a slow and a lossy link; and one side lives, never two.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use std::process::Command;
use std::sync::MutexGuard;
use std::time::Duration;

use common::console::{Console, status};
use common::load::{Job, Load};
use common::pair::{needs_kvm, turn};
use common::process::Side;
use common::{Random, eventually, seed};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/two-hosts");
const CONSOLES: [&str; 2] = ["10.77.2.1:7701", "10.77.2.2:7701"];

/// Two hosts and a client's, taken down with the test.
struct Hosts {
    id: String,
    _turn: MutexGuard<'static, ()>,
}

impl Hosts {
    #[track_caller]
    fn up() -> Hosts {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces and needs root");
        needs_kvm();
        let turn = turn();
        let hosts = Hosts { id: format!("t{:05}", std::process::id() % 100_000), _turn: turn };
        hosts.tell("up");
        hosts
    }

    fn words(&self, words: &str) -> Vec<String> {
        let mut all = vec![SCRIPT.to_owned(), "--id".to_owned(), self.id.clone()];
        all.extend(words.split(' ').map(str::to_owned));
        all
    }

    /// Has the script do something to the hosts or their cables.
    #[track_caller]
    fn tell(&self, what: &str) {
        let words = self.words(what);
        let done = Command::new(&words[0]).args(&words[1..]).output().expect("the script can be started");
        assert!(done.status.success(), "two-hosts {what}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn client(&self) -> String {
        format!("lockstep-{}-client", self.id)
    }

    /// The state that a host's status names, as the client sees it; `None` where it cannot be had.
    fn state(&self, side: usize) -> Option<String> {
        status(CONSOLES[side], Some(&self.client())).map(|status| status.state)
    }

    #[track_caller]
    fn pair(&self, job: Job) -> [Side; 2] {
        let setup = job.setup();
        let mut arguments: Vec<String> =
            ["--name", "vm", "--memory", "32", "--timeout", "1000", "--guest", setup.guest, "--"]
                .map(str::to_owned)
                .to_vec();
        arguments.extend(setup.arguments);
        let primary = Side::spawn("primary", &self.words("primary"), &arguments);
        primary.address("logging channel");
        let backup = Side::spawn("backup", &self.words("backup"), &["--name", "vm"].map(str::to_owned));
        eventually("the pair is protected", || (self.state(0)? == "protected").then_some(()));
        [primary, backup]
    }

    fn console(&self) -> Console {
        Console::attach(&CONSOLES.map(str::to_owned), Some(&self.client()))
    }

    /// Waits until a side lives, and looks at both.
    #[track_caller]
    fn one_lives(&self, sides: &[usize]) -> usize {
        eventually("one lives", || {
            let lives = [0, 1].map(|side| matches!(self.state(side).as_deref(), Some("unprotected")));
            assert!(lives != [true, true], "both live");
            sides.iter().copied().find(|&side| lives[side])
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let words = self.words("down");
        let done = Command::new(&words[0]).args(&words[1..]).status();
        assert!(std::thread::panicking() || done.is_ok_and(|status| status.success()), "the hosts are not down");
    }
}

#[track_caller]
fn lost(side: &mut Side) {
    assert_eq!(side.ends().code(), Some(1));
    let said = side.said();
    assert!(said.iter().any(|line| line.contains("stopped: lost generation 2")), "{said:?}");
}

#[test]
fn a_killed_host() {
    let mut random = Random::new(seed());
    for job in [Job::Typing, Job::Printing] {
        let hosts = Hosts::up();
        let [mut primary, mut backup] = hosts.pair(job);
        let mut load = Load::begin(job, hosts.console(), &mut random);
        load.work_for(Duration::from_millis(random.below(200)), &mut random);
        primary.kill();
        assert_eq!(hosts.one_lives(&[1]), 1);
        load.work_for(Duration::from_millis(100), &mut random);
        load.finish(&mut random);
        backup.ends();
    }
}

#[test]
fn a_pulled_cable_of_the_logging_channel() {
    let mut random = Random::new(seed());
    for cable in ["channel", "channel-a"] {
        let hosts = Hosts::up();
        let [mut primary, mut backup] = hosts.pair(Job::Typing);
        let mut load = Load::begin(Job::Typing, hosts.console(), &mut random);
        load.work_for(Duration::from_millis(100), &mut random);
        hosts.tell(&format!("cut {cable}"));
        let survivor = hosts.one_lives(&[0, 1]);
        lost(if survivor == 0 { &mut backup } else { &mut primary });
        hosts.tell(&format!("mend {cable}"));
        load.work_for(Duration::from_millis(100), &mut random);
        load.finish(&mut random);
        if survivor == 0 {
            primary.ends()
        } else {
            backup.ends()
        };
    }
}

#[test]
fn a_host_cut_off_from_everything() {
    let mut random = Random::new(seed());
    let hosts = Hosts::up();
    let [mut primary, mut backup] = hosts.pair(Job::Typing);
    let mut load = Load::begin(Job::Typing, hosts.console(), &mut random);
    load.work_for(Duration::from_millis(100), &mut random);
    hosts.tell("cut a");
    assert_eq!(hosts.one_lives(&[1]), 1);
    load.work_for(Duration::from_millis(200), &mut random);
    primary.hears("that it reaches no arbiter", |line| line.contains("no answer").then_some(()));
    assert!(primary.status().is_none(), "it waits");
    // Back among the others, it learns that it has lost.
    hosts.tell("mend a");
    lost(&mut primary);
    load.finish(&mut random);
    backup.ends();
}

#[test]
fn a_slow_link() {
    let mut random = Random::new(seed());
    let hosts = Hosts::up();
    let [mut primary, mut backup] = hosts.pair(Job::Typing);
    let mut load = Load::begin(Job::Typing, hosts.console(), &mut random);
    hosts.tell("slow 400");
    load.work_for(Duration::from_millis(1500), &mut random);
    assert_eq!(hosts.state(0).as_deref(), Some("protected"), "a slow link is no failure");
    primary.kill();
    assert_eq!(hosts.one_lives(&[1]), 1);
    load.finish(&mut random);
    backup.ends();
}

#[test]
fn a_lossy_link() {
    let mut random = Random::new(seed());
    let hosts = Hosts::up();
    let [mut primary, mut backup] = hosts.pair(Job::Typing);
    let mut load = Load::begin(Job::Typing, hosts.console(), &mut random);
    hosts.tell("lose 5");
    load.work_for(Duration::from_millis(2000), &mut random);
    primary.kill();
    // Lost packets may have looked like silence before: then the primary may have been alone, and the guest died with it.
    let protected = primary.said().iter().all(|line| !line.contains("given up"));
    if protected {
        assert_eq!(hosts.one_lives(&[1]), 1);
        load.finish(&mut random);
        backup.ends();
    } else {
        println!("the link lost so much that the pair had parted");
    }
}
