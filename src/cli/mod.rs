//! The command line: one file per subcommand.
#![allow(clippy::disallowed_methods, reason = "this is the outside world")]

pub mod console;
pub mod demo;
pub mod interrupts;
pub mod log;
pub mod machine_args;
pub mod pair;
pub mod record;
pub mod remote;
pub mod replay;
pub mod status;
pub mod stop;

use std::process::ExitCode;

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
    Demo(demo::DemoArgs),
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
        Command::Demo(args) => demo::run(args),
    }
}

/// The exit status that stands for a guest's end.
fn guest_status(reason: &EndReason) -> ExitCode {
    ExitCode::from(crate::console::hub::exit_code(reason))
}
