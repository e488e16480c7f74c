//! Promise: no moment is a bad one to die. Whichever host is killed, or put to sleep until it is given up, while a new backup gets the
//! guest's state, while the roles change, or while the survivor goes live: afterwards exactly one host runs the guest, its clients have lost
//! nothing, and it can be protected again. Only an unprotected guest dies with its host, and then nobody goes on with half of it.
//! `scripts/campaign-in-between` runs the long version.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Random, count_from, eventually, seed};
use lockstep::console::control;
use lockstep::console::wire::Command;
use net::cluster::{Cluster, Setup, console_of};
use net::crowd::Crowd;
use net::resp::Connection;
use net::site::{SERVER, Site, within};
use nix::sys::signal::Signal;

/// How many recording clients.
const CLIENTS: usize = 5;

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum During {
    /// The state of the guest goes to a new backup.
    Transfer,
    /// The operator has the hosts change their roles.
    Switch,
    /// The host of the guest has been killed, and its backup goes live.
    TakeOver,
    /// The host of the guest is asleep, and its backup goes live.
    TakeOverFromSleeper,
}

/// Who is hit, and how. "The guest's host" and its "backup" are those from before the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hit {
    KillBackup,
    KillHost,
    SleepBackup,
    SleepHost,
    /// The host that was killed is back at once, as a backup.
    Return,
}

/// All that happens, the short version's first.
const BLOWS: [(During, Hit); 12] = [
    (During::Transfer, Hit::KillBackup),
    (During::Switch, Hit::KillHost),
    (During::TakeOverFromSleeper, Hit::SleepBackup),
    (During::Transfer, Hit::SleepHost),
    (During::Switch, Hit::KillBackup),
    (During::Transfer, Hit::KillHost),
    (During::Switch, Hit::SleepHost),
    (During::TakeOver, Hit::SleepBackup),
    (During::Switch, Hit::SleepBackup),
    (During::Transfer, Hit::SleepBackup),
    (During::TakeOverFromSleeper, Hit::KillBackup),
    (During::TakeOver, Hit::Return),
];

/// A guest, its clients, and who runs it.
struct Ground<'a> {
    cluster: Cluster<'a>,
    crowd: Crowd,
    /// The guest's host.
    host: usize,
}

impl<'a> Ground<'a> {
    /// A guest on host a, alone, with enough in it for a transfer to take a while.
    fn new(site: &'a Site, random: &mut Random) -> Ground<'a> {
        let setup = Setup { transfer_mib_s: Some(16), rejoin: true, ..Setup::kv() };
        let cluster = Cluster::alone(site, &setup);
        let crowd = Crowd::gather(SERVER, &site.client(), CLIENTS, random);
        let mut filler = Connection::open(SERVER, &site.client()).expect("one more client connects");
        for key in 0..50 {
            let value: String = (0..100_000).map(|_| char::from(b'!' + random.below(90) as u8)).collect();
            filler.ask(&["SET", &format!("filler:{key}"), &value]).expect("it is set");
        }
        Ground { cluster, crowd, host: 0 }
    }

    fn backup(&self) -> usize {
        1 - self.host
    }

    /// What both sides say they are doing: the guest's host, its backup.
    fn states(&self) -> [String; 2] {
        let (host, backup) = (self.host, self.backup());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| self.cluster.state(backup));
            let ours = self.cluster.status(host).map_or_else(
                || "-".into(),
                |status| {
                    let taken = status.transfer.is_some_and(|transfer| transfer.stop_ns > 0);
                    if status.state == "transferring" && taken {
                        "transferring, state taken".into()
                    } else {
                        status.state
                    }
                },
            );
            [ours, other.join().expect("asking does not panic")]
        })
    }

    fn protect(&mut self) {
        if self.cluster.state(self.host) == "unprotected" && self.cluster.state(self.backup()) == "-" {
            self.cluster.joins(self.backup());
        }
        self.cluster.protected(self.host);
        self.cluster.agrees(self.host);
    }

    fn unprotect(&mut self) {
        if self.cluster.state(self.backup()) != "-" {
            self.cluster.kill(self.backup());
        }
        self.cluster.waits_for(self.host, "unprotected");
    }

    /// Waits until `side` has given the other one up: it runs the guest alone (true), or looks for a primary (false).
    fn settles(&mut self, side: usize) -> bool {
        let mut both = 0;
        let lives = self.cluster.says(side, "goes on alone, or looks for a primary", |status| match &*status.state {
            "unprotected" => Some(true),
            "connecting" => Some(false),
            _ => {
                both += 1;
                None
            }
        });
        let states = [0, 1].map(|side| self.cluster.state(side));
        assert!(states.iter().filter(|state| *state == "unprotected").count() < 2, "both live: {states:?}");
        lives
    }

    /// The guest runs on `side`, and its clients get their answers.
    fn runs_on(&mut self, side: usize) {
        self.host = side;
        self.crowd.goes_on(5);
        self.crowd.turn_the_page();
    }
}

/// How a round went.
enum Fate {
    GoesOn,
    /// The guest is gone, as it may be.
    Lost,
}

fn pause(random: &mut Random, below_ms: u64) {
    std::thread::sleep(Duration::from_micros(random.below(below_ms * 1000)));
}

/// How far a backup that takes over has come, by what it has said.
fn stage(said: &[String]) -> &'static str {
    let says = |what: &str| said.iter().any(|line| line.contains(what));
    match (says("is given up"), says("going live")) {
        (_, true) => "going live, or live",
        (true, false) => "asking",
        (false, false) => "following",
    }
}

/// Waits until something other than `usual` is to be seen, or for `patience`.
fn aim(ground: &Ground<'_>, usual: &[&str], patience: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < patience && ground.states().iter().all(|state| usual.contains(&state.as_str())) {}
}

fn round(
    ground: &mut Ground<'_>,
    during: During,
    hit: Hit,
    site: &Site,
    random: &mut Random,
    landed: &mut BTreeMap<String, u64>,
) -> Fate {
    let (host, backup) = (ground.host, ground.backup());
    let (mut switching, mut said_before) = (None, 0);
    // Half of the blows are aimed at what is short, the others come when they come.
    let aimed = random.below(2) == 0;
    match during {
        During::Transfer => {
            ground.unprotect();
            ground.cluster.joins(backup);
            let begun = |status: &lockstep::console::status::Status| {
                matches!(&*status.state, "transferring" | "joining" | "protected").then_some(())
            };
            ground.cluster.says(host, "has begun a transfer", begun);
            if aimed {
                // The state has been taken, and not yet sent: outputs wait for a backup that does not count yet.
                let taken = |status: &lockstep::console::status::Status| {
                    let taken =
                        status.state != "transferring" || status.transfer.is_some_and(|transfer| transfer.stop_ns > 0);
                    taken.then_some(())
                };
                ground.cluster.says(host, "has taken the state", taken);
            } else {
                pause(random, 1500);
            }
        }
        During::Switch => {
            ground.protect();
            let (namespace, address) = (site.host(0), console_of(host));
            switching = Some(std::thread::spawn(move || {
                within(&namespace, || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    let ask = control::command(&address, Command::Switch, Duration::from_secs(20));
                    // Whether it was carried out depends on the blow.
                    runtime.expect("a runtime").block_on(ask).is_ok()
                })
            }));
            if aimed {
                aim(ground, &["protected", "following"], Duration::from_millis(500));
            } else {
                pause(random, 25);
            }
        }
        During::TakeOver => {
            ground.protect();
            said_before = ground.cluster.side(backup).said().len();
            ground.cluster.kill(host);
            pause(random, 12);
        }
        During::TakeOverFromSleeper => {
            ground.protect();
            said_before = ground.cluster.side(backup).said().len();
            ground.cluster.signal(host, Signal::SIGSTOP);
            if aimed {
                eventually("the backup gives its primary up", || {
                    (stage(&ground.cluster.side(backup).said()[said_before..]) != "following").then_some(())
                });
            } else {
                std::thread::sleep(Duration::from_millis(950));
                pause(random, 150);
            }
        }
    }
    let taking_over = matches!(during, During::TakeOver | During::TakeOverFromSleeper);
    // Who takes over is hit at once, and has said how far it is.
    let mut states = if taking_over { ["gone".into(), String::new()] } else { ground.states() };
    match hit {
        Hit::KillBackup => ground.cluster.kill(backup),
        Hit::KillHost => ground.cluster.kill(host),
        Hit::SleepBackup => ground.cluster.signal(backup, Signal::SIGSTOP),
        Hit::SleepHost => ground.cluster.signal(host, Signal::SIGSTOP),
        Hit::Return => ground.cluster.joins(host),
    }
    if taking_over {
        states[1] = stage(&ground.cluster.side(backup).said()[said_before..]).into();
    }
    let place = format!("{during:?}, {hit:?}: {} / {}", states[0], states[1]);
    println!("  {place}");
    *landed.entry(place).or_default() += 1;

    let fate = match (during, hit) {
        (During::TakeOverFromSleeper, Hit::SleepBackup | Hit::KillBackup) => {
            // Nobody is awake. The primary wakes up, and has either won or lost.
            ground.cluster.signal(host, Signal::SIGCONT);
            let host_lives = ground.settles(host);
            if hit == Hit::SleepBackup {
                ground.cluster.signal(backup, Signal::SIGCONT);
            }
            match (host_lives, hit) {
                (true, _) => {
                    ground.runs_on(host);
                    Fate::GoesOn
                }
                (false, Hit::SleepBackup) => {
                    ground.runs_on(backup);
                    Fate::GoesOn
                }
                // The one that had won is dead, and the other one must not go on.
                (false, _) => Fate::Lost,
            }
        }
        (During::TakeOver, _) => {
            // Nobody else is left: it sleeps, wakes up, and lives.
            if hit == Hit::SleepBackup {
                std::thread::sleep(Duration::from_millis(1200));
                ground.cluster.signal(backup, Signal::SIGCONT);
            }
            ground.runs_on(backup);
            Fate::GoesOn
        }
        (_, Hit::KillBackup | Hit::SleepBackup) => {
            // The guest's host lives on; but for a switch that was complete.
            assert!(ground.settles(host), "the guest's host lives on: {states:?}");
            ground.runs_on(host);
            if hit == Hit::SleepBackup {
                ground.cluster.signal(backup, Signal::SIGCONT);
            }
            Fate::GoesOn
        }
        (_, Hit::KillHost | Hit::SleepHost | Hit::Return) => {
            let backup_lives = ground.settles(backup);
            if hit == Hit::SleepHost {
                ground.cluster.signal(host, Signal::SIGCONT);
            }
            if backup_lives {
                ground.runs_on(backup);
                Fate::GoesOn
            } else {
                // It did not count yet.
                assert_eq!(during, During::Transfer, "a backup that was protecting the guest lives on: {states:?}");
                assert_ne!(states[1], "following", "a backup that followed lives on");
                if hit == Hit::SleepHost {
                    ground.runs_on(host);
                    Fate::GoesOn
                } else {
                    Fate::Lost
                }
            }
        }
    };
    if let Some(switching) = switching {
        let _ = switching.join().expect("asking does not panic");
    }
    ground.cluster.nothing_is_wrong();
    fate
}

#[test]
fn exactly_one_host_goes_on_whenever_the_other_dies() {
    let seed = seed();
    let mut random = Random::new(seed);
    let rounds = count_from("LOCKSTEP_KILLS", 4);
    let site = Site::up();
    let mut ground = None;
    let (mut landed, mut calls, mut lost) = (BTreeMap::new(), 0, 0);
    for number in 0..rounds {
        let (during, hit) = BLOWS[number as usize % BLOWS.len()];
        println!("seed {seed} round {number}: {hit:?} during {during:?}");
        let mut standing = ground.take().unwrap_or_else(|| Ground::new(&site, &mut random));
        match round(&mut standing, during, hit, &site, &mut random, &mut landed) {
            Fate::GoesOn => {
                // The interrupted transfer is repeated, the sleeper comes back by itself, the dead one is started again.
                standing.protect();
                ground = Some(standing);
            }
            Fate::Lost => {
                lost += 1;
                for side in [0, 1] {
                    let state = standing.cluster.state(side);
                    assert!(matches!(&*state, "-" | "connecting"), "nobody goes on with a lost guest: {state}");
                }
                // Up to then there was one guest.
                let seen = standing.crowd.has_lost_its_server();
                seen.is_linearizable();
                calls += seen.calls;
            }
        }
        // Clients are judged when their guest is gone, or at the end.
        if number + 1 == rounds
            && let Some(standing) = ground.take()
        {
            let seen = standing.crowd.finish();
            seen.is_linearizable();
            calls += seen.calls;
        }
    }
    for (place, count) in &landed {
        println!("{count:3} {place}");
    }
    println!(
        "{rounds} blows in between, {} different places hit, {lost} unprotected guests lost with their hosts, {calls} recorded calls: \
         linearizable, no reset, no error, never two",
        landed.len()
    );
}
