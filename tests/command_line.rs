//! Promise: whatever is wrong with what a user asks for, or with the host, the program says so in one clear line on its
//! standard error, with what to do about it, and ends with a status that is not 0. No backtrace, no panic.
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

mod common;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use std::io::{Read, Write};

use common::image::image;
use common::process::{LOCKSTEP, Process, lockstep, path, text, until};
use lockstep::guest;
use lockstep::log::frame::{self, FrameKind};
use lockstep::replication::message::{Hello, Message, Role};
use lockstep::replication::{Identity, Settings};

/// Checks the promise on `output`, and that the line says all of `says`.
fn assert_one_line(output: &Output, says: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| code != 0), "{}", text(output));
    assert!(told.starts_with("lockstep: ") && told.ends_with('\n') && told.lines().count() == 1, "{}", text(output));
    for word in ["panicked", "backtrace", "RUST_", "Os {", "Error("] {
        assert!(!told.contains(word), "{}", text(output));
    }
    for word in says {
        assert!(told.contains(word), "must say `{word}`: {}", text(output));
    }
}

fn assert_refused(arguments: &[&str], says: &[&str]) {
    assert_one_line(&lockstep(arguments), says);
}

#[test]
fn arguments_that_make_no_sense() {
    assert_refused(&[], &["a subcommand is needed", "--help"]);
    assert_refused(&["run", "--gest", "shell"], &["--gest", "--guest", "--help"]);
    assert_refused(&["rum"], &["rum", "run", "--help"]);
    assert_refused(&["record"], &["--log", "--help"]);
    assert_refused(&["run", "--memory", "much"], &["much", "--memory"]);
    assert_refused(&["replay"], &["FILE"]);
    for help in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let output = lockstep(help);
        assert!(output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty(), "{}", text(&output));
    }
}

#[test]
fn guests_that_are_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, bytes: &[u8]| {
        let file = directory.path().join(name);
        std::fs::write(&file, bytes).expect("a file");
        file
    };
    let run = |guest: &Path, says: &[&str]| assert_refused(&["run", "--detached", "--guest", path(guest)], says);
    run(&file("text.elf", b"#!/bin/sh\necho no guest\n"), &["text.elf", "ELF"]);
    run(&file("empty.elf", b""), &["empty.elf", "ELF"]);
    run(&file("cut.elf", &guest::IMAGE[..guest::IMAGE.len() / 2]), &["cut.elf", "ELF"]);
    run(&file("header.elf", &guest::IMAGE[..40]), &["header.elf", "ELF"]);
    let mut nameless = image(&[0xf4]);
    let note = nameless.windows(4).position(|bytes| bytes == b"Xen\0").expect("its note");
    nameless[note] = b'Y';
    run(&file("nopvh.elf", &nameless), &["nopvh.elf", "PVH"]);
    run(&directory.path().join("missing.elf"), &["missing.elf", "No such file"]);
    run(directory.path(), &["directory"]);
    assert_refused(&["run", "--guest", "shel"], &["shel", "mix", "ELF"]);
    assert_refused(&["run", "--guest", "shell", "--", &"x".repeat(5000)], &["5006", "4095"]);
}

#[test]
fn memory_sizes_that_cannot_be() {
    for (size, named) in [("0", "0 MiB"), ("7", "7 MiB"), ("4", "4 MiB"), ("4096", "4096 MiB"), ("65", "65 MiB")] {
        assert_refused(&["run", "--detached", "--memory", size], &["--memory", named, "3072 MiB", "multiple of 2"]);
    }
    assert_refused(&["run", "--detached", "--memory", "18446744073709551615"], &["--memory"]);
    assert_refused(&["run", "--detached", "--memory", "-1"], &["--memory"]);
}

#[test]
fn addresses_that_are_taken_or_none() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("its address").to_string();
    let directory = tempfile::tempdir().expect("a directory");
    let arbiter = path(directory.path());
    assert_refused(&["run", "--detached", "--control", &taken], &[&taken, "--control", "in use"]);
    let control = ["--arbiter", arbiter, "--control"];
    assert_refused(&[&["primary"], &control[..], &[&taken]].concat(), &[&taken, "--control", "in use"]);
    assert_refused(&[&["backup"], &control[..], &[&taken]].concat(), &[&taken, "--control", "in use"]);
    let free = [&["primary"], &control[..], &["127.0.0.1:0", "--channel"]].concat();
    assert_refused(&[&free[..], &[&taken]].concat(), &[&taken, "--channel", "in use"]);
    assert_refused(&[&free[..], &["nowhere"]].concat(), &["nowhere", "--channel"]);

    // Nothing that was there before is lost on the way.
    let log = directory.path().join("precious.log");
    std::fs::write(&log, b"an older log").expect("a file");
    assert_refused(&["record", "--detached", "--control", &taken, "--log", path(&log)], &[&taken, "in use"]);
    assert_eq!(std::fs::read(&log).expect("the file"), b"an older log");
}

#[test]
fn files_and_directories_that_are_missing_or_none() {
    let directory = tempfile::tempdir().expect("a directory");
    let inside = |name: &str| directory.path().join(name);
    for command in ["primary", "backup"] {
        let missing = inside("nowhere");
        assert_refused(
            &[command, "--control", "127.0.0.1:0", "--arbiter", path(&missing)],
            &["nowhere", "--arbiter", "No such file"],
        );
    }
    let text = inside("text");
    std::fs::write(&text, "this is no log at all, but it is long enough to be one").expect("a file");
    for command in ["replay", "log"] {
        assert_refused(&[command, path(&text)], &["text", "not a lockstep"]);
        assert_refused(&[command, path(&inside("missing.log"))], &["missing.log", "No such file"]);
        assert_refused(&[command, path(directory.path())], &["directory"]);
    }
    assert_refused(&["record", "--detached", "--log", path(&inside("nowhere/a.log"))], &["a.log", "No such file"]);
    assert_refused(&["primary", "--arbiter", path(directory.path()), "--name", "a/b"], &["name"]);
    assert_refused(
        &["primary", "--arbiter", path(directory.path()), "--heartbeat", "200", "--timeout", "300"],
        &["--timeout", "--heartbeat"],
    );
}

/// In a mount namespace of its own, where `/dev/kvm` is another device.
#[test]
fn a_host_without_kvm() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("a.log");
    let ran = common::machine::record(&common::machine::boot("no-such-guest"), &log, Default::default());
    ran.end.expect("a log");
    let arbiter = path(directory.path());
    for arguments in [
        &["run", "--detached"][..],
        &["replay", path(&log)],
        &["primary", "--arbiter", arbiter, "--control", "127.0.0.1:0", "--channel", "127.0.0.1:0"],
        &["backup", "--arbiter", arbiter, "--control", "127.0.0.1:0"],
    ] {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind /dev/null /dev/kvm && exec \"$@\"", "sh", LOCKSTEP]);
        command.args(arguments);
        assert_one_line(&Process::spawn(command).wait(), &["/dev/kvm"]);
    }
}

/// Plays a backup: sends one message to a primary, and gives what the primary says as it ends.
fn primary_meets(change: impl FnOnce(&mut Hello) -> Option<u64>) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let stderr = directory.path().join("stderr");
    let arguments = ["primary", "--control", "127.0.0.1:0", "--channel", "127.0.0.1:0", "--host", "one"];
    let mut command = Command::new(LOCKSTEP);
    command.args(arguments).args(["--arbiter", path(directory.path())]);
    let mut primary = Process::spawn_into(command, &stderr);
    let address = until("the primary's address", || {
        assert!(primary.ended().is_none(), "{:?}", std::fs::read_to_string(&stderr));
        let told = std::fs::read_to_string(&stderr).ok()?;
        Some(told.split_once("logging channel ")?.1.split_once(',')?.0.to_owned())
    });
    let mut stream = TcpStream::connect(&address).expect("the primary listens");
    let cpu = lockstep::machine::cpuid::CpuKind::of(&common::machine::boot("").cpuid).to_string();
    let me = Identity::new("lockstep", 7, "two", &cpu).expect("names");
    let mut hello = Hello::new(Role::Backup, &me, &Settings::default(), 0);
    let version = change(&mut hello);
    let mut payload = Vec::new();
    let head = Message::Hello(Box::new(hello)).encode(&mut payload);
    let mut bytes = Vec::new();
    frame::encode(FrameKind::Hello, version.unwrap_or(head.number), 0, &payload, &mut bytes).expect("a frame");
    stream.write_all(&bytes).expect("it takes the hello");
    // Its answer, until it closes the connection.
    let _ = stream.read_to_end(&mut Vec::new());
    let mut output = primary.wait();
    let told = std::fs::read_to_string(&stderr).expect("what it said");
    // The first line says where it listens.
    output.stderr = told.split_once('\n').map_or("", |(_, rest)| rest).as_bytes().to_vec();
    output
}

#[test]
fn a_peer_that_does_not_fit() {
    let output = primary_meets(|_| Some(99));
    assert_one_line(&output, &["version 99", "the same lockstep on both"]);
    let output = primary_meets(|hello| {
        hello.vm = "another".into();
        None
    });
    assert_one_line(&output, &["`another`", "`lockstep`"]);
    let output = primary_meets(|hello| {
        hello.cpu = "AcmeCorp 1.2.3".into();
        None
    });
    assert_one_line(&output, &["AcmeCorp 1.2.3", "one kind"]);
    let output = primary_meets(|hello| {
        hello.role = Role::Primary;
        None
    });
    assert_one_line(&output, &["both sides are primaries", "lockstep backup"]);
}
