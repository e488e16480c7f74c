//! The command line: one file per subcommand, each with its arguments and a `run`.
#![allow(clippy::disallowed_methods, reason = "this is the outside world")]

pub mod console;
pub mod interrupts;
pub mod log;
pub mod machine_args;
pub mod pair;
pub mod record;
pub mod replay;
pub mod status;
pub mod stop;

use std::process::ExitCode;

use anyhow::Context;

use crate::machine::doors::EndReason;

/// Exit status: something failed, or is not possible as asked.
pub const FAILED: u8 = 1;
/// Exit status of a replay or a backup whose execution was not the one in the log.
pub const DIVERGED: u8 = 3;

/// A virtual machine that survives the death of its host, by deterministic replay.
#[derive(Debug, clap::Parser)]
#[command(name = "lockstep", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Run(record::RunArgs),
    Record(record::RecordArgs),
    Replay(replay::ReplayArgs),
    Log(log::LogArgs),
    Primary(pair::PrimaryArgs),
    Backup(pair::BackupArgs),
    Console(console::ConsoleArgs),
    Status(status::StatusArgs),
    Stop(stop::StopArgs),
}

/// Carries out what was asked for.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run(args) => record::run(args),
        Command::Record(args) => record::record(args),
        Command::Replay(args) => replay::run(args),
        Command::Log(args) => log::run(args).map(|()| ExitCode::SUCCESS),
        Command::Primary(args) => pair::run_primary(args),
        Command::Backup(args) => pair::run_backup(args),
        Command::Console(args) => console::run(args),
        Command::Status(args) => status::run(args),
        Command::Stop(args) => stop::run(args),
    }
}

/// The exit status that stands for a guest's end.
fn guest_status(reason: &EndReason) -> ExitCode {
    ExitCode::from(crate::console::hub::exit_code(reason))
}

/// The runtime of a subcommand that talks to the network.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the I/O runtime")
}

/// Checks that an argument is `HOST:PORT`.
fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("write it as HOST:PORT, for example 127.0.0.1:7001".to_owned()),
    }
}
