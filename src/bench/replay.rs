//! Replay against the recording: a busy log by the ratio of their speeds, an idle guest by the time its replay takes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::report::{Row, Target};
use super::statistics::median;
use super::{Bench, alone};
use crate::cli::loopback::Scratch;
use crate::cli::replay::{Replayed, replay};
use crate::host::file_log::{FileLog, Watch};
use crate::log::file::LogWriter;
use crate::machine::snapshot::Boot;

pub const BUSY: &str = "replay-busy";
pub const IDLE: &str = "replay-idle";

pub fn busy(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let (samples, rounds) = (bench.size(3, 7), bench.size(50, 80));
    let scratch = Scratch::new()?;
    let (mut recorded, mut replayed) = (Vec::new(), Vec::new());
    let mut events = 0;
    for sample in 1..=samples {
        bench.say(format!("{BUSY}: {sample} of {samples}"));
        let file = scratch.path(&format!("busy-{sample}.log"));
        let boot = alone::boot("mix", &format!("{sample} {rounds} hz=1000"))?;
        recorded.push(record(&boot, &file, None, |_| {})?.as_secs_f64());
        let end = again(&file)?;
        anyhow::ensure!(end.end.is_some() && end.complete, "the recording of mix was not replayed to its end");
        replayed.push(end.took.as_secs_f64());
        events = end.tally.events;
    }
    let (first, second) = (median(&recorded), median(&replayed));
    Ok(vec![
        Row::new(BUSY, "replay of a busy log / its recording (speed)", first / second, "")
            .target(Target::AtLeast(0.95))
            .note(format!(
                "mix at 1,000 Hz, {samples} recordings of {events} events; recorded in {first:.3} s, replayed in {second:.3} s"
            )),
    ])
}

pub fn idle(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let seconds: u64 = bench.size(5, 60);
    let scratch = Scratch::new()?;
    let file = scratch.path("idle.log");
    let boot = alone::boot("idle", "hz=100")?;
    record(&boot, &file, Some(Duration::from_secs(seconds)), |elapsed| {
        bench.say(format!("{IDLE}: {} of {seconds} s recorded", elapsed.as_secs()));
    })?;
    let mut took = Vec::new();
    let mut events = 0;
    for _ in 0..3 {
        let end = again(&file)?;
        took.push(end.took.as_secs_f64());
        events = end.tally.events;
    }
    let scale = 60.0 / seconds as f64;
    let scaled = if bench.quick { format!(", {seconds} s of it recorded and scaled up") } else { String::new() };
    let each_us = median(&took) / events.max(1) as f64 * 1e6;
    Ok(vec![
        Row::new(IDLE, "replay of 60 s of an idle guest", median(&took) * scale, "s")
            .target(Target::AtMost(1.0))
            .note(format!("100 Hz{scaled}; {events} events, {each_us:.0} µs each")),
    ])
}

/// Records; how long the guest ran.
fn record(
    boot: &Boot,
    file: &Path,
    limit: Option<Duration>,
    mut watch: impl FnMut(Duration),
) -> anyhow::Result<Duration> {
    let log = FileLog::new(LogWriter::create(file, boot)?);
    let mut ran = alone::run(boot, log, limit, |elapsed| {
        watch(elapsed);
        Ok(())
    })?;
    ran.log.close()?;
    Ok(ran.took)
}

fn again(file: &Path) -> anyhow::Result<Replayed> {
    replay(file, false, Arc::new(Watch::default()), |_| {})
}
