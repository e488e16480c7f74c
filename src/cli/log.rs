//! `lockstep log`: shows what is in a log, to people and to programs.

use crate::log::describe::{Kind, describe};
use crate::log::entry::{Body, Entry};
use crate::log::file::{Ending, LogReader};
use crate::log::summary::{Basis, Rate, Summary};
use crate::machine::digest::{Digest, REGISTER_NAMES};
use crate::machine::doors::EndReason;
use crate::machine::snapshot::Boot;
use anyhow::Context;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;

/// Show what a log recorded: every answer and event that went into the guest, and marks of what came out.
///
/// One line is one entry: its number, its instant, and what happened. An instant is written EXITS:POLLS, the
/// device accesses the guest had made and the safepoints it had passed; it is the same point of the
/// execution on every replay.
#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// The log, written by `lockstep record`; `-` reads it from standard input
    pub file: PathBuf,
    /// Numbers in place of entries: counts and bytes by kind, the rate, how far entries lie apart, and
    /// whether the recording is complete
    #[arg(long, conflicts_with_all = ["from", "count"])]
    pub summary: bool,
    /// For programs: one JSON object for each entry, a line each (with --summary: one object). Hashes and
    /// other 64-bit patterns are strings of hexadecimal digits
    #[arg(long)]
    pub json: bool,
    /// Start at the entry with this number (the first is 0)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub from: u64,
    /// Show at most this many entries
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// Runs `lockstep log`. A reader that closes the pipe (`| head`) ends it without complaint.
pub fn run(args: LogArgs) -> anyhow::Result<()> {
    let out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let notes = io::stderr().lock();
    let shown = if args.file.as_os_str() == "-" {
        LogReader::new(io::stdin().lock()).map_err(Into::into).and_then(|log| show(&args, log, out, notes))
    } else {
        LogReader::<File>::open(&args.file).map_err(Into::into).and_then(|log| show(&args, log, out, notes))
    };
    match shown {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        other => other.with_context(|| args.file.display().to_string()),
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    // Only of our own output: what reading fails with is wrapped in a LogError.
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes what was asked for to `out`, and what people should know besides to `notes`.
fn show<R: Read>(args: &LogArgs, mut log: LogReader<R>, mut out: impl Write, notes: impl Write) -> anyhow::Result<()> {
    let shown =
        if args.summary { show_summary(args, &mut log, &mut out) } else { show_entries(args, &mut log, &mut out) };
    // What is whole before the damage is shown even so.
    out.flush()?;
    shown?;
    if !args.summary {
        note_ending(&log, notes)?;
    }
    Ok(())
}

fn show_entries<R: Read>(args: &LogArgs, log: &mut LogReader<R>, out: &mut impl Write) -> anyhow::Result<()> {
    if !args.json {
        writeln!(out, "# {}", headline(log.boot()))?;
    }
    let end = args.count.map_or(u64::MAX, |count| args.from.saturating_add(count));
    loop {
        let number = log.entries();
        if number >= end {
            return Ok(());
        }
        let Some(entry) = log.next_entry()? else {
            return Ok(());
        };
        if number < args.from {
            continue;
        }
        if args.json {
            serde_json::to_writer(&mut *out, &entry_json(number, &entry)).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{number:>8}  {:>20}  {}", entry.at.to_string(), describe(&entry.body))?;
        }
    }
}

fn headline(boot: &Boot) -> String {
    let (memory_mib, image_kib) = (boot.memory_bytes >> 20, boot.image.len().div_ceil(1024));
    let command_line = boot.command_line.escape_debug();
    let name = boot.name.escape_debug();
    format!("guest \"{name}\", {memory_mib} MiB of memory, image of {image_kib} KiB, command line \"{command_line}\"")
}

fn note_ending<R: Read>(log: &LogReader<R>, mut notes: impl Write) -> io::Result<()> {
    match log.ending() {
        Some(Ending::Incomplete { cut_bytes }) => {
            writeln!(notes, "the recording is incomplete: {}", incomplete(log.entries(), cut_bytes))
        }
        Some(Ending::Closed) | None => Ok(()),
    }
}

fn incomplete(entries: u64, cut_bytes: u64) -> String {
    let cut = if cut_bytes > 0 { format!(" and {cut_bytes} bytes of a cut frame") } else { String::new() };
    format!("it was not closed, and ends after {entries} entries{cut}")
}

fn entry_json(number: u64, entry: &Entry) -> Value {
    let mut object = Map::new();
    object.insert("entry".into(), number.into());
    object.insert("exits".into(), entry.at.exits.into());
    object.insert("polls".into(), entry.at.polls.into());
    object.insert("kind".into(), entry.body.kind().name().into());
    let details = match &entry.body {
        Body::Clock(ns) => json!({ "ns": ns }),
        Body::Entropy(value) => json!({ "value": hex(*value) }),
        Body::Tick => json!({}),
        Body::Console(input) => json!({
            "session": hex(input.session),
            "offset": input.offset,
            "bytes": input.bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "text": input.bytes.escape_ascii().to_string(),
        }),
        Body::Output { length, check } => json!({ "length": length, "check": format!("{check:08x}") }),
        Body::Digest(digest) => digest_json(digest),
        Body::End(reason) => match reason {
            EndReason::Exit(code) => json!({ "reason": "exit", "code": code }),
            EndReason::Stopped => json!({ "reason": "stopped" }),
            EndReason::HaltedForever => json!({ "reason": "halted_forever" }),
            EndReason::TripleFault => json!({ "reason": "triple_fault" }),
            EndReason::CannotExecute(rip) => json!({ "reason": "cannot_execute", "rip": hex(*rip) }),
        },
    };
    if let Value::Object(details) = details {
        object.extend(details);
    }
    Value::Object(object)
}

fn digest_json(digest: &Digest) -> Value {
    let registers =
        REGISTER_NAMES.iter().zip(digest.registers).map(|(name, value)| (name.to_string(), hex(value).into()));
    json!({
        "memory": format!("{:032x}", digest.memory),
        "registers": registers.collect::<Map<String, Value>>(),
        "system": hex(digest.system),
        "fpu": hex(digest.fpu),
        "devices": hex(digest.devices),
        "pages": digest.pages.iter().map(|page| json!([page.page, format!("{:04x}", page.check)])).collect::<Vec<_>>(),
    })
}

fn hex(value: u64) -> String {
    format!("{value:016x}")
}

fn show_summary<R: Read>(args: &LogArgs, log: &mut LogReader<R>, out: &mut impl Write) -> anyhow::Result<()> {
    let mut summary = Summary::default();
    loop {
        let before = log.entry_bytes();
        let Some(entry) = log.next_entry()? else { break };
        summary.add(&entry, log.entry_bytes() - before);
    }
    if args.json {
        serde_json::to_writer(&mut *out, &summary_json(log, &summary)).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    print_summary(log, &summary, out)?;
    Ok(())
}

fn summary_json<R: Read>(log: &LogReader<R>, summary: &Summary) -> Value {
    let boot = log.boot();
    let kinds = Kind::ALL.map(|kind| {
        let total = summary.kind(kind);
        (kind.name().to_string(), json!({ "entries": total.entries, "bytes": total.bytes }))
    });
    let gaps = summary.gaps().iter().enumerate().filter(|(_, count)| **count > 0);
    let gaps = gaps.map(|(bucket, count)| json!({ "from_polls": bucket_start(bucket), "entries": count }));
    let rate = summary.rate().map(|rate| {
        let basis = match rate.basis {
            Basis::Clock => "clock",
            Basis::Ticks => "ticks",
        };
        json!({ "bytes_per_s": rate.bytes_per_s(), "span_ns": rate.span_ns, "bytes": rate.bytes, "basis": basis })
    });
    let cut_bytes = match log.ending() {
        Some(Ending::Incomplete { cut_bytes }) => cut_bytes,
        Some(Ending::Closed) | None => 0,
    };
    json!({
        "guest": { "name": boot.name, "memory_bytes": boot.memory_bytes, "command_line": boot.command_line,
            "image_bytes": boot.image.len() },
        "complete": log.complete(),
        "cut_bytes": cut_bytes,
        "file_bytes": log.offset() + cut_bytes,
        "entries": summary.total().entries,
        "entry_bytes": summary.total().bytes,
        "kinds": kinds.into_iter().collect::<Map<String, Value>>(),
        "rate": rate,
        "gaps": gaps.collect::<Vec<_>>(),
    })
}

fn print_summary<R: Read>(log: &LogReader<R>, summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    let total = summary.total();
    writeln!(out, "{}", headline(log.boot()))?;
    match log.ending() {
        Some(Ending::Incomplete { cut_bytes }) => {
            writeln!(out, "incomplete: {}", incomplete(total.entries, cut_bytes))?
        }
        Some(Ending::Closed) | None => writeln!(out, "complete")?,
    }
    writeln!(out, "\nkind        entries         bytes  bytes/entry")?;
    let rows = Kind::ALL.map(|kind| (kind.name(), summary.kind(kind)));
    for (name, row) in rows.into_iter().chain([("all", total)]).filter(|(_, row)| row.entries > 0) {
        let mean = row.bytes as f64 / row.entries as f64;
        writeln!(out, "{name:<8} {:>10} {:>13} {mean:>12.1}", row.entries, row.bytes)?;
    }
    match summary.rate() {
        Some(rate) => writeln!(out, "\n{:.0} bytes/s {}", rate.bytes_per_s(), rate_basis(&rate))?,
        None => writeln!(out, "\nno rate: the log has neither clock reads nor ticks")?,
    }
    let (file, boot) = (log.offset(), log.boot_bytes());
    writeln!(out, "{file} bytes of file: boot {boot}, entries {}, frames {}", total.bytes, file - boot - total.bytes)?;
    print_gaps(summary, out)
}

fn rate_basis(rate: &Rate) -> String {
    let seconds = rate.span_ns as f64 / 1e9;
    match rate.basis {
        Basis::Clock => format!("over {seconds:.3} s of guest time, from boot to the last clock read"),
        Basis::Ticks => {
            format!("over {seconds:.3} s, if the ticks came at {} Hz", crate::log::summary::ASSUMED_TICK_HZ)
        }
    }
}

/// Smallest gap of a bucket of [`Summary::gaps`].
fn bucket_start(bucket: usize) -> u64 {
    if bucket == 0 { 0 } else { 1 << (bucket - 1) }
}

/// The histogram, without the empty buckets at either end.
fn print_gaps(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    const BAR_CELLS: u64 = 50;
    let gaps = summary.gaps();
    let used = |count: &u64| *count > 0;
    let (Some(first), Some(last)) = (gaps.iter().position(used), gaps.iter().rposition(used)) else {
        return Ok(());
    };
    writeln!(out, "\npolls since the entry before")?;
    let most = gaps.iter().max().copied().unwrap_or(1);
    for (bucket, count) in gaps.iter().enumerate().take(last + 1).skip(first) {
        let label = match bucket {
            0 | 1 => bucket.to_string(),
            _ => format!("≥ {}", bucket_start(bucket)),
        };
        let eighths = (u128::from(*count) * u128::from(BAR_CELLS * 8)).div_ceil(u128::from(most)) as usize;
        let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
        writeln!(out, "{label:>22} {count:>10} {}{part}", "█".repeat(eighths / 8))?;
    }
    Ok(())
}
