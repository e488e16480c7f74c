//! The promises of an arbiter, whatever keeps its registers: of all that claim a generation at most one wins, whatever dies in between, and somebody gets
//! on; the same claim again has won as long as the register holds it; a damaged register is a named error and stays as it is. One test file
//! for each kind of arbiter holds its kind to them.
#![allow(dead_code, reason = "every test is a crate of its own and uses the part it needs")]
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use lockstep::arbiter::register::Flaw;
use lockstep::arbiter::{Arbiter, ArbiterError, Claim, Verdict};

/// The VM of these tests: a name that not every path can hold.
pub const VM: &str = "a vm, 100 %";

/// A place where registers are kept.
pub trait Place {
    /// How a user names it.
    fn uri(&self) -> String;
    /// The bytes of a register, read by other means than an arbiter's.
    fn raw(&self, vm: &str) -> Option<Vec<u8>>;
    /// Writes them.
    fn put_raw(&self, vm: &str, bytes: &[u8]);

    /// Opens an arbiter there, as a host does.
    fn open(&self) -> Arc<dyn Arbiter> {
        open(&self.uri())
    }
}

/// Opens an arbiter.
pub fn open(uri: &str) -> Arc<dyn Arbiter> {
    lockstep::arbiter::open(&uri.parse().expect("a URI")).expect("an arbiter").0
}

/// Claim number `generation` of a host.
pub fn claim(generation: u64, host: u64) -> Claim {
    Claim { generation, host, host_name: format!("host {host}"), shared_with: None }
}

/// Whether there was no answer, which says nothing: whoever asked asks again.
pub fn is_no_answer(error: &ArbiterError) -> bool {
    matches!(error, ArbiterError::NoAnswer { .. })
}

/// Claims as the protocol does: until there is an answer. Counts the times that there was none.
pub fn claimed(arbiter: &dyn Arbiter, expected: Option<u64>, claim: &Claim, in_vain: &mut u64) -> Verdict {
    loop {
        match arbiter.compare_and_set(VM, expected, claim) {
            Ok(verdict) => return verdict,
            Err(error) if is_no_answer(&error) => *in_vain += 1,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a contender made of its claims.
#[derive(Debug, Default)]
pub struct Contended {
    /// The generations that it won.
    pub won: Vec<u64>,
    /// How often it got no answer.
    pub in_vain: u64,
    /// How long its longest answer took.
    pub longest: Duration,
}

/// Claims the generations from `first` on, whoever won the one before, until `enough` says so.
pub fn contend(arbiter: &dyn Arbiter, host: u64, first: u64, enough: impl Fn(u64) -> bool) -> Contended {
    let mut contended = Contended::default();
    let mut generation = first;
    while !enough(generation) {
        let asked = Instant::now();
        let expected = (generation > 1).then(|| generation - 1);
        match claimed(arbiter, expected, &claim(generation, host), &mut contended.in_vain) {
            Verdict::Won => contended.won.push(generation),
            Verdict::Lost(holder) => {
                let holder = holder.expect("lost to nobody");
                let other = (holder.generation, holder.host) != (generation, host);
                assert!(holder.generation >= generation && other, "generation {generation} lost to {holder:?}");
            }
        }
        contended.longest = contended.longest.max(asked.elapsed());
        generation += 1;
    }
    contended
}

/// Checks that each generation was won by one at most, and the newest, which the register holds, by one of these. (Whose claim was followed by the next one
/// before the answer came may be told that it has lost: it holds the register no more.)
#[track_caller]
pub fn won_once(mut won: Vec<u64>, newest: u64) {
    won.sort_unstable();
    println!("{} of {newest} generations were won before the next one was", won.len());
    assert!(won.is_sorted_by(|one, next| one < next), "a generation was won twice: {won:?}");
    assert_eq!(won.last(), Some(&newest), "nobody has won the newest generation");
}

/// Eight hosts in threads, with one arbiter or one each.
pub fn one_thread_wins_each_generation(place: &dyn Place) {
    let (hosts, last) = (8, 30);
    let barrier = Barrier::new(hosts);
    let shared = place.open();
    let won = std::thread::scope(|scope| {
        let contenders: Vec<_> = (0..hosts as u64)
            .map(|host| {
                let arbiter = if host % 2 == 0 { shared.clone() } else { place.open() };
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    contend(arbiter.as_ref(), host, 1, |generation| generation > last)
                })
            })
            .collect();
        let contended: Vec<Contended> = contenders.into_iter().map(|contender| contender.join().unwrap()).collect();
        contended.into_iter().flat_map(|contended| contended.won).collect::<Vec<_>>()
    });
    won_once(won, last);
    assert_eq!(shared.read(VM).unwrap().unwrap().generation, last);
}

/// The body of a contending process. Every test file that starts some has a test of the name [`CONTENDER`] that calls it; by itself, without an arbiter
/// in its environment, that does nothing.
pub fn contender_process() {
    let read = |name| std::env::var(name).ok();
    let Some(uri) = read("CONTENDER_URI") else { return };
    let number = |name| read(name).expect("a number").parse::<u64>().expect("a number");
    let (host, last) = (number("CONTENDER_HOST"), number("CONTENDER_LAST"));
    let contended = contend(open(&uri).as_ref(), host, 1, |generation| generation > last);
    println!("won {:?}", contended.won);
}

/// The test that is a contending process.
pub const CONTENDER: &str = "a_contender_claims_generation_after_generation";

fn contender(place: &dyn Place, host: u64, last: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CONTENDER, "--nocapture"])
        .env("CONTENDER_URI", place.uri())
        .env("CONTENDER_HOST", host.to_string())
        .env("CONTENDER_LAST", last.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Six hosts as processes.
pub fn one_process_wins_each_generation(place: &dyn Place) {
    let last = 40;
    let contenders: Vec<Child> = (0..6).map(|host| contender(place, host, last)).collect();
    let mut won = Vec::new();
    for contender in contenders {
        let output = contender.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let list = text.split_once("won [").unwrap().1.split_once(']').unwrap().0;
        won.extend(list.split(", ").filter(|number| !number.is_empty()).map(|number| number.parse::<u64>().unwrap()));
    }
    won_once(won, last);
    assert_eq!(place.open().read(VM).unwrap().unwrap().generation, last);
}

/// A process that claims one generation after the other is killed, at no particular point, again and again.
pub fn a_claimant_killed_at_any_moment_leaves_a_register_that_works(place: &dyn Place, rounds: u64) {
    let arbiter = place.open();
    let mut before = 0;
    for round in 0..rounds {
        let mut claimant = contender(place, round, u64::MAX - 1);
        let reached = loop {
            let generation = arbiter.read(VM).unwrap().map_or(0, |claim| claim.generation);
            if generation >= before + 3 + round % 5 || claimant.try_wait().unwrap().is_some() {
                break generation;
            }
            std::thread::yield_now();
        };
        claimant.kill().unwrap();
        claimant.wait().unwrap();
        // What it asked for last may still be on its way, and is one generation at most.
        let mut next = arbiter.read(VM).unwrap().expect("a register was there before").generation;
        assert!(next >= reached, "{next} after {reached}");
        while let Verdict::Lost(holder) =
            arbiter.compare_and_set(VM, Some(next), &claim(next + 1, 1000 + round)).unwrap()
        {
            let holder = holder.expect("a register was there before");
            assert_eq!((holder.generation, holder.host), (next + 1, round), "of a process that is gone");
            next += 1;
        }
        before = next + 1;
    }
    assert!(before >= 3 * rounds, "the claimants claimed nothing");
}

/// Has the register of [`VM`] hold this generation.
pub fn at(arbiter: &dyn Arbiter, generation: u64) {
    for next in 1..=generation {
        let expected = (next > 1).then(|| next - 1);
        assert_eq!(arbiter.compare_and_set(VM, expected, &claim(next, 99)).unwrap(), Verdict::Won);
    }
}

/// What a claim means that was made before, and one that was not.
pub fn the_same_claim_again_has_won_and_another_has_lost(place: &dyn Place) {
    let register = place.open();
    assert_eq!(register.read(VM).unwrap(), None);
    at(register.as_ref(), 4);
    let mine = claim(5, 1);
    for _ in 0..3 {
        assert_eq!(register.compare_and_set(VM, Some(4), &mine).unwrap(), Verdict::Won);
        assert_eq!(place.open().compare_and_set(VM, Some(4), &mine).unwrap(), Verdict::Won, "asked by another way");
    }
    let lost = Verdict::Lost(Some(mine.clone()));
    assert_eq!(register.compare_and_set(VM, Some(4), &claim(5, 2)).unwrap(), lost, "same generation, other host");
    assert_eq!(register.compare_and_set(VM, Some(3), &claim(4, 1)).unwrap(), lost, "same host, other generation");
    assert_eq!(register.compare_and_set(VM, Some(6), &claim(7, 1)).unwrap(), lost, "a generation to come");
    assert_eq!(register.compare_and_set(VM, None, &claim(1, 1)).unwrap(), lost, "the first one");
    assert_eq!(register.compare_and_set("other", Some(4), &claim(5, 1)).unwrap(), Verdict::Lost(None));
    for (expected, claimed) in [(Some(5), 5), (Some(5), 7), (Some(5), 1), (None, 2), (None, 0), (Some(u64::MAX), 0)] {
        assert!(matches!(
            register.compare_and_set(VM, expected, &claim(claimed, 1)),
            Err(ArbiterError::Order { expected: e, claimed: c }) if (e, c) == (expected.unwrap_or(0), claimed)
        ));
    }
    assert_eq!(register.compare_and_set(VM, Some(5), &claim(6, 2)).unwrap(), Verdict::Won);
    // The claim that was won once is not the register's any more.
    let held = claim(6, 2);
    assert_eq!(register.compare_and_set(VM, Some(4), &mine).unwrap(), Verdict::Lost(Some(held.clone())));
    assert_eq!(place.open().read(VM).unwrap(), Some(held));
}

/// A generation of both hosts, after a switch.
pub fn a_generation_won_for_two_is_told_from_one_won_alone(place: &dyn Place) {
    let register = place.open();
    at(register.as_ref(), 2);
    let shared = Claim { shared_with: Some(7), ..claim(3, 0xabc) };
    assert_eq!(register.compare_and_set(VM, Some(2), &shared).unwrap(), Verdict::Won);
    assert_eq!(register.read(VM).unwrap(), Some(shared.clone()));
    assert_eq!(register.compare_and_set(VM, Some(2), &shared).unwrap(), Verdict::Won, "asked again");
    let alone = register.compare_and_set(VM, Some(2), &claim(3, 0xabc)).unwrap();
    assert_eq!(alone, Verdict::Lost(Some(shared)));
}

/// What is said of a register with these bytes, which must stay.
#[track_caller]
pub fn flaw(place: &dyn Place, register: &dyn Arbiter, bytes: &[u8]) -> Flaw {
    place.put_raw(VM, bytes);
    let Err(ArbiterError::Corrupt { flaw, .. }) = register.compare_and_set(VM, None, &claim(1, 1)) else {
        panic!("a damaged register was taken for a register: {:?}", String::from_utf8_lossy(bytes))
    };
    assert!(matches!(register.compare_and_set(VM, Some(3), &claim(4, 1)), Err(ArbiterError::Corrupt { .. })));
    assert!(matches!(register.read(VM), Err(ArbiterError::Corrupt { .. })));
    assert_eq!(place.raw(VM).as_deref(), Some(bytes), "a damaged register was written over");
    flaw
}

/// Damages a register in many ways: every `step`th of the bits, and of the lengths.
pub fn a_damaged_register_is_a_named_error_and_stays_as_it_is(place: &dyn Place, step: usize) {
    let register = place.open();
    at(register.as_ref(), 2);
    assert_eq!(register.compare_and_set(VM, Some(2), &claim(3, 0xabc)).unwrap(), Verdict::Won);
    let good = place.raw(VM).expect("a register");
    let text = String::from_utf8(good.clone()).unwrap();
    let expected =
        format!("lockstep register 1\nvm {VM}\ngeneration 3\nhost 0000000000000abc\nhost-name host 2748\ncheck ");
    assert!(text.starts_with(&expected), "{text}");

    for cut in (0..good.len()).step_by(step) {
        assert_eq!(flaw(place, register.as_ref(), &good[..cut]), Flaw::Checksum, "cut to {cut} bytes");
    }
    for bit in (0..good.len() * 8).step_by(step) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        flaw(place, register.as_ref(), &bad);
    }
    assert_eq!(flaw(place, register.as_ref(), &[0xff; 20]), Flaw::Text);
    assert_eq!(flaw(place, register.as_ref(), &[b'x'; 5000]), Flaw::Long);
    let with_check = |body: &str| format!("{body}check {:08x}\n", crc32fast::hash(body.as_bytes())).into_bytes();
    assert_eq!(flaw(place, register.as_ref(), &with_check("lockstep register 2\n")), Flaw::Version);
    assert_eq!(flaw(place, register.as_ref(), &with_check("lockstep register 1\nvm other\n")), Flaw::OtherVm);
    let line = with_check(&format!("lockstep register 1\nvm {VM}\ngeneration x\n"));
    assert_eq!(flaw(place, register.as_ref(), &line), Flaw::Line("generation"));

    place.put_raw(VM, &good);
    assert_eq!(register.read(VM).unwrap(), Some(claim(3, 0xabc)));
}

/// Names that every kind of arbiter takes, each for a register of its own, and names that none takes.
pub fn names_are_kept_apart_and_those_that_are_none_are_errors(place: &dyn Place) {
    let register = place.open();
    let mut names =
        vec!["vm", "VM", ".", "..", "a b", "a%20b", "a%2520b", "ä\u{1f600}", "zookeeper", "vms", "generation"];
    let long = "x".repeat(lockstep::arbiter::MAX_NAME);
    names.push(&long);
    for (index, name) in names.iter().enumerate() {
        let mine = claim(1, index as u64);
        assert_eq!(register.compare_and_set(name, None, &mine).unwrap(), Verdict::Won, "{name:?}");
    }
    for (index, name) in names.iter().enumerate() {
        assert_eq!(register.read(name).unwrap(), Some(claim(1, index as u64)), "{name:?}");
    }
    for name in ["", "a/b", "a\nb", &"x".repeat(300)] {
        assert!(matches!(register.read(name), Err(ArbiterError::Name { .. })), "{name:?}");
        let set = register.compare_and_set(name, None, &claim(1, 1));
        assert!(matches!(set, Err(ArbiterError::Name { .. })), "{name:?}");
    }
    let liar = Claim { host_name: "a\ngeneration 9".into(), ..claim(1, 1) };
    assert!(matches!(register.compare_and_set(VM, None, &liar), Err(ArbiterError::Name { .. })));
}

/// Contends from four hosts for the generations from `first` on while `disturb` does something to the servers.
pub fn contend_while<T>(place: &dyn Place, first: u64, disturb: impl FnOnce() -> T) -> (Contended, T) {
    let over = AtomicBool::new(false);
    let arbiters: Vec<_> = (0..4).map(|_| place.open()).collect();
    // A host that has been running for a while has its connections.
    arbiters.iter().for_each(|arbiter| assert!(arbiter.read(VM).is_ok()));
    std::thread::scope(|scope| {
        let contenders: Vec<_> = arbiters
            .into_iter()
            .enumerate()
            .map(|(host, arbiter)| {
                let over = &over;
                scope.spawn(move || contend(arbiter.as_ref(), host as u64, first, |_| over.load(SeqCst)))
            })
            .collect();
        let done = disturb();
        over.store(true, SeqCst);
        let mut all = Contended::default();
        for contender in contenders {
            let contended = contender.join().unwrap();
            all.won.extend(contended.won);
            all.in_vain += contended.in_vain;
            all.longest = all.longest.max(contended.longest);
        }
        let newest = all.won.iter().copied().max().unwrap_or(0);
        assert!(newest >= first, "nobody has won anything");
        won_once(all.won.clone(), newest);
        (all, done)
    })
}

/// A place of which only the name is known.
pub struct Uri(pub String);

impl Place for Uri {
    fn uri(&self) -> String {
        self.0.clone()
    }

    fn raw(&self, _vm: &str) -> Option<Vec<u8>> {
        unreachable!("nobody asks for it")
    }

    fn put_raw(&self, _vm: &str, _bytes: &[u8]) {
        unreachable!("nobody asks for it")
    }
}

/// The generation that the register holds, as soon as there is an answer.
pub fn generation(arbiter: &dyn Arbiter) -> u64 {
    let mut answer = arbiter.read(VM);
    while answer.as_ref().is_err_and(is_no_answer) {
        answer = arbiter.read(VM);
    }
    answer.expect("a register").map_or(0, |claim| claim.generation)
}

/// Waits until others have claimed so far.
pub fn goes_on(arbiter: &dyn Arbiter, reached: u64) {
    let begun = Instant::now();
    while generation(arbiter) < reached {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody claims anything");
        std::thread::sleep(Duration::from_millis(10));
    }
}
