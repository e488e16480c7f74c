//! `lockstep log`: shows what is in a log, to people and to programs.

use crate::log::describe::{Kind, describe, host_name_part};
use crate::log::entry::{Body, Entry};
use crate::log::file::{Ending, LogError, LogReader};
use crate::log::summary::{Basis, Rate, Summary, Traffic};
use crate::machine::blocks::{Completion, Outcome};
use crate::machine::digest::{Digest, REGISTER_NAMES};
use crate::machine::doors::EndReason;
use crate::machine::snapshot::{Boot, NicConfig};
use crate::transfer::file::skip_state;
use crate::transfer::state::GuestState;
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
    /// Write the packets that the guest received and sent to this file instead, for Wireshark. Sent ones are not in the log: they come out of a
    /// replay, which needs KVM. Their times are those of the guest's clock, as far as it was read
    #[arg(long, value_name = "OUT", conflicts_with_all = ["summary", "json", "from", "count"])]
    pub pcap: Option<PathBuf>,
    /// With --pcap: only the packets that the guest received, without a replay
    #[arg(long, requires = "pcap")]
    pub pcap_received_only: bool,
    /// Show at most this many entries
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// Runs `lockstep log`. A reader that closes the pipe (`| head`) ends it without complaint.
pub fn run(args: LogArgs) -> anyhow::Result<()> {
    if let Some(out) = &args.pcap {
        return super::log_pcap::extract(&args.file, out, args.pcap_received_only);
    }
    let out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let notes = io::stderr().lock();
    let shown = if args.file.as_os_str() == "-" {
        LogReader::new(io::stdin().lock()).map_err(Into::into).and_then(|log| show(&args, log, out, notes))
    } else {
        LogReader::<File>::open(&args.file).map_err(Into::into).and_then(|log| show(&args, log, out, notes))
    };
    match shown {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        Err(error) if matches!(error.downcast_ref(), Some(LogError::Open { .. })) => Err(error), // names the file itself
        other => other.with_context(|| args.file.display().to_string()),
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    // Only of our own output: what reading fails with is wrapped in a LogError.
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes what was asked for to `out`, and what people should know besides to `notes`.
fn show<R: Read>(args: &LogArgs, mut log: LogReader<R>, mut out: impl Write, notes: impl Write) -> anyhow::Result<()> {
    let state = skip_state(&mut log)?;
    let shown = if args.summary {
        show_summary(args, &mut log, state.as_ref(), &mut out)
    } else {
        show_entries(args, &mut log, &mut out)
    };
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
        writeln!(out, "# {}{}", headline(log.boot()), start(log))?;
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
    let net = boot.net.as_ref().map_or(String::new(), |card| {
        let offloads = if card.offloads { ", offloads" } else { "" };
        format!(", network card {} (MTU {}{offloads})", mac(card), card.mtu)
    });
    format!(
        "guest \"{name}\", {memory_mib} MiB of memory, image of {image_kib} KiB, command line \"{command_line}\"{net}"
    )
}

/// Where a log starts that does not start at a boot.
fn start<R: Read>(log: &LogReader<R>) -> String {
    if log.from_snapshot() { format!(", from a snapshot before entry {} on", log.start()) } else { String::new() }
}

fn mac(card: &NicConfig) -> String {
    card.mac.map(|byte| format!("{byte:02x}")).join(":")
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

fn completion_json(completion: &Completion) -> Value {
    let id = completion.id;
    match &completion.outcome {
        Outcome::Done => json!({ "id": id, "outcome": "done" }),
        Outcome::Failed => json!({ "id": id, "outcome": "failed" }),
        Outcome::Read(bytes) => json!({ "id": id, "outcome": "read", "bytes": hex_string(bytes) }),
        Outcome::ReadElsewhere { bytes, check } => {
            json!({ "id": id, "outcome": "read_elsewhere", "length": bytes, "check": hex(*check) })
        }
    }
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
            "bytes": hex_string(&input.bytes),
            "text": input.bytes.escape_ascii().to_string(),
        }),
        Body::Output { length, check } => json!({ "length": length, "check": format!("{check:08x}") }),
        Body::Packets(packets) => json!({
            "packets": packets.iter().map(hex_string).collect::<Vec<_>>(),
        }),
        Body::Sent { packets, bytes, check } => {
            json!({ "packets": packets, "bytes": bytes, "check": format!("{check:08x}") })
        }
        Body::Asked { requests, bytes, check } => {
            json!({ "requests": requests, "bytes": bytes, "check": format!("{check:08x}") })
        }
        Body::Disk(completions) => {
            json!({ "completions": completions.iter().map(completion_json).collect::<Vec<_>>() })
        }
        Body::Control(control) => json!({ "operation": format!("{control:?}").to_lowercase() }),
        Body::HostName(word) => json!({ "part": host_name_part(*word).escape_ascii().to_string() }),
        Body::Digest(digest) => digest_json(digest),
        Body::End(reason) => match reason {
            EndReason::Exit(code) => json!({ "reason": "exit", "code": code }),
            EndReason::Stopped => json!({ "reason": "stopped" }),
            EndReason::HaltedForever => json!({ "reason": "halted_forever" }),
            EndReason::TripleFault => json!({ "reason": "triple_fault" }),
            EndReason::SafepointsWentBack => json!({ "reason": "safepoints_went_back" }),
            EndReason::CannotExecute(rip) => json!({ "reason": "cannot_execute", "rip": hex(*rip) }),
        },
    };
    if let Value::Object(details) = details {
        object.extend(details);
    }
    Value::Object(object)
}

fn hex_string(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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

fn show_summary<R: Read>(
    args: &LogArgs,
    log: &mut LogReader<R>,
    state: Option<&GuestState>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut summary = state.map_or_else(Summary::default, |state| Summary::from_clock(state.position.clock_ns()));
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
    let traffic = |traffic: Traffic| json!({ "packets": traffic.packets, "bytes": traffic.bytes });
    let network = boot.net.as_ref().map(|_| {
        json!({ "received": traffic(summary.received()), "sent": traffic(summary.sent()),
            "log_bytes_per_received_byte": summary.log_bytes_per_received_byte() })
    });
    let cut_bytes = match log.ending() {
        Some(Ending::Incomplete { cut_bytes }) => cut_bytes,
        Some(Ending::Closed) | None => 0,
    };
    json!({
        "guest": { "name": boot.name, "memory_bytes": boot.memory_bytes, "command_line": boot.command_line,
            "image_bytes": boot.image.len(), "net": boot.net.as_ref().map(|card| {
                json!({ "mac": mac(card), "mtu": card.mtu, "offloads": card.offloads })
            }) },
        "from_snapshot": log.from_snapshot(),
        "first_entry": log.start(),
        "snapshots": log.snapshots(),
        "complete": log.complete(),
        "cut_bytes": cut_bytes,
        "file_bytes": log.offset() + cut_bytes,
        "entries": summary.total().entries,
        "entry_bytes": summary.total().bytes,
        "kinds": kinds.into_iter().collect::<Map<String, Value>>(),
        "rate": rate,
        "network": network,
        "gaps": gaps.collect::<Vec<_>>(),
    })
}

fn print_summary<R: Read>(log: &LogReader<R>, summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    let total = summary.total();
    writeln!(out, "{}{}", headline(log.boot()), start(log))?;
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
    if log.boot().net.is_some() {
        let (received, sent) = (summary.received(), summary.sent());
        let ratio = summary
            .log_bytes_per_received_byte()
            .map_or(String::new(), |ratio| format!("; {ratio:.3} bytes of log for each byte received"));
        writeln!(
            out,
            "network: received {} packets, {} bytes; sent {} packets, {} bytes{ratio}",
            received.packets, received.bytes, sent.packets, sent.bytes
        )?;
    }
    let (file, boot) = (log.offset(), log.boot_bytes());
    let (states, begin) = (log.snapshot_bytes(), if log.from_snapshot() { "snapshot" } else { "boot" });
    let frames = file - boot - states - total.bytes;
    let on_the_way = match log.snapshots() {
        0 => String::new(),
        count => format!(", {count} snapshots on the way {states}"),
    };
    writeln!(out, "{file} bytes of file: {begin} {boot}, entries {}{on_the_way}, frames {frames}", total.bytes)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::file::LogWriter;
    use crate::machine::blocks::{Completion, Outcome};
    use crate::machine::doors::{ConsoleInput, Control};
    use crate::machine::instant::Instant;
    use crate::machine::packets::{HEADER, Packets};
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        log: LogArgs,
    }

    fn args(line: &str) -> Result<LogArgs, clap::Error> {
        let words = ["log", "FILE"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.log)
    }

    fn log(close: bool) -> Vec<u8> {
        let (name, command_line) = ("vm".to_string(), "mix \x1b[2J".to_string());
        let image = vec![0; 3000];
        let net = Some(NicConfig { mac: [0x52, 0x54, 0, 1, 2, 0xff], mtu: 1500, offloads: false });
        let mut packets = Packets::new();
        assert!(packets.push_frame(&[0; HEADER], b"ABCDEFGHIJKLMN"));
        let boot = Boot {
            name,
            memory_bytes: 64 << 20,
            command_line,
            boot_time_ns: 0,
            net,
            disk: None,
            cpuid: Vec::new(),
            image,
        };
        let input = ConsoleInput { session: 0xbeef, offset: 0, bytes: b"q\x1b\n".to_vec() };
        let digest = Digest {
            memory: 1,
            registers: [u64::MAX; 18],
            system: 2,
            fpu: 3,
            devices: 4,
            pages: vec![crate::machine::digest::PageCheck { page: 5, check: 6 }],
        };
        let completions = [(2, Outcome::Read(vec![9; 512])), (0, Outcome::Failed)];
        let completions = completions.map(|(id, outcome)| Completion { id, outcome }).to_vec();
        let entries = [
            (0, 1000, Body::Tick),
            (1, 1000, Body::Clock(500_000_000)),
            (1, 1100, Body::Console(input)),
            (2, 1100, Body::Output { length: 2, check: 0xab }),
            (3, 1103, Body::Entropy(u64::MAX)),
            (3, 1103, Body::Digest(Box::new(digest))),
            (3, 1103, Body::Packets(packets)),
            (4, 1103, Body::Sent { packets: 2, bytes: 100, check: 0xcd }),
            (5, 1103, Body::HostName(u64::from_le_bytes(*b"alpha\0\0\0"))),
            (5, 1103, Body::Asked { requests: 2, bytes: 512, check: 0xef }),
            (5, 1103, Body::Disk(completions)),
            (5, 1103, Body::Control(Control::Pause)),
            (6, 1103, Body::End(EndReason::Exit(7))),
        ];
        let mut bytes = Vec::new();
        let mut writer = LogWriter::new(&mut bytes, &boot).unwrap();
        for (exits, polls, body) in entries {
            writer.append(&Entry { at: Instant::new(exits, polls), body }).unwrap();
        }
        if close {
            writer.close().unwrap()
        } else {
            drop(writer)
        }
        bytes
    }

    /// What is shown, and what is noted besides.
    fn shown(line: &str, bytes: &[u8]) -> (String, String) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        show(&args(line).unwrap(), LogReader::new(bytes).unwrap(), &mut out, &mut notes).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap())
    }

    #[test]
    fn entries_are_a_line_each_with_control_characters_escaped() {
        let (out, notes) = shown("", &log(true));
        assert_eq!(
            out.lines().collect::<Vec<_>>(),
            [
                r#"# guest "vm", 64 MiB of memory, image of 3 KiB, command line "mix \u{1b}[2J", network card 52:54:00:01:02:ff (MTU 1500)"#,
                "       0                0:1000  tick",
                "       1                1:1000  clock 0.500000000 s",
                r#"       2                1:1100  console session 000000000000beef offset 0 "q\x1b\n""#,
                "       3                2:1100  output 2 bytes check 000000ab",
                "       4                3:1103  entropy 0xffffffffffffffff",
                "       5                3:1103  digest memory 00000000000000000000000000000001 rip 0xffffffffffffffff 1 changed page",
                "       6                3:1103  packets 1 packet 26 bytes",
                "       7                4:1103  sent 2 packets 100 bytes check 000000cd",
                r#"       8                5:1103  host "alpha""#,
                "       9                5:1103  asked 2 requests 512 bytes to write check 000000ef",
                "      10                5:1103  disk 2 requests done 1 failed 512 bytes read",
                "      11                5:1103  control pause",
                "      12                6:1103  end the guest ended with code 7",
            ]
        );
        assert_eq!(notes, "");
    }

    #[test]
    fn from_and_count_choose_entries() {
        let numbers = |line| -> Vec<u64> {
            let (out, _) = shown(line, &log(true));
            let lines = out.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
        };
        assert_eq!(numbers("--from 2 --count 3"), [2, 3, 4]);
        assert_eq!(numbers("--from 11"), [11, 12]);
        assert_eq!(numbers("--count 1"), [0]);
        assert!(numbers("--from 18446744073709551615 --count 9").is_empty());
        assert!(args("--summary --from 1").is_err());
    }

    #[test]
    fn json_is_one_object_a_line_with_every_detail() {
        let (out, _) = shown("--json", &log(true));
        let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let registers: Map<_, _> =
            REGISTER_NAMES.map(|name| (name.to_string(), json!("ffffffffffffffff"))).into_iter().collect();
        assert_eq!(
            lines,
            [
                json!({"entry": 0, "exits": 0, "polls": 1000, "kind": "tick"}),
                json!({"entry": 1, "exits": 1, "polls": 1000, "kind": "clock", "ns": 500_000_000}),
                json!({"entry": 2, "exits": 1, "polls": 1100, "kind": "console", "session": "000000000000beef",
                    "offset": 0, "bytes": "711b0a", "text": "q\\x1b\\n"}),
                json!({"entry": 3, "exits": 2, "polls": 1100, "kind": "output", "length": 2, "check": "000000ab"}),
                json!({"entry": 4, "exits": 3, "polls": 1103, "kind": "entropy", "value": "ffffffffffffffff"}),
                json!({"entry": 5, "exits": 3, "polls": 1103, "kind": "digest",
                    "memory": "00000000000000000000000000000001", "registers": registers,
                    "system": "0000000000000002", "fpu": "0000000000000003", "devices": "0000000000000004",
                    "pages": [[5, "0006"]]}),
                json!({"entry": 6, "exits": 3, "polls": 1103, "kind": "packets",
                    "packets": ["0000000000000000000000004142434445464748494a4b4c4d4e"]}),
                json!({"entry": 7, "exits": 4, "polls": 1103, "kind": "sent", "packets": 2, "bytes": 100,
                    "check": "000000cd"}),
                json!({"entry": 8, "exits": 5, "polls": 1103, "kind": "host", "part": "alpha"}),
                json!({"entry": 9, "exits": 5, "polls": 1103, "kind": "asked", "requests": 2, "bytes": 512,
                    "check": "000000ef"}),
                json!({"entry": 10, "exits": 5, "polls": 1103, "kind": "disk", "completions":
                    [{"id": 2, "outcome": "read", "bytes": "09".repeat(512)}, {"id": 0, "outcome": "failed"}]}),
                json!({"entry": 11, "exits": 5, "polls": 1103, "kind": "control", "operation": "pause"}),
                json!({"entry": 12, "exits": 6, "polls": 1103, "kind": "end", "reason": "exit", "code": 7}),
            ]
        );
    }

    #[test]
    fn the_summary_accounts_for_every_entry_and_byte() {
        let bytes = log(true);
        let (out, _) = shown("--summary --json", &bytes);
        let summary: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(summary["complete"], true);
        assert_eq!(summary["file_bytes"], bytes.len());
        assert_eq!(summary["entries"], 13);
        assert_eq!(summary["guest"]["net"], json!({"mac": "52:54:00:01:02:ff", "mtu": 1500, "offloads": false}));
        let network = &summary["network"];
        assert_eq!(
            (&network["received"], &network["sent"]),
            (&json!({"packets": 1, "bytes": 14}), &json!({"packets": 2, "bytes": 76}))
        );
        let kinds = summary["kinds"].as_object().unwrap();
        assert!(kinds.values().all(|kind| kind["entries"] == 1));
        let sum: u64 = kinds.values().map(|kind| kind["bytes"].as_u64().unwrap()).sum();
        assert_eq!(summary["entry_bytes"], sum);
        // A tick of three bytes and a clock read of six in half a second.
        assert_eq!(summary["rate"], json!({"bytes_per_s": 18.0, "span_ns": 500_000_000, "bytes": 9, "basis": "clock"}));
        let gaps = json!([{"from_polls": 0, "entries": 10}, {"from_polls": 2, "entries": 1},
            {"from_polls": 64, "entries": 1}, {"from_polls": 512, "entries": 1}]);
        assert_eq!(summary["gaps"], gaps);
    }

    #[test]
    fn the_summary_is_drawn_for_people() {
        let (out, _) = shown("--summary", &log(true));
        let has = |line: &str| assert!(out.lines().any(|l| l == line), "no line {line:?} in\n{out}");
        has("complete");
        has("tick              1             3          3.0");
        has("18 bytes/s over 0.500 s of guest time, from boot to the last clock read");
        has(&format!("{:>22} {:>10} {}", 0, 10, "█".repeat(50)));
        has(&format!("{:>22} {:>10} {}", "≥ 2", 1, "█".repeat(5)));
        has(&format!("{:>22} {:>10} ", "≥ 4", 0));
        assert!(!out.contains("≥ 1024"), "empty buckets at the end are left out");
    }

    #[test]
    fn an_incomplete_log_is_shown_and_called_so() {
        let mut bytes = log(false);
        let (out, notes) = shown("", &bytes);
        assert_eq!(out.lines().count(), 14);
        assert_eq!(notes, "the recording is incomplete: it was not closed, and ends after 13 entries\n");
        bytes.pop();
        let (out, notes) = shown("", &bytes);
        assert_eq!(out.lines().count(), 1);
        assert!(notes.contains("after 0 entries and ") && notes.contains(" bytes of a cut frame"), "{notes}");
        let (out, _) = shown("--summary --json", &bytes);
        let summary: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&summary["complete"], &summary["file_bytes"]), (&json!(false), &json!(bytes.len())));
    }

    #[test]
    fn what_is_good_before_the_damage_is_shown() {
        let mut bytes = log(true);
        let close_frame = bytes.len() - 32;
        bytes[close_frame + 6] ^= 1;
        let mut out = Vec::new();
        let reader = LogReader::new(&bytes[..]).unwrap();
        let error = show(&args("").unwrap(), reader, &mut out, io::sink()).unwrap_err();
        assert!(!is_closed_pipe(&error));
        assert!(error.is::<LogError>());
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 14);
    }

    struct ClosedPipe;

    impl Write for ClosedPipe {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_told_from_trouble() {
        for line in ["", "--json", "--summary", "--summary --json"] {
            let bytes = log(true);
            let reader = LogReader::new(&bytes[..]).unwrap();
            let error = show(&args(line).unwrap(), reader, ClosedPipe, io::sink()).unwrap_err();
            assert!(is_closed_pipe(&error), "{line}: {error:?}");
        }
    }

    #[test]
    fn trouble_names_the_file_once() {
        let dir = tempfile::tempdir().unwrap();
        let (missing, damaged) = (dir.path().join("missing"), dir.path().join("damaged"));
        std::fs::write(&damaged, &log(true)[1..]).unwrap();
        for file in [missing, damaged, dir.path().to_owned()] {
            let name = file.display().to_string();
            let error = run(LogArgs { file, ..args("").unwrap() }).unwrap_err();
            assert!(!is_closed_pipe(&error));
            assert_eq!(format!("{error:#}").matches(&name).count(), 1, "{error:#}");
        }
    }
}
