//! Promise: a client of ZooKeeper finds with our arbiters what it finds with ZooKeeper: the same results, errors included. One script
//! of protocol behaviour and recipes (`tests/zookeeper/script.txt`) is run by the crate `zookeeper-client`, by kazoo, by Debian's
//! `zkCli.sh` and by a client that puts frames on the wire itself, against one server and against three. What the script says was
//! recorded from Debian's ZooKeeper (`LOCKSTEP_RECORD=1`, which writes the file anew).
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod zookeeper;

use std::net::SocketAddr;

use common::zookeeper::{Kind, Settings, ZooKeeper};
use zookeeper::cli::Cli;
use zookeeper::driver::{Driver, Program};
use zookeeper::library::Library;
use zookeeper::script::{Script, hasty_reads};
use zookeeper::{Outcome, SCRIPT, rewritten, run};

/// What the client can do that has nothing between it and the wire.
const RAW: &[&str] = &[
    "attach",
    "big",
    "container",
    "descendants",
    "ephemerals",
    "multi",
    "multi-errors",
    "multi-read",
    "null-data",
    "persistent-watch",
    "quick",
    "raw",
    "remove-watch",
    "set-persistent-watches",
    "set-watches",
    "stat-of-create",
    "stat-of-write",
    "timeout",
    "whoami",
];

const KAZOO: &[&str] =
    &["attach", "big", "multi", "multi-errors", "null-data", "quick", "stat-of-create", "stat-of-write"];

/// The clients, each made in the thread that it runs in.
fn clients() -> Vec<fn() -> Box<dyn Driver>> {
    vec![
        || Box::new(Program::python("raw", "raw_driver.py", RAW)),
        || Box::new(Library::new()),
        || Box::new(Program::python("kazoo", "kazoo_driver.py", KAZOO)),
        || Box::new(Cli::default()),
    ]
}

/// Has every client run the script against these members, all at the same time.
fn judge(script: &Script, members: &[SocketAddr]) {
    let only = std::env::var("LOCKSTEP_CLIENT").ok();
    let outcomes: Vec<(&'static str, Outcome)> = std::thread::scope(|scope| {
        let start = |client: fn() -> Box<dyn Driver>| {
            let only = &only;
            scope.spawn(move || {
                let mut driver = client();
                let name = driver.name();
                let wanted = only.as_ref().is_none_or(|only| only == name);
                wanted.then(|| (name, run(script, driver.as_mut(), members)))
            })
        };
        let threads: Vec<_> = clients().into_iter().map(start).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("a client ran to the end")).collect()
    });
    let mut differences = Vec::new();
    for (name, outcome) in &outcomes {
        println!("{name}: {} of {} steps executed", outcome.executed, script.steps.len());
        differences.extend(outcome.differences.iter().cloned());
        let promised = script.executes.get(*name).copied().unwrap_or_default();
        if outcome.executed != promised {
            differences
                .push(format!("{name} has executed {} steps, the script's head says {promised}", outcome.executed));
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

fn script() -> Script {
    let text = std::fs::read_to_string(SCRIPT).expect("the script can be read");
    Script::parse(&text).unwrap_or_else(|error| panic!("{SCRIPT}: {error}"))
}

/// Writes the script anew with what the raw client gets; a person reads the difference before it is believed.
fn record(members: &[SocketAddr]) {
    let text = std::fs::read_to_string(SCRIPT).expect("the script can be read");
    let outcome = run(&script(), &mut Program::python("raw", "raw_driver.py", RAW), members);
    std::fs::write(SCRIPT, rewritten(&text, &outcome)).expect("the script can be written");
}

/// Servers that do soon what the script waits for.
fn servers(kind: Kind, count: usize) -> ZooKeeper {
    let settings = Settings {
        tick_ms: 250,
        session_ms: [500, 40_000],
        container_ms: 200,
        ttl: false,
        sync: false,
        sync_limit: 80,
    };
    ZooKeeper::start_set(kind, count, settings)
}

fn sockets(servers: &ZooKeeper) -> Vec<SocketAddr> {
    (0..servers.count()).map(|index| servers.address(index).parse().expect("an IP address and a port")).collect()
}

fn serves_as_the_script_says(kind: Kind, count: usize) {
    let servers = servers(kind, count);
    judge(&script(), &sockets(&servers));
}

#[test]
fn one_zookeeper_does_what_the_script_says() {
    if std::env::var_os("LOCKSTEP_RECORD").is_some() {
        return record(&sockets(&servers(Kind::Debian, 1)));
    }
    serves_as_the_script_says(Kind::Debian, 1);
}

#[test]
fn three_zookeepers_do_what_the_script_says() {
    if std::env::var_os("LOCKSTEP_RECORD").is_none() {
        serves_as_the_script_says(Kind::Debian, 3);
    }
}

#[test]
fn one_arbiter_does_what_the_script_says() {
    serves_as_the_script_says(Kind::Lockstep, 1);
}

#[test]
fn three_arbiters_do_what_the_script_says() {
    serves_as_the_script_says(Kind::Lockstep, 3);
}

#[test]
fn the_script_reads_nothing_before_it_is_there() {
    let hasty = hasty_reads(&script());
    assert!(hasty.is_empty(), "reads of what another has just written, without a sync, in lines {hasty:?}");
}
