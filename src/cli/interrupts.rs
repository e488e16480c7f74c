//! Ctrl-C and SIGTERM: the first asks the machine to stop in an orderly way, the second ends the process.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use anyhow::Context;

use crate::host::board::Board;

/// Turns the first SIGINT or SIGTERM into a request to stop; the second exits.
pub async fn stop_on_signal(board: Arc<Board>) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if asked {
            std::process::exit(130);
        }
        asked = true;
        eprintln!("lockstep: stopping (once more to end at once)");
        board.request_stop();
    }
}

/// Calls `stop` at the first SIGINT or SIGTERM, from a thread of its own; the second exits. For subcommands without a runtime.
pub fn on_signal(stop: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                let (Ok(mut interrupt), Ok(mut terminate)) =
                    (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
                else {
                    return;
                };
                for first in [true, false] {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if !first {
                        std::process::exit(130);
                    }
                    stop();
                }
            });
        })
        .context("cannot start the signal thread")?;
    Ok(())
}
