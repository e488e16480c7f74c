//! Promise: a guest of any size gets a backup while it works. 1 GiB of memory, most of it in use and part of it written all the time: the
//! transfer comes to its end, the guest hardly stands still for it, and what comes of it is a backup. `LOCKSTEP_FILL_MIB` says how much is
//! filled (short: 128; `scripts/campaign-reprotection`: 600).
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::time::{Duration, Instant};

use common::{Random, count_from, seed};
use net::bench::Bench;
use net::cluster::{Cluster, Setup};
use net::crowd::Crowd;
use net::resp::{Connection, Reply};
use net::site::{SERVER, Site};

/// Length of a filled value.
const VALUE: usize = 500_000;

#[test]
fn a_guest_of_a_gibibyte_with_a_hot_working_set_gets_a_backup() {
    let mut random = Random::new(seed());
    let fill_mib = count_from("LOCKSTEP_FILL_MIB", 128);
    let site = Site::up();
    let mut cluster = Cluster::alone(&site, &Setup { memory_mib: 1024, ..Setup::kv() });
    let crowd = Crowd::gather(SERVER, &site.client(), 4, &mut random);
    let mut filler = Connection::open(SERVER, &site.client()).expect("one more client connects");
    let begun = Instant::now();
    let mut value: String = (0..VALUE).map(|_| char::from(b'!' + random.below(90) as u8)).collect();
    for key in 0..(fill_mib << 20) / VALUE as u64 {
        value.replace_range(..10, &format!("{key:010}"));
        let reply = filler.ask(&["SET", &format!("filler:{key}"), &value]).expect("it is set");
        assert_eq!(reply, Reply::Simple("OK".into()));
    }
    println!("{fill_mib} MiB filled in {:.1} s", begun.elapsed().as_secs_f64());
    crowd.turn_the_page();
    let mut bench = Bench::start(&site.client(), "-t set -n 200000 -c 5 -r 5000 -d 2000");
    let calls = crowd.answers();
    crowd.work_for(Duration::from_secs(1));
    let alone_per_s = crowd.answers() - calls;
    let (calls, begun) = (crowd.answers(), Instant::now());
    cluster.joins(1);
    cluster.protected(0);
    let (during, took) = (crowd.answers() - calls, begun.elapsed());
    let transfer = cluster.status(0).and_then(|status| status.transfer).expect("there was a transfer");
    assert!(transfer.sent_bytes > fill_mib << 19 && transfer.stop_ns > 0, "{transfer:?}");
    cluster.agrees(0);
    crowd.turn_the_page();
    cluster.kill(0);
    crowd.goes_on(20);
    cluster.waits_for(1, "unprotected");
    bench.goes_on();
    // What was filled has come along.
    for key in [0, (fill_mib << 20) / VALUE as u64 - 1] {
        value.replace_range(..10, &format!("{key:010}"));
        let reply = filler.ask(&["GET", &format!("filler:{key}")]).expect("it is there");
        assert!(reply == Reply::Bulk(Some(value.clone().into_bytes())), "value {key} is another one");
    }
    let seen = crowd.finish();
    seen.is_linearizable();
    cluster.nothing_is_wrong();
    println!(
        "transfer of 1 GiB: {transfer}; protected after {:.2} s, {:.1} MiB/s; clients' calls a second: {alone_per_s} before, {:.0} during",
        took.as_secs_f64(),
        transfer.sent_bytes as f64
            / f64::from(1 << 20)
            / Duration::from_millis(transfer.elapsed_ms.max(1)).as_secs_f64(),
        during as f64 / took.as_secs_f64(),
    );
}
