//! Promise: whatever is wrong with what a user asks for, or with the host, the program says so in one clear line on its
//! standard error, with what to do about it, and ends with a status that is not 0. No backtrace, no panic.
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

mod recording;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use std::io::{Read, Write};

use lockstep::guest;
use lockstep::log::frame::{self, FrameKind};
use lockstep::replication::message::{Envelope, Head, Hello, Kind, Message, Refusal, Role};
use lockstep::replication::{Identity, Settings};
use recording::image::image;
use recording::process::{LOCKSTEP, Process, lockstep, path, text, until};

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
        assert_refused(&["run", "--detached", "--memory", size], &["--memory", named, "3072 MiB", "multiple of 2 MiB"]);
    }
    assert_refused(&["run", "--detached", "--memory", "18446744073709551615"], &["--memory"]);
    assert_refused(&["run", "--detached", "--memory", "-1"], &["-1", "--help"]);
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
    assert!(std::fs::read(&log).expect("the file") == b"an older log", "the older log is lost");
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
    // A log of another version of the format.
    let other = inside("other.log");
    recording::machine::write_log(&other, &recording::machine::boot("idle"), &[]);
    let mut bytes = std::fs::read(&other).expect("the log");
    bytes[4] = 77;
    std::fs::write(&other, bytes).expect("a file");
    for command in ["replay", "log"] {
        assert_refused(&[command, path(&other)], &["other.log", "version 77", &format!("version {}", frame::VERSION)]);
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
fn networks_that_are_none() {
    let net = |spec: &'static str| ["run", "--guest", "idle", "--detached", "--control", "127.0.0.1:0", "--net", spec];
    assert_refused(&net("mac=52:54:00:00:00:01"), &["tap=NAME"]);
    assert_refused(&net("tap=ls-absent"), &["--net", "ip tuntap add ls-absent mode tap"]);
    assert_refused(&net("tap=lo"), &["--net", "`lo` is no TAP device"]);
    assert_refused(&net("socket=/nonexistent/net"), &["--net", "/nonexistent/net"]);
    assert_refused(&["run", "--pcap", "/tmp/x.pcap"], &["--net"]);
}

#[test]
fn a_host_without_kvm() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("a.log");
    let ran = recording::machine::record(&recording::machine::boot("no-such-guest"), &log, Default::default());
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

/// The hello of a peer that fits the program under test.
fn hello(role: Role) -> Hello {
    let cpu = lockstep::machine::cpuid::CpuKind::of(&recording::machine::boot("").cpuid).to_string();
    let me = Identity::new("lockstep", 7, "peer", &cpu).expect("names");
    Hello::new(role, &me, &Settings::default())
}

/// A backup says it without a generation, a primary with one.
fn said(hello: Hello) -> Envelope {
    let generation = u64::from(hello.role == Role::Primary);
    Envelope { generation, message: Message::Hello(Box::new(hello)) }
}

/// What does not fit: a change of the hello (or another version of the protocol), and what must be said about it.
type Misfit = (Option<u64>, fn(&mut Hello), &'static [&'static str]);

const MISFITS: [Misfit; 3] = [
    (Some(99), |_| {}, &["version 99", "the same lockstep on both"]),
    (None, |hello| hello.vm = "another".into(), &["`another`", "`lockstep`"]),
    (None, |hello| hello.cpu = "AcmeCorp 1.2.3".into(), &["AcmeCorp 1.2.3", "one kind"]),
];

fn send(stream: &mut TcpStream, kind: FrameKind, envelope: &Envelope, version: Option<u64>) {
    let (mut payload, mut bytes) = (Vec::new(), Vec::new());
    let head = envelope.encode(&mut payload);
    frame::encode(kind, version.unwrap_or(head.number), head.count, &payload, &mut bytes).expect("a frame");
    stream.write_all(&bytes).expect("the other side takes it");
}

/// Starts a side of a pair whose standard error goes to `stderr`.
fn side(arguments: &[&str], directory: &Path, stderr: &Path) -> Process {
    let mut command = Command::new(LOCKSTEP);
    command.args(arguments).args(["--control", "127.0.0.1:0", "--host", "one", "--arbiter", path(directory)]);
    Process::spawn_into(command, stderr)
}

/// A backup that meets a primary which does not fit, or which refuses it, says so and ends.
#[test]
fn a_primary_that_does_not_fit() {
    let directory = tempfile::tempdir().expect("a directory");
    let stderr = directory.path().join("stderr");
    let meet = |play: &dyn Fn(&mut TcpStream), says: &[&str]| {
        let primary = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = primary.local_addr().expect("its address").to_string();
        let backup = side(&["backup", "--primary", &address], directory.path(), &stderr);
        let (mut stream, _) = primary.accept().expect("the backup connects");
        play(&mut stream);
        // What it says until it closes the connection; some of what we said may be unread.
        let _ = stream.read_to_end(&mut Vec::new());
        drop(stream);
        let mut output = backup.wait();
        let told = std::fs::read_to_string(&stderr).expect("what it said");
        // The first line says where it listens.
        output.stderr = told.split_once('\n').map_or("", |(_, rest)| rest).as_bytes().to_vec();
        assert_one_line(&output, says);
    };
    for (version, change, says) in MISFITS {
        let mut hello = hello(Role::Primary);
        change(&mut hello);
        let hello = said(hello);
        meet(&|stream| send(stream, FrameKind::Hello, &hello, version), says);
    }
    let hello = said(hello(Role::Backup));
    meet(&|stream| send(stream, FrameKind::Hello, &hello, None), &["both sides are backups", "lockstep primary"]);
    let refuse = Envelope::refuse(Refusal::Version { ours: 98, theirs: 1 });
    meet(&|stream| send(stream, FrameKind::Refuse, &refuse, None), &["refused", "version 98", "the same lockstep"]);
}

/// A primary refuses a backup that does not fit, tells it why, and goes on waiting for one that does.
#[test]
fn a_backup_that_does_not_fit() {
    let directory = tempfile::tempdir().expect("a directory");
    let stderr = directory.path().join("stderr");
    let mut primary = side(&["primary", "--channel", "127.0.0.1:0"], directory.path(), &stderr);
    let address = until("the primary's address", || {
        let told = std::fs::read_to_string(&stderr).ok()?;
        Some(told.split_once("logging channel ")?.1.split_once(',')?.0.to_owned())
    });
    for (version, change, says) in MISFITS {
        let mut stream = TcpStream::connect(&address).expect("the primary listens");
        let mut hello = hello(Role::Backup);
        change(&mut hello);
        send(&mut stream, FrameKind::Hello, &said(hello), version);
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer, and an orderly end");
        let mut rest = answer.as_slice();
        let mut refusal = None;
        while let Some((frame, length)) = frame::parse(rest).expect("frames") {
            if frame.kind == FrameKind::Refuse {
                let head = Head { kind: Kind::Refuse, number: frame.number, count: frame.count };
                let (envelope, _) = Envelope::decode(head, frame.payload).expect("a refusal");
                refusal = Some(envelope.message);
            }
            rest = &rest[length..];
        }
        let Some(Message::Refuse(refusal)) = refusal else { panic!("no refusal in {answer:?}") };
        let refusal = refusal.to_string();
        assert!(says.iter().all(|word| refusal.contains(word)), "{refusal}: {says:?}");
        assert!(primary.ended().is_none(), "it must go on waiting");
    }
    primary.signal(nix::sys::signal::Signal::SIGTERM);
    let output = primary.wait();
    assert!(output.status.success(), "{}: {:?}", text(&output), std::fs::read_to_string(&stderr));
}
