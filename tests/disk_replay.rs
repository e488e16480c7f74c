//! Promise: a replay is the same execution also of a guest with a disk, whenever and in whatever order the recording host has carried out what the
//! guest asked for. The torture of the disk is recorded on a busy host, with requests that overtake each other, that overlap and that fail; the replay has no disk, and comes to the
//! same requests, bytes and digests. Short: some rounds of each kind. The same through the programs, with an image that is gone when the log is replayed. `LOCKSTEP_ROUNDS=n` runs n, `LOCKSTEP_SEED` repeats a run.
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

mod recording;

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use lockstep::doors::{Disk, NoDisk};
use lockstep::log::entry::{Body, Entry};
use lockstep::machine::blocks::{Completions, Outcome};
use lockstep::machine::doors::{EndReason, Halt};
use lockstep::machine::snapshot::Boot;
use recording::disk::{CONFIG, Manner, ReadingDisk, SlowDisk, Work};
use recording::load::{Load, next};
use recording::machine::{Ran, Recording, boot, digests, read_log, record_with, replay_with, write_log};
use recording::process::{lockstep, path, text};

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is no number: {value}")))
}

/// One at a time: a round is load enough.
fn alone() -> impl Drop {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn torture(seed: u64, operations: u64, faults: bool) -> Boot {
    let rest = format!("depth={} overlap=1 faults={} hz=250", 4 + seed % 24, u64::from(faults));
    let boot = boot(&format!("disk seed={} operations={operations} size=4000000 {rest}", seed >> 8));
    Boot { disk: Some(CONFIG), ..boot }
}

/// Records a guest with a disk that works in this manner.
fn record(boot: &Boot, log: &Path, manner: Manner, how: Recording) -> (Ran, Work) {
    let disk = OnceLock::new();
    let recorded =
        record_with(boot, log, how, |world| disk.get_or_init(|| Arc::new(SlowDisk::start(world, manner))).clone());
    (recorded, disk.get().expect("it was made").done())
}

/// What a log says of the disk.
#[derive(Debug, Default)]
struct Logged {
    asked: u64,
    completed: u64,
    elsewhere: u64,
    /// Completions between two exits: their place only the count tells.
    between_exits: u64,
}

fn logged(entries: &[Entry]) -> Logged {
    let mut logged = Logged::default();
    for (i, entry) in entries.iter().enumerate() {
        match &entry.body {
            Body::Asked { requests, .. } => logged.asked += u64::from(*requests),
            Body::Disk(completions) => {
                logged.completed += completions.len() as u64;
                logged.elsewhere +=
                    completions.iter().filter(|c| matches!(c.outcome, Outcome::ReadElsewhere { .. })).count() as u64;
                logged.between_exits += u64::from(i > 0 && entries[i - 1].at.exits == entry.at.exits);
            }
            _ => {}
        }
    }
    logged
}

/// The log is kept, and the command that replays it printed.
fn keep(log: &Path, what: &str, difference: &str) -> ! {
    let kept = std::env::temp_dir().join(format!("disk-replay-{}.log", std::process::id()));
    std::fs::copy(log, &kept).expect("a copy");
    panic!("{what}: {difference}\nreplay it: lockstep replay {}", kept.display());
}

/// Replays a log and holds it against its recording.
#[track_caller]
fn replays(log: &Path, what: &str, recorded: &Ran, disk: Arc<dyn Disk>) -> Vec<Entry> {
    let (_, entries) = read_log(log);
    let replayed = replay_with(log, disk);
    let same = matches!((&recorded.end, &replayed.end), (Ok(one), Ok(other)) if one == other)
        && (recorded.at, &recorded.screen) == (replayed.at, &replayed.screen)
        && replayed.complete
        && replayed.tally.digests == digests(&entries);
    if !same {
        keep(log, what, &format!("recorded: {recorded:?}\nreplayed: {replayed:?}"));
    }
    entries
}

#[test]
fn the_torture_of_a_disk_replays_without_the_disk_to_the_same_end() {
    let _alone = alone();
    let seed = number("LOCKSTEP_SEED").unwrap_or_else(|| getrandom::u64().expect("a random number") >> 1);
    let rounds = number("LOCKSTEP_ROUNDS").unwrap_or(12);
    println!("LOCKSTEP_SEED={seed} LOCKSTEP_ROUNDS={rounds}");
    let directory = tempfile::tempdir().expect("a directory");
    let (mut all, mut totals, mut digests_met) = (Work::default(), Logged::default(), 0);
    let _load = Load::start(seed);
    for round in 0..rounds {
        let mut random = seed.wrapping_add(round.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
        (0..8).for_each(|_| {
            next(&mut random);
        });
        let fails = if round % 3 == 2 { 20 } else { 0 };
        let slow_us = [50, 500, 4000][(round / 3 % 3) as usize];
        let manner = Manner { seed: next(&mut random), slow_us, fails, backup_reads: false };
        let boot = torture(next(&mut random), 600, fails > 0);
        let digest_every = Duration::from_millis(5 + next(&mut random) % 16);
        let typist = (round % 4 == 3).then(|| next(&mut random));
        let how = Recording { digest_every, typist, typed_bytes: 200, ..Recording::default() };
        let log = directory.path().join(format!("{round}.log"));
        let what = format!("seed {seed} round {round}: {}, {manner:?}", boot.command_line);
        let (recorded, work) = record(&boot, &log, manner, how);
        if recorded.end.as_ref().ok() != Some(&EndReason::Exit(0)) {
            keep(&log, &what, &format!("the guest did not end as it should: {recorded:?}"));
        }
        assert!(recorded.screen.contains("the end, ok"), "{what}: {}", recorded.screen);
        let entries = replays(&log, &what, &recorded, Arc::new(NoDisk));
        let logged = logged(&entries);
        assert!(logged.completed == work.requests && logged.asked == work.requests, "{what}: {logged:?} {work:?}");
        totals.between_exits += logged.between_exits;
        digests_met += digests(&entries);
        all.requests += work.requests;
        all.batches += work.batches;
        all.overtaken += work.overtaken;
        all.failed += work.failed;
        all.bytes_read += work.bytes_read;
        all.bytes_written += work.bytes_written;
        std::fs::remove_file(&log).expect("it was there");
    }
    println!("{rounds} rounds: {all:?}, {digests_met} digests, {} batches between exits", totals.between_exits);
    // What the rounds were meant to try has happened in them.
    assert!(all.requests > rounds * 500 && all.overtaken > rounds * 20 && digests_met > rounds, "{all:?}");
    assert!(rounds < 3 || all.failed > 0, "{all:?}");
    assert!(rounds < 6 || totals.between_exits > 0, "a guest that only waits is no proof of the instants");
}

/// With the reads left to whoever replays: a disk of his own gives the same bytes, and other bytes are said to be others.
#[test]
fn a_replay_that_reads_by_itself_comes_to_the_same_end() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let seed = getrandom::u64().expect("a random number") >> 1;
    let manner = Manner { seed, slow_us: 300, fails: 0, backup_reads: true };
    let boot = torture(seed, 600, false);
    let (recorded, work) = record(&boot, &log, manner, Recording::default());
    assert_eq!(recorded.end.as_ref().ok(), Some(&EndReason::Exit(0)), "seed {seed}: {recorded:?}");
    let disk = Arc::new(ReadingDisk::new());
    let entries = replays(&log, &format!("seed {seed}"), &recorded, disk.clone());
    let logged = logged(&entries);
    assert!(logged.elsewhere > 100 && disk.filled() == logged.elsewhere, "{logged:?} {}", disk.filled());
    let length = std::fs::metadata(&log).expect("the log").len();
    assert!(length < work.bytes_read / 2, "{length} bytes of log for {} bytes read", work.bytes_read);

    let without = replay_with(&log, Arc::new(NoDisk));
    assert!(matches!(without.end, Err(Halt::Failed { .. })), "{:?}", without.end);
    let other = Arc::new(ReadingDisk::new());
    // All of the disk, so that the first read that nothing was written to before finds it.
    (0..4_000_000).step_by(512).for_each(|at| other.damage(at));
    let diverged = replay_with(&log, other);
    assert!(matches!(diverged.end, Err(Halt::Diverged(_))), "{:?}", diverged.end);
}

/// The replay of a log of which completions in the second half were changed: those where `change` says that it did, all of them or the first one.
fn changed(all: bool, change: impl Fn(&mut Completions) -> bool) -> Ran {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let manner = Manner { seed: 3, slow_us: 100, fails: 0, backup_reads: false };
    let (recorded, _) = record(&torture(77, 300, false), &log, manner, Recording::default());
    assert_eq!(recorded.end.as_ref().ok(), Some(&EndReason::Exit(0)), "{recorded:?}");
    let (boot, mut entries) = read_log(&log);
    let middle = entries.len() / 2;
    let mut hits = 0;
    for entry in &mut entries[middle..] {
        if let Body::Disk(completions) = &mut entry.body
            && (all || hits == 0)
            && change(completions)
        {
            hits += 1;
        }
    }
    assert!(hits > 0, "nothing to change");
    write_log(&log, &boot, &entries);
    replay_with(&log, Arc::new(NoDisk))
}

/// That the promise can be broken at all.
#[test]
fn another_answer_of_the_disk_is_another_execution() {
    let _alone = alone();
    // One byte of each read: the guest does not know what to expect of every sector.
    let other_bytes = changed(true, |completions| {
        completions.iter_mut().fold(false, |any, completion| match &mut completion.outcome {
            Outcome::Read(bytes) => {
                bytes[0] ^= 1;
                true
            }
            Outcome::Done | Outcome::Failed | Outcome::ReadElsewhere { .. } => any,
        })
    });
    other_bytes.divergence();
    let other_end = changed(false, |completions| {
        completions[0].outcome = Outcome::Failed;
        true
    });
    other_end.divergence();
    // A request that never was has no effect on the guest; the one whose place it took does not end.
    let unknown = changed(false, |completions| {
        completions[0].id += 1 << 40;
        true
    });
    unknown.divergence();
}

/// The programs themselves, with an image: the log alone is what the replay needs.
#[test]
fn a_recording_with_an_image_replays_when_the_image_is_gone() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let (image, log) = (directory.path().join("image"), directory.path().join("log"));
    for round in 0..number("LOCKSTEP_ROUNDS").unwrap_or(12).div_ceil(4) {
        let file = std::fs::File::create(&image).expect("an image");
        file.set_len(32 << 20).expect("a sparse file");
        drop(file);
        let _ = std::fs::remove_file(&log);
        let arguments = [
            "record",
            "--detached",
            "--digest-interval",
            "20",
            "--memory",
            "64",
            "--guest",
            "disk",
            "--log",
            path(&log),
        ];
        let seed = getrandom::u64().expect("a random number") >> 1;
        let guest = format!("seed={seed} operations=3000 depth=32 overlap=1 size=30000000 hz=250");
        let words: Vec<&str> = guest.split(' ').collect();
        let output = lockstep(&[&arguments[..], &["--disk", path(&image), "--"], &words].concat());
        assert!(output.status.success(), "{guest}: {}", text(&output));
        let (_, entries) = read_log(&log);
        assert_eq!(entries.last().map(|entry| &entry.body), Some(&Body::End(EndReason::Exit(0))), "{guest}");
        let (logged, digests) = (logged(&entries), digests(&entries));
        assert!(logged.asked > 2500 && logged.completed == logged.asked && digests > 3, "{logged:?} {digests}");

        std::fs::remove_file(&image).expect("the image");
        let output = lockstep(&["replay", "--json", path(&log)]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let same = output.status.success() && told["equivalent"] == true && told["complete"] == true;
        if !(same && told["digests"] == digests) {
            keep(&log, &guest, &text(&output));
        }
        println!("round {round}: {guest}: {logged:?}, {digests} digests, replayed in {} s", told["seconds"]);
    }
}
