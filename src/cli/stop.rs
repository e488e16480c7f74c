//! `lockstep stop`: asks a machine to stop.

use super::remote::{address, runtime};
use crate::console::control;
use std::process::ExitCode;
use std::time::Duration;

/// Stop a machine, on both hosts of a pair.
#[derive(Clone, Debug, clap::Args)]
pub struct StopArgs {
    /// Console port of the host that runs it, or of both: HOST:PORT or HOST:PORT,HOST:PORT
    #[arg(value_name = "ADDR", required = true, value_delimiter = ',', value_parser = address)]
    pub addresses: Vec<String>,
}

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs `lockstep stop`.
pub fn run(args: StopArgs) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let mut refusals = Vec::new();
        for address in &args.addresses {
            match control::stop(address, PATIENCE).await {
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
