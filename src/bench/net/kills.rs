//! The take-over as clients on the network see it: eight clients count, the primary is killed, and the longest time that each then
//! waits between two answers is its pause.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use super::loads::KV;
use crate::bench::report::{Row, Target};
use crate::bench::statistics::{largest, median, quantile};
use crate::bench::{Bench, pause, soon};
use crate::cli::loopback::{Pair, hear, protected, taken_over};
use crate::cli::site::{GUEST, Site, Visit};
use crate::load::counting::{Account, Counting};

pub const NAME: &str = "net-kill";

const CLIENTS: usize = 8;
/// Answers of all clients before the kill, and after it.
const ANSWERS: u64 = 400;

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let site = Site::make()?;
    let _visit = Visit::to(&site.client)?;
    at(bench, &site)
}

/// The same on a site that is there already.
pub fn at(bench: &Bench, site: &Site) -> anyhow::Result<Vec<Row>> {
    let kills = bench.kills.unwrap_or(bench.size(5, 20));
    let (mut pauses, mut worst) = (Vec::new(), Vec::new());
    for kill in 1..=kills {
        bench.say(format!("{NAME}: kill {kill} of {kills}"));
        let seen = bench.block_on(one(site)).with_context(|| format!("kill {kill}"))?;
        worst.push(largest(&seen));
        pauses.extend(seen);
    }
    let note = format!(
        "{kills} kills, {CLIENTS} clients each; longest {:.0} ms; of the worst client of each kill: median {:.0} ms",
        largest(&pauses),
        median(&worst)
    );
    let retransmitted = pauses.iter().filter(|&&pause| pause >= 200.0).count();
    Ok(vec![
        Row::new(NAME, "pause seen by clients, SIGKILL: median", median(&pauses), "ms")
            .target(Target::AtMost(250.0))
            .note(note),
        Row::new(NAME, "  the same: p99", quantile(&pauses, 0.99), "ms").target(Target::AtMost(500.0)).note(format!(
            "{retransmitted} of {} clients waited for their own TCP's retransmission (200 ms and more)",
            pauses.len()
        )),
    ])
}

/// The pauses of the clients at one kill, milliseconds. An error if one of them lost its connection or an increment.
async fn one(site: &Site) -> anyhow::Result<Vec<f64>> {
    let pair = site.pair("kv", "")?;
    hear(&mut pair.console().await?, "listening on port").await?;
    protected(&pair.primary).await?;
    pauses(&pair).await.with_context(|| pair.words())
}

async fn pauses(pair: &Pair) -> anyhow::Result<Vec<f64>> {
    let mut counting = Counting::begin(&format!("{GUEST}:{KV}"), CLIENTS);
    ensure!(soon("answers before the kill", counting.wait_for(ANSWERS)).await?, "all clients gave up before the kill");
    // Somewhere between two ticks, heartbeats and digests.
    pause(Duration::from_micros(getrandom::u64()? % 40_000)).await;
    let killed = Instant::now();
    pair.primary.signal(Signal::SIGKILL)?;
    taken_over(&pair.backup).await?;
    let live = Instant::now();
    let resumed = soon("answers after the kill", counting.wait_for(ANSWERS)).await;
    let accounts = counting.end().await;
    for account in &accounts {
        if let Some(trouble) = &account.trouble {
            anyhow::bail!("a client lost its server: {trouble}");
        }
        let (lost, doubled) = (account.lost, account.doubled);
        ensure!((lost, doubled) == (0, 0), "{lost} increments lost, {doubled} applied twice");
    }
    ensure!(resumed?, "all clients gave up");
    let longest = |account: &Account| {
        account.first_after(live).context("a client was not answered after the kill")?;
        let last = *account.answers.last().context("a client had no answer")?;
        let pause = account.longest_pause(killed, last).context("a client had no pause")?;
        Ok(pause.as_secs_f64() * 1e3)
    };
    accounts.iter().map(longest).collect()
}
