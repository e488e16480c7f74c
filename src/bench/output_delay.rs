//! What the output rule costs: how long outputs are held at the primary, and what a person at the keyboard sees of it.

use std::time::{Duration, Instant};

use super::report::{Row, Target};
use super::statistics::{median, quantile};
use super::{Bench, pause, soon};
use crate::cli::loopback::{Pair, SETTLE, ensure_protected};
use crate::console::client::{Client, What};

pub const NAME: &str = "output-delay";

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let seconds = bench.size(4, 15);
    let mut rows = Vec::new();
    for (arguments, busy) in [("1 hz=100", false), ("1 busy hz=100", true)] {
        let when = if busy { "under compute" } else { "guest otherwise idle" };
        bench.say(format!("{NAME}: {when}"));
        let held = bench.block_on(held(arguments, seconds))?;
        let micros = |ns: u64| ns as f64 / 1e3;
        let p50 = Row::new(NAME, format!("output delay, {when}: median"), micros(held.p50), "µs");
        let p99 = Row::new(NAME, format!("output delay, {when}: p99"), micros(held.p99), "µs");
        let note = format!("{} outputs, longest {:.0} µs", held.count, micros(held.max));
        let target = |row: Row, most: f64| if busy { row } else { row.target(Target::AtMost(most)) };
        rows.extend([target(p50, 100.0).note(note), target(p99, 1000.0)]);
    }
    let lines = bench.size(100, 400);
    for protected in [false, true] {
        let what = if protected { "protected" } else { "unprotected" };
        bench.say(format!("{NAME}: keyboard, {what}"));
        let samples = bench.block_on(round_trips(protected, lines))?;
        rows.push(
            Row::new(NAME, format!("  a typed line and its answer, {what}"), median(&samples), "µs")
                .note(format!("{lines} lines at a console client; p99 {:.0} µs", quantile(&samples, 0.99))),
        );
    }
    Ok(rows)
}

/// How long outputs of a ticker were held.
async fn held(arguments: &str, seconds: u64) -> anyhow::Result<crate::console::held_times::Quantiles> {
    let pair = Pair::start("ticker", arguments, &[])?;
    pause(Duration::from_secs(seconds)).await;
    let status = pair.primary.status().await?;
    pause(SETTLE).await;
    ensure_protected(&pair.primary.status().await?)?;
    Ok(status.console.output_delay_ns)
}

/// Times from a line typed to the guest's answer, microseconds.
async fn round_trips(protected: bool, lines: usize) -> anyhow::Result<Vec<f64>> {
    let (pair, alone);
    let mut console = if protected {
        pair = Pair::start("transcript", "hz=100", &[])?;
        pair.console().await?
    } else {
        alone = Pair::unprotected("transcript", "hz=100")?;
        alone.console().await?
    };
    line(&mut console).await?;
    let mut samples = Vec::new();
    for _ in 0..lines {
        let began = Instant::now();
        console.send(b"x\r").await?;
        let at = line(&mut console).await?;
        samples.push(at.saturating_duration_since(began).as_secs_f64() * 1e6);
    }
    Ok(samples)
}

/// Waits for the end of a line; when it came.
async fn line(console: &mut Client) -> anyhow::Result<Instant> {
    loop {
        let event = soon("the guest's answer", console.next()).await?;
        match event {
            Some(event) => {
                if matches!(&event.what, What::Output { bytes, .. } if bytes.ends_with(b"\n")) {
                    return Ok(event.at);
                }
            }
            None => anyhow::bail!("the console has ended"),
        }
    }
}
