//! Promise: nothing leaves before the backup holds everything that led to it. Not a byte reaches a console client whose log
//! entry was not acknowledged before, however late acknowledgements are; and whenever the primary is killed, what has
//! left is part of what the backup goes on from. A relay in the logging channel keeps the account by which this is judged.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use std::time::Duration;

use common::checker::check_transcript;
use common::console::Seen;
use common::load::{Job, LOADS, Load, kills};
use common::pair::{Pair, Setup};
use common::relay::To;
use common::{Random, eventually, seed};

/// Every byte was covered by an acknowledgement that had been passed on before the byte was seen.
#[track_caller]
fn check_covered(pair: &Pair, seen: &Seen) {
    pair.relay.account(|account| {
        for &(at, end) in &seen.pieces {
            account.check_seen(at, end).unwrap_or_else(|error| panic!("{error}"));
        }
    });
}

#[test]
fn without_acknowledgements_not_a_byte_leaves() {
    let pair = Pair::start(&Setup::of("transcript tick"));
    let console = pair.console();
    console.shows("tick 1 ");
    pair.relay.rule(|rules| rules.withhold_acks = true);
    let covered = pair.relay.account(|account| account.covered_bytes());
    console.type_bytes(b"is anybody there?\r");
    // The guest has seen it and has answered, and ticked on; the primary holds all that.
    pair.says(0, "five outputs held", |status| {
        let held = status.outputs_held >= 5 && status.console.produced_bytes > status.console.released_bytes;
        held.then_some(())
    });
    let written = pair.relay.account(|account| account.output_bytes());
    let (status, seen) = (pair.status(0).expect("the primary is there"), console.seen().clone());
    assert!(written > covered, "the guest has said nothing meanwhile");
    assert_eq!(status.state, "protected", "acknowledgements were withheld, heartbeats were not");
    assert!(status.console.released_bytes <= covered, "{status:?}, {covered} covered");
    assert!(seen.output.len() as u64 <= covered, "{} bytes seen, {covered} covered", seen.output.len());
    // Let go: all of it comes, nothing of it early.
    pair.relay.rule(|rules| rules.withhold_acks = false);
    console.shows("1: is anybody there? ");
    let seen = console.seen().clone();
    check_covered(&pair, &seen);
    check_transcript(&seen.output, &["is anybody there?".to_owned()]).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn late_acknowledgements_make_late_outputs() {
    let mut random = Random::new(seed());
    for delay_ms in [1, 40] {
        let pair = Pair::start(&Setup::of("transcript tick"));
        pair.relay.rule(|rules| rules.delay_acks = Duration::from_millis(delay_ms));
        let mut load = Load::begin(Job::Typing, pair.console(), &mut random);
        load.work_for(Duration::from_millis(300), &mut random);
        let seen = load.finish(&mut random);
        check_covered(&pair, &seen);
    }
}

/// The primary dies at a moment that the relay chooses: after some frame, with all later ones lost.
#[test]
fn what_has_left_a_killed_primary_is_what_the_backup_goes_on_from() {
    let seed = seed();
    let mut random = Random::new(seed);
    for round in 0..kills(8) {
        let job = LOADS[round as usize % LOADS.len()];
        let mut pair = Pair::start(&job.setup());
        let witness = pair.witness(0);
        let mut load = Load::begin(job, pair.console(), &mut random);
        let (to, frames) = (*random.pick(&[To::Backup, To::Primary]), 1 + random.below(150));
        println!("seed {seed} round {round}: {job:?}, killed {frames} frames to the {to:?} later");
        pair.relay.rule(|rules| rules.freeze_after = Some((to, frames)));
        load.work_for(Duration::from_millis(random.below(300)), &mut random);
        pair.relay.froze();
        // Some more work that the backup never hears of.
        load.work_for(Duration::from_millis(random.below(30)), &mut random);
        pair.primary.kill();
        pair.relay.cut(true);
        pair.waits_for(1, "unprotected");
        let left = eventually("the witness notices", || {
            let seen = witness.seen();
            (!seen.lost.is_empty()).then(|| seen.clone())
        });
        check_covered(&pair, &left);
        let later = pair.witness(1);
        let seen = load.finish(&mut random);
        assert!(seen.output.starts_with(&left.output), "the backup goes on from something else than what had left");
        let all = later.sees("the guest's end", |seen| seen.ended.is_some().then(|| seen.output.clone()));
        assert!(all == seen.output, "two clients saw two machines");
        assert!(pair.backup.ends().code().is_some());
    }
}
