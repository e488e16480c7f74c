//! Promise: of all that claim a generation in a register file, exactly one wins, whatever dies or stops in between, and nobody has to wait for one that has;
//! a damaged register is never taken for an empty one. (`tests/arbiter_interleavings.rs` has every order of the calls of several claimants.)

use lockstep::arbiter::register::{Flaw, RegisterFile};
use lockstep::arbiter::{Arbiter, ArbiterError, Claim, Verdict};
use lockstep::ladder::{Directory, Folder};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
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
    won_once(&mut won, last);
}

/// Each generation was won by one at most. (Whose claim was followed by the next one before it could look may be told that it has lost: it holds the
/// register no more.)
fn won_once(won: &mut Vec<u64>, last: u64) {
    won.sort_unstable();
    println!("{} of {last} generations were won before the next one was", won.len());
    assert!(won.is_sorted_by(|one, next| one < next), "{won:?}");
    assert_eq!(won.last(), Some(&last), "nobody follows the last one");
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
    won_once(&mut won, last);
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

/// A register that holds this generation, won by host 1.
fn at(generation: u64) -> (TempDir, RegisterFile) {
    let (directory, register) = fresh();
    assert_eq!(contend(&register, 1, generation).len() as u64, generation);
    (directory, register)
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The states in which a crash between the writing and the linking leaves the directory: the new file whole, torn, empty.
#[test]
fn what_was_written_and_not_linked_does_not_count_and_is_cleared_up() {
    let whole = {
        let (_directory, register) = at(2);
        fs::read(register.path(VM).unwrap()).unwrap()
    };
    for left in [&whole[..], &whole[..whole.len() / 2], b""] {
        let (directory, register) = at(1);
        fs::write(directory.path().join(".vm.2.0123456789abcdef.new"), left).unwrap();
        assert_eq!(register.read(VM).unwrap(), Some(claim(1, 1)));
        assert_eq!(register.compare_and_set(VM, Some(1), &claim(2, 33)).unwrap(), Verdict::Won);
        assert_eq!(register.read(VM).unwrap(), Some(claim(2, 33)));
        for generation in 3..7 {
            register.compare_and_set(VM, Some(generation - 1), &claim(generation, 33)).unwrap();
        }
        assert_eq!(names(directory.path()), ["vm.3", "vm.4", "vm.5", "vm.6", "vm.register"]);
    }
}

#[test]
fn the_same_claim_again_has_won_and_another_has_lost() {
    let (directory, register) = at(4);
    assert_eq!(register.read("other").unwrap(), None);
    let mine = claim(5, 1);
    for _ in 0..3 {
        assert_eq!(register.compare_and_set(VM, Some(4), &mine).unwrap(), Verdict::Won);
    }
    let lost = Verdict::Lost(Some(mine.clone()));
    assert_eq!(register.compare_and_set(VM, Some(4), &claim(5, 2)).unwrap(), lost, "same generation, other host");
    assert_eq!(register.compare_and_set(VM, Some(3), &claim(4, 1)).unwrap(), lost, "its own, and over");
    assert_eq!(register.compare_and_set(VM, None, &claim(1, 2)).unwrap(), lost, "of a generation whose file is gone");
    assert_eq!(register.compare_and_set("other", Some(4), &claim(5, 1)).unwrap(), Verdict::Lost(None));
    for (expected, claimed) in [(5, 5), (5, 7), (u64::MAX, 3)] {
        let refused = register.compare_and_set(VM, Some(expected), &claim(claimed, 1));
        assert!(
            matches!(refused, Err(ArbiterError::Order { expected: e, claimed: c }) if (e, c) == (expected, claimed))
        );
    }
    assert!(matches!(
        register.compare_and_set(VM, None, &claim(2, 1)),
        Err(ArbiterError::Order { expected: 0, claimed: 2 })
    ));
    assert_eq!(names(directory.path()), ["vm.2", "vm.3", "vm.4", "vm.5", "vm.register"], "nothing lies about");
}

/// A claim on a generation whose file was removed long ago: its file can be made again, and says nothing.
#[test]
fn a_generation_that_is_gone_is_not_won_again() {
    let (directory, register) = at(9);
    let before = names(directory.path());
    assert!(!before.contains(&"vm.3".into()), "{before:?}");
    // As a sleeper would leave it that was stopped between its looks.
    let text = fs::read_to_string(directory.path().join("vm.9")).unwrap().replace("generation 9", "generation 3");
    let body = &text[..text.rfind("check").unwrap()];
    fs::write(directory.path().join("vm.3"), format!("{body}check {:08x}\n", crc32fast::hash(body.as_bytes())))
        .unwrap();
    assert_eq!(register.read(VM).unwrap(), Some(claim(9, 1)));
    assert_eq!(register.compare_and_set(VM, Some(2), &claim(3, 1)).unwrap(), Verdict::Lost(Some(claim(9, 1))));
    assert_eq!(register.compare_and_set(VM, Some(9), &claim(10, 2)).unwrap(), Verdict::Won);
    assert_eq!(names(directory.path()), ["vm.10", "vm.7", "vm.8", "vm.9", "vm.register"], "and is cleared up");
}

/// Stops its process before one of its calls.
#[derive(Clone)]
struct Stopping {
    folder: Folder,
    calls: Arc<AtomicU64>,
    stop_at: u64,
}

impl Stopping {
    fn call<T>(&self, call: impl FnOnce(&Folder) -> T) -> T {
        if self.calls.fetch_add(1, SeqCst) == self.stop_at {
            nix::sys::signal::raise(Signal::SIGSTOP).unwrap();
        }
        call(&self.folder)
    }
}

impl Directory for Stopping {
    fn list(&self) -> io::Result<Vec<String>> {
        self.call(|folder| folder.list())
    }
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        self.call(|folder| folder.read(name, limit))
    }
    fn make(&self, begin: &str, end: &str, bytes: &[u8]) -> io::Result<String> {
        self.call(|folder| folder.make(begin, end, bytes))
    }
    fn link(&self, name: &str, to: &str) -> io::Result<bool> {
        self.call(|folder| folder.link(name, to))
    }
    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        self.call(|folder| folder.rename(name, to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.call(|folder| folder.remove(name))
    }
    fn sync(&self) -> io::Result<()> {
        self.call(|folder| folder.sync())
    }
    fn path(&self) -> PathBuf {
        self.folder.path()
    }
}

/// The body of a claimant that is stopped before one of its calls; by itself, one that is not. Prints its verdict.
#[test]
fn a_claimant_claims_the_generation_after_the_one_it_was_told() {
    let (own, _) = at(1);
    let read = |name| std::env::var(name).ok();
    let number = |name, otherwise| read(name).map_or(otherwise, |number| number.parse().unwrap());
    let directory = read("CLAIMANT_DIRECTORY").unwrap_or(own.path().display().to_string());
    let (expected, stop_at) = (number("CLAIMANT_EXPECTED", 1), number("CLAIMANT_STOP_AT", u64::MAX));
    let stopping = Stopping { folder: Folder::new(Path::new(&directory)), calls: Arc::default(), stop_at };
    let register = RegisterFile::within(stopping.clone(), 4);
    let verdict = register.compare_and_set(VM, (expected > 0).then_some(expected), &claim(expected + 1, 7)).unwrap();
    println!("after {} calls: {verdict:?}", stopping.calls.load(SeqCst));
    if read("CLAIMANT_DIRECTORY").is_none() {
        assert_eq!(verdict, Verdict::Won);
    }
}

/// Starts it and waits until it is stopped. `None`: it ends before it gets there.
fn stopped_claimant(directory: &Path, expected: u64, stop_at: u64) -> Option<Child> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_claimant_claims_the_generation_after_the_one_it_was_told", "--nocapture"])
        .env("CLAIMANT_DIRECTORY", directory)
        .env("CLAIMANT_EXPECTED", expected.to_string())
        .env("CLAIMANT_STOP_AT", stop_at.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    match waitpid(Pid::from_raw(child.id() as i32), Some(WaitPidFlag::WUNTRACED)).unwrap() {
        WaitStatus::Stopped(_, Signal::SIGSTOP) => Some(child),
        WaitStatus::Exited(_, 0) => None,
        other => panic!("{other:?}"),
    }
}

fn wakes(child: Child) -> String {
    nix::sys::signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGCONT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_claimant_stopped_at_any_step_keeps_nobody_from_winning_and_does_no_harm_when_it_wakes() {
    // On the first generation of a VM, on a later one, and on one after a register of format 1; asleep for one generation, and for so many that the files of its
    // own are gone.
    for (held, old) in [(0, false), (3, false), (3, true)] {
        for others in [1, 7] {
            let (mut stops, mut won) = (0, 0);
            for stop_at in 0.. {
                let (directory, register) = if old { fresh() } else { at(held) };
                if old {
                    fs::write(directory.path().join("vm.register"), OLD).unwrap();
                }
                let Some(child) = stopped_claimant(directory.path(), held, stop_at) else { break };
                stops += 1;
                // Whatever it has done by now, somebody else goes on.
                let first = register.read(VM).unwrap().map_or(0, |claim| claim.generation);
                assert!(first == held || first == held + 1, "{first}");
                won += u64::from(first > held);
                let last = first + others;
                for generation in first + 1..=last {
                    let next = claim(generation, 2);
                    let expected = (generation > 1).then(|| generation - 1);
                    assert_eq!(register.compare_and_set(VM, expected, &next).unwrap(), Verdict::Won, "{stop_at}");
                }
                let said = wakes(child);
                assert!(said.contains(&format!("Lost(Some({:?}))", claim(last, 2))) || said.contains("Won"), "{said}");
                // It may have won before it was stopped in what it does for others; then its claim was there to be seen.
                assert!(!said.contains("Won") || first == held + 1, "stopped at {stop_at}: {said}");
                assert_eq!(register.read(VM).unwrap(), Some(claim(last, 2)), "stopped at {stop_at}");
                let next = claim(last + 1, 3);
                assert_eq!(register.compare_and_set(VM, Some(last), &next).unwrap(), Verdict::Won);
            }
            println!(
                "from {held}, {others} others: stopped before each of {stops} calls; {won} times it had claimed by then"
            );
            assert!(stops >= 8 && won > 0 && won < stops);
        }
    }
}

/// A register of format 1.
const OLD: &str = "lockstep register 1\nvm vm\ngeneration 3\nhost 0000000000000abc\nhost-name alpha\ncheck f48c2625\n";

#[test]
fn a_register_of_format_1_is_understood_and_its_programs_find_none_any_more() {
    let (directory, register) = fresh();
    let file = directory.path().join("vm.register");
    fs::write(&file, OLD).unwrap();
    let old = Claim { host_name: "alpha".into(), ..claim(3, 0xabc) };
    assert_eq!(register.read(VM).unwrap(), Some(old.clone()));
    assert_eq!(register.path(VM).unwrap(), file);
    assert_eq!(register.compare_and_set(VM, None, &claim(1, 1)).unwrap(), Verdict::Lost(Some(old.clone())));
    assert_eq!(register.compare_and_set(VM, Some(4), &claim(5, 1)).unwrap(), Verdict::Lost(Some(old.clone())));
    assert_eq!(fs::read_to_string(&file).unwrap(), OLD, "who loses changes nothing");
    assert_eq!(register.compare_and_set(VM, Some(3), &claim(4, 1)).unwrap(), Verdict::Won);
    assert_eq!(register.read(VM).unwrap(), Some(claim(4, 1)));
    // What they would take for damaged; for an empty register they would take no file.
    let marker = fs::read_to_string(&file).unwrap();
    assert!(
        marker.starts_with("lockstep register 2\nvm vm\nin vm.<generation>, the highest counts\ncheck "),
        "{marker}"
    );
    assert_eq!(names(directory.path()), ["vm.4", "vm.register"]);
    // Its migration was broken off before that.
    fs::write(&file, OLD).unwrap();
    assert_eq!(register.read(VM).unwrap(), Some(claim(4, 1)));
    assert_eq!(register.compare_and_set(VM, Some(4), &claim(5, 1)).unwrap(), Verdict::Won);
    assert_eq!(fs::read_to_string(&file).unwrap(), marker);
    // A program of format 1 that knew better goes on with its own; it is not overlooked.
    fs::write(&file, OLD.replace("generation 3", "generation 9").replace("f48c2625", "0b078515")).unwrap();
    assert_eq!(register.read(VM).unwrap().unwrap().generation, 9);
}

#[test]
fn a_register_whose_files_are_gone_is_no_empty_one() {
    let (directory, register) = at(2);
    for name in ["vm.1", "vm.2"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    let gone = |result: Result<_, _>| matches!(result, Err(ArbiterError::Corrupt { flaw: Flaw::Gone, .. }));
    assert!(gone(register.read(VM).map(drop)) && gone(register.compare_and_set(VM, None, &claim(1, 1)).map(drop)));
    assert_eq!(register.read("other").unwrap(), None);
}

#[test]
fn names_of_vms_and_generations_are_not_mixed_up() {
    let (directory, register) = fresh();
    // Names that end as files of others do.
    for vm in ["a", "a.5", ".a", ".a.5", "a.register", "a.0", "a.07"] {
        assert_eq!(register.read(vm).unwrap(), None, "{vm}");
        assert_eq!(register.compare_and_set(vm, None, &claim(1, 1)).unwrap(), Verdict::Won, "{vm}");
        assert_eq!(register.compare_and_set(vm, Some(1), &claim(2, 1)).unwrap(), Verdict::Won, "{vm}");
    }
    assert_eq!(register.read("a").unwrap(), Some(claim(2, 1)));
    fs::write(directory.path().join("a.007"), "no number").unwrap();
    assert_eq!(register.read("a").unwrap(), Some(claim(2, 1)));
    fs::write(directory.path().join("a.7"), "no generation").unwrap();
    assert!(
        matches!(register.read("a"), Err(ArbiterError::Corrupt { flaw: Flaw::Checksum, .. })),
        "an unknown file counts"
    );
}

fn flaw(register: &RegisterFile, bytes: &[u8]) -> Flaw {
    fs::write(register.path(VM).unwrap(), bytes).unwrap();
    let held = fs::read(register.path(VM).unwrap()).unwrap();
    let Err(ArbiterError::Corrupt { flaw, .. }) = register.compare_and_set(VM, None, &claim(1, 1)) else {
        panic!("a damaged register was taken for a register")
    };
    assert!(matches!(register.compare_and_set(VM, Some(1), &claim(2, 1)), Err(ArbiterError::Corrupt { .. })));
    assert!(matches!(register.compare_and_set(VM, Some(3), &claim(4, 1)), Err(ArbiterError::Corrupt { .. })));
    assert_eq!(fs::read(register.path(VM).unwrap()).unwrap(), held, "a damaged register was written over");
    flaw
}

#[test]
fn a_generation_won_for_two_is_told_from_one_won_alone() {
    let (_directory, register) = at(2);
    let shared = Claim { shared_with: Some(7), ..claim(3, 0xabc) };
    assert_eq!(register.compare_and_set(VM, Some(2), &shared).unwrap(), Verdict::Won);
    assert_eq!(register.read(VM).unwrap(), Some(shared.clone()));
    assert_eq!(register.compare_and_set(VM, Some(2), &shared).unwrap(), Verdict::Won, "asked again");
    let alone = register.compare_and_set(VM, Some(2), &claim(3, 0xabc)).unwrap();
    assert_eq!(alone, Verdict::Lost(Some(shared)));
}

#[test]
fn a_damaged_register_is_a_named_error_and_stays_as_it_is() {
    let (_directory, register) = at(2);
    register.compare_and_set(VM, Some(2), &claim(3, 0xabc)).unwrap();
    let path = register.path(VM).unwrap();
    assert_eq!(path.file_name().unwrap(), "vm.3");
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
    let renamed = text[..text.rfind("check").unwrap()].replace("generation 3", "generation 4");
    assert_eq!(flaw(&register, &with_check(&renamed)), Flaw::Renamed(4));

    fs::write(&path, &good).unwrap();
    assert_eq!(register.read(VM).unwrap(), Some(claim(3, 0xabc)));
    // The file that says where they are, likewise.
    let marker = path.with_file_name("vm.register");
    let whole = fs::read(&marker).unwrap();
    fs::write(&marker, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(register.read(VM), Err(ArbiterError::Corrupt { flaw: Flaw::Checksum, .. })));
    fs::write(&marker, &whole).unwrap();
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
    let longest = "x".repeat(lockstep::arbiter::MAX_NAME);
    assert_eq!(register.compare_and_set(&longest, None, &claim(1, 1)).unwrap(), Verdict::Won, "its files have names");
    let liar = Claim { host_name: "a\ngeneration 9".into(), ..claim(1, 1) };
    assert!(matches!(register.compare_and_set(VM, None, &liar), Err(ArbiterError::Name { .. })));
    drop(directory);
    assert!(matches!(register.read(VM), Err(ArbiterError::Storage { .. })), "gone storage is no empty register");
}
