//! `lockstep status`: what a host says about its machine.

use super::remote::{address, runtime};
use crate::console::control;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Show the state of a machine.
///
/// Role, generation, peer, execution lag, log rate, outputs held, heartbeats, as the host sees them now.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Console port of the host; several are shown one after the other: HOST:PORT or HOST:PORT,HOST:PORT
    #[arg(value_name = "ADDR", required = true, value_delimiter = ',', value_parser = address)]
    pub addresses: Vec<String>,
    /// Show it again and again
    #[arg(long, short)]
    pub watch: bool,
    /// Milliseconds between two looks
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..), requires = "watch")]
    pub every: u64,
    /// One JSON object a line, for programs
    #[arg(long)]
    pub json: bool,
}

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs `lockstep status`.
pub fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let mut ticks = interval(Duration::from_millis(args.every));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drawn_lines = 0;
        loop {
            ticks.tick().await;
            let mut text = String::new();
            let mut failed = None;
            for address in &args.addresses {
                match control::status(address, PATIENCE).await {
                    Ok(status) if args.json => text += &serde_json::to_string(&status)?,
                    Ok(status) => text += &status.to_string(),
                    // Hosts come and go while one watches; a single look fails with the first that is not there.
                    Err(error) if args.watch && args.json => {
                        text += &serde_json::json!({ "address": address, "error": error.to_string() }).to_string();
                    }
                    Err(error) if args.watch => text += &error.to_string(),
                    Err(error) => {
                        failed.get_or_insert(error);
                        continue;
                    }
                }
                text += if args.json { "\n" } else { "\n\n" };
            }
            let mut out = std::io::stdout().lock();
            if args.watch && !args.json && out.is_terminal() && drawn_lines > 0 {
                // Back up over what was drawn last, and clear it.
                write!(out, "\x1b[{drawn_lines}A\x1b[J")?;
            }
            drawn_lines = text.lines().count();
            out.write_all(if args.json || args.watch { &text } else { text.trim_end() }.as_bytes())?;
            if !args.json && !args.watch && !text.is_empty() {
                writeln!(out)?;
            }
            out.flush()?;
            if let Some(error) = failed {
                return Err(error.into());
            }
            if !args.watch {
                return Ok(ExitCode::SUCCESS);
            }
        }
    })
}
