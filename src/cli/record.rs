//! `lockstep run` and `lockstep record`: a guest on this host alone, its console on this terminal.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

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
use crate::host::solo::{self, SoloEnd};
use crate::log::file::LogWriter;
use crate::machine::doors::EndReason;
use crate::machine::{Machine, Tracking};

const HISTORY_BYTES: usize = 4 << 20;

/// Boot a guest on this host, unprotected, with its console on this terminal.
///
/// Ctrl-] is the escape key: Ctrl-] and then `q` leaves. The exit status is the guest's.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    machine: MachineArgs,
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
    let boot = args.machine.boot(&disk)?;
    let machine = Machine::new(&boot, Tracking::Off)?;
    let end = with_console(machine, || Ok(NoLog), u64::MAX, disk, &args.machine, &args.console)?;
    Ok(status(&end.reason))
}

/// `lockstep record`.
pub fn record(args: RecordArgs) -> anyhow::Result<ExitCode> {
    let disk = open_disk(&args.machine.disk, Owner::Alone(&args.machine.name))?;
    let boot = args.machine.boot(&disk)?;
    let machine = Machine::new(&boot, Tracking::On)?;
    let log = || Ok(FileLog::new(LogWriter::create(&args.log, &boot)?));
    let every = args.digest_interval.saturating_mul(1_000_000);
    let mut end = with_console(machine, log, every, disk, &args.machine, &args.console)?;
    let entries = end.log.close()?;
    eprintln!("lockstep: recorded {entries} entries, up to instant {}, in {}", end.at, args.log.display());
    Ok(status(&end.reason))
}

fn status(reason: &Option<EndReason>) -> ExitCode {
    reason.as_ref().map_or(ExitCode::from(super::FAILED), super::guest_status)
}

fn with_console<L: Log + Send + 'static>(
    machine: Machine,
    log: impl FnOnce() -> anyhow::Result<L>,
    digest_every_ns: u64,
    disk: Option<Arc<DiskPort>>,
    args: &MachineArgs,
    choice: &ConsoleChoice,
) -> anyhow::Result<SoloEnd<L>> {
    prefer_this_thread();
    let name = &args.name;
    let runtime = super::remote::runtime()?;
    let end = runtime.block_on(async {
        let listener = TcpListener::bind(&choice.control)
            .await
            .with_context(|| format!("cannot listen on {}: choose another address with --control", choice.control))?;
        let address = listener.local_addr()?.to_string();
        let network = args.port()?;
        // Creating a log loses an older one of that name: not before all else that can fail has not.
        let log = log()?;
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
        let end = solo::run(machine, log, digest_every_ns, Outlets { hub, network, disk }, board).await;
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
