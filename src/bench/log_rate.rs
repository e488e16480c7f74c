//! How much log a computing guest makes, and what goes over the logging channel for it.

use std::time::{Duration, Instant};

use super::report::{Row, Target};
use super::{Bench, pause};
use crate::cli::loopback::{Pair, SETTLE, ensure_protected};

pub const NAME: &str = "log-rate";

/// Boot and the first page faults are no part of it.
const WARM_UP: Duration = Duration::from_secs(1);

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (hz, most) in [(100, 2.0), (1000, 16.0)] {
        bench.say(format!("{NAME}: {hz} Hz"));
        rows.extend(bench.block_on(at(hz, most, bench.size(3, 10)))?);
    }
    Ok(rows)
}

async fn at(hz: u32, most: f64, seconds: u64) -> anyhow::Result<Vec<Row>> {
    let pair = Pair::start("compute", &format!("1000000 hz={hz}"), &[])?;
    pause(WARM_UP).await;
    let (before, began) = (pair.primary.status().await?, Instant::now());
    pause(Duration::from_secs(seconds)).await;
    let (after, took) = (pair.primary.status().await?, began.elapsed().as_secs_f64());
    pause(SETTLE).await;
    ensure_protected(&pair.primary.status().await?)?;
    let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / took / 1e3;
    let entries = after.entries.saturating_sub(before.entries);
    let sent = rate(before.channel_sent_bytes, after.channel_sent_bytes);
    let received = rate(before.channel_received_bytes, after.channel_received_bytes);
    Ok(vec![
        Row::new(NAME, format!("log of compute at {hz} Hz"), rate(before.log_bytes, after.log_bytes), "kB/s")
            .target(Target::AtMost(most))
            .note(format!("{:.0} entries/s; digests every second included", entries as f64 / took)),
        Row::new(NAME, "  on the logging channel, both ways", sent + received, "kB/s").note(format!(
            "{sent:.1} to the backup, {received:.1} back; frames, horizons, heartbeats and acknowledgements included"
        )),
    ])
}
