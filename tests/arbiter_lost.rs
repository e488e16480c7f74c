//! Promise: the loss of the arbiter never stops a healthy pair. It forbids going live, and both hosts say so in their status within seconds, with since when and why; and within seconds they
//! say that it is back.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use std::process::Command;
use std::time::Duration;

use common::load::{Job, Load};
use common::pair::Pair;
use common::{Random, seed};
use lockstep::console::status::ArbiterStatus;

/// What both hosts know of the arbiter, once it is as wanted.
#[track_caller]
fn both_say(pair: &Pair, what: &str, wanted: impl Fn(&ArbiterStatus) -> bool) -> [ArbiterStatus; 2] {
    [0, 1].map(|side| pair.says(side, what, |status| status.arbiter.clone().filter(|arbiter| wanted(arbiter))))
}

fn reachable(arbiter: &ArbiterStatus) -> bool {
    arbiter.reachable == Some(true)
}

fn lost(arbiter: &ArbiterStatus) -> bool {
    arbiter.reachable == Some(false)
}

fn lockstep(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lockstep")).args(arguments).output().expect("lockstep starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("it says text"))
}

#[test]
fn a_pair_without_its_arbiter_goes_on_and_says_that_it_cannot_fail_over() {
    let mut random = Random::new(seed());
    let mut pair = Pair::start(&Job::Typing.setup());
    let (here, away) = (pair.directory.path().join("arbiter"), pair.directory.path().join("away"));
    let mut load = Load::begin(Job::Typing, pair.console(), &mut random);
    for arbiter in both_say(&pair, "that the arbiter is there", reachable) {
        assert_eq!(arbiter.location, here.display().to_string());
        assert!(arbiter.answer_ns > Some(0) && arbiter.unreachable_ms.is_none() && arbiter.trouble.is_none());
    }

    std::fs::rename(&here, &away).expect("a directory can be renamed");
    for arbiter in both_say(&pair, "that it is gone", lost) {
        let why = arbiter.trouble.expect("a reason");
        assert!(why.contains(&here.display().to_string()) && why.contains("No such file"), "{why}");
    }
    for side in 0..2 {
        let (ok, text) = lockstep(&["status", &pair.consoles[side]]);
        assert!(
            ok && text.contains("NOT REACHABLE for ") && text.contains(": no failover is possible now ("),
            "{text}"
        );
        let (ok, json) = lockstep(&["status", "--json", &pair.consoles[side]]);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert!(ok && json["arbiter"]["reachable"] == false, "{json}");
    }
    // For longer than any time-out of the pair: the guest works, its outputs leave, and nothing else changes.
    let since = both_say(&pair, "since when", lost).map(|arbiter| arbiter.unreachable_ms);
    load.work_for(Duration::from_secs(4), &mut random);
    for (side, state) in [(0, "protected"), (1, "following")] {
        let status = pair.status(side).expect("it runs");
        assert_eq!((status.state.as_str(), status.generation), (state, 1));
        let unreachable_ms = status.arbiter.expect("an arbiter").unreachable_ms;
        assert!(unreachable_ms >= since[side].map(|ms| ms + 3000), "{unreachable_ms:?} after {since:?}");
    }
    let (ok, text) = lockstep(&["switch", &pair.consoles[0]]);
    assert!(!ok && text.contains("the arbiter does not answer"), "{text}");
    assert_eq!(pair.status(0).expect("it runs").state, "protected", "and nothing has come of it");

    std::fs::rename(&away, &here).expect("and back");
    both_say(&pair, "that it is back", |arbiter| reachable(arbiter) && arbiter.unreachable_ms.is_none());

    // Lost again, and then the primary: nobody goes live, until it is back.
    std::fs::rename(&here, &away).expect("a directory can be renamed");
    both_say(&pair, "that it is gone", lost);
    pair.primary.kill();
    pair.waits_for(1, "asking");
    let asks_for_long = |status: &lockstep::console::status::Status| {
        let unreachable_ms = status.arbiter.as_ref()?.unreachable_ms;
        (status.state != "asking" || unreachable_ms > Some(3000)).then(|| status.state.clone())
    };
    assert_eq!(pair.says(1, "that it asks in vain", asks_for_long), "asking", "nobody has said that it may live");
    std::fs::rename(&away, &here).expect("and back");
    pair.waits_for(1, "unprotected");
    pair.says(1, "that it is back", |status| status.arbiter.as_ref().filter(|arbiter| reachable(arbiter)).map(drop));
    load.finish(&mut random);
}
