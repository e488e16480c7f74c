//! Promise: agents that see a cluster late, act at the same time, fall asleep and die keep its VMs protected all the same. At any moment: both sides of a VM are
//! on two hosts, no host has more than it can hold nor VMs that avoid each other, nobody is chosen that was just lost or is of another kind, one agent acts for a VM, nothing is
//! booted anew that anybody still has. And whatever has happened: once the hosts are back, everything is protected again, and then nothing happens any more.
//!
//! The agents' real decisions, in a cluster of the mind (`mind/world.rs`). `LOCKSTEP_SEED=n` shows one run, `LOCKSTEP_ROUNDS=n` makes more of them.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod mind;

use std::collections::BTreeMap;

use common::{Random, count_from, seed};
use lockstep::agent::decide;
use lockstep::agent::decide::Act;
use lockstep::agent::times::Times;
use lockstep::arbiter::Claim;
use lockstep::cluster::placement::Placement;
use lockstep::cluster::process::Process;
use lockstep::cluster::records::{Host, Side};
use lockstep::cluster::spec::{Guest, Spec};
use lockstep::cluster::view::{HostView, Versioned, View, Vm};
use lockstep::console::status::Role;
use mind::world::{Mistake, World};

/// Rounds of trouble.
const TROUBLE: u64 = 300;
/// Rounds within which everything has to be as it should be when the trouble is over. A host that has failed five times is tried again after 48 s.
const PEACE: u64 = 1500;
/// For so many rounds it has to stay so, and nothing to happen.
const QUIET: u64 = 150;
/// The most that agents may do for each VM until then, on average: placements written, sides started, sent away, switched.
const CALM: u64 = 30;

fn world(random: &mut Random, mistake: Mistake) -> World {
    let count = 3 + random.below(4);
    // So that everything that is asked for can be had, with one host missing: hosts that do not fit come on top of these.
    let vms = 1 + random.below(4);
    // Half of the clusters are tight: every host holds two sides, and whoever chooses is not the only one that wants the place.
    let tight = random.below(2) == 0;
    let (count, vms) = if tight { (6, 4) } else { (count, vms) };
    let memory = |random: &mut Random| if tight { 64 } else { 32 * (1 + random.below(3)) };
    let mut specs = Vec::new();
    for vm in 0..vms {
        let spec = Spec {
            guest: Some(Guest { name: "kv".into(), arguments: Vec::new() }),
            memory_mib: memory(random),
            backups: u32::from(random.below(6) > 0),
            restart: random.below(3) == 0,
            ..Spec::default()
        };
        specs.push((format!("vm{vm}"), spec));
    }
    // Two VMs that avoid each other need four hosts, and a fifth for when one is missing.
    if !tight && count >= 5 && specs.len() >= 2 && random.below(2) == 0 {
        specs[0].1.avoid.insert("vm1".into());
    }
    let sum: u64 = specs.iter().map(|(_, spec)| spec.memory_mib).sum();
    let label: BTreeMap<String, String> = [("disk".to_owned(), "fast".to_owned())].into();
    let mut hosts: Vec<Host> = (0..count)
        .map(|host| Host {
            name: format!("h{host}"),
            capacity_mib: if tight { 128 } else { sum + random.below(200) },
            cpu: "one kind".into(),
            labels: label.clone(),
            ..Host::default()
        })
        .collect();
    if random.below(2) == 0 {
        specs.iter_mut().for_each(|(_, spec)| spec.require = label.clone());
        hosts.push(Host { name: "a-slow".into(), capacity_mib: 10_000, cpu: "one kind".into(), ..Host::default() });
    }
    if random.below(2) == 0 {
        let small = Host {
            name: "a-small".into(),
            capacity_mib: 100,
            cpu: "one kind".into(),
            labels: label.clone(),
            ..Host::default()
        };
        hosts.push(small);
    }
    World::new(&hosts, &specs, mistake)
}

fn run(seed: u64, mistake: Mistake) -> World {
    let mut random = Random::new(seed);
    let mut world = world(&mut random, mistake);
    let hosts = world.hosts();
    // Some look seldom, and act on what was so seconds ago.
    let sees = if random.below(3) == 0 { 4 + random.below(20) } else { 30 + random.below(70) };
    for _ in 0..TROUBLE {
        match random.below(60) {
            0..3 => world.kill_host(random.pick::<String>(&hosts)),
            3..10 => world.revive(random.pick::<String>(&hosts)),
            10..12 => world.sleep(random.pick::<String>(&hosts)),
            12..14 => world.kill_one(&mut random),
            14 => world.wish(&mut random),
            15 => world.boot_what_is_lost(),
            16..19 => world.sleep_where_one_boots(),
            _ => {}
        }
        world.turn(&mut random, sees);
    }
    for host in &hosts {
        world.revive(host);
    }
    let (mut settled, mut deeds) = (0, 0);
    let before = world.deeds();
    for _ in 0..PEACE {
        world.boot_what_is_lost();
        world.turn(&mut random, 100);
        let done = world.deeds();
        let is_quiet = world.is_settled().is_ok() && done == deeds;
        (settled, deeds) = (if is_quiet { settled + 1 } else { 0 }, done);
        if settled == QUIET {
            let calm = (world.deeds() - before) / world.count_of_vms();
            assert!(calm <= CALM, "seed {seed}: {calm} deeds for each VM, though nothing was amiss any more");
            return world;
        }
    }
    let wrong = world.is_settled().err().unwrap_or_else(|| "something happens all the time".into());
    panic!("seed {seed}: {wrong}; quiet for {settled} rounds");
}

#[test]
fn whatever_happens_everything_is_protected_again() {
    let (first, runs) = (seed(), count_from("LOCKSTEP_ROUNDS", 30));
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in first..first + runs {
        for (what, count) in run(seed, Mistake::None).seen {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{runs} runs of {TROUBLE} rounds of trouble and {PEACE} of peace: {seen:?}");
    // Rare ones are among many runs.
    let rare: &[&str] = if runs < 300 { &[] } else { &["deeds that were not confirmed"] };
    for what in ["take-overs", "switches", "writes that were overtaken", "sides that left"].iter().chain(rare) {
        assert!(seen.get(what).is_some_and(|count| *count > 0), "never: {what}");
    }
}

/// The checks can be believed: with a mistake in it, some run breaks a promise.
#[test]
fn mistakes_are_found() {
    // What this thread finds is wanted; what another one finds has to be heard.
    let (hook, me) = (std::panic::take_hook(), std::thread::current().id());
    std::panic::set_hook(Box::new(move |found| {
        if std::thread::current().id() != me {
            hook(found);
        }
    }));
    for mistake in [Mistake::NoReservations, Mistake::NoRegister] {
        let found = (0..200).find(|&seed| std::panic::catch_unwind(|| run(seed, mistake)).is_err());
        println!("{mistake:?}: found by seed {found:?}");
        assert!(found.is_some(), "{mistake:?} was not found");
    }
}

/// What a host was chosen for is not done while its agent is gone; but it has failed at nothing, and is as good as any other once that is back.
#[test]
fn a_host_whose_agent_was_gone_is_chosen_as_soon_as_it_is_back() {
    const MS: u64 = 1_000_000;
    let host = |name: &str| {
        let process = Process { number: name.into(), ..Process::default() };
        let record = Host { name: name.into(), process, capacity_mib: 1024, cpu: "one kind".into(), ..Host::default() };
        HostView { record: Some(record), ..HostView::default() }
    };
    let side = Side {
        host: "a".into(),
        role: Role::Unprotected,
        state: "unprotected".into(),
        generation: 1,
        ..Side::default()
    };
    let placement =
        Placement { number: 1, primary: Some("a".into()), backup: Some("b".into()), ..Placement::default() };
    let vm = Vm {
        register: Some(Claim { generation: 1, host: 1, host_name: "a".into(), shared_with: None }),
        spec: Some(Versioned { is: Spec { memory_mib: 64, backups: 1, ..Spec::default() }, version: 0 }),
        placement: Some(Versioned { is: placement, version: 0 }),
        sides: vec![side],
    };
    let mut view = View::default();
    view.hosts.insert("a".into(), host("a"));
    view.vms.insert("vm".into(), vm);
    let (mut times, mut now_ms) = (Times::default(), 0);
    let mut decided = |view: &mut View, after_ms: u64| {
        now_ms += after_ms;
        times.look(now_ms * MS, view);
        let acts = decide(view, "a", &times);
        let placed = acts.into_iter().find_map(|act| match act {
            Act::Place(place) => Some(place.placement),
            Act::Switch { .. } => None,
        });
        if let Some(placed) = &placed {
            view.vms.get_mut("vm").unwrap().placement.get_or_insert_default().is = placed.clone();
        }
        placed.and_then(|placed| placed.backup)
    };
    assert_eq!(decided(&mut view, 0), None);
    assert_eq!(decided(&mut view, 1000), None, "its agent is gone");
    let given_up = view.vms["vm"].placement.as_ref().and_then(|placement| placement.is.backup.clone());
    assert_eq!(given_up, None, "it is given up");
    view.hosts.insert("b".into(), host("b"));
    assert_eq!(decided(&mut view, 1).as_deref(), Some("b"), "its agent is back");
}
