//! The take-over as a console sees it: from the signal that ends (or stops) the primary to the first output that the survivor
//! made itself. The guest prints a line every millisecond, so its own pace adds no more than that.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::report::{Row, Target};
use super::statistics::{largest, median, quantile};
use super::{Bench, pause, soon};
use crate::cli::loopback::Pair;
use crate::console::client::{Client, Event, What};
use crate::replication::Settings;

pub const KILL: &str = "kill";
pub const SILENCE: &str = "silence";

/// One take-over, milliseconds from the signal.
struct TakeOver {
    /// The survivor has attached the console.
    attached_ms: f64,
    /// The first byte that the console had not seen before; may be output from before the signal.
    new_byte_ms: f64,
    /// The first byte that the survivor's own live machine made.
    live_byte_ms: f64,
}

pub fn kill(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let found = take_overs(bench, KILL, Signal::SIGKILL, bench.size(8, 60))?;
    let live: Vec<f64> = found.iter().map(|t| t.live_byte_ms).collect();
    Ok(vec![
        Row::new(KILL, "SIGKILL to new guest output: median", median(&live), "ms")
            .target(Target::AtMost(20.0))
            .note(note(&found)),
        Row::new(KILL, "SIGKILL to new guest output: p99", quantile(&live, 0.99), "ms")
            .target(Target::AtMost(100.0))
            .note(format!("{} kills, longest {:.1} ms", live.len(), largest(&live))),
    ])
}

pub fn silence(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let found = take_overs(bench, SILENCE, Signal::SIGSTOP, bench.size(4, 20))?;
    let live: Vec<f64> = found.iter().map(|t| t.live_byte_ms).collect();
    let timeout_ms = Settings::default().timeout_ns as f64 / 1e6;
    Ok(vec![
        Row::new(SILENCE, "silence to new guest output: median", median(&live), "ms")
            .target(Target::AtMost(timeout_ms + 50.0))
            .note(format!("time-out {timeout_ms:.0} ms + 50 ms; {}", note(&found))),
        Row::new(SILENCE, "  the same: longest", largest(&live), "ms").note(format!("{} times stopped", live.len())),
    ])
}

fn note(found: &[TakeOver]) -> String {
    let of = |pick: fn(&TakeOver) -> f64| median(&found.iter().map(pick).collect::<Vec<_>>());
    format!("console attached after {:.1} ms, first unseen byte {:.1} ms", of(|t| t.attached_ms), of(|t| t.new_byte_ms))
}

fn take_overs(bench: &Bench, name: &str, signal: Signal, times: usize) -> anyhow::Result<Vec<TakeOver>> {
    (1..=times)
        .map(|time| {
            bench.say(format!("{name}: {time} of {times}"));
            bench.block_on(take_over(signal))
        })
        .collect()
}

async fn take_over(signal: Signal) -> anyhow::Result<TakeOver> {
    let pair = Pair::start("ticker", "1 hz=1000", &[])?;
    let mut console = pair.console().await?;
    let output = |event: &Event| matches!(event.what, What::Output { .. });
    next(&mut console, output).await?;
    // Somewhere between two ticks, heartbeats and digests.
    let settle = Duration::from_micros(200_000 + getrandom::u64()? % 40_000);
    let settled = Instant::now() + settle;
    while Instant::now() < settled {
        next(&mut console, output).await?;
    }
    let began = Instant::now();
    pair.primary.signal(signal)?;
    let since = |event: &Event| event.at.saturating_duration_since(began).as_secs_f64() * 1e3;
    let attached = next(&mut console, |event| matches!(event.what, What::Attached { .. })).await?;
    // Known from the moment on at which it attached anybody.
    let status = pair.backup.status().await?;
    let Some(live_from) = status.console.live_from_byte else {
        anyhow::bail!("the backup is not live, but {}", status.state);
    };
    let new_byte = next(&mut console, output).await?;
    let new_byte_ms = since(&new_byte);
    let is_live = |event: &Event| matches!(&event.what, What::Output { position, bytes } if position + bytes.len() as u64 > live_from);
    let live_byte = if is_live(&new_byte) { new_byte } else { next(&mut console, is_live).await? };
    pause(Duration::ZERO).await;
    Ok(TakeOver { attached_ms: since(&attached), new_byte_ms, live_byte_ms: since(&live_byte) })
}

/// The next event of a kind.
async fn next(console: &mut Client, wanted: impl Fn(&Event) -> bool) -> anyhow::Result<Event> {
    loop {
        match soon("the console", console.next()).await? {
            Some(Event { what: What::Failed(error), .. }) => return Err(error.into()),
            Some(Event { what: What::Ended(ended), .. }) => anyhow::bail!("the guest ended: {}", ended.reason),
            Some(event) if wanted(&event) => return Ok(event),
            Some(_) => {}
            None => anyhow::bail!("the console has ended"),
        }
    }
}
