//! Ctrl-C and SIGTERM: the first asks the machine to stop in an orderly way, the second ends the process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::host::board::Board;

/// Signals this close to the first are the first: whoever signals a process and then its group sends one wish twice.
const ONE_WISH: Duration = Duration::from_millis(300);

/// Exit status of a process that was told twice: as if SIGINT had ended it.
const TOLD_TWICE: i32 = 130;

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Calls `stop` at the first signal, and ends the process at the second.
    async fn obey(mut self, stop: impl FnOnce()) -> ! {
        self.next().await;
        let first = Instant::now();
        stop();
        loop {
            self.next().await;
            if first.elapsed() > ONE_WISH {
                std::process::exit(TOLD_TWICE);
            }
        }
    }
}

/// Waits for the first SIGINT or SIGTERM; a second one ends the process at once.
pub async fn signalled() {
    let Ok(mut signals) = Signals::new() else { return std::future::pending().await };
    signals.next().await;
    tokio::spawn(signals.obey(|| {}));
}

/// Turns the first SIGINT or SIGTERM into a request to stop the machine.
pub async fn stop_on_signal(board: Arc<Board>) {
    // Without handlers, the signals do what they always do.
    let Ok(signals) = Signals::new() else { return };
    let stop = || {
        eprintln!("lockstep: stopping (once more to end at once)");
        board.request_stop();
    };
    signals.obey(stop).await;
}

/// Calls `stop` at the first SIGINT or SIGTERM, from a thread of its own. For subcommands without a runtime.
pub fn on_signal(stop: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let runtime = super::remote::runtime()?;
    let body = move || {
        runtime.block_on(async {
            if let Ok(signals) = Signals::new() {
                signals.obey(stop).await;
            }
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(body).context("cannot start the signal thread")?;
    Ok(())
}
