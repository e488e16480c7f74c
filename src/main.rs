//! Arguments to subcommands, nothing else.

use std::io::IsTerminal;
use std::process::ExitCode;

use lockstep::cli;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| "lockstep=warn".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(end) => return end,
    };
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            // One line: what could not be done, and why.
            eprintln!("lockstep: {error:#}");
            ExitCode::from(cli::FAILED)
        }
    }
}
