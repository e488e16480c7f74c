//! Promise: the guest's disk is right whatever happens to its hosts. The torture reads, writes, flushes and discards with sixteen and more requests in flight,
//! overlapping ones among them, and holds each sector against its model, while its hosts are killed one after the other, new backups join it
//! while it runs, roles change, and a host that was stopped wakes when another one has long gone on. It never finds a wrong sector, and no backup diverges.
//! `scripts/campaign-disk-failover` runs the long version.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod chain;
mod common;
mod net;

use std::time::Duration;

use chain::{Chain, DISKS, Disks};
use common::load::kills;
use common::{Random, seed};

/// The torture, for ever.
fn torture(seed: u64, depth: u64) -> String {
    format!("disk operations=0 report=200 size=8388608 overlap=1 depth={depth} seed={seed}")
}

fn moment(random: &mut Random, up_to_ms: u64) {
    std::thread::sleep(Duration::from_micros(random.below(up_to_ms * 1000)));
}

/// Kills, joins and switches, `rounds` of them, of one guest.
fn life(disks: Disks, rounds: u64, random: &mut Random) {
    let guest = torture(random.below(1 << 30), 16 + random.below(48));
    let mut chain = Chain::start(None, disks, &guest, "");
    chain.joins(None, "");
    chain.goes_on(400);
    for round in 0..rounds {
        moment(random, 300);
        // The first round of each life kills the primary: that is what a pair is for.
        let choice = if round == 0 { 0 } else { random.below(5) };
        let back = match choice {
            0 | 1 => chain.kills_live(),
            2 => chain.kills_backup(),
            _ => {
                chain.switches();
                chain.goes_on(200);
                moment(random, 100);
                if choice == 3 { chain.kills_live() } else { chain.kills_backup() }
            }
        };
        chain.goes_on(200);
        // The dead host's own image, stale by now, or a new one.
        let image = (random.below(2) == 0).then_some(back);
        if random.below(3) == 0 {
            // Killed while it gets the state, or a moment later.
            chain.comes(image.clone(), "");
            moment(random, 400);
            chain.kills_backup();
            chain.goes_on(200);
        }
        chain.joins(image, "");
        chain.goes_on(200);
    }
    println!("{disks:?}: {rounds} rounds of kills survived, {} operations", chain.operations());
    chain.stops();
}

#[test]
fn the_torture_finds_its_disk_right_whoever_dies() {
    let seed = seed();
    let mut random = Random::new(seed);
    let all = kills(3);
    for (index, disks) in DISKS.into_iter().enumerate() {
        let rounds = (all + 2 - index as u64) / 3;
        println!("seed {seed}: {disks:?}, {rounds} rounds");
        life(disks, rounds, &mut random);
    }
    println!("{all} rounds of kills survived");
}

#[test]
fn a_primary_that_slept_over_its_survivors_work_changes_none_of_it() {
    let seed = seed();
    let mut random = Random::new(seed);
    for disks in DISKS {
        let guest = torture(random.below(1 << 30), 32);
        println!("seed {seed}: {disks:?}");
        let mut chain = Chain::start(None, disks, &guest, "");
        for _ in 0..2 {
            chain.joins(None, "");
            chain.goes_on(200);
            moment(&mut random, 200);
            chain.stops_live_for_a_while();
            // What the guest reads from here on is held against what it has written.
            chain.goes_on(400);
        }
        chain.stops();
    }
}
