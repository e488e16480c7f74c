//! Promise: whatever is cut off, slow, lossy or asleep, at most one host's packets are on the guest's network, and the service goes on
//! where there is a way to it. Ears on the switch hear every frame of the guest, announcements included: none comes from the first
//! primary once the survivor has spoken. The clients' histories hold as in `tests/net_failover.rs`.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::time::{Duration, Instant};

use common::{Random, count_from, seed};
use net::capture::{ANNOUNCEMENTS, Capture, Heard};
use net::crowd::Crowd;
use net::pair::{Pair, Setup};
use net::print_pauses;
use net::site::{Cable, SERVER, Site};
use nix::sys::signal::Signal;

const CLIENTS: usize = 8;

/// Times that each thing happens: `LOCKSTEP_PARTITIONS`, or once.
fn times(what: &str, mut happens: impl FnMut(&mut Random)) {
    let seed = seed();
    let mut random = Random::new(seed);
    let rounds = count_from("LOCKSTEP_PARTITIONS", 1);
    for round in 0..rounds {
        println!("seed {seed} round {round}: {what}");
        happens(&mut random);
    }
    println!("{rounds} times {what}: one host at a time, linearizable, no reset, no error, no reconnect");
}

/// Clients at work on a pair, and ears on the wire.
fn begin(pair: &Pair<'_>, site: &Site, random: &mut Random) -> (Crowd, Capture) {
    let capture = Capture::on(site);
    let crowd = Crowd::gather(SERVER, &site.client(), CLIENTS, random);
    crowd.goes_on(5);
    crowd.work_for(Duration::from_micros(random.below(300_000)));
    assert!(pair.status(0).is_some_and(|status| status.state == "protected"), "the pair has parted by itself");
    (crowd, capture)
}

/// Judges everything that was seen and heard; `survivor` is the side that goes on, `since` when the trouble began.
#[track_caller]
fn end(crowd: Crowd, capture: Capture, survivor: usize, since: Instant) -> Vec<Heard> {
    crowd.goes_on(20);
    let seen = crowd.finish();
    seen.is_linearizable();
    print_pauses("longest wait of each client", &mut seen.pauses(since));
    let heard = capture.one_after_the_other();
    let of_b = heard.iter().filter(|heard| heard.side == 1).count();
    match survivor {
        0 => assert_eq!(of_b, 0, "the backup spoke, and did not live"),
        _ => {
            let first = heard.iter().find(|heard| heard.side == 1).expect("the survivor is heard");
            assert!(ANNOUNCEMENTS.contains(&first.kind), "the survivor speaks before it says where it is: {first:?}");
        }
    }
    println!("{} calls, {} frames of a, {of_b} of b", seen.calls, heard.len() - of_b);
    heard
}

#[test]
fn the_logging_link_is_cut() {
    times("the logging link cut", |random| {
        let site = Site::up();
        let mut pair = Pair::start(&site, &Setup::kv());
        let (crowd, capture) = begin(&pair, &site, random);
        let cut = Instant::now();
        let side = random.below(2) as usize;
        site.cut(Cable::Channel(side));
        let survivor = pair.one_lives();
        pair.lost(1 - survivor);
        site.mend(Cable::Channel(side));
        end(crowd, capture, survivor, cut);
        pair.runs(survivor);
    });
}

#[test]
fn the_primary_is_cut_off_from_its_clients() {
    times("the primary's cable to the clients cut", |random| {
        let site = Site::up();
        let mut pair = Pair::start(&site, &Setup::kv());
        let (crowd, capture) = begin(&pair, &site, random);
        let cut = Instant::now();
        site.cut(Cable::Guest(0));
        crowd.work_for(Duration::from_millis(1500));
        // Two healthy hosts that hear each other change nothing: the clients wait.
        assert!(pair.status(0).is_some_and(|status| status.state == "protected"), "{:?}", pair.status(0));
        site.mend(Cable::Guest(0));
        end(crowd, capture, 0, cut);
        pair.runs(0);
        pair.runs(1);
    });
}

#[test]
fn the_primary_is_cut_off_from_its_clients_and_its_backup() {
    times("the primary's cables to the clients and to the backup cut", |random| {
        let site = Site::up();
        let mut pair = Pair::start(&site, &Setup::kv());
        let (crowd, capture) = begin(&pair, &site, random);
        let cut = Instant::now();
        site.cut(Cable::Guest(0));
        site.cut(Cable::Channel(0));
        // Both reach the arbiter, and either may win there.
        let survivor = pair.one_lives();
        pair.lost(1 - survivor);
        if survivor == 1 {
            crowd.goes_on(20);
        }
        site.mend_all();
        println!("{} survived", ["a", "b"][survivor]);
        end(crowd, capture, survivor, cut);
        pair.runs(survivor);
    });
}

/// A link that is slow, and one that loses packets: service goes on, and so it does when the primary is killed then.
#[test]
fn the_logging_link_is_slow_or_lossy() {
    times("the logging link slow, lossy or late", |random| {
        for how in ["slow", "lossy", "late"] {
            let site = Site::up();
            let mut pair = Pair::start(&site, &Setup { relay: how == "late", ..Setup::kv() });
            let (crowd, capture) = begin(&pair, &site, random);
            match how {
                "slow" => site.slow_channel(2000),
                "lossy" => site.lossy_channel(4),
                _ => pair.relay().rule(|rules| rules.delay_acks = Duration::from_millis(20)),
            }
            crowd.goes_on(20);
            // A link that loses much may look like a dead host; then one of the two is alone by now, and that is the one to go on with.
            let alone = [0, 1]
                .into_iter()
                .find(|&side| pair.status(side).is_some_and(|status| matches!(status.state.as_str(), "unprotected")));
            let begun = Instant::now();
            let survivor = alone.unwrap_or_else(|| {
                pair.sides[0].kill();
                1
            });
            println!("{how}: {}", if alone.is_some() { "the pair had parted" } else { "the primary was killed" });
            end(crowd, capture, survivor, begun);
            pair.runs(survivor);
        }
    });
}

#[test]
fn the_primary_is_asleep() {
    times("the primary stopped", |random| {
        let site = Site::up();
        let mut pair = Pair::start(&site, &Setup::kv());
        let (crowd, capture) = begin(&pair, &site, random);
        let stopped = Instant::now();
        pair.sides[0].signal(Signal::SIGSTOP);
        pair.waits_for(1, &["unprotected"]);
        crowd.goes_on(20);
        // It wakes up amid the survivor's traffic, and says nothing any more.
        pair.sides[0].signal(Signal::SIGCONT);
        pair.lost(0);
        end(crowd, capture, 1, stopped);
        pair.runs(1);
    });
}

#[test]
fn the_backup_is_asleep() {
    times("the backup stopped", |random| {
        let site = Site::up();
        let mut pair = Pair::start(&site, &Setup::kv());
        let (crowd, capture) = begin(&pair, &site, random);
        let stopped = Instant::now();
        pair.sides[1].signal(Signal::SIGSTOP);
        pair.waits_for(0, &["unprotected"]);
        crowd.goes_on(20);
        pair.sides[1].signal(Signal::SIGCONT);
        pair.lost(1);
        end(crowd, capture, 0, stopped);
        pair.runs(0);
    });
}
