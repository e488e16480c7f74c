//! `lockstep demo`: the main job on one machine, to watch: a pair, a guest that counts, and the death of its host. With `--net`,
//! the same to a server in the guest and its clients (see [`super::demo_net`]).

use std::collections::VecDeque;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::demo_net::{self, NetArgs};
use super::loopback::Pair;
use crate::console::client::What;

/// Watch a guest survive its host.
///
/// Starts a primary and a backup as two processes on this machine, attaches to the guest's console, has the
/// guest's shell count, kills the primary with SIGKILL in the middle, and shows how the count goes on at the backup
/// without a gap. Needs nothing but /dev/kvm.
///
/// With --net: two hosts and a client's are made of network namespaces (needs root and the `ip` command) and removed at the
/// end. The guest is a server that speaks the Redis protocol; clients count up in it, each over one connection
/// (and redis-benchmark, if it is installed); its host is killed with SIGKILL while they work. A table shows the requests before,
/// during and after, how long the clients waited, and that no connection broke and nothing was lost; the exit
/// status is 1 if that is not so. With --keep, the server is yours to try instead.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// How far the guest counts
    #[arg(long, value_name = "N", default_value_t = 60, conflicts_with = "net", value_parser = clap::value_parser!(u32).range(10..=10_000))]
    count: u32,
    /// Milliseconds between two numbers
    #[arg(long, value_name = "MS", default_value_t = 50, conflicts_with = "net", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pace: u32,
    #[command(flatten)]
    network: NetArgs,
}

pub(super) fn tell(text: &str) {
    println!("\x1b[1m── {text}\x1b[0m");
}

/// Runs `lockstep demo`.
pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    super::remote::runtime()?.block_on(async {
        tokio::select! {
            result = async { if args.network.net { demo_net::show(&args.network).await } else { show(&args).await } } => result,
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
        }
    })
}

/// What the console has shown, and the counting in it.
#[derive(Default)]
struct Screen {
    line: Vec<u8>,
    lines: VecDeque<String>,
}

impl Screen {
    fn take(&mut self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        // A closed pipe ends the demo at its next line.
        let _ = out.write_all(bytes).and_then(|()| out.flush());
        for &byte in bytes {
            match byte {
                b'\n' => self.lines.push_back(String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned()),
                b'\r' => {}
                byte => self.line.push(byte),
            }
        }
    }
}

async fn show(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let pair = Pair::start("shell", "", &[])?;
    for (role, side) in [("primary", &pair.primary), ("backup", &pair.backup)] {
        tell(&format!("{role} started: process {}, console {}", side.pid(), side.control));
    }
    let mut client = pair.console().await?;
    client.send(format!("count {} {}\n", args.count, args.pace).as_bytes()).await?;
    let mut screen = Screen::default();
    let mut expected = 1;
    let mut killed: Option<Instant> = None;
    let mut pause: Option<Duration> = None;
    let mut moved: Option<(String, u64)> = None;
    while expected <= args.count {
        let event = client.next().await.context("the console ended")?;
        match event.what {
            What::Output { bytes, .. } => {
                if let Some(at) = killed.filter(|_| moved.is_some() && pause.is_none()) {
                    pause = Some(event.at.saturating_duration_since(at));
                }
                screen.take(&bytes);
            }
            What::Attached { host, generation, away: Some(_), .. } => {
                let after = killed.map_or(0.0, |at| event.at.saturating_duration_since(at).as_secs_f64() * 1000.0);
                tell(&format!(
                    "{host} has taken over, generation {generation}: console attached {after:.1} ms after the kill"
                ));
                moved = Some((host, generation));
            }
            What::Gap { from, to } => bail!("output from byte {from} to {to} is lost"),
            What::Ended(ended) => bail!("the guest ended: {}", ended.reason),
            What::Failed(error) => return Err(error.into()),
            What::Attached { .. } | What::Lost { .. } | What::Waiting { .. } | What::Unusable { .. } => {}
        }
        while let Some(line) = screen.lines.pop_front() {
            if let Ok(number) = line.trim().parse::<u32>() {
                if number != expected {
                    bail!("the count went on at {number}, not at {expected}");
                }
                expected += 1;
            }
        }
        if killed.is_none() && expected > args.count / 2 {
            tell(&format!("kill -9 {} (the primary)", pair.primary.pid()));
            killed = Some(Instant::now());
            pair.primary.signal(Signal::SIGKILL)?;
        }
    }
    let (host, generation) = moved.context("the guest did not move")?;
    client.send(b"uptime\n").await?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while !screen.lines.iter().any(|line| line.starts_with("up ")) {
        match tokio::time::timeout_at(deadline, client.next()).await.context("the guest does not answer")? {
            Some(event) => {
                if let What::Output { bytes, .. } = event.what {
                    screen.take(&bytes);
                }
            }
            None => bail!("the console ended"),
        }
    }
    println!();
    tell(&format!(
        "1 to {}: every number once, in order; the same guest, now on {host}, generation {generation}",
        args.count
    ));
    if let Some(pause) = pause {
        tell(&format!(
            "from the kill to the next output of the guest: {:.1} ms (the guest prints every {} ms)",
            pause.as_secs_f64() * 1000.0,
            args.pace
        ));
    }
    Ok(ExitCode::SUCCESS)
}
