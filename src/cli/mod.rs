//! The command line: one file per subcommand.
#![allow(clippy::disallowed_methods, reason = "this is the outside world")]

pub mod agent;
pub mod arbiter;
pub mod bench;
pub mod cluster;
pub mod console;
pub mod demo;
pub mod demo_net;
pub mod interrupts;
pub mod log;
mod log_pcap;
pub mod loopback;
pub mod machine_args;
mod managed;
pub mod operate;
pub mod pair;
pub mod place;
pub mod protect;
pub mod record;
pub mod redis_benchmark;
pub mod remote;
pub mod replay;
pub mod site;
pub mod snapshot;
pub mod status;
pub mod table;
pub mod top;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::machine::doors::EndReason;

/// Exit status: something failed, or is not possible as asked.
pub const FAILED: u8 = 1;
/// Exit status of a replay or a backup whose execution was not the one in the log.
pub const DIVERGED: u8 = 3;

/// Prints what was asked for. That nobody reads on (`| head`) is no error.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

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
    Arbiter(arbiter::ArbiterArgs),
    Agent(agent::AgentArgs),
    Protect(protect::ProtectArgs),
    Unprotect(protect::UnprotectArgs),
    Place(place::PlaceArgs),
    Console(console::ConsoleArgs),
    Status(status::StatusArgs),
    Hosts(cluster::HostsArgs),
    Vms(cluster::VmsArgs),
    Top(top::TopArgs),
    Stop(operate::StopArgs),
    Pause(operate::PauseArgs),
    Resume(operate::ResumeArgs),
    Reset(operate::ResetArgs),
    Switch(operate::SwitchArgs),
    Snapshot(snapshot::SnapshotArgs),
    Bench(bench::BenchArgs),
    Demo(demo::DemoArgs),
}

/// Exit status: the arguments make no sense.
pub const USAGE: u8 = 2;

/// Understands the arguments, or says in one line what is wrong with them. Help and version go to the standard output, as they are.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(arguments).map_err(|error| {
        if !error.use_stderr() {
            // Nothing is left to be said on a standard output that takes nothing.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        eprintln!("lockstep: {}", in_one_line(&error.render().to_string()));
        ExitCode::from(USAGE)
    })
}

/// What clap says in paragraphs, of which the last ones are usage and a hint at `--help`.
fn in_one_line(message: &str) -> String {
    let paragraphs = message.trim_start_matches("error: ").split("\n\n");
    let told: Vec<String> = paragraphs
        .take_while(|paragraph| !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more information"))
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let told = told.join("; ");
    // Without a subcommand, clap's message is the whole help.
    let told = if message.starts_with("error: ") { told } else { "a subcommand is needed".into() };
    format!("{told} (see `lockstep --help`, or `lockstep SUBCOMMAND --help`)")
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
        Command::Arbiter(args) => arbiter::run(args),
        Command::Agent(args) => agent::run(args),
        Command::Protect(args) => protect::protect(args),
        Command::Unprotect(args) => protect::unprotect(args),
        Command::Place(args) => place::place(args),
        Command::Console(args) => console::run(args),
        Command::Status(args) => status::run(args),
        Command::Hosts(args) => cluster::hosts(args),
        Command::Vms(args) => cluster::vms(args),
        Command::Top(args) => top::run(args),
        Command::Stop(args) => operate::stop(args),
        Command::Pause(args) => operate::pause(args),
        Command::Resume(args) => operate::resume(args),
        Command::Reset(args) => operate::reset(args),
        Command::Switch(args) => operate::switch(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Demo(args) => demo::run(args),
    }
}

/// The exit status that stands for a guest's end.
fn guest_status(reason: &EndReason) -> ExitCode {
    ExitCode::from(crate::console::hub::exit_code(reason))
}
