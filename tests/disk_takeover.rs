//! Promise: a disk outlives its host. Whatever a guest has asked for at the moment at which the machine changes hands is carried out, once as far as the guest can tell;
//! what its dead host had not been allowed to change is as if it had never been asked for; and the next backup starts from the same disk. Chains of deaths, new backups and
//! planned switches under random load, with shared and with separate images, held against a model of the disk.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

#[path = "disk/guest.rs"]
mod guest;
#[path = "disk/host.rs"]
mod host;
#[path = "disk/pair.rs"]
mod pair;

use lockstep::console::hub::Protection;
use lockstep::disk::DiskError;
use lockstep::doors::{Disk, DiskReplayError};
use lockstep::machine::blocks::{Ask, Completion, Outcome, Request};

use host::Host;
use pair::Pair;

fn chain(settings: &str, seeds: std::ops::Range<u64>) {
    let mut completed = 0;
    for seed in seeds {
        let mut pair = Pair::new(settings, seed);
        for round in 0..6 {
            (0..60).for_each(|_| pair.step());
            pair.take_backup();
            (0..150).for_each(|_| pair.step());
            if round % 3 == 2 {
                pair.switch();
                (0..100).for_each(|_| pair.step());
            }
            if round < 5 || seed % 2 == 0 {
                pair.fail_over();
            }
        }
        completed += pair.completed();
        pair.finish();
    }
    assert!(completed > 1000, "that was hardly a load: {completed}");
}

#[test]
fn a_shared_image() {
    chain(",cache=writeback", 0..15);
}

#[test]
fn a_shared_image_past_the_hosts_memory() {
    chain(",cache=none,faults=seed:1+delay:0.2@200+short:0.2", 0..6);
}

#[test]
fn a_shared_image_that_the_backup_reads_by_itself() {
    chain(",cache=writeback,reads=backup", 0..15);
}

#[test]
fn separate_images() {
    chain(",mode=separate", 0..15);
}

#[test]
fn separate_images_with_reads_of_their_own() {
    chain(",mode=separate,reads=backup,faults=seed:3+delay:0.1@200+short:0.2", 0..10);
}

fn write(id: u64, sector: u64, byte: u8) -> Request {
    Request { id, ask: Ask::Write { sector, data: vec![byte; 512] } }
}

#[test]
fn what_the_log_says_is_done_is_not_done_again_and_the_rest_is_done_once() {
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 64);
    let backup = Host::open(&path, ",cache=writeback").unwrap();
    backup.port.fit(&backup.port.config()).unwrap();
    backup.port.replayed(0, &mut vec![write(0, 0, 1), write(1, 1, 2)]);
    backup.port.replayed_completed(1, &mut vec![Completion { id: 0, outcome: Outcome::Done }]).unwrap();
    backup.port.go_live(2, Protection::Unprotected).unwrap();
    assert_eq!(backup.wait(), [Completion { id: 1, outcome: Outcome::Done }]);
    assert!(backup.port.take().is_none());
    let found = std::fs::read(&path).unwrap();
    assert_eq!((found[0], found[512]), (0, 2), "the first was the dead host's to do");
    assert_eq!(backup.port.counters().writes, 1);
}

#[test]
fn a_log_that_speaks_of_what_was_not_asked_for_is_refused() {
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 64);
    let backup = Host::open(&path, ",cache=writeback,reads=backup").unwrap();
    backup.port.fit(&backup.port.config()).unwrap();
    backup.port.replayed(0, &mut vec![Request { id: 0, ask: Ask::Read { sector: 0, bytes: 512 } }, write(1, 4, 1)]);
    let mut other = vec![Completion { id: 2, outcome: Outcome::Done }];
    assert!(matches!(backup.port.replayed_completed(1, &mut other), Err(DiskReplayError::NoSuchRequest(2))));
    let mut wrong = vec![Completion { id: 0, outcome: Outcome::ReadElsewhere { bytes: 512, check: 7 } }];
    assert!(matches!(backup.port.replayed_completed(1, &mut wrong), Err(DiskReplayError::OtherBytes(0))));
    // A read behind a change of which the log has not said that it is done cannot have been made.
    backup.port.replayed(1, &mut vec![Request { id: 2, ask: Ask::Read { sector: 4, bytes: 512 } }]);
    let mut early = vec![Completion { id: 2, outcome: Outcome::ReadElsewhere { bytes: 512, check: 7 } }];
    assert!(matches!(backup.port.replayed_completed(2, &mut early), Err(DiskReplayError::OtherBytes(2))));
}

#[test]
fn a_backup_whose_image_fails_where_the_primarys_did_not_may_not_go_live() {
    let directory = host::directory();
    let primary = Host::open(&host::image(directory.path(), "a.img", 64), ",mode=separate").unwrap();
    let path = host::image(directory.path(), "b.img", 64);
    let backup = Host::open(&path, ",mode=separate,faults=full:1").unwrap();
    backup.port.fit(&primary.port.config()).unwrap();
    backup.port.begin_receiving().unwrap();
    backup.port.copied(1).unwrap();
    backup.port.replayed(0, &mut vec![write(0, 0, 1)]);
    backup.port.replayed_completed(1, &mut vec![Completion { id: 0, outcome: Outcome::Done }]).unwrap();
    assert!(matches!(backup.port.go_live(2, Protection::Unprotected), Err(DiskError::Broken { .. })));
    assert!(matches!(backup.port.broken(), Some(DiskError::Broken { .. })));
    drop(backup);
    let again = Host::open(&path, ",mode=separate").unwrap();
    assert!(again.port.check_generation(Some(1)).is_err());
    assert!(matches!(again.port.go_live(2, Protection::Unprotected), Err(DiskError::Following { .. })));
}
