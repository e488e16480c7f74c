//! Promise: of all that claim a generation in a register file, exactly one wins, whatever dies in between,
//! and a damaged register is never taken for an empty one.

use lockstep::arbiter::register::{Flaw, RegisterFile};
use lockstep::arbiter::{Arbiter, ArbiterError, Claim, Verdict};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use tempfile::TempDir;

const VM: &str = "vm";

fn claim(generation: u64, host: u64) -> Claim {
    Claim { generation, host, host_name: format!("host {host}"), shared_with: None }
}

fn fresh() -> (TempDir, RegisterFile) {
    let directory = tempfile::tempdir().unwrap();
    let register = RegisterFile::open(directory.path()).unwrap();
    (directory, register)
}

/// Claims the generations 1 to `last` one after the other, whoever won the one before; returns those it won.
fn contend(register: &RegisterFile, host: u64, last: u64) -> Vec<u64> {
    let expected = |generation: u64| (generation > 1).then(|| generation - 1);
    (1..=last)
        .filter(|&generation| {
            match register.compare_and_set(VM, expected(generation), &claim(generation, host)).unwrap() {
                Verdict::Won => true,
                Verdict::Lost(holder) => {
                    assert!(holder.unwrap().generation >= generation, "lost to nobody");
                    false
                }
            }
        })
        .collect()
}

#[test]
fn one_thread_wins_each_generation() {
    let (_directory, register) = fresh();
    let (hosts, last) = (8, 40);
    let barrier = Barrier::new(hosts);
    let mut won: Vec<u64> = std::thread::scope(|scope| {
        let contenders: Vec<_> = (0..hosts as u64)
            .map(|host| {
                let (barrier, register) = (&barrier, &register);
                scope.spawn(move || {
                    barrier.wait();
                    contend(register, host, last)
                })
            })
            .collect();
        contenders.into_iter().flat_map(|contender| contender.join().unwrap()).collect()
    });
    won.sort_unstable();
    assert_eq!(won, (1..=last).collect::<Vec<_>>());
}

/// The body of a contending process; by itself, a contender without a rival. Prints what it has won as it goes.
#[test]
fn a_contender_claims_generation_after_generation() {
    let (own, _) = fresh();
    let read = |name| std::env::var(name).ok();
    let directory = read("CONTENDER_DIRECTORY").unwrap_or(own.path().display().to_string());
    let host = read("CONTENDER_HOST").map_or(1, |host| host.parse().unwrap());
    let last = read("CONTENDER_LAST").map_or(3, |last| last.parse().unwrap());
    let register = RegisterFile::open(Path::new(&directory)).unwrap();
    let won = contend(&register, host, last);
    println!("won {won:?}");
    if read("CONTENDER_DIRECTORY").is_none() {
        assert_eq!(won, [1, 2, 3]);
    }
}

fn contender(directory: &Path, host: u64, last: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_contender_claims_generation_after_generation", "--nocapture"])
        .env("CONTENDER_DIRECTORY", directory)
        .env("CONTENDER_HOST", host.to_string())
        .env("CONTENDER_LAST", last.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn one_process_wins_each_generation() {
    let (directory, register) = fresh();
    let last = 60;
    let contenders: Vec<Child> = (0..6).map(|host| contender(directory.path(), host, last)).collect();
    let mut won = Vec::new();
    for contender in contenders {
        let output = contender.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let list = text.split_once("won [").unwrap().1.split_once(']').unwrap().0;
        won.extend(list.split(", ").filter(|number| !number.is_empty()).map(|number| number.parse::<u64>().unwrap()));
    }
    won.sort_unstable();
    assert_eq!(won, (1..=last).collect::<Vec<_>>());
    assert_eq!(register.read(VM).unwrap().unwrap().generation, last);
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_register_that_works() {
    let (directory, register) = fresh();
    let mut before = 0;
    for round in 0..30u64 {
        let mut writer = contender(directory.path(), round, u64::MAX - 1);
        // Killed once it has got some way into this round, at no particular point of a write.
        let reached = loop {
            let generation = register.read(VM).unwrap().map_or(0, |claim| claim.generation);
            if generation >= before + 3 + round % 5 || writer.try_wait().unwrap().is_some() {
                break generation;
            }
            std::thread::yield_now();
        };
        writer.kill().unwrap();
        writer.wait().unwrap();
        let held = register.read(VM).unwrap().expect("a register was there before");
        assert!(held.generation >= reached, "{} after {reached}", held.generation);
        let next = claim(held.generation + 1, 1000 + round);
        assert_eq!(register.compare_and_set(VM, Some(held.generation), &next).unwrap(), Verdict::Won);
        before = held.generation + 1;
    }
    assert!(before >= 90, "the writers wrote nothing");
}

/// The states in which a crash between the write and the rename leaves the directory: the new file whole, torn, empty.
#[test]
fn what_was_written_and_not_renamed_does_not_count() {
    let whole = {
        let (_directory, register) = fresh();
        register.compare_and_set(VM, None, &claim(2, 22)).unwrap();
        fs::read(register.path(VM).unwrap()).unwrap()
    };
    for left in [&whole[..], &whole[..whole.len() / 2], b""] {
        let (directory, register) = fresh();
        register.compare_and_set(VM, None, &claim(1, 11)).unwrap();
        fs::write(directory.path().join("vm.new"), left).unwrap();
        assert_eq!(register.read(VM).unwrap(), Some(claim(1, 11)));
        assert_eq!(register.compare_and_set(VM, Some(1), &claim(2, 33)).unwrap(), Verdict::Won);
        assert_eq!(register.read(VM).unwrap(), Some(claim(2, 33)));
    }
}

#[test]
fn the_same_claim_again_has_won_and_another_has_lost() {
    let (_directory, register) = fresh();
    assert_eq!(register.read(VM).unwrap(), None);
    let mine = claim(5, 1);
    for _ in 0..3 {
        assert_eq!(register.compare_and_set(VM, None, &mine).unwrap(), Verdict::Won);
    }
    let lost = Verdict::Lost(Some(mine.clone()));
    assert_eq!(register.compare_and_set(VM, None, &claim(5, 2)).unwrap(), lost, "same generation, other host");
    assert_eq!(register.compare_and_set(VM, Some(4), &claim(6, 1)).unwrap(), lost, "same host, other generation");
    assert_eq!(register.compare_and_set("other", Some(4), &claim(5, 1)).unwrap(), Verdict::Lost(None));
    assert!(matches!(
        register.compare_and_set(VM, Some(5), &claim(5, 1)),
        Err(ArbiterError::Order { expected: 5, claimed: 5 })
    ));
}

fn flaw(register: &RegisterFile, bytes: &[u8]) -> Flaw {
    fs::write(register.path(VM).unwrap(), bytes).unwrap();
    let held = fs::read(register.path(VM).unwrap()).unwrap();
    let Err(ArbiterError::Corrupt { flaw, .. }) = register.compare_and_set(VM, None, &claim(1, 1)) else {
        panic!("a damaged register was taken for a register")
    };
    assert!(matches!(register.compare_and_set(VM, Some(1), &claim(2, 1)), Err(ArbiterError::Corrupt { .. })));
    assert_eq!(fs::read(register.path(VM).unwrap()).unwrap(), held, "a damaged register was written over");
    flaw
}

#[test]
fn a_generation_won_for_two_is_told_from_one_won_alone() {
    let (_directory, register) = fresh();
    let shared = Claim { shared_with: Some(7), ..claim(3, 0xabc) };
    assert_eq!(register.compare_and_set(VM, None, &shared).unwrap(), Verdict::Won);
    assert_eq!(register.read(VM).unwrap(), Some(shared.clone()));
    assert_eq!(register.compare_and_set(VM, None, &shared).unwrap(), Verdict::Won, "asked again");
    let alone = register.compare_and_set(VM, None, &claim(3, 0xabc)).unwrap();
    assert_eq!(alone, Verdict::Lost(Some(shared)));
}

#[test]
fn a_damaged_register_is_a_named_error_and_stays_as_it_is() {
    let (_directory, register) = fresh();
    register.compare_and_set(VM, None, &claim(3, 0xabc)).unwrap();
    let path = register.path(VM).unwrap();
    let good = fs::read(&path).unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    assert!(
        text.starts_with(
            "lockstep register 1\nvm vm\ngeneration 3\nhost 0000000000000abc\nhost-name host 2748\ncheck "
        )
    );

    for cut in 0..good.len() {
        assert_eq!(flaw(&register, &good[..cut]), Flaw::Checksum, "cut to {cut} bytes");
    }
    for at in 0..good.len() {
        for bit in 0..7 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            flaw(&register, &bad);
        }
    }
    assert_eq!(flaw(&register, &[0xff; 20]), Flaw::Text);
    assert_eq!(flaw(&register, &[b'x'; 5000]), Flaw::Long);
    let with_check = |body: &str| format!("{body}check {:08x}\n", crc32fast::hash(body.as_bytes())).into_bytes();
    assert_eq!(flaw(&register, &with_check("lockstep register 2\n")), Flaw::Version);
    assert_eq!(flaw(&register, &with_check("lockstep register 1\nvm other\n")), Flaw::OtherVm);
    assert_eq!(flaw(&register, &with_check("lockstep register 1\nvm vm\ngeneration x\n")), Flaw::Line("generation"));

    fs::write(&path, &good).unwrap();
    assert_eq!(register.read(VM).unwrap(), Some(claim(3, 0xabc)));
}

#[test]
fn storage_that_is_not_there_and_names_that_are_none_are_errors() {
    let (directory, register) = fresh();
    let missing = directory.path().join("missing");
    assert!(matches!(RegisterFile::open(&missing), Err(ArbiterError::Storage { what: "use", .. })));
    assert!(!missing.exists());
    for name in ["", "a/b", "a\nb", &"x".repeat(300)] {
        assert!(matches!(register.read(name), Err(ArbiterError::Name { .. })), "{name:?}");
    }
    let liar = Claim { host_name: "a\ngeneration 9".into(), ..claim(1, 1) };
    assert!(matches!(register.compare_and_set(VM, None, &liar), Err(ArbiterError::Name { .. })));
    drop(directory);
    assert!(matches!(register.read(VM), Err(ArbiterError::Storage { .. })), "gone storage is no empty register");
}
