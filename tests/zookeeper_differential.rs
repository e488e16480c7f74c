//! Promise: whatever frames a client sends, our arbiters answer as ZooKeeper does: replies, errors, stats, watch events, and which
//! connections end. The same random sequences of every kind of request, of bad ones too, run against two servers
//! (`tests/zookeeper/differential.py`) and all that comes back is compared. `LOCKSTEP_SECONDS` is the time for each pair.
//!
//! That the judge can be believed: ZooKeeper does not differ from itself, alone or as three, and a proxy that spoils one thing in
//! what a server says is found, whatever the thing is.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use common::zookeeper::{Kind, Settings, ZooKeeper};
use common::{count_from, seed};

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/zookeeper");

/// Fresh servers, for root and numbers have to be the same on both sides; nothing happens by itself while they are compared.
fn servers(kind: Kind, count: usize) -> ZooKeeper {
    let settings = Settings {
        session_ms: [1000, 40_000],
        container_ms: 3_600_000,
        ttl: false,
        sync: false,
        patient: true,
        ..Settings::default()
    };
    ZooKeeper::start_set(kind, count, settings)
}

/// Compares two servers or ensembles.
fn compare(one: &str, other: &str, seed: u64, seconds: u64, arguments: &[&str]) -> Output {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-B", "differential.py", one, other]).current_dir(PROGRAMS);
    command.args(["--seed", &seed.to_string(), "--seconds", &seconds.to_string()]).args(arguments);
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

#[track_caller]
fn agree(one: &ZooKeeper, other: &ZooKeeper, arguments: &[&str]) {
    // The rarest of what has to be seen is in one sequence of 25.
    let see = SEEN.join(",");
    let arguments = [arguments, &["--see", &see, "--rounds", "2000"]].concat();
    let output = compare(&one.addresses(), &other.addresses(), seed(), count_from("LOCKSTEP_SECONDS", 2), &arguments);
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "they differ:\n{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// What has to have been seen for an agreement to mean something: every request with its success and the errors that it is for,
/// every event.
const SEEN: &[&str] = &[
    "NodeCreated",
    "NodeDeleted",
    "NodeDataChanged",
    "NodeChildrenChanged",
    "create: Ok",
    "create: NodeExists",
    "create: NoNode",
    "create: BadArguments",
    "create: InvalidACL",
    "create: NoChildrenForEphemerals",
    "create2: Ok",
    "createContainer: Ok",
    "createTTL: Unimplemented",
    "delete: Ok",
    "delete: NoNode",
    "delete: BadVersion",
    "delete: NotEmpty",
    "exists: Ok",
    "getData: Ok",
    "getData: NoAuth",
    "setData: Ok",
    "setData: BadVersion",
    "setData: NoAuth",
    "getACL: Ok",
    "setACL: Ok",
    "getChildren: Ok",
    "getChildren2: Ok",
    "sync: Ok",
    "multi: Ok",
    "multi: MarshallingError",
    "multiRead: Ok",
    "check: NoNode",
    "addWatch: Ok",
    "removeWatches: Ok",
    "removeWatches: NoWatcher",
    "setWatches: Ok",
    "setWatches2: Ok",
    "auth: Ok",
    "auth: AuthFailed",
    "getEphemerals: Ok",
    "getAllChildrenNumber: Ok",
    "closeSession: Ok",
    "unknown: Unimplemented",
    "create: MarshallingError",
];

#[test]
fn zookeeper_agrees_with_itself() {
    let (one, other) = (servers(Kind::Debian, 1), servers(Kind::Debian, 1));
    agree(&one, &other, &[]);
}

#[test]
fn an_arbiter_agrees_with_a_zookeeper() {
    let (one, other) = (servers(Kind::Debian, 1), servers(Kind::Lockstep, 1));
    // With a wrong password, somebody can have ZooKeeper close the connection of a session that is not his. Ours does not.
    agree(&one, &other, &["--without", "wrong-password,checkWatches"]);
}

#[test]
fn three_arbiters_agree_with_a_zookeeper() {
    let (one, three) = (servers(Kind::Debian, 1), servers(Kind::Lockstep, 3));
    agree(&one, &three, &["--without", "wrong-password,checkWatches"]);
}

#[test]
fn three_zookeepers_agree_with_one() {
    let (one, three) = (servers(Kind::Debian, 1), servers(Kind::Debian, 3));
    // What a member knows of others' watches and connections is its own.
    agree(&one, &three, &["--without", "wrong-password,checkWatches"]);
}

/// A proxy that spoils something; it ends with this.
struct Tampering {
    child: Child,
    address: String,
}

impl Tampering {
    fn before(target: &str, plant: &str) -> Tampering {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-B", "tamper.py", target, plant]).current_dir(PROGRAMS).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let mut port = String::new();
        BufReader::new(child.stdout.take().expect("stdout is a pipe")).read_line(&mut port).expect("it says its port");
        Tampering { child, address: format!("127.0.0.1:{}", port.trim()) }
    }
}

impl Drop for Tampering {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_spoilt_is_found() {
    const PLANTS: [&str; 16] = [
        "error",
        "version",
        "cversion",
        "owner",
        "pzxid",
        "mtime",
        "lost-event",
        "doubled-event",
        "late-event",
        "child",
        "sequence",
        "multi-error",
        "backwards",
        "trailing",
        "swapped",
        "stays-open",
    ];
    let (one, other) = (servers(Kind::Debian, 1), servers(Kind::Debian, 1));
    let seed = seed();
    for plant in PLANTS {
        if plant == "stays-open" {
            // Up to here nothing was spoilt but what was said: without the proxy, the two still agree.
            let output = compare(&one.address(0), &other.address(0), seed, 60, &["--rounds", "5"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        let begun = Instant::now();
        let tampering = Tampering::before(&other.address(0), plant);
        // The last one shows in that a server is silent where it should end the connection.
        let arguments = ["--cut-seconds", "0", "--patience", if plant == "stays-open" { "1" } else { "10" }];
        let output = compare(&one.address(0), &tampering.address, seed, 60, &arguments);
        let said = String::from_utf8_lossy(&output.stdout);
        let (first, errors) = (said.lines().next().unwrap_or_default(), String::from_utf8_lossy(&output.stderr));
        println!("{plant}, {} ms: {first}", begun.elapsed().as_millis());
        assert_eq!(output.status.code(), Some(1), "{plant} is not found: {said}{errors}");
        assert!(first.contains("differs"), "{plant} is not found, but: {said}{errors}");
    }
}
