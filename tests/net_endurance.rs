//! Promise: a server under mixed load goes on without an error while its backup dies. `redis-benchmark` in several manners, bulk data
//! in both directions, clients that record their calls, and `ping`; short: 10 s, `LOCKSTEP_SECONDS=n`: n (`scripts/campaign-net`: 600).
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::time::{Duration, Instant};

use common::{Random, count_from, seed};
use net::crowd::Crowd;
use net::pair::{Pair, Setup};
use net::print_pauses;
use net::site::{GUEST, SERVER, Site};
use net::tool::Tool;

/// What runs beside each other, each again when it has ended: small requests, a pipeline of many kinds, bulk to the guest, bulk from it.
const LOADS: [&str; 4] = [
    "-t ping,set,get,incr -n 3000 -c 20",
    "-t lpush,lpop,sadd,spop,hset,zadd,zpopmin,mset -n 4000 -c 10 -P 16 -r 1000 -d 20",
    "-t set -n 200 -c 2 -d 100000",
    "-t get -n 200 -c 2 -d 100000",
];

/// The clients' keys change that often, so that each one's history stays short.
const PAGE: Duration = Duration::from_secs(5);

/// The packets lost of a `ping`'s summary: sent, received.
fn pinged(output: &str) -> Option<(u64, u64)> {
    let line = output.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[test]
fn mixed_load_goes_on_when_the_backup_dies() {
    let seconds = count_from("LOCKSTEP_SECONDS", 10);
    let mut random = Random::new(seed());
    let site = Site::up();
    let mut pair = Pair::start(&site, &Setup { memory_mib: 128, ..Setup::kv() });
    let crowd = Crowd::gather(SERVER, &site.client(), 8, &mut random);
    let count = (seconds * 20).to_string();
    let ping = Tool::start(&site.client(), &["ping", "-q", "-i", "0.05", "-c", &count, GUEST]);
    let mut tools: [Option<Tool>; LOADS.len()] = [const { None }; LOADS.len()];
    let mut runs = [0; LOADS.len()];
    let start = Instant::now();
    let (end, half) = (start + Duration::from_secs(seconds), start + Duration::from_secs(seconds / 2));
    let mut killed = None;
    let mut page = start + PAGE;
    while Instant::now() < end {
        for (load, (tool, runs)) in LOADS.iter().zip(tools.iter_mut().zip(&mut runs)) {
            if tool.as_mut().is_none_or(|tool| tool.status().is_some()) {
                // Whatever a client of it did not like, it says by its status.
                if let Some(tool) = tool.take() {
                    tool.succeeds();
                    *runs += 1;
                }
                let words: Vec<&str> =
                    ["redis-benchmark", "-h", GUEST, "-q"].into_iter().chain(load.split(' ')).collect();
                *tool = Some(Tool::start(&site.client(), &words));
            }
        }
        if Instant::now() >= half && killed.is_none() {
            assert!(pair.status(0).is_some_and(|status| status.state == "protected"), "{:?}", pair.status(0));
            println!("protected, after half the time: {:?}", pair.status(0).and_then(|status| status.net));
            killed = Some(Instant::now());
            pair.sides[1].kill();
            pair.waits_for(0, &["unprotected"]);
        }
        if Instant::now() >= page {
            page += PAGE;
            crowd.turn_the_page();
        }
        crowd.work_for(Duration::from_millis(20));
    }
    for tool in tools.into_iter().flatten() {
        tool.succeeds();
    }
    let (sent, received) = pinged(&ping.succeeds()).expect("ping sums up");
    println!("at the end: {:?}", pair.status(0).and_then(|status| status.net));
    crowd.goes_on(5);
    let seen = crowd.finish();
    seen.is_linearizable();
    pair.runs(0);
    println!(
        "{seconds} s: {} recorded calls, at most {} on a key, linearizable; {runs:?} further runs of redis-benchmark; {received} of \
         {sent} pings answered",
        seen.calls,
        seen.longest(),
    );
    print_pauses(
        "longest wait of each client after the kill",
        &mut seen.pauses(killed.expect("half the time is over")),
    );
    // A full ring drops what comes, as any card does: rarely.
    assert!(received * 100 >= sent * 99, "{received} of {sent} pings answered");
}
