//! Promise: agents do with real hosts what they decide in the mind (`tests/agents.rs`). A VM that is given to them runs on two of three hosts; when one is lost, the
//! third protects it, without a person; the lost one is the spare when it is back. A person moves it, is refused by name what cannot be, and takes it back. An
//! agent that stands still, or ends and starts again, loses nothing and starts nothing twice.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod heals;

use std::time::{Duration, Instant};

use common::console::Console;
use common::load::{Job, Load};
use common::{Random, eventually, seed};
use heals::cluster::Cluster;
use lockstep::cluster::view::{Condition, View};
use nix::sys::signal::Signal;

const HOSTS: [&str; 3] = ["alpha", "beta", "gamma"];

/// A guest that keeps an account of its input, and prints on its own. (The time-out is longer than in production: the tests share two processors with others.)
const PROTECT: &str = "protect vm --memory 32 --timeout 1000 --guest transcript -- tick";

/// The console ports of a VM's sides.
fn consoles(view: &View) -> Option<Vec<String>> {
    Some(view.vms.get("vm")?.sides.iter().map(|side| side.control.clone()).collect())
}

fn spare([runner, protector]: [&str; 2]) -> &'static str {
    HOSTS.into_iter().find(|host| *host != runner && *host != protector).expect("three hosts")
}

#[test]
fn what_is_lost_is_made_up_for_without_a_person() {
    let mut random = Random::new(seed());
    let mut cluster = Cluster::start(3, &HOSTS, 40);
    let said = cluster.does(PROTECT);
    let [runner, protector] = cluster.protected("vm", None);
    assert!(said.contains(&format!("vm: runs on {runner}, protected by {protector}")), "{said}");

    // The host that runs it dies with everything on it, its agent too.
    let console = Console::attach(&cluster.sees("two sides", consoles), None);
    let mut load = Load::begin(Job::Typing, console, &mut random);
    load.work_for(Duration::from_millis(200), &mut random);
    let third = spare([runner, protector]);
    let died = Instant::now();
    cluster.kill_host(runner);
    let now = cluster.protected("vm", Some(runner));
    println!("protected again {} ms after the death of the host that ran it", died.elapsed().as_millis());
    assert_eq!(now, [protector, third]);
    load.work_for(Duration::from_millis(200), &mut random);

    // The dead one is back: nothing is on it, and it is the spare. When the backup dies, it is there.
    cluster.boot(runner);
    cluster.sees("the host is back", |view| cluster.is_listed(view, runner).then_some(()));
    assert_eq!((cluster.protected("vm", None), cluster.sides_on(runner)), (now, vec![]));
    let died = Instant::now();
    cluster.kill_host(third);
    assert_eq!(cluster.protected("vm", Some(third)), [protector, runner]);
    println!("protected again {} ms after the death of the host that protected it", died.elapsed().as_millis());

    // Nobody saw anything of all this, and the guest has come to its end: so do the sides, and nobody starts others.
    load.finish(&mut random);
    let ended = |view: &View| {
        let vm = &view.vms["vm"];
        vm.placement.as_ref()?.is.ended.clone().filter(|_| vm.sides.is_empty())
    };
    cluster.sees("how it has ended", ended);
    assert!(cluster.refuses("place vm --primary alpha").contains("nobody runs `vm`"));
    // A person boots it again.
    cluster.does("protect vm --boot-anew");
    cluster.protected("vm", Some(third));
}

#[test]
fn a_person_moves_it_and_takes_it_back() {
    let cluster = Cluster::start(1, &HOSTS, 96);
    cluster.does(&format!("{PROTECT} now").replace(" --timeout", " --primary alpha --backup beta --timeout"));
    assert_eq!(cluster.protected("vm", None), ["alpha", "beta"]);
    let generation = |view: &View| Some(view.vms["vm"].generation());
    let first = cluster.sees("a generation", generation);

    // To where nothing of it is, for both.
    cluster.does("place vm --primary gamma --backup alpha");
    assert_eq!(cluster.protected("vm", Some("beta")), ["gamma", "alpha"]);
    assert!(cluster.sees("a generation", generation) > first);
    cluster.does("place vm --primary alpha");
    assert_eq!(cluster.protected("vm", None)[0], "alpha");
    cluster.does("place vm --backup beta");
    assert_eq!(cluster.protected("vm", None), ["alpha", "beta"]);

    // What cannot be.
    let big = cluster.refuses("protect big --memory 200 --guest idle");
    assert!(HOSTS.iter().all(|host| big.contains(&format!("{host}: "))), "{big}");
    assert!(big.contains("64 of 96 MiB are free, 200 are needed") && big.contains("96 of 96"), "{big}");
    let meets = cluster.refuses("protect other --memory 32 --guest idle --avoid vm --primary alpha");
    assert!(meets.contains("host alpha cannot have a side of `other`: `vm` is there"), "{meets}");
    let same = cluster.refuses("place vm --primary alpha --backup alpha");
    assert!(same.contains("cannot be on the same host, alpha"), "{same}");
    let unknown = cluster.refuses("place vm --backup delta");
    assert!(unknown.contains("cannot be moved to delta: no such host is known"), "{unknown}");
    assert!(cluster.refuses("place nothing --backup beta").contains("no VM is called `nothing`"));
    let view = cluster.view().expect("a view");
    assert!(!view.vms.contains_key("big") && !view.vms.contains_key("other"), "what was refused has left something");

    // One that avoids it is where it is not; and it, where that one is not.
    cluster.does("protect other --memory 32 --guest idle --avoid vm --backups 0");
    let other = |view: &View| Some(view.vms["other"].runner()?.host.clone());
    assert_eq!(cluster.sees("where the other one runs", other), "gamma");
    let meets = cluster.refuses("place vm --primary gamma");
    assert!(meets.contains("cannot be moved to gamma: `other` is there"), "{meets}");
    cluster.does("stop other");

    // Without a backup, with one again, and without the agents: then what runs, runs on.
    cluster.does("unprotect vm");
    let alone = |view: &View| {
        let vm = &view.vms["vm"];
        (vm.condition() == Condition::Unprotected && vm.sides.len() == 1).then(|| vm.sides[0].host.clone())
    };
    assert_eq!(cluster.sees("it runs alone", alone), "alpha");
    cluster.does("protect vm --backups 1");
    let [runner, protector] = cluster.protected("vm", None);
    cluster.does("unprotect vm --forget");
    let forgotten = |view: &View| {
        let vm = &view.vms["vm"];
        (vm.spec.is_none() && vm.placement.is_none()).then_some(())
    };
    cluster.sees("nobody looks after it", forgotten);
    cluster.signal_sides(protector, Signal::SIGKILL);
    assert_eq!(cluster.sees("it runs alone", alone), runner);
    assert!(cluster.refuses("unprotect vm").contains("the agents know nothing of `vm`"));
    cluster.does("stop vm");
}

#[test]
fn an_agent_that_stands_still_or_starts_again_does_nothing_twice() {
    let mut cluster = Cluster::start(1, &HOSTS, 40);
    cluster.does(PROTECT);
    let [runner, protector] = cluster.protected("vm", None);
    let generation = |view: &View| Some(view.vms["vm"].generation());
    let before = cluster.sees("a generation", generation);

    // Ctrl-C ends the agent alone; the one that comes next knows its processes, and ends none of them.
    let processes = HOSTS.map(|host| cluster.sides_on(host));
    for host in [runner, protector] {
        cluster.agent(host).signal(Signal::SIGINT);
        assert!(cluster.agent(host).ends().success());
        let said = cluster.agent(host).said();
        assert!(said.iter().any(|line| line.ends_with("what runs here goes on: vm")), "{said:?}");
        cluster.boot(host);
        cluster.sees("the agent is back", |view| cluster.is_listed(view, host).then_some(()));
    }
    assert_eq!(cluster.protected("vm", None), [runner, protector]);
    assert_eq!(HOSTS.map(|host| cluster.sides_on(host)), processes);
    // A second one on the same host is none.
    let data = cluster.refuses(&format!("agent --host {runner} --data {}", cluster.data(runner).display()));
    assert!(data.contains("another agent has the directory"), "{data}");

    // The agent that acts for it stands still, and the backup is lost: another one acts, and the sleeper finds it done.
    cluster.agent(runner).signal(Signal::SIGSTOP);
    cluster.signal_sides(protector, Signal::SIGKILL);
    let now = cluster.sees("protected without its agent", |view| {
        let vm = &view.vms["vm"];
        let side = vm.runner().filter(|_| vm.condition() == Condition::Protected)?;
        (vm.generation() > before).then(|| side.peer.clone())
    });
    let after = cluster.sees("a generation", generation);
    cluster.agent(runner).signal(Signal::SIGCONT);
    cluster.agent(runner).hears("that it was asleep", |line| line.contains("this agent was asleep").then_some(()));
    cluster.sees("it is listed again", |view| cluster.is_listed(view, runner).then_some(()));

    // And the host that protects it stands still with everything on it, until the third one does; what wakes up goes away.
    let now = now.as_deref().and_then(|host| HOSTS.into_iter().find(|name| *name == host)).expect("a backup");
    let next = spare([runner, now]);
    cluster.agent(now).signal(Signal::SIGSTOP);
    cluster.signal_sides(now, Signal::SIGSTOP);
    let healed = |view: &View| {
        let vm = &view.vms["vm"];
        let side = vm.runner().filter(|_| vm.condition() == Condition::Protected)?;
        (side.host == runner && side.peer.as_deref() == Some(next)).then_some(())
    };
    cluster.sees("the third host protects it", healed);
    cluster.agent(now).signal(Signal::SIGCONT);
    cluster.signal_sides(now, Signal::SIGCONT);
    eventually("what was asleep goes away", || cluster.sides_on(now).is_empty().then_some(()));
    assert_eq!(cluster.protected("vm", Some(now)), [runner, next]);
    assert!(cluster.sees("a generation", generation) > after);
    cluster.does("stop vm");
}
