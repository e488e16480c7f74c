//! Promise: whoever looks at a cluster sees every host and VM of it as it is: who runs it, whether it is protected, and what has changed a moment ago. What the
//! ensemble suffers does not keep that from being right again as soon as there is one, and disturbs no pair.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use common::load::{Job, Load};
use common::pair::{Pair, Setup};
use common::zookeeper::{Kind, ZooKeeper, background};
use common::{Random, eventually, seed};
use lockstep::arbiter::uri::ArbiterUri;
use lockstep::arbiter::zookeeper::Sessions;
use lockstep::cluster::paths::Paths;
use lockstep::cluster::process::Process;
use lockstep::cluster::publish::Publication;
use lockstep::cluster::records::{Document, Host, Side, VERSION};
use lockstep::console::status::Role;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::watch;
use zookeeper_client as zk;

static TURN: Mutex<()> = Mutex::new(());

/// An ensemble of this test's, and somebody who looks into it without lockstep's help.
struct Ensemble {
    servers: ZooKeeper,
    runtime: Handle,
    client: zk::Client,
    _turn: MutexGuard<'static, ()>,
}

impl Ensemble {
    fn of(kind: Kind, count: usize) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (servers, runtime) = (ZooKeeper::start(kind, count), background());
        let client = runtime.block_on(zk::Client::connect(&servers.addresses())).unwrap();
        Ensemble { servers, runtime, client, _turn: turn }
    }

    fn uri(&self) -> String {
        self.servers.uri("")
    }

    /// Sessions as a host has them.
    fn sessions(&self) -> Arc<Sessions> {
        let Ok(ArbiterUri::ZooKeeper(uri)) = self.uri().parse() else { panic!("a URI") };
        Sessions::open(&uri).unwrap()
    }

    /// The children of a node and the session that each belongs to; none where there is no such node, or no answer now.
    fn owned(&self, path: &str) -> Vec<(String, i64)> {
        self.runtime.block_on(async {
            let mut all = Vec::new();
            for child in self.client.list_children(path).await.unwrap_or_default() {
                if let Ok(Some(stat)) = self.client.check_stat(&format!("{path}/{child}")).await {
                    all.push((child, stat.ephemeral_owner));
                }
            }
            all.sort();
            all
        })
    }

    /// A record.
    fn record<R: Document>(&self, path: &str) -> Option<R> {
        let (bytes, _) = self.runtime.block_on(self.client.get_data(path)).ok()?;
        R::from_bytes(&bytes).ok()
    }

    fn side(&self, host: &str) -> Option<Side> {
        self.record(&format!("/lockstep/vms/vm/sides/{host}"))
    }

    /// Waits until the record of a side says what is wanted.
    #[track_caller]
    fn says(&self, host: &str, what: &str, wanted: impl Fn(&Side) -> bool) -> Side {
        let mut last = None;
        eventually(&format!("{host} is listed as {what}"), || {
            let side = self.side(host);
            let found = side.clone().filter(|side| wanted(side));
            last = side.or(last.take());
            found
        })
    }

    /// Runs `lockstep` for this cluster.
    fn lockstep(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        command.args(arguments).env("LOCKSTEP_ARBITER", self.uri());
        command.output().unwrap()
    }

    /// What it prints.
    #[track_caller]
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.lockstep(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it prints as JSON objects, one a line.
    #[track_caller]
    fn objects(&self, arguments: &[&str]) -> Vec<Value> {
        self.prints(arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn setup(ensemble: &Ensemble) -> Setup {
    Setup { arbiter: Some(ensemble.uri()), ..Job::Typing.setup() }
}

fn a_pair_is_listed_through_all_its_changes(kind: Kind) {
    let ensemble = Ensemble::of(kind, 1);
    let mut random = Random::new(seed());
    let mut pair = Pair::start(&setup(&ensemble));
    let load = Load::begin(Job::Typing, pair.console(), &mut random);
    let first = ensemble.says("first", "protected", |side| side.protected && side.role == Role::Primary);
    let second = ensemble.says("second", "following", |side| side.role == Role::Backup && side.state == "following");
    assert_eq!((first.generation, first.vm.as_str(), first.host.as_str()), (1, "vm", "first"));
    assert_eq!((first.memory_mib, second.memory_mib), (Some(32), Some(32)));
    assert_eq!((first.peer.as_deref(), second.peer.as_deref()), (Some("second"), Some("first")));
    assert_eq!([first.control, second.control.clone()], pair.consoles);
    assert!(second.protected && first.channel.starts_with("127.0.0.1:") && !first.cpu.is_empty());
    assert_eq!(first.process.pid, pair.primary.pid().as_raw() as u32);

    let shown = ensemble.prints(&["vms"]);
    let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..5], ["VM", "STATE", "GENERATION", "RUNS", "ON"]);
    assert_eq!(rows[1][..5], ["vm", "protected", "1", "first", "second"], "{shown}");
    assert!(rows[1][6].ends_with('s'), "no lag: {shown}");
    let [vm] = &ensemble.objects(&["vms", "--json"])[..] else { panic!("not one VM") };
    assert_eq!(
        (&vm["condition"], &vm["runs_on"], &vm["backups"][0]),
        (&"protected".into(), &"first".into(), &"second".into())
    );
    assert_eq!((&vm["register"]["generation"], &vm["register"]["host"]), (&1.into(), &"first".into()));
    assert!(vm["lag_ns"].is_u64() && vm["sides"][0]["status"]["entries"].is_u64(), "{vm}");
    let hosts = ensemble.objects(&["hosts", "--json"]);
    assert_eq!(
        (&hosts[0]["name"], &hosts[0]["runs"][0], &hosts[0]["guests_mib"]),
        (&"first".into(), &"vm".into(), &32.into())
    );
    assert_eq!(
        (&hosts[1]["name"], &hosts[1]["protects"][0], &hosts[1]["agent"]),
        (&"second".into(), &"vm".into(), &Value::Null)
    );
    // Not a terminal: printed once.
    let top = ensemble.prints(&["top"]);
    assert!(
        top.contains(&shown.lines().next().unwrap()[..20]) && top.contains("HOST") && top.contains("protected"),
        "{top}"
    );

    // The survivor says so at once; the record of the one that was killed is over, and goes away.
    let begun = Instant::now();
    pair.primary.kill();
    let survivor = ensemble.says("second", "unprotected", |side| side.role == Role::Unprotected);
    println!("from the kill to the record: {:?}", begun.elapsed());
    assert_eq!((survivor.generation, survivor.protected, survivor.state.as_str()), (2, false, "unprotected"));
    let [vm] = &ensemble.objects(&["vms", "--json"])[..] else { panic!("not one VM") };
    assert_eq!(
        (&vm["condition"], &vm["runs_on"], &vm["generation"]),
        (&"unprotected".into(), &"second".into(), &2.into())
    );
    let over = vm["sides"].as_array().unwrap().iter().find(|side| side["record"]["host"] == "first");
    assert!(over.is_none_or(|side| side["over"] == true && side["unreachable"].is_string()), "{vm}");
    eventually("the record of the dead one goes away", || ensemble.side("first").is_none().then_some(()));

    load.finish(&mut random);
    assert_eq!(pair.backup.ends().code(), Some(0));
    assert_eq!(ensemble.owned("/lockstep/vms/vm/sides"), [], "a side that ended in an orderly way is still listed");
    let shown = ensemble.prints(&["vms"]);
    assert!(shown.contains("down") && shown.contains("- (last second)"), "{shown}");
}

fn a_side_that_does_not_answer_is_unreachable_and_still_listed(kind: Kind) {
    let ensemble = Ensemble::of(kind, 1);
    let pair = Pair::start(&setup(&ensemble));
    ensemble.says("second", "following", |side| side.state == "following");
    // Only its console: the record has a port at which nobody listens.
    let record = format!("/lockstep/vms/vm/sides/{}", "third");
    let nobody = Side { control: "127.0.0.1:1".into(), ..ensemble.side("second").unwrap() };
    let nobody = Side { host: "third".into(), process: Process::default(), ..nobody };
    let options = zk::CreateMode::Ephemeral.with_acls(zk::Acls::anyone_all());
    ensemble.runtime.block_on(ensemble.client.create(&record, &nobody.to_bytes(), &options)).unwrap();
    let shown = ensemble.prints(&["vms"]);
    assert!(shown.contains("second, third (unreachable)"), "{shown}");
    let [vm] = &ensemble.objects(&["vms", "--json"])[..] else { panic!("not one VM") };
    let third = vm["sides"].as_array().unwrap().iter().find(|side| side["record"]["host"] == "third").unwrap();
    assert!(third["unreachable"].as_str().unwrap().contains("127.0.0.1:1") && third["status"].is_null(), "{vm}");
    drop(pair);
}

fn what_cannot_be_understood_is_said_and_the_rest_is_shown(kind: Kind) {
    let ensemble = Ensemble::of(kind, 1);
    let refused = ensemble.lockstep(&["vms"]);
    assert!(refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no VMs are known to zk://"));
    let put = |path: &str, bytes: &[u8]| {
        let options = zk::CreateMode::Persistent.with_acls(zk::Acls::anyone_all());
        let (parent, _) = path.rsplit_once('/').unwrap();
        ensemble.runtime.block_on(ensemble.client.mkdir(parent, &options)).unwrap();
        ensemble.runtime.block_on(ensemble.client.create(path, bytes, &options)).unwrap();
    };
    put("/lockstep/vms/a%20vm/sides/x", b"\xff");
    put("/lockstep/vms/a%20vm/sides/new", br#"{"version":2,"host":"new"}"#);
    put("/lockstep/vms/a%20vm/generation", b"generation 7");
    put("/lockstep/hosts/y", b"{");
    let output = ensemble.lockstep(&["vms"]);
    let (shown, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && shown.contains("a vm  down   0"), "{shown}{said}");
    for node in [
        "sides/x: it cannot be read",
        "sides/new: it is of version 2",
        "generation: its checksum",
        "hosts/y: it cannot",
    ] {
        assert!(said.contains(node), "`{node}` in {said}");
    }
}

fn arbiters_that_list_nothing_say_so(kind: Kind) {
    let ensemble = Ensemble::of(kind, 1);
    for command in ["hosts", "vms", "top"] {
        for arbiter in ["etcd://127.0.0.1:1", "/tmp", "file:///tmp"] {
            let output = ensemble.lockstep(&[command, "--arbiter", arbiter]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(
                output.status.code() == Some(1) && said.contains("zk://HOST") && said.lines().count() == 1,
                "{said}"
            );
        }
        let output = ensemble.lockstep(&[command, "--arbiter", "zk://127.0.0.1:1"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains("127.0.0.1:1: Connection refused"), "{said}");
        let output = ensemble.lockstep(&[command, "--arbiter", "zk://127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

/// A host's record, as an agent keeps it.
fn host(number: u64, name: &str) -> Host {
    Host {
        version: VERSION,
        name: name.into(),
        process: Process::this(number),
        capacity_mib: 4096,
        used_mib: 512,
        cpu: "a kind".into(),
        labels: [("rack".to_owned(), "7".to_owned())].into(),
        program: "0.1.0".into(),
        ..Host::default()
    }
}

fn publish(sessions: &Arc<Sessions>, record: &Host) -> (watch::Sender<Host>, Publication) {
    let (told, record_now) = watch::channel(record.clone());
    let parent = Paths::below(sessions.root()).hosts();
    (told, Publication::start(sessions.clone(), parent, &record.name, record_now))
}

fn a_record_follows_its_process_and_ends_with_it(kind: Kind) {
    let ensemble = Ensemble::of(kind, 1);
    let sessions = ensemble.sessions();
    let node = "/lockstep/hosts/a%20host";
    let (told, publication) = publish(&sessions, &host(1, "a host"));
    let listed = || ensemble.record::<Host>(node);
    eventually("the host is listed", || listed().filter(|listed| *listed == host(1, "a host")));
    let shown = ensemble.prints(&["hosts"]);
    assert!(shown.contains("a host  0.1.0  0     0         512 of 4096 MiB  a kind  rack=7"), "{shown}");
    for used in [600, 700, 800] {
        told.send_modify(|host| host.used_mib = used);
        eventually("a change is listed", || listed().filter(|listed| listed.used_mib == used));
    }
    // Somebody takes it away, or writes over it.
    for _ in 0..3 {
        ensemble.runtime.block_on(ensemble.client.delete(node, None)).unwrap();
        eventually("it is put again", || listed().filter(|listed| listed.used_mib == 800));
    }
    // An old word of its own that comes late does so: nothing else changes, and yet the record has to.
    let old = host(1, "a host").to_bytes();
    for over in [b"nonsense".to_vec(), old] {
        ensemble.runtime.block_on(ensemble.client.set_data(node, &over, None)).unwrap();
        eventually("it is written again", || listed().filter(|listed| listed.used_mib == 800));
    }
    told.send_modify(|host| host.used_mib = 900);
    eventually("a change is listed", || listed().filter(|listed| listed.used_mib == 900));
    ensemble.runtime.block_on(publication.end());
    assert_eq!(ensemble.owned("/lockstep/hosts"), [], "it is listed after its end");
}

fn whoever_takes_the_place_of_a_dead_process_is_listed_at_once(kind: Kind) {
    let ensemble = Ensemble::of(kind, 1);
    let sessions = [ensemble.sessions(), ensemble.sessions(), ensemble.sessions()];
    // Of a process that was killed: its record is there, as its session has not ended yet.
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let dead = Host { process: Process { pid: child.id(), started: 1, ..Process::this(1) }, ..host(1, "x") };
    let (_told, before) = publish(&sessions[0], &dead);
    let named = |node: &str, number: u64| {
        let found = ensemble.record::<Host>(&format!("/lockstep/hosts/{node}"));
        found.filter(|host| host.process.number == format!("{number:016x}"))
    };
    eventually("it was listed", || named("x", 1));
    let owner = ensemble.owned("/lockstep/hosts");
    // The record stays as long as the session does.
    drop(before);
    let (_told_too, _after) = publish(&sessions[1], &host(2, "x"));
    eventually("its successor is listed", || named("x", 2));
    assert_ne!(ensemble.owned("/lockstep/hosts"), owner, "the same session");
    // One of the same name that lives is not pushed away: both are there.
    let (_told_as_well, third) = publish(&sessions[2], &host(3, "x"));
    let second_name = "x~0000000000000003";
    eventually("the other one is listed beside it", || named(second_name, 3));
    assert!(named("x", 2).is_some());
    ensemble.runtime.block_on(third.end());
    assert_eq!(ensemble.owned("/lockstep/hosts").len(), 1);
}

fn a_record_survives_the_servers_and_the_ensemble(kind: Kind) {
    let mut ensemble = Ensemble::of(kind, 3);
    let sessions = ensemble.sessions();
    let (told, _publication) = publish(&sessions, &host(1, "x"));
    let mut used = 0;
    let mut changes = |ensemble: &Ensemble, what: &str| {
        used += 1;
        told.send_modify(|host| host.used_mib = used);
        eventually(what, || ensemble.record::<Host>("/lockstep/hosts/x").filter(|host| host.used_mib == used));
    };
    changes(&ensemble, "it is listed");
    // Each server in turn, so also that through which the record is kept. Between two blows it is waited for the ensemble.
    for silent in [true, false] {
        for member in 0..3 {
            if silent {
                ensemble.servers.member(member).stop()
            } else {
                ensemble.servers.member(member).kill()
            }
            changes(&ensemble, "it is listed without a server");
            if silent {
                ensemble.servers.member(member).go_on()
            } else {
                ensemble.servers.member(member).restart()
            }
            ensemble.servers.serves();
        }
    }
    // All of them at once, for longer than any session.
    (0..3).for_each(|member| ensemble.servers.member(member).kill());
    told.send_modify(|host| host.labels.clear());
    eventually("nobody can be asked", || {
        ensemble.runtime.block_on(ensemble.client.check_stat("/lockstep/hosts/x")).is_err().then_some(())
    });
    (0..3).for_each(|member| ensemble.servers.member(member).restart());
    ensemble.servers.serves();
    ensemble.client = ensemble.runtime.block_on(zk::Client::connect(&ensemble.servers.addresses())).unwrap();
    eventually("it is listed again", || {
        ensemble.record::<Host>("/lockstep/hosts/x").filter(|host| host.labels.is_empty())
    });
    let [(_, owner)] = ensemble.owned("/lockstep/hosts")[..] else { panic!("not one record") };
    assert_ne!(owner, 0);
}

/// What was asked of a server that was cut off may be done much later, when the record was put by another one and is a newer one.
fn what_comes_late_is_written_over(kind: Kind) {
    let ensemble = Ensemble::of(kind, 1);
    let (told, _publication) = publish(&ensemble.sessions(), &host(1, "x"));
    let path = "/lockstep/hosts/x";
    let listed = |used: u64| {
        eventually("it is listed as it is", || ensemble.record::<Host>(path).filter(|host| host.used_mib == used));
    };
    listed(512);
    let (old, _) = ensemble.runtime.block_on(ensemble.client.get_data(path)).unwrap();
    for used in [7, 8, 9] {
        told.send_modify(|host| host.used_mib = used);
        listed(used);
        ensemble.runtime.block_on(ensemble.client.set_data(path, &old, None)).unwrap();
        listed(used);
    }
    assert_eq!(ensemble.owned("/lockstep/hosts").len(), 1);
}

fn a_healthy_pair_is_listed_again_after_its_ensemble_was_lost(kind: Kind) {
    let mut ensemble = Ensemble::of(kind, 1);
    let mut random = Random::new(seed());
    let pair = Pair::start(&setup(&ensemble));
    let mut load = Load::begin(Job::Typing, pair.console(), &mut random);
    ensemble.says("second", "following", |side| side.state == "following");
    ensemble.servers.member(0).kill();
    load.work_for(std::time::Duration::from_millis(300), &mut random);
    for side in 0..2 {
        let status = pair.status(side).expect("it runs");
        assert_eq!(status.state, ["protected", "following"][side], "a healthy pair was disturbed");
    }
    ensemble.servers.member(0).restart();
    ensemble.servers.serves();
    ensemble.client = ensemble.runtime.block_on(zk::Client::connect(&ensemble.servers.addresses())).unwrap();
    // New nodes, of sessions with the server as it is now.
    ensemble.says("first", "protected", |side| side.state == "protected");
    ensemble.says("second", "following", |side| side.state == "following");
    pair.backup.signal(Signal::SIGKILL);
    ensemble.says("first", "unprotected", |side| side.state == "unprotected" && side.generation == 2);
    load.finish(&mut random);
}

/// Promises, with one kind of servers: all of them with our own, and those in which the servers have a part with Debian's.
macro_rules! with {
    ($module:ident, $kind:expr, $($promise:ident),+) => {
        mod $module {
            $(
                #[test]
                fn $promise() {
                    super::$promise($kind);
                }
            )+
        }
    };
}

with!(
    with_debians,
    crate::common::zookeeper::Kind::Debian,
    a_pair_is_listed_through_all_its_changes,
    a_record_survives_the_servers_and_the_ensemble,
    whoever_takes_the_place_of_a_dead_process_is_listed_at_once
);

with!(
    with_our_own,
    crate::common::zookeeper::Kind::Lockstep,
    a_pair_is_listed_through_all_its_changes,
    a_side_that_does_not_answer_is_unreachable_and_still_listed,
    what_cannot_be_understood_is_said_and_the_rest_is_shown,
    arbiters_that_list_nothing_say_so,
    a_record_follows_its_process_and_ends_with_it,
    whoever_takes_the_place_of_a_dead_process_is_listed_at_once,
    a_record_survives_the_servers_and_the_ensemble,
    what_comes_late_is_written_over,
    a_healthy_pair_is_listed_again_after_its_ensemble_was_lost
);
