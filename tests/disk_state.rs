//! Promise: a guest with a disk goes on in another machine from any instant, also while its requests are in flight: the new machine makes exactly those
//! again, with the data that the first one wrote, and the rest of the log leads to the logged digests.
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

mod recording;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockstep::doors::{Disk, DiskReplayError};
use lockstep::machine::blocks::{Ask, Completions, Request, Requests};
use lockstep::machine::doors::EndReason;
use lockstep::machine::snapshot::Boot;
use recording::disk::{CONFIG, Manner, SlowDisk};
use recording::machine::{Recording, boot, digests, read_log, record_with};
use recording::moving::replay_moving_with;

/// Knows what was asked for and has not come to its end.
#[derive(Default)]
struct Ledger(Mutex<BTreeMap<u64, Request>>);

impl Ledger {
    fn open(&self) -> Requests {
        self.0.lock().expect("no thread panics while it holds this lock").values().cloned().collect()
    }
}

impl Disk for Ledger {
    fn submit(&self, _: u64, _: Requests) {
        unreachable!("this disk is a replay's")
    }

    fn take(&self) -> Option<Completions> {
        None
    }

    fn replayed(&self, _: u64, requests: &mut Requests) {
        let mut open = self.0.lock().expect("no thread panics while it holds this lock");
        open.extend(requests.iter().map(|request| (request.id, request.clone())));
    }

    fn replayed_completed(&self, _: u64, completions: &mut Completions) -> Result<(), DiskReplayError> {
        let mut open = self.0.lock().expect("no thread panics while it holds this lock");
        completions.iter().for_each(|completion| {
            open.remove(&completion.id);
        });
        Ok(())
    }
}

#[test]
fn requests_in_flight_move_with_their_machine() {
    let seed = std::env::var("LOCKSTEP_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed: u64 = seed.unwrap_or_else(|| getrandom::u64().expect("a random number") >> 1);
    println!("LOCKSTEP_SEED={seed}");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("log");
    let line = format!("disk seed={} operations=500 depth=24 overlap=1 faults=1 size=4000000 hz=1000", seed % 10_000);
    let boot = Boot { disk: Some(CONFIG), ..boot(&line) };
    let manner = Manner { seed, slow_us: 2000, fails: 30, backup_reads: false };
    let how = Recording { digest_every: Duration::from_millis(2), ..Recording::default() };
    let recorded = record_with(&boot, &file, how, |world| Arc::new(SlowDisk::start(world, manner)));
    assert_eq!(recorded.end.as_ref().ok(), Some(&EndReason::Exit(0)), "{recorded:?}");

    let ledger = Arc::new(Ledger::default());
    let (mut in_flight, mut writes, mut most) = (0, 0, 0);
    let (end, moves, tally, screen) = replay_moving_with(&file, seed, 20, ledger.clone(), |machine| {
        let open = ledger.open();
        let again = machine.disk_in_flight();
        let ids = |requests: &Requests| requests.iter().map(|request| request.id).collect::<Vec<_>>();
        assert!(again == open, "LOCKSTEP_SEED={seed}: {:?}, in flight are {:?}", ids(&again), ids(&open));
        in_flight += open.len();
        most = most.max(open.len());
        writes += open.iter().filter(|request| matches!(request.ask, Ask::Write { .. })).count();
    });
    println!("{moves:?}: {in_flight} requests in flight, {writes} of them writes, at most {most} at once");
    assert_eq!((end.as_ref().ok(), &screen), (recorded.end.as_ref().ok(), &recorded.screen), "{end:?}");
    assert_eq!(tally.digests, digests(&read_log(&file).1));
    assert!(moves.moves >= 10 && in_flight > 20 && writes > 5 && most > 1, "{moves:?} {in_flight} {writes} {most}");
    assert_eq!(ledger.open(), []);
}
