//! Promise: no change reaches a shared image before its entry is released, while it is on hold, without a lease, or from a host that is not live; what waits keeps back what overlaps it, and
//! nothing else; and with `reads=backup` no change overtakes a read that the backup has yet to make. Changes of a separate image wait for nothing.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

#[path = "disk/host.rs"]
mod host;

use std::path::{Path, PathBuf};

use host::Host;
use lockstep::backends::clock::boot_clock_ns;
use lockstep::console::hub::Protection;
use lockstep::doors::Disk;
use lockstep::machine::blocks::{Ask, Completion, Outcome, Request};

/// Read to know that everything before it has been looked at: too long for the vCPU thread, so the disk's threads make it, and they look at requests in
/// order.
const PROBE: Ask = Ask::Read { sector: 512, bytes: 128 << 10 };

struct Disks {
    _directory: tempfile::TempDir,
    path: PathBuf,
    host: Host,
    next: u64,
}

impl Disks {
    fn new(settings: &str) -> Self {
        let directory = host::directory();
        let path = host::image(directory.path(), "a.img", 2048);
        let host = Host::open(&path, settings).unwrap();
        Disks { _directory: directory, path, host, next: 0 }
    }

    fn ask(&mut self, entry: u64, ask: Ask) -> u64 {
        let id = self.next;
        self.next += 1;
        self.host.port.submit(entry, vec![Request { id, ask }]);
        id
    }

    fn write(&mut self, entry: u64, sector: u64) -> u64 {
        self.ask(entry, Ask::Write { sector, data: vec![7; 512] })
    }

    fn done(&self) -> Vec<u64> {
        self.host.wait().into_iter().map(|completion: Completion| completion.id).collect()
    }

    /// What is done by now is nothing but a probe's end.
    fn nothing_but_a_probe(&mut self) {
        for _ in 0..8 {
            let probe = self.ask(0, PROBE);
            assert_eq!(self.done(), [probe], "something was done that had to wait");
        }
    }
}

fn byte(path: &Path, sector: u64) -> u8 {
    std::fs::read(path).unwrap()[sector as usize * 512]
}

#[test]
fn a_change_waits_for_its_own_entry() {
    let mut disk = Disks::new(",cache=writeback");
    disk.host.port.go_live(1, Protection::HeldFrom(0)).unwrap();
    let (first, second) = (disk.write(3, 0), disk.write(4, 1));
    let cleared = disk.ask(5, Ask::WriteZeroes { sector: 8, sectors: 8, may_unmap: true });
    disk.nothing_but_a_probe();
    assert_eq!(disk.host.port.counters().held, 3);
    disk.host.port.release(3);
    disk.nothing_but_a_probe();
    assert_eq!(byte(&disk.path, 0), 0);
    disk.host.port.release(4);
    assert_eq!(disk.done(), [first]);
    assert_eq!((byte(&disk.path, 0), byte(&disk.path, 1)), (7, 0));
    disk.nothing_but_a_probe();
    // Without a backup nothing waits any more, and with the next one it does again.
    disk.host.port.set_protection(Protection::Unprotected);
    let mut both = disk.done();
    while both.len() < 2 {
        both.extend(disk.done());
    }
    both.sort_unstable();
    assert_eq!(both, [second, cleared]);
    disk.host.port.set_protection(Protection::HeldFrom(9));
    let (before, after) = (disk.write(8, 2), disk.write(9, 3));
    assert_eq!(disk.done(), [before]);
    disk.nothing_but_a_probe();
    disk.host.port.release(10);
    assert_eq!(disk.done(), [after]);
}

#[test]
fn a_change_waits_for_the_end_of_a_hold_and_for_a_lease() {
    let mut disk = Disks::new(",cache=writeback");
    disk.host.port.go_live(1, Protection::HeldFrom(0)).unwrap();
    disk.host.port.release(10);
    disk.host.port.hold();
    let held = disk.write(5, 0);
    disk.nothing_but_a_probe();
    disk.host.port.release(10);
    assert_eq!(disk.done(), [held]);
    disk.host.port.set_lease(boot_clock_ns().saturating_sub(1));
    let late = disk.write(6, 1);
    disk.nothing_but_a_probe();
    assert_eq!(byte(&disk.path, 1), 0);
    disk.host.port.set_lease(u64::MAX);
    assert_eq!(disk.done(), [late]);
    assert_eq!(byte(&disk.path, 1), 7);
}

#[test]
fn what_waits_keeps_back_only_what_overlaps_it() {
    let mut disk = Disks::new(",cache=writeback");
    disk.host.port.go_live(1, Protection::HeldFrom(0)).unwrap();
    let write = disk.write(3, 4);
    let behind = disk.ask(4, Ask::Read { sector: 0, bytes: 4096 });
    let beside = disk.ask(5, Ask::Read { sector: 5, bytes: 4096 });
    let flush = disk.ask(6, Ask::Flush);
    let mut done = disk.done();
    while done.len() < 2 {
        done.extend(disk.done());
    }
    done.sort_unstable();
    assert_eq!(done, [beside, flush], "a flush covers what the guest has seen completed, and changes nothing");
    disk.nothing_but_a_probe();
    disk.host.port.release(4);
    let mut done = disk.host.wait();
    while done.len() < 2 {
        done.extend(disk.host.wait());
    }
    assert_eq!([done[0].id, done[1].id], [write, behind]);
    let Outcome::Read(bytes) = &done[1].outcome else { panic!("a read") };
    assert_eq!((bytes[4 * 512 - 1], bytes[4 * 512]), (0, 7));
}

#[test]
fn a_host_that_is_not_live_touches_nothing() {
    let mut disk = Disks::new(",cache=writeback");
    disk.host.port.fit(&disk.host.port.config()).unwrap();
    disk.host.port.replayed(0, &mut vec![Request { id: 0, ask: Ask::Write { sector: 0, data: vec![7; 512] } }]);
    disk.next = 1;
    disk.host.port.go_live(1, Protection::HeldFrom(0)).unwrap();
    // Entry 0 is not released.
    disk.nothing_but_a_probe();
    assert_eq!(byte(&disk.path, 0), 0);
    disk.host.port.quiesce();
    disk.host.port.release(100);
    disk.host.port.set_lease(u64::MAX);
    assert_eq!(disk.host.port.counters().writes, 0);
    assert!(disk.host.port.take().is_none());
    disk.host.port.go_live(2, Protection::Unprotected).unwrap();
    assert_eq!(disk.done(), [0]);
    disk.host.port.not_live();
    disk.host.port.submit(5, vec![Request { id: 100, ask: Ask::Write { sector: 3, data: vec![7; 512] } }]);
    disk.host.port.release(100);
    drop(disk.host);
    assert_eq!((byte(&disk.path, 0), byte(&disk.path, 3)), (7, 0));
}

#[test]
fn a_change_does_not_overtake_a_read_of_the_backups() {
    let mut disk = Disks::new(",cache=writeback,reads=backup");
    disk.host.port.go_live(1, Protection::HeldFrom(0)).unwrap();
    disk.host.port.release(u64::MAX);
    let read = disk.ask(0, Ask::Read { sector: 0, bytes: 1024 });
    let completions = disk.host.wait();
    assert!(disk.host.port.backup_reads() && completions[0].id == read);
    disk.host.port.completed(7, &completions);
    let (write, beside) = (disk.write(8, 1), disk.write(9, 2));
    assert_eq!(disk.done(), [beside]);
    disk.host.port.executed(7);
    disk.nothing_but_probes_of(&[write]);
    disk.host.port.executed(8);
    assert_eq!(disk.done(), [write]);
    // And one that is asked for while the read is still under way.
    let read = disk.ask(10, Ask::Read { sector: 4, bytes: 512 });
    let write = disk.write(11, 4);
    let completions = disk.host.wait();
    assert_eq!(completions[0].id, read);
    disk.host.port.completed(12, &completions);
    disk.nothing_but_probes_of(&[write]);
    // A backup that is gone reads nothing.
    disk.host.port.set_protection(Protection::Unprotected);
    assert_eq!(disk.done(), [write]);
    let read = disk.ask(20, Ask::Read { sector: 4, bytes: 512 });
    assert_eq!(disk.done(), [read]);
    assert!(!disk.host.port.backup_reads());
}

impl Disks {
    /// As [`nothing_but_a_probe`](Self::nothing_but_a_probe), where the backup has to make probes, too.
    fn nothing_but_probes_of(&mut self, waiting: &[u64]) {
        for _ in 0..8 {
            let probe = self.ask(0, PROBE);
            let completions = self.host.wait();
            assert_eq!(
                completions.iter().map(|completion| completion.id).collect::<Vec<_>>(),
                [probe],
                "{waiting:?} had to wait"
            );
            self.host.port.completed(0, &completions);
        }
    }
}

#[test]
fn a_separate_image_is_changed_at_once() {
    let mut disk = Disks::new(",mode=separate");
    disk.host.port.go_live(1, Protection::HeldFrom(0)).unwrap();
    disk.host.port.hold();
    let write = disk.write(3, 0);
    assert_eq!(disk.done(), [write]);
    assert_eq!(byte(&disk.path, 0), 7);
}
