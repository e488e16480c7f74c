//! What the subcommands share that talk to a host's console port.

use anyhow::Context;

/// The runtime of a subcommand that talks to the network.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the I/O runtime")
}

/// Checks that an argument is `HOST:PORT`.
pub fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("write it as HOST:PORT, for example 127.0.0.1:7701".to_owned()),
    }
}
