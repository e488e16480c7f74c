//! Promise: the roles change on demand and protection stays. Back and forth under load: no client sees an error, and the guest is protected
//! right after. Where a switch cannot be, it is refused in clear words and nothing changes. A host that slept, or died, and is back, becomes
//! the backup by itself (`--rejoin`).
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::time::{Duration, Instant};

use common::{Random, count_from, eventually, seed};
use net::bench::Bench;
use net::cluster::{Cluster, Setup, console_of};
use net::crowd::Crowd;
use net::print_pauses;
use net::site::{SERVER, Site};
use nix::sys::signal::Signal;

/// How many recording clients.
const CLIENTS: usize = 8;

#[test]
fn roles_change_back_and_forth_under_load() {
    let mut random = Random::new(seed());
    let switches = count_from("LOCKSTEP_SWITCHES", 20);
    let site = Site::up();
    let mut cluster = Cluster::alone(&site, &Setup::kv());
    cluster.joins(1);
    cluster.protected(0);
    let crowd = Crowd::gather(SERVER, &site.client(), CLIENTS, &mut random);
    let mut bench = Bench::start(&site.client(), "-t set,get,incr -n 3000 -c 5 -r 2000 -d 100");
    let (mut lives, mut times, mut took) = (0, Vec::new(), Vec::new());
    for switch in 0..switches {
        crowd.work_for(Duration::from_micros(100_000 + random.below(200_000)));
        let generation = cluster.status(lives).map(|status| status.generation);
        let begun = Instant::now();
        cluster.operates("switch");
        took.push(begun.elapsed());
        lives = 1 - lives;
        crowd.goes_on(5);
        cluster.protected(lives);
        times.push((begun, Instant::now()));
        assert!(cluster.status(lives).map(|status| status.generation) > generation, "switch {switch}");
        crowd.turn_the_page();
        bench.goes_on();
    }
    // Both have replayed what the other one did.
    cluster.agrees(lives);
    bench.comes_to_an_end();
    assert_eq!(cluster.started, 2, "nobody was started again");
    let seen = crowd.finish();
    seen.is_linearizable();
    cluster.nothing_is_wrong();
    let mut pauses: Vec<Duration> =
        times.iter().flat_map(|&(since, until)| seen.pauses_between(since, Some(until))).collect();
    assert_eq!(pauses.len(), times.len() * CLIENTS, "every client goes on after every switch");
    println!(
        "{switches} switches, {} recorded calls: linearizable, no reset, no error, protected after each",
        seen.calls
    );
    print_pauses("longest wait of each client across a switch", &mut pauses);
    print_pauses("`lockstep switch`", &mut took);
}

/// Asks one side for a switch, which it must refuse with these words.
#[track_caller]
fn refused(cluster: &Cluster<'_>, side: usize, words: &str) {
    let output = cluster.lockstep(&["switch", &console_of(side)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(words), "{said}");
}

#[test]
fn a_switch_that_cannot_be_is_refused_and_nothing_changes() {
    let mut random = Random::new(seed());
    let site = Site::up();
    let mut cluster = Cluster::alone(&site, &Setup::kv());
    let crowd = Crowd::gather(SERVER, &site.client(), CLIENTS, &mut random);
    refused(&cluster, 0, "there is no backup that could take over");
    cluster.joins(1);
    cluster.protected(0);
    refused(&cluster, 1, "this host does not run the machine");
    let (arbiter, away) = (cluster.arbiter(), cluster.arbiter().with_extension("away"));
    std::fs::rename(&arbiter, &away).expect("the arbiter's directory can be moved");
    refused(&cluster, 0, "the arbiter does not answer");
    crowd.goes_on(5);
    cluster.protected(0);
    std::fs::rename(&away, &arbiter).expect("and back");
    // And now it works, as if nothing had been.
    cluster.operates("switch");
    crowd.goes_on(5);
    cluster.protected(1);
    let seen = crowd.finish();
    seen.is_linearizable();
    cluster.nothing_is_wrong();
}

#[test]
fn a_host_that_is_back_becomes_the_backup_by_itself() {
    let mut random = Random::new(seed());
    let site = Site::up();
    let mut cluster = Cluster::alone(&site, &Setup { rejoin: true, ..Setup::kv() });
    let crowd = Crowd::gather(SERVER, &site.client(), CLIENTS, &mut random);
    cluster.joins(1);
    cluster.protected(0);
    // The guest's host sleeps, and has lost when it wakes up.
    cluster.signal(0, Signal::SIGSTOP);
    cluster.waits_for(1, "unprotected");
    crowd.goes_on(5);
    cluster.signal(0, Signal::SIGCONT);
    cluster.protected(1);
    cluster.agrees(1);
    crowd.turn_the_page();
    assert_eq!(cluster.started, 2, "the sleeper itself is back");
    // And takes over, and the same the other way round.
    cluster.signal(1, Signal::SIGSTOP);
    cluster.waits_for(0, "unprotected");
    crowd.goes_on(5);
    cluster.signal(1, Signal::SIGCONT);
    cluster.protected(0);
    cluster.agrees(0);
    crowd.turn_the_page();
    // The host dies, and the very command that booted the guest once is given again.
    cluster.kill(0);
    crowd.goes_on(5);
    cluster.boots(0, false);
    cluster.protected(1);
    cluster.agrees(1);
    eventually("the one that came back says what it does", || {
        cluster.side(0).said().iter().any(|line| line.contains("as a backup")).then_some(())
    });
    crowd.turn_the_page();
    cluster.operates("switch");
    crowd.goes_on(5);
    cluster.protected(0);
    let seen = crowd.finish();
    seen.is_linearizable();
    cluster.nothing_is_wrong();
}
