//! Promise: clients of the guest do not notice that its host has died. Whenever the primary is killed, no acknowledged write is
//! lost, none is applied twice, and there is one order that explains what every client was told; every client keeps its
//! connection, without a reset or an error. `scripts/campaign-net` runs the long version, `scripts/plant-release-early`
//! shows that a primary which answers before its backup knows is found out here.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::time::{Duration, Instant};

use common::{Random, count_from, seed};
use net::capture::{Capture, silence};
use net::crowd::Crowd;
use net::pair::{Pair, Setup};
use net::print_pauses;
use net::site::{SERVER, Site};

/// How many clients.
const CLIENTS: usize = 10;

/// Kills of each kind: `LOCKSTEP_KILLS`, or the short version's.
fn kills(short: u64) -> u64 {
    count_from("LOCKSTEP_KILLS", short)
}

#[test]
fn clients_keep_their_connections_and_their_writes_when_the_primary_is_killed() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut pauses, mut gaps, mut calls) = (Vec::new(), Vec::new(), 0);
    let rounds = kills(2);
    let setup = Setup::kv();
    for round in 0..rounds {
        println!("seed {seed} round {round}");
        let site = Site::up();
        let mut pair = Pair::start(&site, &setup);
        let capture = Capture::on(&site);
        let crowd = Crowd::gather(SERVER, &site.client(), CLIENTS, &mut random);
        crowd.goes_on(5);
        crowd.work_for(Duration::from_micros(random.below(800_000)));
        let killed = Instant::now();
        pair.sides[0].kill();
        crowd.goes_on(20);
        pair.waits_for(1, &["unprotected"]);
        let seen = crowd.finish();
        seen.is_linearizable();
        gaps.extend(silence(&capture.one_after_the_other()));
        let waited = seen.pauses(killed);
        assert_eq!(waited.len(), CLIENTS, "every client goes on");
        pauses.extend(waited);
        calls += seen.calls;
        pair.runs(1);
    }
    println!(
        "{rounds} kills of the primary, {CLIENTS} clients, {calls} calls: no reset, no error, no reconnect, linearizable"
    );
    print_pauses("SIGKILL to each client's next answer", &mut pauses);
    print_pauses("last frame of a to the first of b", &mut gaps);
}

/// The log stands still on its way, the guest works on, and its primary dies: the backup never hears of these last moments, so no client
/// may have heard of them either.
#[test]
fn nothing_was_answered_that_the_backup_did_not_know() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut pauses, mut calls) = (Vec::new(), 0);
    let rounds = kills(2);
    let setup = Setup { relay: true, ..Setup::kv() };
    for round in 0..rounds {
        println!("seed {seed} round {round}");
        let site = Site::up();
        let mut pair = Pair::start(&site, &setup);
        let capture = Capture::on(&site);
        let crowd = Crowd::gather(SERVER, &site.client(), CLIENTS, &mut random);
        crowd.goes_on(5);
        crowd.work_for(Duration::from_micros(random.below(200_000)));
        pair.relay().freeze(true);
        crowd.work_for(Duration::from_micros(random.below(100_000)));
        let killed = Instant::now();
        pair.sides[0].kill();
        pair.relay().cut(true);
        crowd.goes_on(20);
        pair.waits_for(1, &["unprotected"]);
        let seen = crowd.finish();
        seen.is_linearizable();
        capture.one_after_the_other();
        let waited = seen.pauses(killed);
        assert_eq!(waited.len(), CLIENTS, "every client goes on");
        pauses.extend(waited);
        calls += seen.calls;
        pair.runs(1);
    }
    println!(
        "{rounds} kills behind a silent channel, {CLIENTS} clients, {calls} calls: no reset, no error, no reconnect, linearizable"
    );
    print_pauses("SIGKILL to each client's next answer", &mut pauses);
}
