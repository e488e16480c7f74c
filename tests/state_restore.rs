//! Promise: the state of a machine is all there is of it. A recorded guest is replayed on machine after machine: at random instants its
//! state and memory are put into a new machine, which goes on with the rest of the log, and all digests behind that are the logged ones.
#![allow(clippy::disallowed_methods, reason = "seeds come from the outside")]

mod recording;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use lockstep::machine::doors::EndReason;
use lockstep::machine::snapshot::Boot;
use recording::disk::{CONFIG, Manner, SlowDisk};
use recording::machine::{Recording, boot, digests, read_log, record, record_with};
use recording::moving::{Moves, replay_moving};

/// What the environment says, or this.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |value| value.parse().expect("a number"))
}

/// Records `command_line`, and replays it with one of `one_in` instants a move.
fn moves_of(command_line: &str, how: Recording, seed: u64, one_in: u64) -> Moves {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("guest.log");
    let recorded = record(&boot(command_line), &file, how);
    let (_, entries) = read_log(&file);
    let (end, moves, tally, screen) = replay_moving(&file, seed, one_in);
    if end.as_ref().ok() != recorded.end.as_ref().ok() || screen != recorded.screen {
        let kept = directory.keep();
        panic!(
            "{command_line}, LOCKSTEP_SEED={seed}, {moves:?}: {}\nrecorded: {recorded:?}\nlog kept: {}",
            end.map_or_else(|halt| halt.to_string(), |end| end.to_string()),
            kept.display()
        );
    }
    assert_eq!(tally.digests, digests(&entries));
    println!("{command_line}: {moves:?}, {} digests", tally.digests);
    moves
}

#[test]
fn a_guest_goes_on_in_another_machine_from_any_instant() {
    let seed = number("LOCKSTEP_SEED", getrandom::u64().expect("a random number") >> 1);
    let rounds = number("LOCKSTEP_ROUNDS", 1);
    println!("LOCKSTEP_SEED={seed} LOCKSTEP_ROUNDS={rounds}");
    let total = Mutex::new(Moves::default());
    let every = |ms| Recording { digest_every: Duration::from_millis(ms), ..Recording::default() };
    for round in 0..rounds {
        let seed = seed.wrapping_add(round.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 1;
        for (command_line, how, one_in) in [
            (format!("mix {} 2 hz=1000", seed % 1000), every(2), 12),
            (
                format!("mix {} 2 hz=1000", seed % 999),
                Recording { typist: Some(seed), typed_bytes: 300, ..every(2) },
                30,
            ),
            (format!("compute 2 seed={} hz=1000", seed % 1000), every(2), 12),
            ("probe-irqoff 2 hz=1000".into(), every(1), 300),
            ("probe-flags 20000 hz=1000".into(), every(1), 8),
            ("probe-unclaimed hz=1000".into(), every(1), 40),
            ("probe-pv hz=1000".into(), every(1), 5),
        ] {
            let moves = moves_of(&command_line, how, seed, one_in);
            total.lock().expect("not poisoned").add(&moves);
        }
    }
    let total = total.into_inner().expect("not poisoned");
    println!("{total:?}");
    // What was meant to be tried has happened.
    assert!(total.moves >= 200 * rounds, "{total:?}");
    assert!(total.floats > 0 && total.before_safepoints > 0 && total.interrupts_off > 0, "{total:?}");
    assert!(total.transmitting > 0, "{total:?}");
}

/// Guests that wait, and are stopped: at `hlt`, with nothing but ticks and keys.
#[test]
fn a_guest_that_waits_goes_on_waiting_in_another_machine() {
    let seed = number("LOCKSTEP_SEED", getrandom::u64().expect("a random number") >> 1);
    let mut total = Moves::default();
    let how = Recording {
        digest_every: Duration::from_millis(1),
        typist: Some(seed),
        typed_bytes: 2000,
        deadline: Duration::from_secs(3),
    };
    for command_line in ["transcript tick hz=1000", "shell hz=1000", "ticker hz=1000"] {
        total.add(&moves_of(command_line, how, seed, 120));
    }
    println!("{total:?}");
    assert!(total.halted > 0 && total.pending > 0, "{total:?}");
}

/// The torture of the disk, with requests in flight when the machine is moved.
#[test]
fn a_guest_with_a_disk_goes_on_in_another_machine() {
    let seed = number("LOCKSTEP_SEED", getrandom::u64().expect("a random number") >> 1);
    println!("LOCKSTEP_SEED={seed}");
    let directory = tempfile::tempdir().expect("a directory");
    let mut total = Moves::default();
    for (round, slow_us) in [50, 2000].into_iter().enumerate() {
        let file = directory.path().join(format!("{round}.log"));
        let guest = format!("disk seed={} operations=300 size=4000000 depth=12 overlap=1 hz=250", seed >> 8);
        let boot = Boot { disk: Some(CONFIG), ..boot(&guest) };
        let manner = Manner { seed, slow_us, fails: 0, backup_reads: false };
        let disk = OnceLock::new();
        let how = Recording { digest_every: Duration::from_millis(3), ..Recording::default() };
        let recorded = record_with(&boot, &file, how, |world| {
            disk.get_or_init(|| Arc::new(SlowDisk::start(world, manner))).clone()
        });
        assert!(recorded.screen.contains("the end, ok"), "{recorded:?}");
        let (end, moves, tally, screen) = replay_moving(&file, seed, 6);
        assert!(matches!(end, Ok(EndReason::Exit(0))), "seed {seed}, {moves:?}: {end:?}");
        assert_eq!((tally.digests, screen), (digests(&read_log(&file).1), recorded.screen));
        println!("{guest}: {moves:?}, {} digests", tally.digests);
        total.add(&moves);
    }
    assert!(total.moves > 20 && total.in_flight > 5, "{total:?}");
}
