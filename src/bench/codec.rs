//! The log's codec, each way, for the kinds of log there are.

use std::time::Instant;

use super::Bench;
use super::report::{Row, Target};
use crate::log::measure::{Mix, measure_codec};

pub const NAME: &str = "codec";

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    bench.say(NAME);
    let began = Instant::now();
    let now_ns = || began.elapsed().as_nanos() as u64;
    let mut rows = Vec::new();
    for (mix, name) in [
        (Mix::TicksAndClocks, "computing guest"),
        (Mix::Interactive, "interactive guest"),
        (Mix::Network, "networking guest"),
    ] {
        let rates = measure_codec(mix, bench.size(2_000_000, 20_000_000), now_ns)?;
        for (way, ns) in [("encoding", rates.encode_ns), ("decoding", rates.decode_ns)] {
            let seconds = ns.max(1) as f64 / 1e9;
            let (megabytes, millions) = (rates.bytes as f64 / seconds / 1e6, rates.entries as f64 / seconds / 1e6);
            // Either will do; shown is the one that comes closer to its target.
            let what = format!("codec, {way}, {name}");
            let mut note = format!("{megabytes:.0} MB/s, {millions:.1} million entries/s");
            if let (Some(bytes), Some(ns)) = (rates.bytes.checked_div(rates.packets), ns.checked_div(rates.packets)) {
                note += &format!(", {ns} ns for a packet of {bytes} bytes");
            }
            rows.push(if megabytes / 500.0 > millions / 20.0 {
                Row::new(NAME, what, megabytes, "MB/s").target(Target::AtLeast(500.0)).note(note)
            } else {
                Row::new(NAME, what, millions, "M entries/s").target(Target::AtLeast(20.0)).note(note)
            });
        }
    }
    Ok(rows)
}
