//! Promise: the server that keeps its data on the disk is replayed and survives its host like any other guest. A recording of `kv persist=1` under load replays, without image and network, to the
//! same digests; when its primary is killed, and the next one, its clients keep their connections and every acknowledged write, and one order explains all they were told.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod chain;
mod common;
mod net;
mod recording;

use std::process::Command;
use std::time::Duration;

use chain::{Chain, DISKS, image};
use common::load::kills;
use common::pair::{needs_kvm, turn};
use common::process::Side;
use common::{Random, count_from, seed};
use lockstep::log::entry::Body;
use net::crowd::Crowd;
use net::pair::{lockstep_in, net_option};
use net::site::{SERVER, Site};
use net::tool::Tool;
use recording::machine::read_log;
use recording::process::LOCKSTEP;

#[test]
fn a_recorded_server_with_a_disk_replays_without_it() {
    needs_kvm();
    let _turn = turn();
    let seed = seed();
    let mut random = Random::new(seed);
    for round in 0..count_from("LOCKSTEP_LOADS", 1) {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
        let site = Site::up();
        let (log, file) = (directory.path().join("kv.lslog"), directory.path().join("disk.img"));
        image(&file);
        let line = format!(
            "record --detached --digest-interval 100 --memory 64 --log {} --disk {} --net {} --guest kv -- persist=1",
            log.display(),
            file.display(),
            net_option()
        );
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut recorder = Side::spawn("recorder", &lockstep_in(&site.host(0)), &words);
        let crowd = Crowd::gather(SERVER, &site.client(), 10, &mut random);
        crowd.goes_on(100);
        crowd.work_for(Duration::from_millis(random.below(1000)));
        let seen = crowd.finish();
        seen.is_linearizable();
        let console = recorder.address("console");
        Tool::start(&site.host(0), &[LOCKSTEP, "stop", &console]).succeeds();
        assert!(recorder.ends().success(), "{:?}", recorder.said());
        std::fs::remove_file(&file).expect("the image is removed");
        let (_, entries) = read_log(&log);
        let written = entries.iter().filter(|entry| matches!(entry.body, Body::Disk(_))).count();
        let digests = entries.iter().filter(|entry| matches!(entry.body, Body::Digest(_))).count();
        assert!(written > 50 && digests > 3, "{written} batches of completions, {digests} digests");
        let output = Command::new(LOCKSTEP).args(["replay", "--json"]).arg(&log).output().expect("it starts");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        assert!(told["equivalent"] == true && told["complete"] == true, "{told}");
        assert_eq!(told["digests"], digests, "{told}");
        println!("load {round}: {} calls, {written} batches of completions, {digests} digests equal", seen.calls);
    }
}

#[test]
fn clients_of_the_server_with_a_disk_do_not_notice_that_its_hosts_die() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (rounds, mut calls) = (kills(3), 0);
    for round in 0..rounds {
        let disks = DISKS[round as usize % 3];
        println!("seed {seed} round {round}: {disks:?}");
        let mut chain = Chain::start(Some(Site::up()), disks, "kv persist=1", "");
        chain.joins(None, "");
        let crowd = Crowd::gather(SERVER, &chain.site().client(), 8, &mut random);
        crowd.goes_on(5);
        crowd.work_for(Duration::from_micros(random.below(500_000)));
        let first = chain.kills_live();
        crowd.goes_on(5);
        // The dead host's image is stale: it is brought up to date with the rest.
        chain.joins(Some(first), "");
        crowd.work_for(Duration::from_micros(random.below(300_000)));
        chain.kills_live();
        crowd.goes_on(5);
        let seen = crowd.finish();
        seen.is_linearizable();
        calls += seen.calls;
        chain.live.is_sound();
    }
    println!("{rounds} rounds of two kills, {calls} calls of 8 clients: no reset, no error, linearizable");
}
