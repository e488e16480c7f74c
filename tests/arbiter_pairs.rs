//! Promise: a pair whose arbiter is an ensemble of servers survives what a pair with a register file survives, and more: the death of its primary
//! together with that of any one of the arbiter's servers. While no server can be reached, a healthy pair runs on, and nobody goes on alone.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::etcd::Etcd;
use common::load::{Job, Load, kills};
use common::members::Member;
use common::pair::{Pair, Setup};
use common::zookeeper::{Kind, ZooKeeper};
use common::{Random, eventually, seed};

/// Who decides.
enum Arbiter {
    File,
    ZooKeeper(ZooKeeper),
    Etcd(Etcd),
}

/// One ensemble at a time.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arbiter {
    /// A pair of a job whose registers are at a place of their own.
    fn setup(&self, job: Job, random: &mut Random) -> Setup {
        let path = format!("/pair-{:x}", random.below(u64::MAX));
        let arbiter = match self {
            Arbiter::File => None,
            Arbiter::ZooKeeper(servers) => Some(servers.uri(&path)),
            Arbiter::Etcd(servers) => Some(servers.uri(&path)),
        };
        Setup { arbiter, ..job.setup() }
    }

    fn member(&mut self, index: usize) -> &mut Member {
        match self {
            Arbiter::File => unreachable!("a file has no servers"),
            Arbiter::ZooKeeper(servers) => servers.member(index),
            Arbiter::Etcd(servers) => servers.member(index),
        }
    }

    fn leader(&self) -> usize {
        match self {
            Arbiter::File => 0,
            Arbiter::ZooKeeper(servers) => servers.leader(),
            Arbiter::Etcd(servers) => servers.leader(),
        }
    }

    fn follower(&self) -> usize {
        match self {
            Arbiter::File => 0,
            Arbiter::ZooKeeper(servers) => servers.follower(),
            Arbiter::Etcd(servers) => servers.follower(),
        }
    }

    fn serves(&mut self) {
        match self {
            Arbiter::File => {}
            Arbiter::ZooKeeper(servers) => servers.serves(),
            Arbiter::Etcd(servers) => servers.serves(),
        }
    }
}

/// What happens to one of the arbiter's servers when the primary is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Double {
    Nothing,
    FollowerKilled,
    FollowerSilent,
    LeaderKilled,
    LeaderSilent,
}

/// Kills the primary, and does that to a server at the same time; gives the time until the next output.
fn fail(arbiter: &mut Arbiter, double: Double, random: &mut Random) -> Duration {
    let mut pair = Pair::start(&arbiter.setup(Job::Typing, random));
    let mut load = Load::begin(Job::Typing, pair.console(), random);
    load.work_for(Duration::from_micros(random.below(200_000)), random);
    let member = match double {
        Double::Nothing => None,
        Double::FollowerKilled | Double::FollowerSilent => Some(arbiter.follower()),
        Double::LeaderKilled | Double::LeaderSilent => Some(arbiter.leader()),
    };
    if let Some(member) = member {
        match double {
            Double::FollowerKilled | Double::LeaderKilled => arbiter.member(member).kill_at_once(),
            _ => arbiter.member(member).stop(),
        }
    }
    let begun = Instant::now();
    pair.primary.kill();
    let first = load.console.sees("the console moves to the backup", |seen| seen.first_output_in(2));
    load.work_for(Duration::from_millis(random.below(50)), random);
    let all = load.finish(random);
    assert!(all.attached.iter().all(|attachment| attachment.generation <= 2));
    assert_eq!(pair.backup.ends().code(), Some(0));
    if let Some(member) = member {
        match double {
            Double::FollowerKilled | Double::LeaderKilled => {
                arbiter.member(member).kill();
                arbiter.member(member).restart();
            }
            _ => arbiter.member(member).go_on(),
        }
        arbiter.serves();
    }
    first.duration_since(begun)
}

fn survives(arbiter: &mut Arbiter, doubles: &[Double]) {
    let seed = seed();
    let mut random = Random::new(seed);
    for &double in doubles {
        let mut pauses = Vec::new();
        for round in 0..kills(1) {
            println!("seed {seed} round {round}: the primary killed, {double:?}");
            pauses.push(fail(arbiter, double, &mut random).as_secs_f64() * 1000.0);
        }
        pauses.sort_by(f64::total_cmp);
        let (middle, last) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
        println!("{double:?}: {} pauses, ms: median {middle:.1}, longest {last:.1}", pauses.len());
    }
}

const DOUBLES: [Double; 5] =
    [Double::Nothing, Double::FollowerKilled, Double::FollowerSilent, Double::LeaderKilled, Double::LeaderSilent];

#[test]
fn with_a_register_file() {
    let _turn = turn();
    survives(&mut Arbiter::File, &[Double::Nothing]);
}

#[test]
fn with_a_zookeeper_ensemble() {
    let _turn = turn();
    survives(&mut Arbiter::ZooKeeper(ZooKeeper::start(Kind::Debian, 3)), &DOUBLES);
}

#[test]
fn with_our_own_arbiters() {
    let _turn = turn();
    survives(&mut Arbiter::ZooKeeper(ZooKeeper::start(Kind::Lockstep, 3)), &DOUBLES);
}

#[test]
fn with_an_etcd_cluster() {
    let _turn = turn();
    survives(&mut Arbiter::Etcd(Etcd::start(3)), &DOUBLES);
}

/// All servers die: nothing happens to the pair. Its backup dies: the primary waits, and lets nothing out. They come back: it goes on.
fn is_needed_only_to_go_on_alone(mut arbiter: Arbiter) {
    let mut random = Random::new(seed());
    let mut pair = Pair::start(&arbiter.setup(Job::Typing, &mut random));
    let mut load = Load::begin(Job::Typing, pair.console(), &mut random);
    load.work_for(Duration::from_millis(50), &mut random);
    (0..3).for_each(|member| arbiter.member(member).kill());
    let heartbeats = |status: &lockstep::console::status::Status| Some(status.heartbeats_received);
    let before = pair.says(0, "its heartbeats", heartbeats);
    load.work_for(Duration::from_millis(200), &mut random);
    pair.says(0, "more heartbeats", |status| (status.heartbeats_received > before + 100).then_some(()));
    for side in 0..2 {
        let status = pair.status(side).expect("it runs");
        assert_eq!(status.state, ["protected", "following"][side], "a healthy pair was disturbed");
    }
    for side in [&pair.primary, &pair.backup] {
        side.hears("that it could not take over", |line| line.contains("neither side can go on alone").then_some(()));
    }
    pair.backup.kill();
    pair.waits_for(0, "asking");
    let released = pair.says(0, "what it has released", |status| Some(status.console.released_bytes));
    load.work_for(Duration::from_millis(50), &mut random);
    eventually("it asks in vain, repeatedly", || {
        (pair.primary.said().iter().filter(|line| line.contains("no answer")).count() >= 2).then_some(())
    });
    let status = pair.status(0).expect("it waits");
    assert_eq!((status.state.as_str(), status.generation), ("asking", 1));
    assert_eq!(status.console.released_bytes, released, "released while waiting for the arbiter");
    (0..3).for_each(|member| arbiter.member(member).restart());
    pair.waits_for(0, "unprotected");
    load.finish(&mut random);
}

#[test]
fn a_zookeeper_ensemble_is_needed_only_to_go_on_alone() {
    let _turn = turn();
    is_needed_only_to_go_on_alone(Arbiter::ZooKeeper(ZooKeeper::start(Kind::Debian, 3)));
}

#[test]
fn our_own_arbiters_are_needed_only_to_go_on_alone() {
    let _turn = turn();
    is_needed_only_to_go_on_alone(Arbiter::ZooKeeper(ZooKeeper::start(Kind::Lockstep, 3)));
}

#[test]
fn an_etcd_cluster_is_needed_only_to_go_on_alone() {
    let _turn = turn();
    is_needed_only_to_go_on_alone(Arbiter::Etcd(Etcd::start(3)));
}
