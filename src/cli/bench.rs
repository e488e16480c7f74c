//! `lockstep bench`: how fast it is, held against what it should be.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::report::{Report, Setting};
use crate::bench::{Bench, MEASUREMENTS, Measurement, measurement};
use crate::machine::vcpu;

/// Measure how fast this host runs, protects and replays guests.
///
/// Prints every figure against its target. Takes some minutes and both cores; other work on the machine shows in the figures.
/// The exit status does not depend on them: a benchmark is no test.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// What to measure; everything but the network if left out (see --list)
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Fewer and shorter samples, within a minute and a half
    #[arg(long)]
    quick: bool,
    /// How often `net` and `net-kill` kill a primary
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    kills: Option<u32>,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
    /// For documents: a Markdown table
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Show what can be measured
    #[arg(long)]
    list: bool,
}

/// Runs `lockstep bench`.
pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        for measurement in MEASUREMENTS {
            println!("{:<14} {}", measurement.name, measurement.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&args.names)?;
    // Without KVM nearly nothing can be measured: say so once, in the words of every subcommand.
    vcpu::host_cpuid()?;
    let bar =
        if std::io::stderr().is_terminal() { ProgressBar::new(chosen.len() as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{spinner} {pos}/{len} {elapsed} {wide_msg}")?);
    bar.enable_steady_tick(Duration::from_millis(250));
    let bench = Bench::new(args.quick, args.kills.map(|kills| kills as usize), bar.clone())?;
    let mut report = Report { setting: Setting::here(args.quick), rows: Vec::new(), failed: Vec::new() };
    for measurement in chosen {
        match bench.measure(measurement) {
            Ok(rows) => report.rows.extend(rows),
            Err(error) => report.failed.push((measurement.name.into(), format!("{error:#}"))),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else if args.markdown {
        print!("{}", report.markdown());
    } else {
        print!("{report}");
    }
    Ok(if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(super::FAILED) })
}

fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Measurement>> {
    if names.is_empty() {
        return Ok(MEASUREMENTS.iter().filter(|measurement| !measurement.by_name_only).collect());
    }
    let find = |name: &String| match measurement(name) {
        Some(measurement) => Ok(measurement),
        None => bail!("nothing to measure is called `{name}`: see `lockstep bench --list`"),
    };
    names.iter().map(find).collect()
}
