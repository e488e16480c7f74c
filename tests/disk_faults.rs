//! Promise: what goes wrong at the storage the guest hears as an error of the disk, and its backup hears the same; a disk that fails now and then never holds or gives back anything but what was
//! written; and what was flushed survives the death of the process, whatever else does not.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

#[path = "disk/host.rs"]
mod host;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use host::Host;
use lockstep::console::hub::Protection;
use lockstep::disk::faults::Dice;
use lockstep::doors::Disk;
use lockstep::machine::blocks::{Ask, Completion, Outcome, Request};

fn ask(disk: &Host, id: u64, ask: Ask) -> Outcome {
    disk.port.submit(id, vec![Request { id, ask }]);
    disk.wait().remove(0).outcome
}

fn write(sector: u64, byte: u8) -> Ask {
    Ask::Write { sector, data: vec![byte; 512] }
}

#[test]
fn an_error_is_told_to_the_guest_and_to_its_backup() {
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 64);
    let disk = Host::open(&path, ",cache=writeback,faults=seed:1+errors:1").unwrap();
    let backup = Host::open(&path, ",cache=writeback").unwrap();
    backup.port.fit(&disk.port.config()).unwrap();
    disk.port.go_live(1, Protection::Unprotected).unwrap();
    let asks = [write(0, 1), Ask::Read { sector: 0, bytes: 512 }, Ask::Flush, Ask::Discard { sector: 0, sectors: 8 }];
    for (id, what) in asks.into_iter().enumerate() {
        let id = id as u64;
        assert_eq!(ask(&disk, id, what.clone()), Outcome::Failed);
        backup.port.replayed(2 * id, &mut vec![Request { id, ask: what }]);
        let mut logged = vec![Completion { id, outcome: Outcome::Failed }];
        backup.port.replayed_completed(2 * id + 1, &mut logged).unwrap();
        assert_eq!(logged[0].outcome, Outcome::Failed);
    }
    assert_eq!(disk.port.counters().errors, 4);
    backup.port.go_live(2, Protection::Unprotected).unwrap();
    assert_eq!(backup.port.counters().in_flight, 0, "nothing of it is left to do");
}

#[test]
fn a_disk_that_fails_now_and_then_holds_what_was_written_and_nothing_else() {
    let directory = host::directory();
    for seed in 0..8 {
        println!("seed {seed}");
        let path = host::image(directory.path(), &format!("{seed}.img"), 16);
        let settings = format!(",cache=writeback,faults=seed:{seed}+errors:0.1+full:0.1+short:0.3+volatile");
        let disk = Host::open(&path, &settings).unwrap();
        disk.port.go_live(1, Protection::Unprotected).unwrap();
        let mut dice = Dice::new(seed);
        // What each sector may hold: the newest write that was done, and what has failed since.
        let mut may_hold = vec![vec![0u8]; 16];
        let mut failed = 0;
        for id in 0..800 {
            let sector = dice.below(16);
            let may_hold = &mut may_hold[sector as usize];
            let byte = id as u8;
            match dice.below(3) {
                0 => match ask(&disk, id, write(sector, byte)) {
                    Outcome::Done => *may_hold = vec![byte],
                    outcome => {
                        assert_eq!(outcome, Outcome::Failed);
                        may_hold.push(byte);
                        failed += 1;
                    }
                },
                1 => match ask(&disk, id, Ask::Read { sector, bytes: 512 }) {
                    Outcome::Read(bytes) => {
                        assert!(bytes.iter().all(|other| *other == bytes[0]) && may_hold.contains(&bytes[0]));
                        *may_hold = vec![bytes[0]];
                    }
                    outcome => assert_eq!(outcome, Outcome::Failed),
                },
                _ => assert!(matches!(ask(&disk, id, Ask::Flush), Outcome::Done | Outcome::Failed)),
            }
        }
        assert!(failed > 10, "that was hardly a disk that fails");
    }
}

/// Set for the process that is killed: the image.
const VICTIM: &str = "LOCKSTEP_TEST_VICTIM";

#[test]
fn what_was_flushed_survives_the_death_of_the_process() {
    if let Some(path) = std::env::var_os(VICTIM) {
        return die_here(Path::new(&path));
    }
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", 64);
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_was_flushed_survives_the_death_of_the_process", "--nocapture"])
        .env(VICTIM, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let written = lines.any(|line| line.unwrap().contains("written"));
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(written);
    let found = std::fs::read(&path).unwrap();
    assert_eq!((found[0], found[512], found[1024]), (1, 0, 3), "flushed; not flushed; flushed");
    // Its lock is gone with it, and its image may go on.
    let again = Host::open(&path, ",mode=separate").unwrap();
    again.port.check_generation(Some(1)).unwrap();
    again.port.go_live(2, Protection::Unprotected).unwrap();
}

fn die_here(path: &Path) {
    let disk = Host::open(path, ",mode=separate,faults=seed:1+volatile").unwrap();
    disk.port.go_live(1, Protection::Unprotected).unwrap();
    assert_eq!(ask(&disk, 0, write(0, 1)), Outcome::Done);
    assert_eq!(ask(&disk, 1, write(2, 3)), Outcome::Done);
    assert_eq!(ask(&disk, 2, Ask::Flush), Outcome::Done);
    assert_eq!(ask(&disk, 3, write(1, 2)), Outcome::Done);
    println!("written");
    // Until the parent kills it, or is gone itself.
    let _ = std::io::stdin().lines().next();
    std::thread::park_timeout(std::time::Duration::from_secs(60));
}
