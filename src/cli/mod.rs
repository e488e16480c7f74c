//! The command line: one file per subcommand, each with its arguments and a `run`.

pub mod console;
pub mod status;
pub mod stop;

use anyhow::Context;

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
