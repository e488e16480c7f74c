//! Promise: a replay is the same execution as its recording, whatever the recording host was doing. `mix` and `compute`
//! are recorded on a busy host, at several tick rates, with and without somebody who types all the time, and every digest,
//! every output and the end must come again.
//!
//! The long version is `scripts/campaign-replay`: `LOCKSTEP_ROUNDS` says how many recordings, `LOCKSTEP_SEED` repeats
//! the choices of a run. A round that fails keeps its log and prints the command that replays it.
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

mod recording;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lockstep::log::entry::Body;
use lockstep::machine::doors::{EndReason, Halt};
use recording::load::{Load, next};
use recording::machine::{Ran, Recording, boot, digests, read_log, record, replay};

/// One recording and its replay.
#[derive(Clone, Debug)]
struct Round {
    command_line: String,
    how: Recording,
}

/// What the rounds have met, all together.
#[derive(Debug, Default)]
struct Totals {
    rounds: u64,
    entries: u64,
    ticks: u64,
    /// Ticks at a safepoint, not at an exit: the ones whose place only the count tells.
    ticks_between_exits: u64,
    inputs: u64,
    input_bytes: u64,
    packets: u64,
    clocks: u64,
    digests: u64,
    recorded: Duration,
    replayed: Duration,
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is no number: {value}")))
}

/// The choices of round `index`, all from the seed.
fn round(seed: u64, index: u64) -> Round {
    let mut random = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
    for _ in 0..8 {
        next(&mut random);
    }
    let hz = [100, 250, 1000][(index % 3) as usize];
    let guest_seed = next(&mut random) >> 1;
    let (command_line, typist) = match index / 3 % 4 {
        0 | 1 => (format!("mix {guest_seed} 2 hz={hz}"), None),
        2 => (format!("mix {guest_seed} 2 hz={hz}"), Some(next(&mut random))),
        _ => (format!("compute 2 seed={guest_seed} hz={hz}"), None),
    };
    let digest_every = Duration::from_millis(5 + next(&mut random) % 16);
    Round { command_line, how: Recording { digest_every, typist, typed_bytes: 200, ..Recording::default() } }
}

/// An end in words.
fn told(end: &Result<EndReason, Halt>) -> String {
    end.as_ref().map_or_else(ToString::to_string, ToString::to_string)
}

/// What is not the same; nothing if all is.
fn compare(recorded: &Ran, replayed: &Ran, logged_digests: u64) -> Result<(), String> {
    let (recorded_end, replayed_end) = match (&recorded.end, &replayed.end) {
        (Ok(recorded), Ok(replayed)) => (recorded, replayed),
        (recorded, replayed) => return Err(format!("recorded: {}\nreplayed: {}", told(recorded), told(replayed))),
    };
    if recorded_end != replayed_end || recorded.at != replayed.at {
        return Err(format!(
            "recorded: {recorded_end} at {}\nreplayed: {replayed_end} at {}",
            recorded.at, replayed.at
        ));
    }
    if recorded.screen != replayed.screen {
        return Err(format!("recorded output: {}\nreplayed output: {}", recorded.screen, replayed.screen));
    }
    if !replayed.complete || replayed.tally.digests != logged_digests {
        return Err(format!("{logged_digests} digests logged, {:?}, complete: {}", replayed.tally, replayed.complete));
    }
    Ok(())
}

/// Records and replays one round in `directory`; the log stays there if anything is wrong.
fn try_round(directory: &Path, name: &str, round: &Round, totals: &Mutex<Totals>) -> Result<(), String> {
    let file = directory.join(format!("{name}.log"));
    let recorded = record(&boot(&round.command_line), &file, round.how);
    let (_, entries) = read_log(&file);
    let replayed = replay(&file);
    compare(&recorded, &replayed, digests(&entries))?;
    if recorded.end.as_ref().ok() != Some(&EndReason::Exit(0)) {
        return Err(format!("the guest did not end as it should: {recorded:?}"));
    }
    std::fs::remove_file(&file).map_err(|error| error.to_string())?;

    let mut totals = totals.lock().expect("no thread panics while it holds this lock");
    totals.rounds += 1;
    totals.entries += entries.len() as u64;
    for (i, entry) in entries.iter().enumerate() {
        match &entry.body {
            Body::Tick => {
                totals.ticks += 1;
                totals.ticks_between_exits += u64::from(i > 0 && entries[i - 1].at.exits == entry.at.exits);
            }
            Body::Console(input) => {
                totals.inputs += 1;
                totals.input_bytes += input.bytes.len() as u64;
            }
            Body::Clock(_) => totals.clocks += 1,
            Body::Digest(_) => totals.digests += 1,
            Body::Packets(packets) => totals.packets += packets.len() as u64,
            Body::Entropy(_)
            | Body::HostName(_)
            | Body::Output { .. }
            | Body::Sent { .. }
            | Body::Asked { .. }
            | Body::Disk(_)
            | Body::Control(_)
            | Body::End(_) => {}
        }
    }
    totals.recorded += recorded.took;
    totals.replayed += replayed.took;
    Ok(())
}

/// Tries rounds on as many threads as there are cores, so that they are each other's load as well.
fn try_rounds(what: &str, rounds: u64, choose: impl Fn(u64, u64) -> Round + Sync) -> Totals {
    // One at a time: rounds of one promise are load enough for each other.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = number("LOCKSTEP_SEED").unwrap_or_else(|| getrandom::u64().expect("a random number") >> 1);
    println!("{what}: LOCKSTEP_SEED={seed} LOCKSTEP_ROUNDS={rounds}");
    let directory = tempfile::tempdir().expect("a directory");
    let (turn, totals, failed) = (AtomicU64::new(0), Mutex::new(Totals::default()), Mutex::new(Vec::new()));
    {
        let _load = Load::start(seed);
        let began = Instant::now();
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
                scope.spawn(|| {
                    loop {
                        let index = turn.fetch_add(1, Relaxed);
                        if index >= rounds || !failed.lock().expect("not poisoned").is_empty() {
                            return;
                        }
                        let round = choose(seed, index);
                        let name = format!("{what}-{index}");
                        if let Err(difference) = try_round(directory.path(), &name, &round, &totals) {
                            failed.lock().expect("not poisoned").push((name, round, difference));
                        }
                    }
                });
            }
        });
        let totals = totals.lock().expect("not poisoned");
        println!("{what}: {totals:?} in {:.1} s", began.elapsed().as_secs_f64());
    }
    let failed = failed.into_inner().expect("not poisoned");
    if !failed.is_empty() {
        let kept = directory.keep();
        let reports: Vec<_> = failed
            .iter()
            .map(|(name, round, difference)| {
                format!(
                    "{round:?}\n{difference}\nreplay it: lockstep replay {}",
                    kept.join(name).with_extension("log").display()
                )
            })
            .collect();
        panic!("{what}, with LOCKSTEP_SEED={seed}:\n{}", reports.join("\n\n"));
    }
    totals.into_inner().expect("not poisoned")
}

#[test]
fn every_recording_on_a_busy_host_replays_to_the_same_end() {
    let rounds = number("LOCKSTEP_ROUNDS").unwrap_or(108);
    let totals = try_rounds("equivalence", rounds, round);
    assert_eq!(totals.rounds, rounds);
    // What the rounds were meant to try has happened in them.
    assert!(totals.digests >= rounds * 2, "{totals:?}");
    assert!(totals.ticks >= rounds * 10, "{totals:?}");
    assert!(totals.ticks_between_exits >= rounds, "{totals:?}");
    assert!(rounds < 9 || totals.inputs >= rounds, "{totals:?}");
}

#[test]
fn a_flood_of_input_at_a_thousand_ticks_a_second_replays_to_the_same_end() {
    let rounds = number("LOCKSTEP_ROUNDS").unwrap_or(108).div_ceil(18);
    let totals = try_rounds("flood", rounds, |seed, index| {
        let Round { how, .. } = round(!seed, index);
        let how = Recording { typist: Some(seed ^ index << 40), typed_bytes: 1500, ..how };
        Round { command_line: format!("mix {} 3 hz=1000", seed ^ index), how }
    });
    assert!(totals.input_bytes >= rounds * 500 && totals.inputs >= rounds * 50, "{totals:?}");
}

/// Interrupts that find the guest's interrupts off are delivered at the interrupt window, which no log entry names.
#[test]
fn late_and_odd_interrupts_replay_to_the_same_end() {
    const GUESTS: [&str; 5] = ["probe-irqoff 2", "probe-flags 20000", "probe-unclaimed", "probe-pv", "mix 3 1"];
    let totals = try_rounds("probes", 10, |seed, index| {
        let guest = GUESTS[index as usize % GUESTS.len()];
        let digest_every = Duration::from_millis(1);
        let how = Recording { typist: None, digest_every, ..round(seed, index).how };
        Round { command_line: format!("{guest} hz=1000"), how }
    });
    assert!(totals.ticks > 100, "{totals:?}");
}

/// Without this, all the equality above could be that of a guest that notices nothing.
#[test]
fn the_end_of_mix_depends_on_what_happened_to_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |name: &str| record(&boot("mix 5 1 hz=1000"), &directory.path().join(name), Recording::default());
    let (one, other) = (run("one"), run("other"));
    assert!(one.screen.contains("mix end") && other.screen.contains("mix end"), "{one:?} {other:?}");
    assert_ne!(one.screen, other.screen, "two recordings of mix must not end alike");
}
