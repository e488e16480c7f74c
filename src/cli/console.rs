//! `lockstep console`: the guest's console on this terminal, wherever the guest lives now.

use super::remote::{address, runtime};
use crate::console::client::{Client, ClientError, Event, Keyboard, Options, Timing, What};
use crate::console::control;
use crate::console::terminal::{Escape, Key, RawMode};
use crate::console::wire::Start;
use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

const HELP: &str = "keys: Ctrl-] then q or . leaves, s shows the status, ? shows this, Ctrl-] types Ctrl-]";
/// A lost host is worth a word only when finding the next one takes longer than this.
const WORTH_A_WORD: Duration = Duration::from_millis(700);

/// Attach to a guest's console.
///
/// Shows what the guest writes and types what you type, every byte once, and follows the guest to
/// the other host when its host dies. Without a terminal it is a pipe: standard input to the guest, the guest's
/// output to standard output. Ends with the guest, with the guest's exit code.
#[derive(Clone, Debug, clap::Args)]
pub struct ConsoleArgs {
    /// Console port of the host, or of both hosts of a pair: HOST:PORT or HOST:PORT,HOST:PORT
    #[arg(value_name = "ADDR", required = true, value_delimiter = ',', value_parser = address)]
    pub addresses: Vec<String>,
    /// Where output begins: `start` (all that the host keeps), `now`, or the newest so many bytes
    #[arg(long, value_name = "WHERE", default_value = "start", value_parser = start)]
    pub from: Start,
    /// Leave at the end of standard input, once the guest's log holds all of it
    #[arg(long)]
    pub eof_quit: bool,
    /// Do not tell about hosts lost and found
    #[arg(long, short)]
    pub quiet: bool,
    /// Write the guest's output to this file, too
    #[arg(long, value_name = "FILE")]
    pub transcript: Option<PathBuf>,
    /// Write what happens to this file, as JSON lines with the monotonic clock in microseconds
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Milliseconds of silence after which a host is given up; the other is called after a third of it at most
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub timeout: u64,
    /// Seconds to wait for a host to attach to at first
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub wait: u64,
    /// Seconds after which to give up a machine that was lost [default: never]
    #[arg(long, value_name = "SECONDS")]
    pub give_up: Option<u64>,
}

fn start(text: &str) -> Result<Start, String> {
    match text {
        "start" => Ok(Start::At(0)),
        "now" => Ok(Start::Tail(0)),
        bytes => bytes.parse().map(Start::Tail).map_err(|_| "write `start`, `now` or a number of bytes".to_owned()),
    }
}

impl ConsoleArgs {
    fn options(&self) -> Options {
        let silence = Duration::from_millis(self.timeout);
        let usual = Timing::default();
        Options {
            addresses: self.addresses.clone(),
            start: self.from,
            first_attach: Some(Duration::from_secs(self.wait)),
            reattach: self.give_up.map(Duration::from_secs),
            timing: Timing { silence, suspect: usual.suspect.min(silence / 3), ..usual },
        }
    }
}

/// Runs `lockstep console`.
pub fn run(args: ConsoleArgs) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let mut ends = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()]
            .into_iter()
            .map(|kind| Ok((signal(kind)?, kind)))
            .collect::<std::io::Result<Vec<_>>>()
            .context("cannot wait for signals")?;
        tokio::select! {
            biased;
            kind = any(&mut ends) => Ok(ExitCode::from(128 + kind.as_raw_value() as u8)),
            result = attached(&args, false) => result,
        }
    });
    // A write to a blocked pipe may still wait in the background.
    runtime.shutdown_background();
    result
}

/// The console of a machine in this very process: ends with it, or when the person leaves.
pub async fn attach_local(address: String) -> anyhow::Result<()> {
    let args = ConsoleArgs {
        addresses: vec![address],
        from: Start::At(0),
        eof_quit: false,
        quiet: false,
        transcript: None,
        events: None,
        timeout: 60_000,
        wait: 60,
        give_up: None,
    };
    attached(&args, true).await.map(drop)
}

/// Shows and types until the guest ends or the person leaves; `local`: or until its host is lost.
async fn attached(args: &ConsoleArgs, local: bool) -> anyhow::Result<ExitCode> {
    let mut record = Record::create(args.transcript.as_deref(), args.events.as_deref())?;
    let mut client = Client::start(args.options())?;
    let terminal = RawMode::enter().context("cannot set up the terminal")?;
    let (order, mut orders) = mpsc::channel(16);
    tokio::spawn(type_keys(client.keyboard(), terminal.is_some(), args.eof_quit, order));
    let mut screen = Screen::new(args.quiet, terminal.is_some());
    let mut typing = true;
    loop {
        tokio::select! {
            // The way out comes first, whatever the guest writes.
            biased;
            order = orders.recv(), if typing => match order {
                Some(Key::Status) => screen.status().await?,
                Some(Key::Help) => screen.say(HELP).await?,
                Some(Key::Quit) => return Ok(ExitCode::SUCCESS),
                Some(Key::Type(_)) => {}
                // Standard input has ended; the guest has not.
                None => typing = false,
            },
            event = client.next() => {
                let event = event.ok_or(ClientError::Closed)?;
                record.event(&event)?;
                match event.what {
                    What::Ended(ended) => {
                        screen.say(&ended.reason).await?;
                        return Ok(ExitCode::from(ended.code));
                    }
                    What::Failed(error) => return Err(error.into()),
                    What::Lost { .. } if local => return Ok(ExitCode::SUCCESS),
                    what => screen.show(what).await?,
                }
            }
            () = screen.overdue() => screen.searching().await?,
        }
    }
}

/// The first signal that comes.
async fn any(signals: &mut [(Signal, SignalKind)]) -> SignalKind {
    std::future::poll_fn(|context| {
        match signals.iter_mut().find_map(|(signal, kind)| signal.poll_recv(context).is_ready().then_some(*kind)) {
            Some(kind) => Poll::Ready(kind),
            None => Poll::Pending,
        }
    })
    .await
}

/// Reads standard input (on a thread: it cannot be read otherwise) and types it into the guest.
async fn type_keys(keyboard: Keyboard, escapes: bool, eof_quit: bool, order: mpsc::Sender<Key>) {
    let (read, mut typed) = mpsc::channel::<Vec<u8>>(4);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            if read.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut escape = Escape::default();
    while let Some(bytes) = typed.recv().await {
        for key in if escapes { escape.keys(&bytes) } else { vec![Key::Type(bytes)] } {
            let sent = match key {
                Key::Type(bytes) => keyboard.send(&bytes).await.is_ok(),
                key => order.send(key).await.is_ok(),
            };
            if !sent {
                return;
            }
        }
    }
    if eof_quit && keyboard.safe().await.is_ok() {
        let _ = order.send(Key::Quit).await;
    }
}

/// The person's screen: the guest's output, and our few words.
struct Screen {
    quiet: bool,
    /// Whether the escape key works.
    keys: bool,
    stdout: tokio::io::Stdout,
    stderr: tokio::io::Stderr,
    /// Address, host and generation of the present or last attachment.
    place: Option<(String, String, u64)>,
    /// When a host that is being looked for is worth a word, and why it was lost.
    search: Option<(Instant, String)>,
    /// Whether the cursor is at the start of a line, as far as we know.
    at_line_start: bool,
}

impl Screen {
    fn new(quiet: bool, keys: bool) -> Self {
        Screen {
            quiet,
            keys,
            stdout: tokio::io::stdout(),
            stderr: tokio::io::stderr(),
            place: None,
            search: None,
            at_line_start: true,
        }
    }

    async fn show(&mut self, what: What) -> anyhow::Result<()> {
        match what {
            What::Output { bytes, .. } => {
                self.stdout.write_all(&bytes).await.context("cannot write to standard output")?;
                self.stdout.flush().await.context("cannot write to standard output")?;
                self.at_line_start = bytes.last() == Some(&b'\n');
                Ok(())
            }
            What::Attached { address, vm, host, generation, away, .. } => {
                self.search = None;
                let text = match (&self.place, away) {
                    (Some((_, before, old)), Some(away)) if (before, *old) == (&host, generation) => {
                        format!("connected to host {host} again after {} ms", away.as_millis())
                    }
                    (Some(_), Some(away)) => {
                        format!("moved to host {host}, generation {generation}, {} ms", away.as_millis())
                    }
                    _ => {
                        let help = if self.keys { "; Ctrl-] ? for help" } else { "" };
                        format!("attached to {vm} on host {host}, generation {generation}{help}")
                    }
                };
                self.place = Some((address, host, generation));
                self.say(&text).await
            }
            What::Lost { reason, .. } => {
                self.search = Some((Instant::now() + WORTH_A_WORD, reason.to_string()));
                Ok(())
            }
            What::Gap { from, to } => self.say(&format!("output from {from} to {to} is no longer kept")).await,
            What::Waiting { .. } | What::Unusable { .. } | What::Ended(_) | What::Failed(_) => Ok(()),
        }
    }

    async fn overdue(&self) {
        match &self.search {
            Some((at, _)) => sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }

    async fn searching(&mut self) -> anyhow::Result<()> {
        match self.search.take() {
            Some((_, reason)) => self.say(&format!("{reason}; looking for the machine")).await,
            None => Ok(()),
        }
    }

    async fn status(&mut self) -> anyhow::Result<()> {
        let text = match &self.place {
            None => "not attached yet".to_owned(),
            Some((address, ..)) => match control::status(address, Duration::from_secs(1)).await {
                Ok(status) => status.line(),
                Err(error) => error.to_string(),
            },
        };
        self.say(&text).await
    }

    async fn say(&mut self, text: &str) -> anyhow::Result<()> {
        if !self.quiet {
            let start = if self.at_line_start { "" } else { "\r\n" };
            let line = format!("{start}[lockstep: {text}]\r\n");
            // Standard error is not ours to fail on. Unflushed, the last word would be lost.
            let _ = self.stderr.write_all(line.as_bytes()).await;
            let _ = self.stderr.flush().await;
            self.at_line_start = true;
        }
        Ok(())
    }
}

/// The files that a run leaves behind.
struct Record {
    transcript: Option<File>,
    events: Option<File>,
    /// The same moment on the clock of events, and on the monotonic clock that other processes share.
    zero: std::time::Instant,
    zero_us: u64,
}

impl Record {
    fn create(transcript: Option<&Path>, events: Option<&Path>) -> anyhow::Result<Self> {
        let create = |path: Option<&Path>| {
            path.map(|path| File::create(path).with_context(|| format!("cannot write {}", path.display()))).transpose()
        };
        let zero = Instant::now().into_std();
        let zero_us = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_micros() as u64;
        Ok(Record { transcript: create(transcript)?, events: create(events)?, zero, zero_us })
    }

    fn event(&mut self, event: &Event) -> anyhow::Result<()> {
        if let (Some(file), What::Output { bytes, .. }) = (&mut self.transcript, &event.what) {
            file.write_all(bytes).context("cannot write the transcript")?;
        }
        let Some(file) = &mut self.events else { return Ok(()) };
        let mut line = match &event.what {
            What::Attached { address, vm, host, generation, position, away } => json!({
                "event": "attached", "address": address, "vm": vm, "host": host, "generation": generation,
                "position": position, "away_us": away.map(|away| away.as_micros() as u64),
            }),
            What::Lost { address, reason } => {
                json!({ "event": "lost", "address": address, "reason": reason.to_string() })
            }
            What::Waiting { address, role } => json!({ "event": "waiting", "address": address, "role": role }),
            What::Unusable { address, error } => {
                json!({ "event": "unusable", "address": address, "reason": error.to_string() })
            }
            What::Output { position, bytes } => {
                json!({ "event": "output", "position": position, "length": bytes.len() })
            }
            What::Gap { from, to } => json!({ "event": "gap", "from": from, "to": to }),
            What::Ended(ended) => json!({ "event": "ended", "reason": ended.reason, "code": ended.code }),
            What::Failed(error) => json!({ "event": "failed", "reason": error.to_string() }),
        };
        line["us"] = json!(self.zero_us + event.at.saturating_duration_since(self.zero).as_micros() as u64);
        writeln!(file, "{line}").context("cannot write the events")
    }
}
