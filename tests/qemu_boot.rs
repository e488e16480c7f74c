//! Promise: the guest is a standard PVH image. It boots, runs, talks and ends on somebody else's machine too: QEMU's
//! `microvm`, emulated, without lockstep's paravirtual page. An outside check on both the guest and our own devices.

mod common;

use std::path::Path;

use lockstep::guest;
use lockstep_kernels::fnv::Fnv1a;
use lockstep_kernels::work::{Kind, Work};

use common::qemu::Qemu;

/// `compute` gives what the same code gives in this process.
#[test]
fn computes_what_a_native_process_computes() {
    let (said, code) = Qemu::builtin("compute 2").finish();
    let mut work = Work::new(1);
    for round in 1..=2 {
        let hash = work.round(&Kind::ALL, &mut || {});
        let expected = format!("compute {round} {:016x}\r\n", u64::from_be_bytes(hash[..8].try_into().unwrap()));
        assert!(said.contains(&expected), "no {expected:?} in:\n{said}");
    }
    assert_eq!(code, 0);
}

#[test]
fn shell_answers() {
    let mut qemu = Qemu::builtin("shell");
    for (typed, answer) in [
        ("echo one  two\r", "\none two\r\n"),
        ("ecko\x7f\x7fho corrected\r", "\ncorrected\r\n"),
        ("hash abc\r", "\nba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\r\n"),
        ("primes 1000\r", "\n7919\r\n"),
        ("count 3 20\r", "\n1\r\n2\r\n3\r\n"),
        ("memory 8\r", " 0 words wrong"),
        ("time\r", "no wall clock"),
        ("nonsense\r", "no such command"),
        ("count 1000000 1000\r\x03", "^C\r\n"),
    ] {
        qemu.expect("lockstep> ");
        qemu.type_keys(typed);
        qemu.expect(answer);
    }
    qemu.type_keys("exit 7\r");
    assert_eq!(qemu.finish().1, 7);
}

/// Timer and received bytes both interrupt, and neither is lost to the other.
#[test]
fn transcript_accounts_for_every_line() {
    let mut qemu = Qemu::builtin("transcript tick hz=1000");
    let mut sum = Fnv1a::default();
    qemu.expect("transcript\r\n");
    for number in 1..=20 {
        let line = format!("line {number}, {}", "x".repeat(number * 7));
        qemu.type_keys(&format!("{line}\r"));
        line.bytes().chain([b'\n']).for_each(|byte| sum.push(byte));
        qemu.expect(&format!("{number}: {line} sum={:016x}\r\n", sum.value()));
    }
    qemu.expect(&format!("lines=20 sum={:016x}\r\n", sum.value()));
    qemu.type_keys("\x04");
    let (said, code) = qemu.finish();
    let end = format!("end lines=20 sum={:016x}\r\n", sum.value());
    assert!(said.ends_with(&end), "{said}");
    assert_eq!(code, 0);
}

/// The value in the exception report behind `name`.
fn reported(said: &str, name: &str) -> Option<u64> {
    let (_, rest) = said.split_once("guest exception: ")?.1.split_once(&format!("{name} "))?;
    u64::from_str_radix(rest.get(..16)?, 16).ok()
}

#[test]
fn exceptions_are_reported() {
    // Page fault error codes: 4 is a read, 6 a write, of a page that is not there, by ring 3.
    for (how, vector, error_code) in [("null", 14, 4), ("stack", 14, 6), ("io", 13, 0), ("ud", 6, 0)] {
        let (said, code) = Qemu::builtin(&format!("probe-crash {how}")).finish();
        assert_eq!(reported(&said, "vector"), Some(vector), "{how}:\n{said}");
        assert_eq!(reported(&said, "error code"), Some(error_code), "{how}:\n{said}");
        assert_eq!(code as u64, 0x60 + vector, "{how}");
        let address = reported(&said, "cr2").expect("a faulting address");
        match how {
            "stack" => assert_eq!(address >> 12, 0x100, "not in the stack's guard page:\n{said}"),
            _ => assert_eq!(address, 0, "{how}:\n{said}"),
        }
    }
    let (said, code) = Qemu::builtin("probe-crash panic").finish();
    assert!(said.contains("guest panicked at"), "{said}");
    assert_eq!(code, 101);
}

#[test]
fn interrupts_wait_while_they_are_off() {
    let (said, code) = Qemu::builtin("probe-irqoff 3").finish();
    assert_eq!(said.matches(": 1 tick taken").count(), 3, "{said}");
    assert_eq!(code, 0);
}

/// The image's applications are those that the host describes.
#[test]
fn applications_are_as_described() {
    let (said, code) = Qemu::builtin("nonsense").finish();
    let offered: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let described: Vec<&str> = guest::APPS.iter().map(|app| app.name).collect();
    assert_eq!(offered, described);
    assert_eq!(code, 2);
}

/// The example of `docs/guest-guide.md`.
#[test]
fn the_guides_example_runs() {
    let image = std::fs::read(Path::new(env!("LOCKSTEP_HELLO_ELF"))).expect("built with this test");
    let mut qemu = Qemu::boot(&image, "world");
    qemu.expect("hello from \"world\"");
    qemu.expect("2 s, ");
    qemu.type_keys("x");
    assert_eq!(qemu.finish().1, 0);
}
