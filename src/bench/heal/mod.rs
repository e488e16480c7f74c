//! Healing: from the loss of a host to protection on another one, without a person. Three hosts with agents, three arbiters, one VM; the host that runs it or the
//! one that protects it is killed (its kernel says so to everybody: connections close) or falls silent (nothing closes, and nobody is told).

mod hosts;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;

use self::hosts::{Hosts, NAMES};
use super::report::{Row, Target};
use super::statistics::{largest, median};
use super::{Bench, pause, soon};
use crate::cli::loopback::PATIENCE;
use crate::cluster::records::Host;
use crate::cluster::view::{Condition, View};
use crate::console::client::{Client, Options, What};
use crate::console::wire::Start;

/// The measurement's name.
pub const NAME: &str = "heal";

const VM: &str = "vm";

/// The most, ms.
const TARGET_MS: f64 = 3000.0;

/// Which host is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    Runner,
    Protector,
}

/// The ways of losing one.
const WAYS: [(Lost, Signal, &str); 4] = [
    (Lost::Runner, Signal::SIGKILL, "host that runs it killed"),
    (Lost::Runner, Signal::SIGSTOP, "host that runs it silent"),
    (Lost::Protector, Signal::SIGKILL, "host that protects it killed"),
    (Lost::Protector, Signal::SIGSTOP, "host that protects it silent"),
];

/// What happened when, in milliseconds since the loss, as the registry tells it; and the longest time in which a client saw nothing new.
#[derive(Clone, Copy, Default)]
struct Healed {
    pause_ms: f64,
    alone_ms: f64,
    chosen_ms: f64,
    there_ms: f64,
    moving_ms: f64,
    protected_ms: f64,
}

/// Takes the measurement.
pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    bench.block_on(heal(bench))
}

async fn heal(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let rounds = bench.size(3, 20);
    bench.say("heal: starting three arbiters and three agents");
    let mut hosts = Hosts::start().await?;
    hosts.tell(&["protect", VM, "--guest", "ticker", "--memory", "64", "--", "1", "hz=1000"]).await?;
    let mut found: Vec<Vec<Healed>> = WAYS.iter().map(|_| Vec::new()).collect();
    for round in 1..=rounds {
        for ((lost, signal, what), found) in WAYS.iter().zip(&mut found) {
            bench.say(format!("heal: {what}, {round} of {rounds}"));
            found.push(lose(&mut hosts, *lost, *signal).await?);
        }
    }
    let mut rows = Vec::new();
    for ((_, _, what), found) in WAYS.iter().zip(&found) {
        let all = |pick: fn(&Healed) -> f64| found.iter().map(pick).collect::<Vec<_>>();
        let of = |pick| median(&all(pick));
        let note = format!(
            "medians of what the registry says: runs alone {:.0} ms, a new backup is chosen {:.0}, is there {:.0}, the state is on its way {:.0}",
            of(|healed| healed.alone_ms),
            of(|healed| healed.chosen_ms),
            of(|healed| healed.there_ms),
            of(|healed| healed.moving_ms),
        );
        let protected = all(|healed| healed.protected_ms);
        rows.push(Row::new(NAME, format!("{what}, to protection: median"), median(&protected), "ms").note(note));
        let pauses = all(|healed| healed.pause_ms);
        let note = format!(
            "{} times; the longest that a client saw nothing: median {:.0}, longest {:.0} ms",
            pauses.len(),
            median(&pauses),
            largest(&pauses)
        );
        let row = Row::new(NAME, "  the same: longest", largest(&protected), "ms");
        rows.push(row.target(Target::AtMost(TARGET_MS)).note(note));
    }
    Ok(rows)
}

fn is_protected(view: &View) -> bool {
    view.vms.get(VM).is_some_and(|vm| vm.condition() == Condition::Protected && vm.sides.len() == 2)
}

/// One loss, and everything as it was before in the end, on other hosts.
async fn lose(hosts: &mut Hosts, lost: Lost, signal: Signal) -> anyhow::Result<Healed> {
    let view = hosts.sees("a protected VM", is_protected).await?;
    let vm = &view.vms[VM];
    let of = |host: &str| NAMES.into_iter().find(|name| *name == host);
    let runner = vm.runner().and_then(|side| of(&side.host));
    let protector = vm.runner().and_then(|side| of(side.peer.as_deref()?));
    let (Some(runner), Some(protector)) = (runner, protector) else { anyhow::bail!("nobody knows where it runs") };
    let lost = if lost == Lost::Runner { runner } else { protector };
    let client = Watcher::attach(vm.sides.iter().map(|side| side.control.clone()).collect()).await?;
    // Somewhere between two heartbeats.
    pause(Duration::from_micros(200_000 + getrandom::u64()? % 40_000)).await;
    let began = Instant::now();
    hosts.signal(lost, signal)?;
    let mut healed = soon("protection", milestones(hosts, lost, began)).await??;
    healed.pause_ms = client.longest_since(began)?;
    if signal == Signal::SIGKILL {
        hosts.bury(lost)?;
        hosts.boot(lost)?;
    } else {
        hosts.signal(lost, Signal::SIGCONT)?;
    }
    // From now on it is the spare.
    let is_spare = |view: &View| {
        let host = view.hosts.get(lost).and_then(|host| host.record.as_ref());
        let placement = view.vms[VM].placement.as_ref();
        let left_out = |host: &Host| {
            placement.and_then(|is| is.is.out(lost)).is_some_and(|out| out.is_of(&host.process, host.beat))
        };
        let shows_itself = host.is_some_and(|host| hosts.is_agent(host) && !left_out(host));
        shows_itself && hosts.is_empty(lost) && is_protected(view)
    };
    hosts.sees("the lost host as the spare", is_spare).await?;
    Ok(healed)
}

/// Waits until the VM is protected without `lost`.
async fn milestones(hosts: &Hosts, lost: &str, began: Instant) -> anyhow::Result<Healed> {
    let mut told = hosts.told();
    let mut seen = [None; 5];
    loop {
        let now = told.borrow_and_update().clone();
        let now_ms = began.elapsed().as_secs_f64() * 1e3;
        if let Ok(now) = now {
            let vm = &now.view.vms[VM];
            let runner = vm.runner().filter(|side| side.host != lost && side.peer.as_deref() != Some(lost));
            let placed = vm.placement.as_ref().and_then(|placement| placement.is.backup.as_deref());
            let chosen =
                runner.and(placed).filter(|backup| *backup != lost && runner.is_some_and(|side| side.host != **backup));
            let there = chosen.filter(|backup| vm.sides.iter().any(|side| side.host == **backup));
            let so = [
                runner.is_some(),
                chosen.is_some(),
                there.is_some(),
                there.is_some() && vm.condition() == Condition::Joining,
                there.is_some() && vm.condition() == Condition::Protected,
            ];
            for (seen, _) in seen.iter_mut().zip(so).filter(|(_, so)| *so) {
                seen.get_or_insert(now_ms);
            }
            if let [alone, chosen, there, moving, Some(protected_ms)] = seen {
                // What was over between two looks happened within the second one.
                let at = |moment: Option<f64>| moment.unwrap_or(protected_ms);
                return Ok(Healed {
                    pause_ms: 0.0,
                    alone_ms: at(alone),
                    chosen_ms: at(chosen),
                    there_ms: at(there),
                    moving_ms: at(moving),
                    protected_ms,
                });
            }
        }
        told.changed().await?;
    }
}

/// A console client that notes when it sees something new.
struct Watcher {
    seen: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<()>,
}

impl Watcher {
    async fn attach(addresses: Vec<String>) -> anyhow::Result<Self> {
        let mut options = Options::new(addresses);
        (options.start, options.first_attach, options.reattach) = (Start::Tail(0), Some(PATIENCE), Some(PATIENCE));
        let mut client = Client::connect(options).await?;
        let seen: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let noted = seen.clone();
        let task = tokio::spawn(async move {
            while let Some(event) = client.next().await {
                if matches!(event.what, What::Output { .. }) {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).push(event.at);
                }
            }
        });
        Ok(Watcher { seen, task })
    }

    /// The longest time without anything new since then, up to now, ms.
    fn longest_since(&self, began: Instant) -> anyhow::Result<f64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let moments: Vec<Instant> = std::iter::once(began).chain(seen.into_iter().filter(|at| *at > began)).collect();
        ensure!(moments.len() > 1 && !self.task.is_finished(), "the client has seen nothing since the loss");
        let gaps: Vec<f64> = moments.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).collect();
        Ok(largest(&gaps))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}
