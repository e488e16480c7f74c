//! Promise: what goes wrong with a host's disk the guest hears as a disk error, backup and replay hear the same, and nothing that was acknowledged is lost. Storage fails at random (errors, no room, short and
//! slow calls, requests overtaken) on the primary and on both; the torture, which expects errors, finds no wrong sector, and the backup takes over with the same model. A backup whose own copy of the
//! disk fails leaves by name, and its primary goes on. A really full file system is an error in the log, and the recording replays without its image.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod chain;
mod common;
mod net;
mod recording;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use chain::{Chain, DISKS, Disks};
use common::pair::{needs_kvm, turn};
use common::process::Side;
use common::{Random, count_from, eventually, seed};
use lockstep::log::entry::Body;
use lockstep::machine::blocks::Outcome;
use recording::machine::read_log;
use recording::process::LOCKSTEP;

fn torture(seed: u64) -> String {
    format!("disk operations=0 report=200 size=8388608 overlap=1 faults=1 depth=32 seed={seed}")
}

fn faults(random: &mut Random) -> String {
    format!(",faults=seed:{}+errors:0.01+full:0.01+short:0.2+delay:0.1@2000", random.below(1 << 30))
}

#[test]
fn guest_and_backup_agree_on_every_error_of_the_primarys_disk() {
    let seed = seed();
    let mut random = Random::new(seed);
    for round in 0..count_from("LOCKSTEP_ROUNDS", 1) {
        let disks = DISKS[(seed.wrapping_add(round) % 3) as usize];
        println!("seed {seed} round {round}: {disks:?}");
        let mut chain = Chain::start(None, disks, &torture(random.below(1 << 30)), &faults(&mut random));
        // A shared image fails wherever it is reached from. A backup that reads by itself, or has an image of its own, leaves if that fails: the next test.
        let whole = disks == Disks::Shared;
        let at_backup = if whole { faults(&mut random) } else { String::new() };
        chain.joins(None, &at_backup);
        chain.goes_on(1000);
        let failed = eventually("the disk's figures", || chain.live.status()?.disk).errors;
        assert!(failed > 0, "no request failed: this test has shown nothing");
        std::thread::sleep(Duration::from_micros(random.below(100_000)));
        if chain.live.status().is_some_and(|status| status.state == "protected") {
            chain.kills_live();
            chain.goes_on(400);
            let mut again = 0;
            while whole && again == 0 {
                chain.goes_on(400);
                again = eventually("the disk's figures", || chain.live.status()?.disk).errors;
                assert!(again > 0 || chain.operations() < 100_000, "no request failed on the survivor");
            }
            println!(
                "{failed} requests failed on the primary, {again} on the survivor, {} operations",
                chain.operations()
            );
        } else {
            panic!("the backup has left: {:?}", chain.backup.map(|backup| backup.side.said()));
        }
        chain.joins(None, "");
        chain.goes_on(200);
        chain.stops();
    }
}

#[test]
fn a_backup_whose_own_image_fails_leaves_by_name_and_its_primary_goes_on() {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut chain = Chain::start(None, Disks::Separate, &torture(random.below(1 << 30)), "");
    // Often enough to fail soon, seldom enough to get a copy first.
    let errors = format!(",faults=seed:{}+errors:0.002", random.below(1 << 30));
    chain.comes(None, &errors);
    let mut backup = chain.backup.take().expect("it has come");
    assert_eq!(backup.side.ends().code(), Some(3), "{:?}", backup.side.said());
    let said = backup.side.said();
    let named =
        |line: &String| line.starts_with("lockstep: stopped") && line.contains(&backup.image.display().to_string());
    assert!(said.iter().any(named), "{said:?}");
    chain.live.waits_for(&["unprotected"]);
    chain.goes_on(400);
    // With a good image it is a pair again.
    chain.joins(None, "");
    chain.goes_on(200);
    chain.kills_live();
    chain.goes_on(200);
    chain.stops();
}

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    #[track_caller]
    fn mount(at: PathBuf) -> Small {
        std::fs::create_dir(&at).expect("a directory");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "lockstep-test"]).arg(&at).status();
        assert!(done.is_ok_and(|status| status.success()), "root can mount a tmpfs");
        Small(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_file_system_is_an_error_in_the_log_and_replays_without_the_image() {
    needs_kvm();
    let _turn = turn();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let small = Small::mount(directory.path().join("small"));
    let (file, log) = (small.0.join("disk.img"), directory.path().join("full.lslog"));
    chain::image(&file);
    let line = format!(
        "record --detached --digest-interval 100 --memory 32 --log {} --disk {},cache=writeback --guest disk -- operations=3000 size=8388608 overlap=1 \
         faults=1 depth=32",
        log.display(),
        file.display()
    );
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let mut recorder = Side::spawn("recorder", &[], &words);
    // 4: the torture gives up, since it cannot write its header either, however often it tries.
    let code = recorder.ends().code();
    assert!(matches!(code, Some(0 | 4)), "{code:?}: {:?}", recorder.said());
    drop(small);
    let (_, entries) = read_log(&log);
    let (mut failed, mut done) = (0, 0);
    for completion in entries.iter().filter_map(|entry| match &entry.body {
        Body::Disk(completions) => Some(completions),
        _ => None,
    }) {
        for completion in completion {
            *(if completion.outcome == Outcome::Failed { &mut failed } else { &mut done }) += 1;
        }
    }
    assert!(failed > 10 && done > 100, "{failed} requests failed, {done} did not");
    let output = Command::new(LOCKSTEP).args(["replay", "--json"]).arg(&log).output().expect("it starts");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(told["equivalent"] == true && told["complete"] == true, "{told}");
    println!("{failed} requests failed of {} on a full file system; {} digests equal", failed + done, told["digests"]);
}
