//! Arbiters against Debian's ZooKeeper: three members on this machine, the same clients, in turn.

pub(super) mod ensembles;

use std::time::Duration;

use anyhow::Context as _;

use self::ensembles::{Ensemble, Kind};
use super::report::{Row, Target};
use super::statistics::{largest, median, quantile};
use super::{Bench, soon};
use crate::load::zookeeper::{Answers, Ask, Load};

/// The measurement's name.
pub const NAME: &str = "arbiter";

const CONNECTIONS: usize = 30;
const BYTES: usize = 100;

/// A way of asking.
struct Way {
    what: &'static str,
    ask: Ask,
    window: usize,
    target: Option<Target>,
}

const WAYS: [Way; 4] = [
    Way {
        what: "writes, 30 clients, 16 under way each",
        ask: Ask::Set,
        window: 16,
        target: Some(Target::AtLeast(1.0)),
    },
    Way { what: "writes, 30 clients, one at a time", ask: Ask::Set, window: 1, target: Some(Target::AtLeast(1.0)) },
    Way {
        what: "local reads, 30 clients, 16 under way each",
        ask: Ask::Get,
        window: 16,
        target: Some(Target::AtLeast(1.5)),
    },
    Way {
        what: "local reads, 30 clients, one at a time",
        ask: Ask::Get,
        window: 1,
        target: Some(Target::AtLeast(1.5)),
    },
];

/// Takes the measurement.
pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = bench.block_on(throughput(bench))?;
    rows.extend(bench.block_on(elections(bench))?);
    Ok(rows)
}

async fn throughput(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let rounds = bench.size(2, 5);
    let time = bench.size(Duration::from_secs(2), Duration::from_secs(4));
    let mut measured: Vec<[Vec<Answers>; 2]> = WAYS.iter().map(|_| Default::default()).collect();
    bench.say("arbiter: starting three of ours and three of Debian's");
    let ours = Ensemble::start(Kind::Ours).await?;
    let debians = Ensemble::start(Kind::Debian).await?;
    // Java is slow until it has compiled what it does.
    for (way, ensemble) in WAYS.iter().flat_map(|way| [(way, &debians), (way, &ours)]) {
        measure(ensemble, way, time / 2).await?;
    }
    for round in 1..=rounds {
        for (way, [of_ours, of_debians]) in WAYS.iter().zip(&mut measured) {
            bench.say(format!("arbiter: {}, round {round} of {rounds}", way.what));
            of_ours.push(measure(&ours, way, time).await?);
            of_debians.push(measure(&debians, way, time).await?);
        }
    }
    let mut rows = Vec::new();
    for (way, [of_ours, of_debians]) in WAYS.iter().zip(&measured) {
        let rate = |answers: &[Answers]| median(&answers.iter().map(Answers::per_s).collect::<Vec<_>>());
        let wait = |answers: &[Answers], share| {
            let all: Vec<f64> =
                answers.iter().flat_map(|answers| &answers.latencies).map(|wait| wait.as_secs_f64() * 1e3).collect();
            quantile(&all, share)
        };
        let (ours, debians) = (rate(of_ours), rate(of_debians));
        let mut row = Row::new(NAME, format!("{}: ours / ZooKeeper", way.what), ours / debians, "").note(format!(
            "{ours:.0} and {debians:.0} a second; waits: median {:.2} and {:.2} ms, p99 {:.2} and {:.2} ms",
            wait(of_ours, 0.5),
            wait(of_debians, 0.5),
            wait(of_ours, 0.99),
            wait(of_debians, 0.99),
        ));
        if let Some(target) = way.target {
            row = row.target(target);
        }
        rows.push(row);
    }
    Ok(rows)
}

async fn measure(ensemble: &Ensemble, way: &Way, time: Duration) -> anyhow::Result<Answers> {
    let load = Load { members: ensemble.clients(), connections: CONNECTIONS, window: way.window, bytes: BYTES };
    load.run(way.ask, time).await.with_context(|| format!("{}, {:?}", way.what, ensemble.kind()))
}

/// From the leader's death to the next write that a member acknowledges.
async fn elections(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let kills = bench.size(10, 50);
    let mut ensemble = Ensemble::start(Kind::Ours).await?;
    let mut pauses = Vec::new();
    for kill in 1..=kills {
        bench.say(format!("arbiter: election {kill} of {kills}"));
        let leader = ensemble.leader().await?;
        let others: Vec<String> = ensemble
            .clients()
            .into_iter()
            .enumerate()
            .filter(|(index, _)| *index != leader)
            .map(|(_, at)| at)
            .collect();
        let load = Load { members: others, connections: 2, window: 1, bytes: BYTES };
        // Clients of the two that stay write all the time: the pause is the longest wait of the first that is answered again.
        let running = tokio::spawn(async move { load.run(Ask::Set, Duration::from_millis(1500)).await });
        super::pause(Duration::from_millis(700)).await;
        ensemble.kill(leader);
        let answers = soon("writes after an election", running).await??.context("clients of the members that stay")?;
        pauses.push(answers.latencies.iter().map(|wait| wait.as_secs_f64() * 1e3).fold(0.0, f64::max));
        ensemble.restart(leader).await?;
    }
    let row = Row::new(NAME, "election: pause of writes at the others, leader SIGKILLed", median(&pauses), "ms");
    let note = format!("{kills} kills; p90 {:.0}, longest {:.0} ms", quantile(&pauses, 0.9), largest(&pauses));
    Ok(vec![row.target(Target::AtMost(300.0)).note(note)])
}
