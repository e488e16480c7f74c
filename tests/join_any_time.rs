//! Promise: a backup may come at any time. Before the guest boots, right after, while its console is flooded, while somebody types, while it is
//! paused: from then on the guest survives its host, and whoever is at the console sees one guest, byte by byte, that loses nothing that
//! was typed.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::time::Duration;

use common::load::{Job, Load};
use common::{Random, seed};
use net::cluster::{Cluster, Setup};
use net::site::Site;

fn setup(job: Job) -> Setup {
    let pair = job.setup();
    let mut setup = Setup::console(pair.guest);
    setup.guest.extend(pair.arguments);
    setup
}

/// Load, a backup that joins meanwhile, the death of the host, and again, with the load going on all the time.
fn joins_under(job: Job, joins: u64) {
    let mut random = Random::new(seed());
    let site = Site::up();
    let mut cluster = Cluster::alone(&site, &setup(job));
    let mut load = Load::begin(job, cluster.console(), &mut random);
    let mut lives = 0;
    for _ in 0..joins {
        load.work_for(Duration::from_micros(random.below(150_000)), &mut random);
        cluster.joins(1 - lives);
        // Typed, computed and printed while the state goes over.
        load.work_for(Duration::from_micros(random.below(250_000)), &mut random);
        cluster.protected(lives);
        load.work_for(Duration::from_micros(random.below(250_000)), &mut random);
        cluster.nothing_is_wrong();
        let before = load.console.seen().output.len();
        cluster.kill(lives);
        lives = 1 - lives;
        load.work_for(Duration::from_micros(random.below(100_000)), &mut random);
        cluster.waits_for(lives, "unprotected");
        println!("{job:?}: joined and killed after {before} bytes of output");
    }
    load.finish(&mut random);
    let ended = cluster.side(lives).ends();
    assert!(ended.code().is_some(), "{ended}");
    cluster.nothing_is_wrong();
}

#[test]
fn while_somebody_types() {
    joins_under(Job::Typing, 2);
}

#[test]
fn while_the_console_is_flooded() {
    joins_under(Job::Printing, 1);
}

#[test]
fn while_the_guest_waits() {
    joins_under(Job::Idle, 2);
}

#[test]
fn while_the_guest_computes() {
    joins_under(Job::Computing, 1);
}

#[test]
fn before_the_guest_boots_and_right_after() {
    let mut random = Random::new(seed());
    for boots_first in [false, true] {
        let site = Site::up();
        let mut cluster = Cluster::new(&site, &setup(Job::Typing));
        if boots_first {
            // As soon as the process is there: the guest may not have come to its first instruction.
            cluster.boots(0, true);
            cluster.joins(1);
        } else {
            cluster.joins(1);
            cluster.boots(0, false);
        }
        cluster.protected(0);
        let mut load = Load::begin(Job::Typing, cluster.console(), &mut random);
        load.work_for(Duration::from_millis(50), &mut random);
        cluster.kill(0);
        load.work_for(Duration::from_millis(50), &mut random);
        cluster.waits_for(1, "unprotected");
        load.finish(&mut random);
        cluster.nothing_is_wrong();
    }
}

/// Paused, joined, killed, resumed: on the survivor nothing has happened meanwhile. With a switch instead of the kill as well.
#[test]
fn while_the_guest_is_paused() {
    let mut random = Random::new(seed());
    for switch in [false, true] {
        let site = Site::up();
        let mut cluster = Cluster::alone(&site, &setup(Job::Typing));
        let mut load = Load::begin(Job::Typing, cluster.console(), &mut random);
        load.work_for(Duration::from_millis(50), &mut random);
        cluster.operates("pause");
        cluster.joins(1);
        cluster.protected(0);
        let still = |cluster: &Cluster<'_>, side: usize| {
            cluster
                .status(side)
                .map(|status| (status.instant_exits, status.instant_polls, status.console.produced_bytes))
        };
        let before = still(&cluster, 0);
        // Typed now, read later.
        load.work_for(Duration::from_millis(30), &mut random);
        assert_eq!(still(&cluster, 0), before, "a paused guest stands still");
        if switch {
            cluster.operates("switch");
            cluster.protected(1);
            cluster.kill(0);
        } else {
            cluster.kill(0);
        }
        cluster.waits_for(1, "unprotected");
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(still(&cluster, 1), before, "on the survivor, too");
        cluster.operates("resume");
        load.work_for(Duration::from_millis(50), &mut random);
        load.finish(&mut random);
        cluster.nothing_is_wrong();
    }
}
