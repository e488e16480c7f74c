//! Promise: what was acknowledged survives the loss of both hosts. `kv persist=1` serves clients that record every answer; primary and backup get SIGKILL under load (at once,
//! one a moment after the other, while the backup takes over, while the next one gets its state), and the guest boots anew on the image of the side that lived last. One order explains what the clients
//! were told and what is found then. The images lose what was not flushed (`faults=…volatile`), in any order, so that a flush that was none is found out. Of two images the stale one is
//! refused by its stamp. The torture's disk is what its last flush says, too. `scripts/campaign-power-failure` runs the long version.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod chain;
mod common;
mod net;

use std::path::{Path, PathBuf};
use std::time::Duration;

use chain::{Chain, DISKS, Disks, stamp};
use common::process::Side;
use common::{Random, count_from, eventually, seed};
use net::crowd::Crowd;
use net::site::{SERVER, Site};

/// How the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// Both at once.
    Together,
    /// The primary, and its backup a moment later: before, while or after it takes over.
    OneAfterTheOther,
    /// The primary; and the survivor and its new backup, while that gets its state.
    DuringTransfer,
}

const FAILURES: [Failure; 3] = [Failure::Together, Failure::OneAfterTheOther, Failure::DuringTransfer];

fn moment(random: &mut Random, up_to_ms: u64) {
    std::thread::sleep(Duration::from_micros(random.below(up_to_ms * 1000)));
}

/// Starts a pair; both sides lose what is not flushed, where that is something that can happen.
fn start(site: Option<Site>, disks: Disks, failure: Failure, guest: &str, random: &mut Random) -> Chain {
    let volatile = |random: &mut Random| format!(",faults=seed:{}+volatile+delay:0.05@3000", random.below(1 << 30));
    // Storage that two hosts share goes on when one of them is dead, and shows each what the other has written.
    let reads = disks == Disks::SharedBackupReads;
    let kept = !disks.are_two() && failure != Failure::Together || reads;
    let faults = if kept { String::new() } else { volatile(random) };
    let mut chain = Chain::start(site, disks, guest, &faults);
    let kept = reads && failure == Failure::DuringTransfer;
    let faults = if kept { String::new() } else { volatile(random) };
    chain.joins(None, &faults);
    chain
}

/// Kills all hosts. Returns the images that there are, without those that were given up before.
fn fail(chain: &mut Chain, failure: Failure, random: &mut Random, goes_on: impl FnOnce(&mut Chain)) -> Vec<PathBuf> {
    match failure {
        Failure::Together => chain.power_fails(),
        Failure::OneAfterTheOther => {
            chain.live.side.kill();
            // Taking over takes some milliseconds.
            moment(random, 30);
            let mut images = chain.power_fails();
            images.dedup();
            images
        }
        Failure::DuringTransfer => {
            let first = chain.kills_live();
            goes_on(chain);
            chain.comes(None, "");
            moment(random, 400);
            let mut images = chain.power_fails();
            images.push(first);
            images.dedup();
            images
        }
    }
}

/// The guest boots anew on the image of the side that lived last; the others are refused.
#[track_caller]
fn recovers(chain: &Chain, disks: Disks, images: &[PathBuf], guest: &str) -> (Side, bool) {
    if !disks.are_two() {
        return (chain.boots(&images[0], "", guest), false);
    }
    let stamps: Vec<_> = images.iter().map(|image| stamp(image)).collect();
    let last = (0..images.len()).filter(|&at| stamps[at].0 == "live").max_by_key(|&at| stamps[at].1);
    let last = last.unwrap_or_else(|| panic!("nobody's image is the VM's: {stamps:?}"));
    for (at, image) in images.iter().enumerate().filter(|&(at, _)| at != last) {
        let words = ["copy that a backup kept", "stale", "unfinished copy"];
        assert!(refused(chain, image, guest, &words), "{stamps:?}: {at} must not be used");
    }
    // A backup that had won the VM and died before it changed anything: nobody can tell from the images.
    let claimed = chain.register();
    if claimed > stamps[last].1 {
        assert!(refused(chain, &images[last], guest, &["stale"]), "generation {claimed}: {stamps:?}");
        return (chain.boots(&images[last], ",force", guest), true);
    }
    (chain.boots(&images[last], "", guest), false)
}

/// Whether nothing boots on this image, for one of these reasons. Then nothing has changed.
fn refused(chain: &Chain, image: &Path, guest: &str, reasons: &[&str]) -> bool {
    let stamp = || std::fs::read(format!("{}.lockstep", image.display())).expect("the stamp");
    let before = stamp();
    let mut side = chain.boots(image, "", guest);
    let boots = eventually("it boots, or is refused", || {
        let boots = side.said().iter().any(|line| line.contains("logging channel"));
        (boots || side.status().is_some()).then_some(boots)
    });
    if boots {
        return false;
    }
    assert_eq!(side.ends().code(), Some(1));
    assert!(side.said().iter().any(|line| reasons.iter().any(|reason| line.contains(reason))), "{:?}", side.said());
    assert_eq!(stamp(), before, "the stamp has changed");
    true
}

/// Rounds of each test: `LOCKSTEP_ROUNDS`, or the short version's.
fn rounds(short: u64) -> impl Iterator<Item = (u64, Disks, Failure)> {
    let all = count_from("LOCKSTEP_ROUNDS", short);
    // Every failure with every kind of disk, in nine rounds; each kind of both in the first three.
    (0..all).map(|round| (round, DISKS[(round + round / 3) as usize % 3], FAILURES[round as usize % 3]))
}

#[test]
fn acknowledged_writes_survive_the_death_of_both_hosts() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut calls, mut all, mut undecided) = (0, 0, 0);
    let guest = "kv persist=1";
    for (round, disks, failure) in rounds(3) {
        println!("seed {seed} round {round}: {failure:?}, {disks:?}");
        let mut chain = start(Some(Site::up()), disks, failure, guest, &mut random);
        let crowd = Crowd::gather(SERVER, &chain.site().client(), 8, &mut random);
        crowd.goes_on(5);
        crowd.work_for(Duration::from_micros(random.below(500_000)));
        let images = fail(&mut chain, failure, &mut random, |_| crowd.goes_on(3));
        let orphans = crowd.gives_up();
        (all, calls) = (all + 1, calls + orphans.calls);
        let (mut anew, forced) = recovers(&chain, disks, &images, guest);
        undecided += u64::from(forced);
        orphans.find_everything();
        assert_eq!(anew.status(), None, "{:?}", anew.said());
    }
    println!("{all} power failures of kv, {calls} calls, every acknowledged write is there ({undecided} with force)");
}

#[test]
fn the_torture_finds_after_it_what_it_had_flushed() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut all, mut operations, mut undecided) = (0, 0, 0);
    for (round, disks, failure) in rounds(3) {
        println!("seed {seed} round {round}: {failure:?}, {disks:?}");
        let (depth, plan) = (16 + random.below(48), random.below(1 << 30));
        let same = format!("size=8388608 seed={plan}");
        let guest = format!("disk operations=0 report=200 overlap=1 depth={depth} {same}");
        let mut chain = start(None, disks, failure, &guest, &mut random);
        chain.goes_on(400);
        moment(&mut random, 500);
        let images = fail(&mut chain, failure, &mut random, |chain| chain.goes_on(200));
        (all, operations) = (all + 1, operations + chain.operations());
        let (mut anew, forced) = recovers(&chain, disks, &images, &format!("disk verify {same}"));
        undecided += u64::from(forced);
        assert_eq!(anew.ends().code(), Some(0), "the disk is not what was flushed: {:?}", anew.said());
    }
    println!(
        "{all} power failures of the torture, at least {operations} operations, all right ({undecided} with force)"
    );
}
