//! The network, protected and unprotected: requests, latency and bytes in bulk on two hosts and a client's of network namespaces
//! (see [`crate::cli::site`]); each load alternately on a primary that has a backup and on one that has none.
//!
//! Here, two cores carry the client, both hypervisors and the channel, which hosts of their own would not. So each ratio is
//! given by the CPU time that the primary's process pays for a request or a byte, as its host would have to, and by
//! wall clock.

mod cpu;
pub mod kills;
mod loads;
mod window;

use std::time::Duration;

use window::Window;

use super::Bench;
use super::report::{Row, Target};
use super::statistics::median;
use crate::cli::loopback::{Pair, Side, Unprotected, ensure_protected, hear, protected};
use crate::cli::redis_benchmark;
use crate::cli::site::{Site, Visit};

pub const NAME: &str = "net";

/// A load, and what protection may cost it.
struct Load {
    what: &'static str,
    /// Of what a rate is given, and by how much it is divided.
    unit: (&'static str, f64),
    least: f64,
}

const REQUESTS: Load = Load { what: "50 clients, no pipeline", unit: ("requests/s", 1.0), least: 0.85 };
const PIPELINED: Load = Load { what: "50 clients, pipeline 16", unit: ("requests/s", 1.0), least: 0.90 };
const TRANSMIT: Load = Load { what: "bulk transmit", unit: ("MB/s", 1e6), least: 0.95 };
const RECEIVE: Load = Load { what: "bulk receive", unit: ("MB/s", 1e6), least: 0.92 };

/// Unprotected and protected samples.
#[derive(Default)]
struct Samples {
    loads: [Vec<Window>; 4],
    round_trips_us: Vec<f64>,
}

/// A primary with a backup, or without one.
enum Machine {
    Alone(Unprotected),
    Protected(Pair),
}

impl Machine {
    fn start(bench: &Bench, site: &Site, protect: bool, guest: &str) -> anyhow::Result<Self> {
        let machine = if protect {
            Machine::Protected(site.pair(guest, "")?)
        } else {
            Machine::Alone(site.unprotected(guest, "")?)
        };
        bench.block_on(async {
            let mut console = match &machine {
                Machine::Alone(alone) => alone.console().await?,
                Machine::Protected(pair) => pair.console().await?,
            };
            hear(&mut console, "listening on port").await?;
            if protect { protected(machine.primary()).await } else { Ok(()) }
        })?;
        loads::settle(bench);
        Ok(machine)
    }

    fn primary(&self) -> &Side {
        match self {
            Machine::Alone(alone) => &alone.primary,
            Machine::Protected(pair) => &pair.primary,
        }
    }

    /// What was measured was measured with a backup, if there was to be one.
    fn check(&self, bench: &Bench) -> anyhow::Result<()> {
        match self {
            Machine::Alone(_) => Ok(()),
            Machine::Protected(pair) => ensure_protected(&bench.block_on(pair.primary.status())?),
        }
    }
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let site = Site::make()?;
    let _visit = Visit::to(&site.client)?;
    bench.say(format!("{NAME}: the logging link"));
    let link_us = median(&loads::link_round_trips(&site, bench.size(1000, 5000))?);
    let samples = bench.size(2, 4);
    let mut all = [Samples::default(), Samples::default()];
    let mut counts = None;
    for sample in 1..=samples {
        for (protect, found) in [false, true].into_iter().zip(&mut all) {
            let mode = if protect { "protected" } else { "unprotected" };
            bench.say(format!("{NAME}: {mode}, {sample} of {samples}"));
            measure(bench, &site, protect, &mut counts, found)?;
        }
    }
    let [alone, protected] = &all;
    let mut rows = Vec::new();
    for (load, (alone, protected)) in
        [REQUESTS, PIPELINED, TRANSMIT, RECEIVE].iter().zip(alone.loads.iter().zip(&protected.loads))
    {
        rows.extend(ratios(load, alone, protected));
    }
    rows.extend(latency(&alone.round_trips_us, &protected.round_trips_us, link_us));
    rows.extend(log(&protected.loads[3]));
    rows.extend(kills::at(bench, &site)?);
    Ok(rows)
}

/// One round of all loads, on fresh machines.
fn measure(
    bench: &Bench,
    site: &Site,
    protect: bool,
    counts: &mut Option<[usize; 2]>,
    found: &mut Samples,
) -> anyhow::Result<()> {
    let seconds = bench.size(1.0, 3.0);
    let [requests, pipelined, transmit, receive] = &mut found.loads;
    let kv = Machine::start(bench, site, protect, "kv")?;
    // As many with a backup as without one.
    let [plain, deep] = match *counts {
        Some(counts) => counts,
        None => *counts.insert([
            loads::requests_for(bench, kv.primary(), 1, seconds / 2.0)?,
            loads::requests_for(bench, kv.primary(), 16, seconds / 2.0)?,
        ]),
    };
    requests.push(loads::requests(bench, kv.primary(), 1, plain)?);
    pipelined.push(loads::requests(bench, kv.primary(), 16, deep)?);
    found.round_trips_us.push(median(&bench.block_on(loads::round_trips(bench.size(500, 2000)))?));
    kv.check(bench)?;
    drop(kv);
    let stream = Machine::start(bench, site, protect, "stream")?;
    transmit.push(loads::transmit(bench, stream.primary(), Duration::from_secs_f64(seconds))?);
    receive.push(loads::receive(bench, stream.primary(), Duration::from_secs_f64(seconds))?);
    stream.check(bench)
}

/// The median of one figure.
fn of(windows: &[Window], figure: impl Fn(&Window) -> f64) -> f64 {
    median(&windows.iter().map(figure).collect::<Vec<_>>())
}

fn ratios(load: &Load, alone: &[Window], protected: &[Window]) -> [Row; 4] {
    let both = |figure: fn(&Window) -> f64| (of(alone, figure), of(protected, figure));
    let what = load.what;
    let (unit, divisor) = load.unit;
    let (cpu, vcpu, rate) = (both(|w| w.cpu_ns), both(|w| w.vcpu_ns), both(|w| w.rate));
    let busy = both(|w| w.busy);
    // A request costs microseconds, a byte nanoseconds; a request has its own exits and packets, of bytes it is a million that do.
    let (per, scale, of_many) = if divisor == 1.0 { ("µs/request", 1e3, 1.0) } else { ("ns/byte", 1.0, 1e6) };
    let each = if divisor == 1.0 { "request" } else { "MB" };
    let client = if divisor == 1.0 && !redis_benchmark::installed() { "own generator; " } else { "" };
    let cpu_note = format!(
        "primary's process {:.2} {per} unprotected ({:.2} of them on the vCPU thread), {:.2} ({:.2}) protected",
        cpu.0 / scale,
        vcpu.0 / scale,
        cpu.1 / scale,
        vcpu.1 / scale
    );
    let samples = alone.len();
    let wall_note = format!(
        "{client}{samples} samples; the process kept {:.2} cores busy unprotected, {:.2} protected",
        busy.0, busy.1
    );
    let details = |windows: &[Window]| {
        let many = |figure: fn(&Window) -> f64| of(windows, figure) * of_many;
        format!(
            "for one {each}, {:.2} exits, {:.2} packets in, {:.2} out; the vCPU thread was out of the guest for {:.0} % of its CPU time; {:.0} packets dropped",
            many(|w| w.exits),
            many(|w| w.packets_in),
            many(|w| w.packets_out),
            of(windows, |w| w.outside_guest) * 100.0,
            of(windows, |w| w.dropped)
        )
    };
    let target = Target::AtLeast(load.least);
    [
        Row::new(NAME, format!("{what}: protected / unprotected, by CPU time"), cpu.0 / cpu.1, "")
            .target(target)
            .note(cpu_note),
        Row::new(NAME, "  the same by wall clock", rate.1 / rate.0, "").note(wall_note),
        Row::new(NAME, "  unprotected", rate.0 / divisor, unit).note(details(alone)),
        Row::new(NAME, "  protected", rate.1 / divisor, unit).note(details(protected)),
    ]
}

fn latency(alone_us: &[f64], protected_us: &[f64], link_us: f64) -> [Row; 2] {
    let (alone, protected) = (median(alone_us), median(protected_us));
    [
        Row::new(NAME, "added latency, one client: median", protected - alone, "µs")
            .target(Target::AtMost(link_us + 100.0))
            .note(format!("PING and its answer: {alone:.0} µs unprotected, {protected:.0} µs protected")),
        Row::new(NAME, "  round trip of the logging link", link_us, "µs").note("TCP of the two hosts, one byte, idle"),
    ]
}

fn log(receiving: &[Window]) -> [Row; 2] {
    let per_byte = of(receiving, |w| w.log_bytes / w.received_bytes.max(1.0));
    let channel = of(receiving, |w| w.channel_bytes / w.received_bytes.max(1.0));
    let entry = of(receiving, |w| w.received_bytes / w.entries.max(1.0));
    [
        Row::new(NAME, "log bytes per received byte", per_byte, "")
            .target(Target::AtMost(1.1))
            .note(format!("during bulk receive, bytes of Ethernet frames; {entry:.0} of them per entry")),
        Row::new(NAME, "  on the logging channel", channel, "")
            .note("frames of the channel, horizons and heartbeats included"),
    ]
}
