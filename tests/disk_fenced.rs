//! Promise: a host that has lost a shared image changes it no more, whatever it was about to do and whenever it wakes: not with the writes that were released to it, and not with a stamp
//! that it comes to put too late. Nobody changes a shared image before his stamp was put.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

#[path = "disk/host.rs"]
mod host;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use host::{Host, spec};
use lockstep::console::hub::Protection;
use lockstep::disk::fence::Fences;
use lockstep::disk::open::Owner;
use lockstep::disk::port::DiskPort;
use lockstep::disk::spec::Mode;
use lockstep::disk::stamp::Stamp;
use lockstep::doors::Disk;
use lockstep::machine::blocks::{Ask, Request};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const SHARED: &str = ",cache=writeback";

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One test at a time: a process that one of them starts has, for a moment, the locks of images that the others have open.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every kind of change, on sectors of their own: what the old primary was about to do.
fn changes() -> Vec<Ask> {
    vec![
        Ask::Write { sector: 0, data: vec![1; 4096] },
        Ask::Write { sector: 16, data: vec![1; 512] },
        Ask::Discard { sector: 32, sectors: 8 },
        Ask::WriteZeroes { sector: 48, sectors: 8, may_unmap: true },
        Ask::WriteZeroes { sector: 64, sectors: 8, may_unmap: false },
    ]
}

fn requests(from: u64, asks: Vec<Ask>) -> Vec<Request> {
    asks.into_iter().enumerate().map(|(at, ask)| Request { id: from + at as u64, ask }).collect()
}

/// What the guest does to the same sectors once it lives elsewhere.
fn over_them() -> Vec<Ask> {
    [0, 16, 32, 48, 64].map(|sector| Ask::Write { sector, data: vec![9; 4096] }).into()
}

/// The body of a primary that is stopped with released changes in its hands, right before it comes to look whether it may make them; by itself, one that is not stopped.
#[test]
fn a_primary_with_released_changes() {
    let _turn = turn();
    let own = host::directory();
    let image = std::env::var("SLEEPER_IMAGE").ok();
    let path = image.clone().map_or_else(|| host::image(own.path(), "a.img", 128), Into::into);
    let disk = Host::open(&path, SHARED).unwrap();
    disk.port.go_live(1, Protection::HeldFrom(0)).unwrap();
    // Its stamp was put: an earlier change has been made.
    disk.port.release(1);
    disk.port.submit(0, requests(0, vec![Ask::Write { sector: 120, data: vec![1; 512] }]));
    assert_eq!(disk.wait().len(), 1);
    // The clock is what keeps these back. So when it is given time, the next thing that it looks at is its stamp.
    disk.port.set_lease(0);
    disk.port.submit(1, requests(1, changes()));
    disk.port.release(2);
    if image.is_some() {
        println!("stops");
        raise(Signal::SIGSTOP).unwrap();
    }
    disk.port.set_lease(u64::MAX);
    let end = eventually("it has made its changes, or lost", || {
        let made = disk.port.counters().writes + disk.port.counters().cleared;
        disk.port.lost().map(Some).or((made == 6).then_some(None))
    });
    println!("\nmade {} lost {end:?}", disk.port.counters().writes + disk.port.counters().cleared - 1);
    if image.is_none() {
        assert_eq!(end, None);
    }
}

fn sleeper(image: &Path) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_primary_with_released_changes", "--nocapture"])
        .env("SLEEPER_IMAGE", image)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stopped = waitpid(Pid::from_raw(child.id() as i32), Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{stopped:?}");
    child
}

#[test]
fn a_primary_stopped_with_released_changes_makes_none_of_them_when_its_survivor_is_live() {
    let _turn = turn();
    for round in 0..4 {
        let directory = host::directory();
        let path = host::image(directory.path(), "a.img", 128);
        let mut old = sleeper(&path);
        // Its backup has all of it.
        let backup = Host::open(&path, SHARED).unwrap();
        backup.port.fit(&backup.port.config()).unwrap();
        backup.port.replayed(1, &mut requests(1, changes()));
        backup.port.go_live(2, Protection::Unprotected).unwrap();
        let mut done = 0;
        while done < changes().len() {
            done += backup.wait().len();
        }
        backup.port.submit(2, requests(10, over_them()));
        while done < changes().len() + over_them().len() {
            done += backup.wait().len();
        }
        let before = std::fs::read(&path).unwrap();
        assert!(before[..4096].iter().all(|byte| *byte == 9));
        kill(Pid::from_raw(old.id() as i32), Signal::SIGCONT).unwrap();
        let said: Vec<String> = BufReader::new(old.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
        assert!(old.wait().unwrap().success());
        assert!(said.contains(&"made 0 lost Some(2)".into()), "round {round}: {said:?}");
        assert!(std::fs::read(&path).unwrap() == before, "round {round}: it has changed the image");
        assert_eq!(backup.port.lost(), None);
    }
}

#[test]
fn who_comes_too_late_with_his_stamp_takes_nothing_from_whoever_is_live() {
    let _turn = turn();
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 128);
    let (old, heir) = (Host::open(&path, SHARED).unwrap(), Host::open(&path, SHARED).unwrap());
    old.port.go_live(1, Protection::Unprotected).unwrap();
    heir.port.fit(&heir.port.config()).unwrap();
    heir.port.replayed(0, &mut requests(0, changes()));
    // The heir has won generation 2 and is slow; the old one has won 3, and goes on.
    old.port.quiesce();
    old.port.go_live(3, Protection::Unprotected).unwrap();
    old.port.submit(1, requests(20, over_them()));
    let mut done = 0;
    while done < over_them().len() {
        done += old.wait().len();
    }
    let before = std::fs::read(&path).unwrap();
    heir.port.go_live(2, Protection::Unprotected).unwrap();
    assert_eq!(eventually("it has lost", || heir.port.lost()), 3);
    assert!(std::fs::read(&path).unwrap() == before);
    // And as if nothing had happened.
    old.port.submit(2, requests(40, vec![Ask::Write { sector: 0, data: vec![7; 512] }]));
    assert_eq!(old.wait().len(), 1);
    assert_eq!((old.port.lost(), heir.port.counters().writes), (None, 0));
    // A host that was a loser may be a backup again, and the survivor of the one that it lost to.
    heir.port.fit(&heir.port.config()).unwrap();
    heir.port.replayed(3, &mut requests(50, vec![Ask::Write { sector: 8, data: vec![8; 512] }]));
    heir.port.go_live(4, Protection::Unprotected).unwrap();
    assert_eq!(heir.wait().len(), 1);
    assert_eq!(heir.port.lost(), None);
    old.port.submit(3, requests(60, vec![Ask::Write { sector: 0, data: vec![6; 512] }]));
    assert_eq!(eventually("the other one has lost", || old.port.lost()), 4);
}

#[test]
fn changes_wait_for_a_stamp_that_cannot_be_put_and_reads_do_not() {
    let _turn = turn();
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 128);
    let stamps = directory.path().join("stamps");
    std::fs::create_dir(&stamps).unwrap();
    let settings = format!("{SHARED},stamp={}", stamps.join("s").display());
    let disk = Host::open(&path, &settings).unwrap();
    let away = directory.path().join("away");
    std::fs::rename(&stamps, &away).unwrap();
    disk.port.go_live(1, Protection::Unprotected).unwrap();
    disk.port.submit(0, requests(0, vec![Ask::Write { sector: 0, data: vec![1; 512] }]));
    disk.port.submit(1, requests(1, vec![Ask::Read { sector: 512 / 8, bytes: 512 }]));
    assert_eq!(disk.wait()[0].id, 1);
    for id in 2..30 {
        // Too long for the vCPU thread: the disk's threads make it, and look at the write before.
        disk.port.submit(id, requests(id, vec![Ask::Read { sector: 1, bytes: 60 << 10 }]));
        assert_eq!(disk.wait()[0].id, id);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(disk.port.counters().held, 1);
    assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    std::fs::rename(&away, &stamps).unwrap();
    assert_eq!(disk.wait()[0].id, 0);
    assert_eq!(Fences::of(&stamps.join("s")).newest().unwrap().unwrap().1.generation, 1);
}

#[test]
fn an_image_that_is_no_longer_shared_has_one_stamp_that_says_the_same() {
    let _turn = turn();
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 128);
    let stamp = directory.path().join("a.img.lockstep");
    let fences = Fences::of(&stamp);
    for generation in [3, 4] {
        let disk = Host::open(&path, SHARED).unwrap();
        disk.port.go_live(generation, Protection::Unprotected).unwrap();
        disk.port.submit(0, requests(0, vec![Ask::Write { sector: 0, data: vec![1; 512] }]));
        assert_eq!(disk.wait().len(), 1);
        assert!(!fences.newest().unwrap().unwrap().1.clean);
        disk.port.ended().unwrap();
    }
    let (_, newest) = fences.newest().unwrap().unwrap();
    assert_eq!((newest.generation, newest.clean, newest.mode), (4, true, Mode::Shared));
    // For one host alone: the same disk to the guest, and not stale.
    let before = Host::open(&path, SHARED).unwrap().port.config();
    let alone = Host::open(&path, ",mode=separate").unwrap();
    assert_eq!((alone.port.config().serial, fences.newest().unwrap()), (before.serial, None));
    assert_eq!(Stamp::read(&stamp).unwrap(), Some(newest));
    alone.port.check_generation(Some(4)).unwrap();
    assert!(alone.port.check_generation(Some(5)).is_err());
    drop(alone);
    // A process that has lost its lock (a network file system's server may break that of a host that is cut off) has lost its right with it.
    let old = Host::open(&path, SHARED).unwrap();
    old.port.go_live(5, Protection::Unprotected).unwrap();
    old.port.submit(0, requests(0, vec![Ask::Write { sector: 0, data: vec![2; 512] }]));
    assert_eq!(old.wait().len(), 1);
    fences.clear().unwrap();
    old.port.submit(1, requests(1, vec![Ask::Write { sector: 0, data: vec![3; 512] }]));
    eventually("it has lost", || old.port.lost());
    assert_eq!(std::fs::read(&path).unwrap()[0], 2);
}

#[test]
fn a_damaged_newest_stamp_is_not_passed_over() {
    let _turn = turn();
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 128);
    let disk = Host::open(&path, SHARED).unwrap();
    disk.port.go_live(1, Protection::Unprotected).unwrap();
    disk.port.submit(0, requests(0, vec![Ask::Write { sector: 0, data: vec![1; 512] }]));
    assert_eq!(disk.wait().len(), 1);
    drop(disk);
    std::fs::write(directory.path().join("a.img.lockstep.1"), "{}").unwrap();
    let open = |settings: &str| DiskPort::open_for(&spec(&path, settings), Owner::Pair("vm"));
    assert!(open(SHARED).is_err());
    drop(open(&format!("{SHARED},force")).unwrap());
    drop(open(SHARED).unwrap());
}
