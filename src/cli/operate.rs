//! `lockstep stop`, `pause`, `resume`, `reset` and `switch`: what an operator does to a running machine.

use std::process::ExitCode;
use std::time::Duration;

use super::remote::{address, runtime};
use crate::console::control;
use crate::console::wire::Command;

/// Stop a machine, on both hosts of a pair.
#[derive(Clone, Debug, clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    hosts: Hosts,
}

/// Have a guest stand still, on both hosts of a pair at the same instant. Its clock stands still with it.
#[derive(Clone, Debug, clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    hosts: Hosts,
}

/// Have a paused guest go on.
#[derive(Clone, Debug, clap::Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    hosts: Hosts,
}

/// Boot a machine anew, on both hosts of a pair at the same instant.
#[derive(Clone, Debug, clap::Args)]
pub struct ResetArgs {
    #[command(flatten)]
    hosts: Hosts,
}

/// Change the roles of a pair: the backup runs the machine from now on, and the host that ran it becomes the backup.
///
/// The guest's connections stay; clients see a pause of some milliseconds. For maintenance of a host: switch, then stop the backup there.
#[derive(Clone, Debug, clap::Args)]
pub struct SwitchArgs {
    #[command(flatten)]
    hosts: Hosts,
}

#[derive(Clone, Debug, clap::Args)]
struct Hosts {
    /// Console port of the host that runs it, or of both: HOST:PORT or HOST:PORT,HOST:PORT
    #[arg(value_name = "ADDR", required = true, value_delimiter = ',', value_parser = address)]
    addresses: Vec<String>,
}

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take to have the other host go on.
const SWITCH_PATIENCE: Duration = Duration::from_secs(15);

/// `lockstep stop`.
pub fn stop(args: StopArgs) -> anyhow::Result<ExitCode> {
    operate(&args.hosts, Command::Stop, PATIENCE)
}

/// `lockstep pause`.
pub fn pause(args: PauseArgs) -> anyhow::Result<ExitCode> {
    operate(&args.hosts, Command::Pause, PATIENCE)
}

/// `lockstep resume`.
pub fn resume(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    operate(&args.hosts, Command::Resume, PATIENCE)
}

/// `lockstep reset`.
pub fn reset(args: ResetArgs) -> anyhow::Result<ExitCode> {
    operate(&args.hosts, Command::Reset, PATIENCE)
}

/// `lockstep switch`.
pub fn switch(args: SwitchArgs) -> anyhow::Result<ExitCode> {
    operate(&args.hosts, Command::Switch, SWITCH_PATIENCE)
}

/// Asks the hosts one after the other, until one of them does it.
fn operate(hosts: &Hosts, command: Command, patience: Duration) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let mut refusals = Vec::new();
        for address in &hosts.addresses {
            match control::command(address, command, patience).await {
                Ok(answer) if answer.accepted => {
                    println!("{address}: {}", answer.text);
                    return Ok(ExitCode::SUCCESS);
                }
                Ok(answer) => refusals.push(format!("{address}: {}", answer.text)),
                Err(error) => refusals.push(error.to_string()),
            }
        }
        anyhow::bail!("{}", refusals.join("; "))
    })
}
