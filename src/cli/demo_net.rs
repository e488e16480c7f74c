//! `lockstep demo --net`: clients on a network keep their connections, their requests and every acknowledged write when the
//! host of their server is killed.

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::demo::tell;
use super::loopback::{LOOK_EVERY, PATIENCE, Pair, Side, hear, protected, taken_over};
use super::redis_benchmark::RedisBenchmark;
use super::site::{GUEST, Site, Visit};
use crate::bench::statistics::{largest, median};
use crate::load::counting::{Account, Counting};

/// The port of the guest's server.
const PORT: u16 = 6379;

/// Options of the network's demo.
#[derive(Clone, Debug, clap::Args)]
pub struct NetArgs {
    /// Show a server in the guest and its clients on a network
    #[arg(long)]
    pub net: bool,
    /// Clients that count in the guest
    #[arg(long, value_name = "N", requires = "net", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=50))]
    clients: u16,
    /// Seconds of work before the kill, and after it
    #[arg(long, value_name = "S", requires = "net", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// No load and no kill: keeps the pair running until Ctrl-C, and shows how to use and to kill it
    #[arg(long, requires = "net")]
    keep: bool,
    /// The guest of --keep, if it is to be another one than the Redis server: http, echo or stream
    #[arg(long, value_name = "NAME", requires = "keep", default_value = "kv")]
    guest: String,
}

/// Runs it.
pub async fn show(args: &NetArgs) -> anyhow::Result<ExitCode> {
    let site = Site::make()?;
    tell("two hosts and a client's, in network namespaces; the logging channel on a cable of its own");
    let _visit = Visit::to(&site.client)?;
    let pair = site.pair(&args.guest, "")?;
    for (role, side) in [("primary on A", &pair.primary), ("backup on B", &pair.backup)] {
        tell(&format!("{role}: process {}, console {}", side.pid(), side.control));
    }
    let mut console = pair.console().await?;
    let said = hear(&mut console, "listening on port").await?;
    tell(&format!("the guest at {GUEST}: {said}"));
    drop(console);
    protected(&pair.primary).await?;
    if args.keep {
        return keep(&site, &pair).await;
    }
    tell(&state("A", &pair.primary).await?);
    tell(&state("B", &pair.backup).await?);
    let findings = load(args, &pair).await.with_context(|| pair.words())?;
    println!("\n{findings}\n");
    match findings.broken() {
        None => {
            tell(&state("B", &pair.backup).await?);
            tell("every connection stayed, every request was answered, no acknowledged write is lost or doubled");
            Ok(ExitCode::SUCCESS)
        }
        Some(promise) => bail!("a promise is broken: {promise} ({})", pair.words()),
    }
}

async fn state(host: &str, side: &Side) -> anyhow::Result<String> {
    let status = side.status().await.with_context(|| format!("host {host} does not say how it is"))?;
    Ok(format!("{host}: {}, {}, generation {}", status.role, status.state, status.generation))
}

/// Leaves the pair to a person.
async fn keep(site: &Site, pair: &Pair) -> anyhow::Result<ExitCode> {
    let client = site.at_the_client();
    let (a, b) = (&pair.primary, &pair.backup);
    tell("the client's host is yours:");
    let program = std::env::current_exe().context("cannot find this program")?;
    let program = program.display();
    println!("  {client} ping {GUEST}");
    println!("  {client} redis-cli -h {GUEST}");
    println!("  {client} redis-benchmark -h {GUEST} -t set,get -q");
    println!("  {client} curl http://{GUEST}/          (with --guest http)");
    println!("  {client} {program} status {},{}", a.control, b.control);
    println!("  {client} {program} console {},{}", a.control, b.control);
    println!("  kill -9 {}                    (host A, where the guest lives now)", a.pid());
    tell("Ctrl-C ends it");
    let mut deaths = [false; 2];
    while deaths != [true; 2] {
        tokio::time::sleep(LOOK_EVERY * 5).await;
        for (dead, (name, side)) in deaths.iter_mut().zip([("A", a), ("B", b)]) {
            if !*dead && side.has_ended() {
                *dead = true;
                tell(&format!("{name} is dead"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn load(args: &NetArgs, pair: &Pair) -> anyhow::Result<Findings> {
    let benchmark = RedisBenchmark::endless(GUEST, PORT)?;
    let also = if benchmark.is_some() { ", and redis-benchmark" } else { "" };
    tell(&format!("{} clients count{also}", args.clients));
    let began = Instant::now();
    let mut counting = Counting::begin(&format!("{GUEST}:{PORT}"), usize::from(args.clients));
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    tell(&format!("kill -9 {} (the primary, host A)", pair.primary.pid()));
    let killed = Instant::now();
    pair.primary.signal(Signal::SIGKILL)?;
    taken_over(&pair.backup).await?;
    let live = Instant::now();
    tell(&format!("B has taken over, {:.1} ms after the kill", (live - killed).as_secs_f64() * 1e3));
    // Clients that all gave up are found in their accounts.
    let _ = tokio::time::timeout(PATIENCE, counting.wait_for(u64::from(args.clients))).await;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let ended = Instant::now();
    let accounts = counting.end().await;
    let benchmark = match benchmark {
        Some(benchmark) => Some(benchmark.end().await),
        None => None,
    };
    Ok(Findings { began, killed, live, ended, accounts, benchmark })
}

/// What came of it.
struct Findings {
    began: Instant,
    killed: Instant,
    /// When the backup was seen to have taken over.
    live: Instant,
    ended: Instant,
    accounts: Vec<Account>,
    /// How `redis-benchmark` fared: its requests, or what broke. `None`: there is none.
    benchmark: Option<anyhow::Result<u64>>,
}

impl Findings {
    /// When every client had had an answer of the survivor's.
    fn resumed(&self) -> Instant {
        let first = self.accounts.iter().map(|account| account.first_after(self.live).unwrap_or(self.ended));
        first.max().unwrap_or(self.ended)
    }

    fn total(&self, of: impl Fn(&Account) -> u64) -> u64 {
        self.accounts.iter().map(of).sum()
    }

    /// The first promise that did not hold.
    fn broken(&self) -> Option<String> {
        if let Some(trouble) = self.accounts.iter().find_map(|account| account.trouble.as_ref()) {
            return Some(format!("a client lost its server: {trouble}"));
        }
        if let Some(Err(error)) = &self.benchmark {
            return Some(format!("{error:#}"));
        }
        if self.accounts.iter().any(|account| account.first_after(self.live).is_none()) {
            return Some("a client was not answered any more".into());
        }
        match (self.total(|account| account.lost), self.total(|account| account.doubled)) {
            (0, 0) => None,
            (lost, doubled) => Some(format!("{lost} increments lost, {doubled} applied twice")),
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let resumed = self.resumed();
        let windows = [(self.began, self.killed), (self.killed, resumed), (resumed, self.ended)];
        let mut row = |what: &str, cells: [String; 3]| {
            let [before, during, after] = cells;
            writeln!(f, "{what:<44}{before:>11}{during:>11}{after:>11}")
        };
        row("", ["before", "during", "after"].map(String::from))?;
        let seconds = windows.map(|(from, to)| to.saturating_duration_since(from).as_secs_f64());
        row("time, s", seconds.map(|seconds| format!("{seconds:.3}")))?;
        let answered = windows.map(|(from, to)| self.total(|account| account.answers_between(from, to) as u64));
        row("requests answered", answered.map(|count| count.to_string()))?;
        let per_second = [0, 1, 2].map(|window| answered[window] as f64 / seconds[window].max(1e-9));
        row("requests/s", per_second.map(|rate| format!("{rate:.0}")))?;
        let pauses = windows.map(|(from, to)| {
            let longest = self.accounts.iter().filter_map(|account| account.longest_pause(from, to));
            longest.map(|pause| pause.as_secs_f64() * 1e3).collect::<Vec<_>>()
        });
        row("longest pause of a client: median, ms", [0, 1, 2].map(|at| format!("{:.1}", median(&pauses[at]))))?;
        row("longest pause of a client: worst, ms", [0, 1, 2].map(|at| format!("{:.1}", largest(&pauses[at]))))?;
        writeln!(f, "(during: from the kill until every client has had an answer from B)\n")?;
        let mut line = |what: &str, value: String| writeln!(f, "{what:<44}{value:>11}");
        let troubles = self.accounts.iter().filter(|account| account.trouble.is_some()).count();
        line("connections reset, closed or in error", troubles.to_string())?;
        line("acknowledged increments lost", self.total(|account| account.lost).to_string())?;
        line("increments applied twice", self.total(|account| account.doubled).to_string())?;
        match &self.benchmark {
            Some(Ok(requests)) => write!(f, "{:<44}{requests:>11}", "requests of redis-benchmark, without an error"),
            Some(Err(error)) => write!(f, "redis-benchmark: {error:#}"),
            None => write!(f, "redis-benchmark: not installed"),
        }
    }
}
