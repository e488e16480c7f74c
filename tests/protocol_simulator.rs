//! Promise: whatever dies, sleeps or is cut off, at most one host lives, no output that has left is lost or contradicted, none is missing, none leaves a
//! silent primary after its survivor is live, and once the faults are over the guest goes on, with a backup again. Through chains of failures, new backups and
//! changes of roles, with an arbiter whose members fail, lag and return, whose answers get lost and which carries claims out late, and a network that delivers what was said in an older generation:
//! the real state machines, ten thousand seeded schedules of faults, and the proof that the checker bites.
//!
//! `LOCKSTEP_SEED=N` runs one schedule and prints it; `LOCKSTEP_SEEDS=N` runs so many.

mod protocol;

use protocol::Broken;
use protocol::world::{Plant, World};
use std::collections::BTreeMap;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

fn run(seed: u64, plant: Plant, trace: bool) -> World {
    let mut world = World::new(seed, plant, trace);
    world.run();
    world
}

#[test]
fn ten_thousand_schedules_keep_every_promise() {
    if let Some(seed) = from_environment("LOCKSTEP_SEED") {
        let world = run(seed, Plant::Nothing, true);
        println!("facts: {:#?}", world.facts);
        assert!(world.checker.broken.is_empty(), "seed {seed}: {:?}", world.checker.broken);
        return;
    }
    let seeds = from_environment("LOCKSTEP_SEEDS").unwrap_or(10_000);
    let mut facts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..seeds {
        let world = run(seed, Plant::Nothing, false);
        let broken = &world.checker.broken;
        assert!(
            broken.is_empty(),
            "seed {seed} broke {broken:?}; to see it: \
             LOCKSTEP_SEED={seed} cargo test --test protocol_simulator ten_thousand -- --nocapture"
        );
        for fact in world.facts.keys() {
            *facts.entry(fact).or_default() += 1;
        }
    }
    println!("of {seeds} schedules: {facts:#?}");
    // The faults strike and each way out is taken, else the promises above say nothing.
    for fact in [
        "a host dies",
        "a connection breaks",
        "a cable is cut",
        "the arbiter is not reachable",
        "a member of the arbiter fails and returns",
        "the arbiter has no majority",
        "a read is stale",
        "a verdict gets lost",
        "a claim is carried out after it was given up, and asked again",
        "a message of an older generation is refused",
        "a backup goes live",
        "a backup takes over from a dead primary",
        "a backup gives up a primary that is not dead",
        "a host goes on alone",
        "a side loses at the arbiter and stops",
        "a protected primary wakes from a long sleep",
        "a process wakes from a long sleep",
        "a backup joins a running guest",
        "a running guest is protected",
        "a transfer is broken off",
        "a state is taken for a transfer that is over",
        "protection restores itself",
        "the roles change",
        "a switch does not take place",
        "a guest that was handed over is taken back",
        "a fault strikes while something is changing",
        "the log's window fills",
        "a host dies with released outputs in its hands",
        "a host is stopped with released outputs in its hands",
        "released outputs wait for a new lease",
        "an output need not be repeated",
        "an output may be missing and is repeated",
        "a guest ends",
    ] {
        let times = facts.get(fact).copied().unwrap_or(0);
        assert!(times >= seeds / 1000, "`{fact}` in only {times} of {seeds} schedules");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..50 {
        let summary = |world: World| (world.facts, world.checker.outputs_seen());
        assert_eq!(summary(run(seed, Plant::Nothing, false)), summary(run(seed, Plant::Nothing, false)));
    }
}

/// One of 2,000 schedules shows the mistake, in this way.
fn finds(plant: Plant, broken: &Broken) {
    let mut others = BTreeMap::new();
    for seed in 0..2_000 {
        let found = run(seed, plant, false).checker.broken;
        if found.contains_key(broken) {
            return println!("{plant:?}: {broken:?} with seed {seed}; before that {others:?}");
        }
        for what in found.into_keys() {
            *others.entry(format!("{what:?}").split('(').next().map(String::from)).or_insert(0) += 1;
        }
    }
    panic!("{plant:?} does not lead to {broken:?}, but to {others:?}");
}

#[test]
fn the_checker_finds_outputs_that_leave_before_they_are_acknowledged() {
    finds(Plant::ReleaseOnSent, &Broken::ReleasedUnheld);
}

#[test]
fn the_checker_finds_hosts_that_do_not_ask_the_arbiter() {
    finds(Plant::SkipArbiter, &Broken::TwoLive);
}

#[test]
fn the_checker_finds_claims_that_are_not_conditional() {
    finds(Plant::ClaimUnasked, &Broken::TwoLive);
}

#[test]
fn the_checker_finds_a_stale_read_that_is_believed() {
    finds(Plant::StaleReadBelieved, &Broken::TwoLive);
}

#[test]
fn the_checker_finds_a_primary_that_looks_at_no_token() {
    finds(Plant::NoFence, &Broken::HeardAnOlderGeneration);
}

#[test]
fn the_checker_finds_acknowledgements_after_the_suspicion() {
    finds(Plant::AckAfterSuspicion, &Broken::ReleasedUnheld);
}

#[test]
fn the_checker_finds_a_primary_that_does_not_notice_its_sleep() {
    finds(Plant::IgnoreTimeJump, &Broken::ReleasedAfterSleep);
}

#[test]
fn the_checker_finds_a_backup_that_goes_live_too_early() {
    finds(Plant::ForgetTail, &Broken::Lost);
}

#[test]
fn the_checker_finds_outputs_that_leave_while_the_arbiter_is_asked() {
    finds(Plant::IgnoreHold, &Broken::ReleasedWhileAsking);
}

#[test]
fn the_checker_finds_a_primary_without_a_lease() {
    finds(Plant::IgnoreLease, &Broken::LeftAfterTheSurvivor);
}

#[test]
fn the_checker_finds_a_lease_that_runs_from_when_the_backup_was_heard() {
    finds(Plant::LeaseFromArrival, &Broken::LeftAfterTheSurvivor);
}

#[test]
fn the_checker_finds_a_survivor_that_repeats_nothing() {
    finds(Plant::RepeatNothing, &Broken::Missing);
}

#[test]
fn the_checker_finds_a_primary_that_takes_acknowledged_for_left() {
    finds(Plant::LeftFromAcks, &Broken::Missing);
}

#[test]
fn the_checker_finds_outputs_that_leave_while_a_backup_joins() {
    finds(Plant::JoiningLeaks, &Broken::ReleasedUnheld);
}

#[test]
fn the_checker_finds_a_welcome_without_a_lease() {
    finds(Plant::NoLeaseAtTheWelcome, &Broken::LeftAfterTheSurvivor);
}

#[test]
fn the_checker_finds_a_handover_before_all_is_acknowledged() {
    finds(Plant::EarlyHandover, &Broken::ReleasedUnheld);
}

#[test]
fn the_checker_finds_a_guest_that_is_taken_back_without_the_arbiter() {
    finds(Plant::TakeBackUnasked, &Broken::TwoLive);
}

#[test]
fn the_checker_finds_an_heir_that_thinks_it_has_won_alone() {
    finds(Plant::HeirAlone, &Broken::TwoLive);
}

#[test]
fn the_checker_finds_an_heir_that_lets_out_what_nobody_else_has() {
    finds(Plant::HeirLeaks, &Broken::ReleasedUnheld);
}
