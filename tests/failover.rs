//! Promise: the guest survives the death of either host. Whatever happens to one of them, and at whatever moment (SIGKILL,
//! SIGSTOP, a cut cable, a slow link), whoever types at the console sees one guest that answers every line
//! exactly once and in order; a host that wakes up too late releases nothing. `scripts/campaign-failover` runs the long version.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use std::time::{Duration, Instant};

use common::load::{Job, LOADS, Load, kills};
use common::pair::Pair;
use common::{Random, eventually, seed};
use nix::sys::signal::Signal;

/// What happens to the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    KillPrimary,
    KillBackup,
    /// Silence, and a late awakening.
    StopPrimary,
    StopBackup,
    /// The logging channel is closed between two healthy hosts.
    Cut,
    /// The logging channel delivers nothing any more.
    Silence,
    /// The primary is killed behind a link that is slower than its log.
    KillSlow,
}

/// The pauses at the console, by what caused them.
#[derive(Default)]
struct Pauses {
    killed: Vec<Duration>,
    silent: Vec<Duration>,
}

fn print_pauses(name: &str, pauses: &mut [Duration]) {
    pauses.sort();
    let Some(last) = pauses.len().checked_sub(1) else { return };
    let at = |per_cent: usize| pauses[last * per_cent / 100].as_secs_f64() * 1000.0;
    println!(
        "{name}: {} pauses, ms: min {:.1}, median {:.1}, p99 {:.1}, max {:.1}",
        pauses.len(),
        at(0),
        at(50),
        at(99),
        at(100)
    );
}

/// The side that said it lost, after it has ended.
#[track_caller]
fn lost_the_generation(side: &mut common::process::Side) {
    let status = side.ends();
    assert_eq!(status.code(), Some(1), "a side that lost says so by its exit status");
    let said = side.said();
    assert!(said.iter().any(|line| line.contains("stopped: lost generation 2")), "{said:?}");
}

fn fail(failure: Failure, job: Job, random: &mut Random, pauses: &mut Pauses) {
    let mut pair = Pair::start(&job.setup());
    let witness = pair.witness(0);
    if failure == Failure::KillSlow {
        pair.relay.rule(|rules| rules.bytes_per_second = 30_000);
    }
    let mut load = Load::begin(job, pair.console(), random);
    load.work_for(Duration::from_micros(random.below(250_000)), random);
    let begun = Instant::now();
    // The side that lives on; `None`: whichever wins.
    let survivor = match failure {
        Failure::KillPrimary | Failure::KillSlow => {
            pair.primary.kill();
            Some(1)
        }
        Failure::KillBackup => {
            pair.backup.kill();
            Some(0)
        }
        Failure::StopPrimary => {
            pair.primary.signal(Signal::SIGSTOP);
            Some(1)
        }
        Failure::StopBackup => {
            pair.backup.signal(Signal::SIGSTOP);
            Some(0)
        }
        Failure::Cut => {
            pair.relay.cut(true);
            None
        }
        Failure::Silence => {
            pair.relay.freeze(true);
            None
        }
    };
    load.work_for(Duration::from_millis(random.below(50)), random);
    let alive = |side: usize| {
        let state = pair.status(side).map(|status| status.state);
        matches!(state.as_deref(), Some("unprotected")).then_some(side)
    };
    let survivor = match survivor {
        Some(side) => eventually("the survivor goes on alone", || alive(side)),
        None => eventually("one goes on alone", || alive(0).or_else(|| alive(1))),
    };
    if survivor == 1 {
        let first = load.console.sees("the console moves to the backup", |seen| {
            let moved = seen.attached.iter().any(|attachment| attachment.generation == 2);
            let first = seen.first_output_in(2);
            (moved && (first.is_some() || !load.goes_on(seen))).then_some(first)
        });
        // What an idle guest says next is no measure: it answers what is typed.
        if let (Some(first), true) = (first, job != Job::Idle) {
            let pause = first.duration_since(begun);
            match failure {
                Failure::KillPrimary => pauses.killed.push(pause),
                Failure::StopPrimary => pauses.silent.push(pause),
                _ => {}
            }
        }
    }
    let before_waking = witness.seen().output.clone();
    load.work_for(Duration::from_millis(random.below(100)), random);
    match failure {
        Failure::StopPrimary => {
            pair.primary.signal(Signal::SIGCONT);
            lost_the_generation(&mut pair.primary);
        }
        Failure::StopBackup => {
            pair.backup.signal(Signal::SIGCONT);
            lost_the_generation(&mut pair.backup);
        }
        Failure::Cut | Failure::Silence => {
            lost_the_generation(if survivor == 0 { &mut pair.backup } else { &mut pair.primary });
        }
        Failure::KillPrimary | Failure::KillBackup | Failure::KillSlow => {}
    }
    let all = load.finish(random);
    // Whatever the first primary has ever let out is part of the one history, and it let nothing out when it woke up.
    let witnessed = witness.seen().output.clone();
    assert!(all.output.starts_with(&witnessed), "the first primary let out something that never happened");
    if failure == Failure::StopPrimary {
        let late = witnessed.len() - before_waking.len();
        let acknowledged = pair.relay.account(|account| account.covered_bytes());
        assert!(witnessed.len() as u64 <= acknowledged, "{late} bytes after waking, {acknowledged} acknowledged");
    }
    assert!(all.attached.iter().all(|attachment| attachment.generation <= 2));
    let ended = if survivor == 0 { pair.primary.ends() } else { pair.backup.ends() };
    assert_eq!(ended.code(), all.ended.map(|(_, code)| code.into()), "the survivor ends as its guest did");
}

fn rounds(failures: &[Failure], short: u64) {
    let seed = seed();
    let mut random = Random::new(seed);
    let mut pauses = Pauses::default();
    let rounds = kills(short);
    for round in 0..rounds {
        let failure = failures[round as usize % failures.len()];
        // Each time another one, also where every failure comes once.
        let job = LOADS[(seed % LOADS.len() as u64 + round / failures.len() as u64) as usize % LOADS.len()];
        println!("seed {seed} round {round}: {failure:?} while {job:?}");
        fail(failure, job, &mut random, &mut pauses);
    }
    println!("{rounds} failures survived ({failures:?})");
    print_pauses("SIGKILL to the first new output", &mut pauses.killed);
    print_pauses("SIGSTOP to the first new output", &mut pauses.silent);
}

#[test]
fn the_guest_survives_the_death_of_its_primary() {
    rounds(&[Failure::KillPrimary], 4);
}

#[test]
fn the_guest_survives_the_death_of_its_backup() {
    rounds(&[Failure::KillBackup], 2);
}

#[test]
fn a_host_that_wakes_up_too_late_has_lost() {
    rounds(&[Failure::StopPrimary, Failure::StopBackup], 4);
}

#[test]
fn the_guest_survives_its_network() {
    rounds(&[Failure::Cut, Failure::Silence, Failure::KillSlow], 3);
}
