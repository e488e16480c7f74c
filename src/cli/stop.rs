//! `lockstep stop`, `pause`, `resume` and `reset`: ask for something to be done with a machine.

use super::remote::{address, runtime};
use crate::console::control;
use crate::console::wire::Command;
use std::process::ExitCode;
use std::time::Duration;

/// Stop a machine, on both hosts of a pair.
#[derive(Clone, Debug, clap::Args)]
pub struct StopArgs {
    /// Console port of the host that runs it, or of both: HOST:PORT or HOST:PORT,HOST:PORT
    #[arg(value_name = "ADDR", required = true, value_delimiter = ',', value_parser = address)]
    pub addresses: Vec<String>,
}

/// Have a guest stand still, on both hosts of a pair, its clock included, until `lockstep resume`.
#[derive(Clone, Debug, clap::Args)]
pub struct PauseArgs {
    /// Console port of the host that runs it, or of both: HOST:PORT or HOST:PORT,HOST:PORT
    #[arg(value_name = "ADDR", required = true, value_delimiter = ',', value_parser = address)]
    pub addresses: Vec<String>,
}

/// Have a paused guest go on.
#[derive(Clone, Debug, clap::Args)]
pub struct ResumeArgs {
    /// Console port of the host that runs it, or of both: HOST:PORT or HOST:PORT,HOST:PORT
    #[arg(value_name = "ADDR", required = true, value_delimiter = ',', value_parser = address)]
    pub addresses: Vec<String>,
}

/// Boot a guest anew, on both hosts of a pair, as by its machine's reset button.
#[derive(Clone, Debug, clap::Args)]
pub struct ResetArgs {
    /// Console port of the host that runs it, or of both: HOST:PORT or HOST:PORT,HOST:PORT
    #[arg(value_name = "ADDR", required = true, value_delimiter = ',', value_parser = address)]
    pub addresses: Vec<String>,
}

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs `lockstep stop` and its like: asks one host after the other until one does it.
pub fn run(addresses: &[String], command: Command) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let mut refusals = Vec::new();
        for address in addresses {
            match control::command(address, command, PATIENCE).await {
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
