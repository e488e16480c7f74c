//! `lockstep run` and `lockstep record`: a guest on this host alone, its console on this terminal.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;

use super::machine_args::{MachineArgs, open_disk};
use crate::backends::priority::prefer_this_thread;
use crate::console::hub::Hub;
use crate::console::server;
use crate::disk::open::Owner;
use crate::disk::port::DiskPort;
use crate::doors::live::{Log, NoLog};
use crate::guest;
use crate::host::board::Board;
use crate::host::file_log::FileLog;
use crate::host::outlets::Outlets;
use crate::host::solo::{self, From, SoloEnd};
use crate::log::codec::Encoder;
use crate::log::file::{LogReader, LogWriter};
use crate::machine::doors::EndReason;
use crate::machine::{Machine, Tracking};
use crate::transfer;

const HISTORY_BYTES: usize = 4 << 20;

/// Boot a guest on this host, unprotected, with its console on this terminal.
///
/// Ctrl-] is the escape key: Ctrl-] and then `q` leaves. The exit status is the guest's.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Go on from this snapshot (`lockstep snapshot`) instead of booting: name, memory, network card and disk are those of the snapshot
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "memory", "name", "arguments"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    console: ConsoleChoice,
}

/// Boot a guest and record everything non-deterministic that happens to it, for `lockstep replay`.
#[derive(Clone, Debug, clap::Args)]
pub struct RecordArgs {
    /// The log to write
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// Time between two digests of the machine, by which a replay checks itself, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    digest_interval: u64,
    /// Put a snapshot into the log every so many seconds, for `lockstep replay --from-entry`
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    snapshot_every: Option<u64>,
    /// Go on from this snapshot (`lockstep snapshot`) instead of booting: name, memory, network card and disk are those of the snapshot
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guest", "memory", "name", "arguments"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    console: ConsoleChoice,
}

/// Where the console is.
#[derive(Clone, Debug, clap::Args)]
struct ConsoleChoice {
    /// Serve the console and `lockstep status` here, too
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    control: String,
    /// No console on this terminal
    #[arg(long)]
    detached: bool,
}

/// `lockstep run`.
pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    if args.machine.guest == "list" {
        for app in guest::APPS {
            println!("{:<48} {}", format!("{} {}", app.name, app.arguments), app.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let disk = open_disk(&args.machine.disk, Owner::Alone(&args.machine.name))?;
    let (machine, from) = begin(&args.machine, &args.from, &disk, Tracking::Off)?;
    let log = |_: &mut From| Ok(NoLog);
    let end = with_console(machine, from, log, u64::MAX, disk, &args.machine, &args.console)?;
    Ok(status(&end.reason))
}

/// `lockstep record`.
pub fn record(args: RecordArgs) -> anyhow::Result<ExitCode> {
    let disk = open_disk(&args.machine.disk, Owner::Alone(&args.machine.name))?;
    let (machine, from) = begin(&args.machine, &args.from, &disk, Tracking::On)?;
    let boot = machine.boot().clone();
    let log = |from: &mut From| {
        let writer = match (&args.from, &from.state) {
            (Some(snapshot), Some(state)) => go_on_from(snapshot, &args.log, &state.position)?,
            _ => LogWriter::create(&args.log, &boot)?,
        };
        let log = FileLog::new(writer);
        from.snapshots = args.snapshot_every.map(|seconds| (log.inserts(), Duration::from_secs(seconds)));
        Ok(log)
    };
    let every = args.digest_interval.saturating_mul(1_000_000);
    let mut end = with_console(machine, from, log, every, disk, &args.machine, &args.console)?;
    let entries = end.log.close()?;
    eprintln!("lockstep: recorded {entries} entries, up to instant {}, in {}", end.at, args.log.display());
    Ok(status(&end.reason))
}

/// The machine that boots, or goes on.
fn begin(
    args: &MachineArgs,
    from: &Option<PathBuf>,
    disk: &Option<Arc<DiskPort>>,
    tracking: Tracking,
) -> anyhow::Result<(Machine, From)> {
    let Some(file) = from else { return Ok((Machine::new(&args.boot(disk)?, tracking)?, From::default())) };
    let in_file = || file.display().to_string();
    let mut reader = LogReader::open(file)?;
    anyhow::ensure!(reader.from_snapshot(), "{} is no snapshot: it is a log from a guest's boot on", file.display());
    let (machine, state) = transfer::file::machine(&mut reader, tracking).with_context(in_file)?;
    match (machine.boot().net.is_some(), args.net.is_some()) {
        (true, false) => {
            anyhow::bail!("the guest in {} has a network card: say with --net where it is plugged in", in_file())
        }
        (false, true) => anyhow::bail!("the guest in {} has no network card (--net)", in_file()),
        _ => {}
    }
    match (machine.boot().disk, disk) {
        (Some(config), Some(disk)) => disk.fit(&config)?,
        (Some(_), None) => {
            anyhow::bail!("the guest in {} has a disk: say with --disk which image it has here", in_file())
        }
        (None, Some(_)) => anyhow::bail!("the guest in {} has no disk (--disk)", in_file()),
        (None, None) => {}
    }
    Ok((machine, From { state, snapshots: None }))
}

/// A log that starts with what is in the file `snapshot`, up to and with the state.
fn go_on_from(snapshot: &Path, log: &Path, position: &Encoder) -> anyhow::Result<LogWriter<File>> {
    let mut reader = LogReader::open(snapshot)?;
    transfer::file::skip_state(&mut reader).with_context(|| snapshot.display().to_string())?;
    let length = reader.offset();
    anyhow::ensure!(
        !log.exists() || std::fs::canonicalize(log)? != std::fs::canonicalize(snapshot)?,
        "the log would take the place of the snapshot that it starts from"
    );
    let cannot = || format!("cannot create the log {}", log.display());
    let mut out = File::create(log).with_context(cannot)?;
    let copied = std::io::copy(&mut File::open(snapshot)?.take(length), &mut out).with_context(cannot)?;
    anyhow::ensure!(copied == length, "{} has changed while it was read", snapshot.display());
    Ok(LogWriter::continuing(out, length, position))
}

fn status(reason: &Option<EndReason>) -> ExitCode {
    reason.as_ref().map_or(ExitCode::from(super::FAILED), super::guest_status)
}

fn with_console<L: Log + Send + 'static>(
    machine: Machine,
    mut from: From,
    log: impl FnOnce(&mut From) -> anyhow::Result<L>,
    digest_every_ns: u64,
    disk: Option<Arc<DiskPort>>,
    args: &MachineArgs,
    choice: &ConsoleChoice,
) -> anyhow::Result<SoloEnd<L>> {
    prefer_this_thread();
    let name = &machine.boot().name.clone();
    let runtime = super::remote::runtime()?;
    let end = runtime.block_on(async {
        let listener = TcpListener::bind(&choice.control)
            .await
            .with_context(|| format!("cannot listen on {}: choose another address with --control", choice.control))?;
        let address = listener.local_addr()?.to_string();
        let network = args.port()?;
        if let (Some(port), Some(card)) = (&network, machine.boot().net) {
            // The snapshot's, where there is one.
            anyhow::ensure!(
                !card.offloads || port.has_offloads(),
                "the guest's network card has offloads: plug it into a TAP device"
            );
            port.set_mac(card.mac);
        }
        // Creating a log loses an older one of that name: not before all else that can fail has not.
        let log = log(&mut from)?;
        if choice.detached {
            eprintln!("lockstep: `{name}` runs detached; console {address}");
        }
        let hub = Arc::new(Hub::new(name, "this host", HISTORY_BYTES));
        let board = Board::new(hub.clone(), name, "this host");
        let (over, stop) = tokio::sync::oneshot::channel::<()>();
        let serve = tokio::spawn(server::serve(listener, hub.clone(), board.clone(), async {
            let _ = stop.await;
        }));
        let interrupts = tokio::spawn(super::interrupts::stop_on_signal(board.clone()));
        let console = (!choice.detached).then(|| {
            let board = board.clone();
            tokio::spawn(async move {
                let result = super::console::attach_local(address).await;
                // Whoever leaves the console of an unprotected run leaves the machine.
                board.request_stop();
                result
            })
        });
        let end = solo::run(machine, log, digest_every_ns, Outlets { hub, network, disk }, board, from).await;
        interrupts.abort();
        drop(over);
        let _ = serve.await;
        if let Some(console) = console {
            // The console has shown everything when the server has closed; what is left is the terminal's state.
            console.await.context("the console's task")??;
        }
        Ok(end?)
    });
    // A read of the terminal may still wait in the background.
    runtime.shutdown_background();
    end
}
