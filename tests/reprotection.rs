//! Promise: protection restores itself. However often the host of the guest dies, the survivor takes the next backup while its
//! clients work on, and is as protected as before: no acknowledged write is lost, no connection breaks, and in every protected phase the backup
//! computes what its primary does. `scripts/campaign-reprotection` runs the long version.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::time::{Duration, Instant};

use common::{Random, count_from, seed};
use net::bench::Bench;
use net::cluster::{Cluster, Setup};
use net::crowd::Crowd;
use net::print_pauses;
use net::site::{Cable, SERVER, Site};

/// How many recording clients.
const CLIENTS: usize = 8;

fn milliseconds(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_survivor_takes_the_next_backup_again_and_again() {
    let seed = seed();
    let mut random = Random::new(seed);
    let rounds = count_from("LOCKSTEP_ROUNDS", 3);
    let site = Site::up();
    let mut cluster = Cluster::alone(&site, &Setup::kv());
    let crowd = Crowd::gather(SERVER, &site.client(), CLIENTS, &mut random);
    let mut bench = Bench::start(&site.client(), "-t set,get,incr,lpush,lpop -n 4000 -c 10 -r 2000 -d 100");
    let (mut transfers, mut stops, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    let (mut kills, mut switches) = (Vec::new(), Vec::new());
    let (mut lives, mut silent_kills) = (0, 0);
    for round in 0..rounds {
        crowd.goes_on(5);
        let begun = Instant::now();
        cluster.joins(1 - lives);
        cluster.protected(lives);
        crowd.turn_the_page();
        let transfer = cluster.status(lives).and_then(|status| status.transfer).expect("there was a transfer");
        assert!(transfer.stop_ns > 0, "the guest's state was taken: {transfer:?}");
        transfers.push(begun.elapsed());
        stops.push(Duration::from_nanos(transfer.stop_ns));
        sent.push(transfer.sent_bytes);
        cluster.agrees(lives);
        bench.goes_on();
        // Sometimes the host that has just come runs it, and dies.
        if round % 3 == 1 {
            let asked = Instant::now();
            cluster.operates("switch");
            lives = 1 - lives;
            crowd.goes_on(5);
            cluster.protected(lives);
            switches.push((asked, Instant::now()));
            cluster.agrees(lives);
        }
        crowd.work_for(Duration::from_micros(random.below(800_000)));
        crowd.turn_the_page();
        cluster.nothing_is_wrong();
        let protected = cluster.state(lives);
        assert_eq!(protected, "protected", "up to the kill");
        // Sometimes its last moments never reach the backup: no client may have heard of them either.
        let silent = round % 3 == 0 || (round > 2 && random.below(4) == 0);
        let dead = lives;
        if silent {
            site.cut(Cable::Channel(dead));
            crowd.work_for(Duration::from_micros(50_000 + random.below(100_000)));
        }
        let killed = Instant::now();
        cluster.kill(dead);
        lives = 1 - lives;
        crowd.goes_on(10);
        cluster.waits_for(lives, "unprotected");
        if silent {
            site.mend(Cable::Channel(dead));
            silent_kills += 1;
        } else {
            kills.push((killed, Instant::now()));
        }
        bench.goes_on();
        println!("seed {seed} round {round}: {transfer}; host {lives} goes on");
    }
    crowd.goes_on(5);
    bench.comes_to_an_end();
    let seen = crowd.finish();
    seen.is_linearizable();
    cluster.nothing_is_wrong();
    println!(
        "{rounds} rounds of join and kill, {silent_kills} of them behind a silent channel, {} with a switch, {} recorded calls, {} runs of redis-benchmark: no reset, no error, no \
         reconnect, linearizable, every protected phase without a difference",
        switches.len(),
        seen.calls,
        bench.runs
    );
    let mut pauses: Vec<Duration> =
        kills.iter().flat_map(|&(since, until)| seen.pauses_between(since, Some(until))).collect();
    assert_eq!(pauses.len(), kills.len() * CLIENTS, "every client goes on after every kill");
    print_pauses("SIGKILL to each client's next answer", &mut pauses);
    let mut pauses: Vec<Duration> =
        switches.iter().flat_map(|&(since, until)| seen.pauses_between(since, Some(until))).collect();
    print_pauses("longest wait of each client across a switch", &mut pauses);
    print_pauses("start of the backup's process to protected", &mut transfers);
    print_pauses("guest stop at the end of a transfer", &mut stops);
    println!("sent for the state, bytes: least {:?}, most {:?}", sent.iter().min(), sent.iter().max());
    // Not a measure of speed: a guest that stood still that long would have been given up by its clients.
    assert!(stops.iter().all(|&stop| stop < milliseconds(5000)), "{stops:?}");
}
