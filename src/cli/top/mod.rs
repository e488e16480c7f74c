//! `lockstep top`: the hosts and VMs of a cluster, live.
//!
//! ```text
//!  keys (thread) ────────┐
//!  ensemble (task) ──────┤  watches; reads everything anew when something has changed
//!  figures (task) ───────┼──► Screen ──► draw
//!  signals ──────────────┘
//! ```

mod draw;
mod screen;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use self::screen::{Screen, Wish};
use super::cluster::{self, ClusterArgs, SIDE_PATIENCE};
use super::remote::runtime;
use crate::arbiter::zookeeper::Sessions;
use crate::cluster::figures::{self, Figures};
use crate::cluster::follow::{Following, Told};
use crate::cluster::view::View;

/// Watch the hosts and VMs of a cluster, live.
///
/// Keys: up, down, home, end (or k, j, g, G) select; s and S sort by the next or the previous column, r reverses; tab changes between VMs and hosts; q, Esc or
/// Ctrl-C quits. Where the standard output is no terminal, the tables are printed once.
#[derive(Clone, Debug, clap::Args)]
pub struct TopArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Milliseconds between two looks at the figures (changes of roles are shown at once)
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..))]
    every: u64,
    /// Print the tables once, and end
    #[arg(long)]
    once: bool,
}

/// The shortest time between two pictures.
const FRAME: Duration = Duration::from_millis(30);

/// Runs `lockstep top`.
pub fn run(args: TopArgs) -> anyhow::Result<ExitCode> {
    if args.once || !std::io::stdout().is_terminal() {
        return cluster::print_once(&args.cluster);
    }
    let sessions = args.cluster.open()?;
    runtime()?.block_on(async {
        // What cannot be watched at all is an error, not an empty screen.
        let session = cluster::session(&sessions).await?;
        cluster::read(&sessions, &session).await?;
        watch_it(args, sessions).await
    })
}

async fn watch_it(args: TopArgs, sessions: Arc<Sessions>) -> anyhow::Result<ExitCode> {
    let following = Following::start(sessions.clone());
    let mut told = following.told();
    let (figures_here, mut figures) = watch::channel(Figures::new());
    tokio::spawn(ask(told.clone(), Duration::from_millis(args.every), figures_here));
    let mut ends = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
        .map(signal)
        .into_iter()
        .collect::<std::io::Result<Vec<_>>>()
        .context("cannot listen to signals")?;

    // Restores the terminal when it is dropped; a panic does so as well, before it is shown.
    let mut terminal = Terminal::take().context("cannot use this terminal")?;
    let mut keys = keys();
    let mut screen = Screen::new(sessions.location().to_owned());
    // What it begins with is that nothing has been read yet.
    let _ = told.changed().await;
    screen.on_told(shown(&told.borrow_and_update()));
    let mut next_frame = Instant::now();
    let mut stale = true;
    loop {
        let [terminate, interrupt, hang_up] = &mut ends[..] else { unreachable!("three signals") };
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => break,
            event = keys.recv() => match event {
                Some(Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. })) => {
                    if screen.on_key(code, modifiers) == Wish::Quit {
                        break;
                    }
                    stale = true;
                }
                // A new size, for example.
                Some(_) => stale = true,
                // The terminal is gone.
                None => break,
            },
            _ = told.changed() => {
                screen.on_told(shown(&told.borrow_and_update()));
                stale = true;
            }
            _ = figures.changed() => {
                screen.on_figures(figures.borrow_and_update().clone());
                stale = true;
            }
            () = sleep_until(next_frame), if stale => {
                terminal.0.draw(|frame| draw::draw(frame, &mut screen)).context("cannot write to the terminal")?;
                (stale, next_frame) = (false, Instant::now() + FRAME);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The terminal, in the state in which it can be drawn on.
struct Terminal(ratatui::DefaultTerminal);

impl Terminal {
    fn take() -> std::io::Result<Self> {
        ratatui::try_init().map(Terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// The keys, from a thread that ends with the process.
fn keys() -> mpsc::UnboundedReceiver<Event> {
    let (tell, keys) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if tell.send(event).is_err() {
                return;
            }
        }
    });
    keys
}

fn shown(told: &Told) -> Result<Arc<View>, String> {
    match told {
        Ok(seen) => Ok(seen.view.clone()),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks the sides for their figures, again and again, and at once when there are others.
async fn ask(mut told: watch::Receiver<Told>, every: Duration, figures_here: watch::Sender<Figures>) {
    loop {
        let seen = told.borrow_and_update().clone();
        if let Ok(seen) = seen {
            figures_here.send_replace(figures::ask(&seen.view, SIDE_PATIENCE).await);
        }
        tokio::select! {
            () = sleep(every) => {}
            changed = told.changed() => if changed.is_err() { return },
        }
    }
}
