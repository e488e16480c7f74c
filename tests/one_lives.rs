//! Promise: at most one of the two lives. Separated from each other but not from the arbiter, exactly one goes on and the
//! other stops and says why; while no arbiter can be reached, both wait and release nothing, however long that takes.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use std::fs;

use common::load::{Job, Load, kills};
use common::pair::Pair;
use common::{Random, eventually, seed};

/// Waits until one side lives and the other has stopped; gives the survivor. Looks at both all the time.
#[track_caller]
fn one_lives(pair: &mut Pair) -> usize {
    let survivor = eventually("one lives and the other has stopped", || {
        let states = [0, 1].map(|side| pair.status(side).map_or("gone".into(), |status| status.state));
        let lives = |state: &str| matches!(state, "unprotected");
        assert!(!(lives(&states[0]) && lives(&states[1])), "both live: {states:?}");
        let gone = [pair.primary.status().is_some(), pair.backup.status().is_some()];
        assert!(gone != [true, true], "nobody lives");
        (0..2).find(|&side| lives(&states[side]) && gone[1 - side])
    });
    let loser = if survivor == 0 { &mut pair.backup } else { &mut pair.primary };
    assert_eq!(loser.ends().code(), Some(1));
    let said = loser.said();
    let winner = ["first", "second"][survivor];
    let reason = format!("stopped: lost generation 2 at the arbiter: host {winner} ");
    assert!(said.iter().any(|line| line.contains(&reason)), "{said:?}");
    let register = pair.register();
    assert!(register.contains("generation 2\n") && register.contains(&format!("host-name {winner}\n")), "{register}");
    survivor
}

#[test]
fn separated_from_each_other_exactly_one_lives() {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut survivors = [0; 2];
    for round in 0..kills(8) {
        let mut pair = Pair::start(&Job::Typing.setup());
        let witnesses = [pair.witness(0), pair.witness(1)];
        let mut load = Load::begin(Job::Typing, pair.console(), &mut random);
        load.work_for(std::time::Duration::from_micros(random.below(100_000)), &mut random);
        if round % 2 == 0 {
            pair.relay.cut(true);
        } else {
            pair.relay.freeze(true);
        }
        let survivor = one_lives(&mut pair);
        survivors[survivor] += 1;
        println!("seed {seed} round {round}: host {survivor} lives");
        let all = load.finish(&mut random);
        for witness in &witnesses {
            assert!(all.output.starts_with(&witness.seen().output), "a host showed what never happened");
        }
    }
    println!("the primary lived {} times, the backup {}", survivors[0], survivors[1]);
}

/// Makes the arbiter unusable, and usable again.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Away,
    Damaged,
}

impl Trouble {
    fn set(self, pair: &Pair, on: bool) {
        let path = |name: &str| pair.directory.path().join(name);
        let (from, to) = match self {
            Trouble::Away => (path("arbiter"), path("elsewhere")),
            Trouble::Damaged => (pair.register_file(), path("kept")),
        };
        match (self, on) {
            (Trouble::Away, true) => fs::rename(from, to).expect("a directory can be renamed"),
            (Trouble::Away, false) => fs::rename(to, from).expect("and back"),
            (Trouble::Damaged, true) => {
                fs::copy(&from, to).expect("a file can be copied");
                fs::write(&from, "generation 7").expect("and written");
            }
            // Whole in one step, as the storage's owner would do it: a half restored register is a damaged one.
            (Trouble::Damaged, false) => fs::rename(to, from).expect("and put back"),
        }
    }
}

#[test]
fn without_an_arbiter_both_wait_and_release_nothing() {
    let mut random = Random::new(seed());
    for trouble in [Trouble::Away, Trouble::Damaged] {
        let mut pair = Pair::start(&Job::Typing.setup());
        let mut load = Load::begin(Job::Typing, pair.console(), &mut random);
        load.work_for(std::time::Duration::from_millis(50), &mut random);
        trouble.set(&pair, true);
        pair.relay.cut(true);
        pair.waits_for(0, "asking");
        pair.waits_for(1, "asking");
        let released = pair.says(0, "what it has released", |status| Some(status.console.released_bytes));
        // The guest goes on, and both ask again and again.
        load.work_for(std::time::Duration::from_millis(50), &mut random);
        let produced = pair.says(0, "what it has produced", |status| Some(status.console.produced_bytes));
        pair.says(0, "more", |status| (status.console.produced_bytes > produced + 200).then_some(()));
        for side in [&pair.primary, &pair.backup] {
            eventually("both ask in vain, repeatedly", || {
                (side.said().iter().filter(|line| line.contains("no answer")).count() >= 4).then_some(())
            });
        }
        for side in 0..2 {
            let status = pair.status(side).expect("it waits");
            assert_eq!(status.state, "asking", "{trouble:?}");
            assert_eq!(status.generation, 1);
        }
        let status = pair.status(0).expect("it waits");
        assert_eq!(status.console.released_bytes, released, "released while waiting for the arbiter");
        assert!(load.console.seen().output.len() as u64 <= released);
        assert!(load.console.seen().attached.iter().all(|attachment| attachment.generation == 1));
        trouble.set(&pair, false);
        one_lives(&mut pair);
        load.finish(&mut random);
    }
}
