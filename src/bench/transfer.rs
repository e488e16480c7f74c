//! The transfer of a running guest's state to a new backup, and the planned switch: a `kv` guest of 256 MiB, half of it filled with what
//! no compression shrinks, first left alone, then under load.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::report::{Row, Target};
use super::statistics::{largest, median};
use super::{Bench, pause, soon};
use crate::cli::loopback::{LOOK_EVERY, PATIENCE, Pair, Unprotected, hear, protected};
use crate::cli::site::{GUEST, LOG, Namespace, Site, Visit};
use crate::console::control;
use crate::console::status::TransferStatus;
use crate::console::wire::Command;
use crate::load::connection::Connection;
use crate::load::counting::{Account, Counting};
use crate::load::resp::Reply;

pub const NAME: &str = "transfer";

const KV: u16 = 6379;
const MEMORY_MIB: u64 = 256;
const FILLED_MIB: u64 = 96;
const CLIENTS: usize = 8;
/// The link of a data centre; the cable itself is as fast as memory.
const LINK_GBIT: u32 = 10;

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let site = Site::make()?;
    let _visit = Visit::to(&site.client)?;
    let samples = bench.size(2, 5);
    let mut rows = Vec::new();
    for link in [Some(LINK_GBIT), None] {
        site.limit_the_link(link)?;
        rows.extend(on_a_link(bench, &site, link, samples)?);
    }
    rows.extend(switches(bench, &site)?);
    Ok(rows)
}

/// What one transfer showed.
struct Sample {
    plain_mb_s: f64,
    idle: TransferStatus,
    loaded: TransferStatus,
    /// Answers a second before and during the transfer.
    before: f64,
    during: f64,
    /// The longest wait of a client around the end of the transfer, ms.
    pauses_ms: Vec<f64>,
}

fn rate_mb_s(status: &TransferStatus) -> f64 {
    status.sent_bytes as f64 / 1e6 / (status.elapsed_ms.max(1) as f64 / 1e3)
}

fn on_a_link(bench: &Bench, site: &Site, link: Option<u32>, samples: usize) -> anyhow::Result<Vec<Row>> {
    let name = link.map_or("a cable without limit".into(), |gbit| format!("a link of {gbit} Gbit/s"));
    let mut seen = Vec::new();
    for sample in 1..=samples {
        bench.say(format!("{NAME}: {name}, {sample} of {samples}"));
        seen.push(one(bench, site)?);
    }
    let of = |figure: fn(&Sample) -> f64| median(&seen.iter().map(figure).collect::<Vec<_>>());
    let ratio = of(|s| rate_mb_s(&s.idle) / s.plain_mb_s);
    let stop = of(|s| s.loaded.stop_ns as f64 / 1e6);
    let pauses: Vec<f64> = seen.iter().flat_map(|sample| sample.pauses_ms.clone()).collect();
    let target = |target: Target| link.map(|_| target);
    let with = |row: Row, wanted: Option<Target>| match wanted {
        Some(wanted) => row.target(wanted),
        None => row,
    };
    Ok(vec![
        with(Row::new(NAME, format!("transfer / plain TCP copy, {name}"), ratio, ""), target(Target::AtLeast(0.6)))
            .note(format!(
                "{:.0} MB/s against {:.0}; guest at rest, {FILLED_MIB} MiB of {MEMORY_MIB} filled with noise; {samples} samples",
                of(|s| rate_mb_s(&s.idle)),
                of(|s| s.plain_mb_s)
            )),
        with(Row::new(NAME, "  guest's throughput during a transfer / before", of(|s| s.during / s.before), ""), target(Target::AtLeast(0.8)))
            .note(format!(
                "{CLIENTS} clients that increment: {:.0} answers/s before, {:.0} during {:.0} ms and {:.0} MB",
                of(|s| s.before),
                of(|s| s.during),
                of(|s| s.loaded.elapsed_ms as f64),
                of(|s| s.loaded.sent_bytes as f64 / 1e6)
            )),
        with(Row::new(NAME, "  the guest stands still at its end", stop, "ms"), target(Target::AtMost(50.0))).note(format!(
            "under that load; {:.0} rounds; longest {:.2} ms; a client waited {:.1} ms at most (median), {:.1} at worst",
            of(|s| s.loaded.rounds as f64),
            seen.iter().map(|s| s.loaded.stop_ns as f64 / 1e6).fold(0.0, f64::max),
            median(&pauses),
            largest(&pauses)
        )),
    ])
}

fn one(bench: &Bench, site: &Site) -> anyhow::Result<Sample> {
    let plain_mb_s = plain_copy(site)?;
    let idle = bench.block_on(async {
        let pair = site.join(filled(site).await?)?;
        protected(&pair.primary).await.with_context(|| pair.words())?;
        pair.primary.status().await?.transfer.context("no transfer was seen")
    })?;
    let (loaded, before, during, pauses_ms) = bench.block_on(under_load(site))?;
    Ok(Sample { plain_mb_s, idle, loaded, before, during, pauses_ms })
}

/// A guest whose store is filled.
async fn filled(site: &Site) -> anyhow::Result<Unprotected> {
    let memory = MEMORY_MIB.to_string();
    let guest = site.unprotected_with("kv", "", &["--memory", &memory])?;
    hear(&mut guest.console().await?, "listening on port").await?;
    let mut client = Connection::open(&format!("{GUEST}:{KV}")).await?;
    let ok = |reply: Reply| (reply == Reply::Simple(b"OK")).then_some(());
    let mut state = getrandom::u64()? | 1;
    for key in 0..FILLED_MIB * 16 {
        let value: String = (0..(64 << 10) / 16)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                format!("{state:016x}")
            })
            .collect();
        client.call(&["SET", &format!("filled:{key}"), &value], ok).await?;
    }
    Ok(guest)
}

async fn under_load(site: &Site) -> anyhow::Result<(TransferStatus, f64, f64, Vec<f64>)> {
    let guest = filled(site).await?;
    let counting = Counting::begin(&format!("{GUEST}:{KV}"), CLIENTS);
    pause(Duration::from_millis(500)).await;
    let began = Instant::now();
    pause(Duration::from_millis(1500)).await;
    let joined = Instant::now();
    let pair = site.join(guest)?;
    // The process of the backup has to start first: only what is behind that is the transfer.
    let mut watch = pair.primary.watch().await?;
    let (mut begun, deadline) = (None, Instant::now() + PATIENCE);
    let status = loop {
        let status = watch.status().await?;
        if let Some(transfer) = status.transfer {
            begun.get_or_insert_with(|| Instant::now() - Duration::from_millis(transfer.elapsed_ms));
        }
        if status.state == "protected" {
            break status;
        }
        ensure!(Instant::now() < deadline, "the guest is not protected, but {}", status.state);
        pause(LOOK_EVERY / 10).await;
    };
    let transfer = status.transfer.context("no transfer was seen")?;
    let begun = begun.context("no transfer was seen")?;
    let ended = begun + Duration::from_millis(transfer.elapsed_ms);
    pause(Duration::from_millis(500)).await;
    let accounts = counting.end().await;
    check(&accounts)?;
    let answers = |from: Instant, to: Instant| {
        let within = |account: &Account| account.answers.iter().filter(|at| (from..to).contains(at)).count();
        accounts.iter().map(within).sum::<usize>() as f64 / (to - from).as_secs_f64()
    };
    let until = Instant::now();
    let pauses = accounts.iter().filter_map(|account| account.longest_pause(begun, until));
    let pauses = pauses.map(|pause| pause.as_secs_f64() * 1e3).collect();
    Ok((transfer, answers(began, joined), answers(begun, ended), pauses))
}

fn check(accounts: &[Account]) -> anyhow::Result<()> {
    for account in accounts {
        if let Some(trouble) = &account.trouble {
            anyhow::bail!("a client lost its server: {trouble}");
        }
        let (lost, doubled) = (account.lost, account.doubled);
        ensure!((lost, doubled) == (0, 0), "{lost} increments lost, {doubled} applied twice");
    }
    Ok(())
}

/// Planned changes of roles, back and forth, as clients see them.
fn switches(bench: &Bench, site: &Site) -> anyhow::Result<Vec<Row>> {
    let count = bench.size(4, 20);
    bench.say(format!("{NAME}: switches"));
    let pauses = bench.block_on(async {
        let pair = site.pair("kv", "")?;
        hear(&mut pair.console().await?, "listening on port").await?;
        protected(&pair.primary).await?;
        back_and_forth(&pair, count).await.with_context(|| pair.words())
    })?;
    Ok(vec![
        Row::new(NAME, "pause seen by clients, planned switch: median", median(&pauses), "ms")
            .target(Target::AtMost(100.0))
            .note(format!("{count} switches, {CLIENTS} clients each; longest {:.1} ms", largest(&pauses))),
    ])
}

async fn back_and_forth(pair: &Pair, count: usize) -> anyhow::Result<Vec<f64>> {
    let mut pauses = Vec::new();
    for round in 0..count {
        let sides = [&pair.primary, &pair.backup];
        let (from, to) = (sides[round % 2], sides[1 - round % 2]);
        // The clients count from nothing.
        let ok = |reply: Reply| (reply == Reply::Simple(b"OK")).then_some(());
        Connection::open(&format!("{GUEST}:{KV}")).await?.call(&["FLUSHALL"], ok).await?;
        let mut counting = Counting::begin(&format!("{GUEST}:{KV}"), CLIENTS);
        ensure!(soon("answers", counting.wait_for(200)).await?, "all clients gave up");
        let asked = Instant::now();
        let answer = control::command(&from.control, Command::Switch, PATIENCE).await?;
        ensure!(answer.accepted, "no switch: {}", answer.text);
        ensure!(soon("answers", counting.wait_for(200)).await?, "all clients gave up");
        protected(to).await?;
        let accounts = counting.end().await;
        check(&accounts)?;
        let until = Instant::now();
        let seen = accounts.iter().filter_map(|account| account.longest_pause(asked, until));
        pauses.extend(seen.map(|pause| pause.as_secs_f64() * 1e3));
    }
    Ok(pauses)
}

/// Bytes of memory from host A to host B by TCP and nothing else, MB/s.
fn plain_copy(site: &Site) -> anyhow::Result<f64> {
    const BYTES: usize = 512 << 20;
    std::thread::scope(|scope| {
        let listener = within(site.host(1), || Ok(TcpListener::bind((LOG[1], 0))?))?;
        let address = listener.local_addr()?;
        let sink = scope.spawn(move || -> std::io::Result<usize> {
            let (mut stream, _) = listener.accept()?;
            let (mut buffer, mut got) = (vec![0; 256 << 10], 0);
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    bytes => got += bytes,
                }
            }
            stream.write_all(&[1])?;
            Ok(got)
        });
        let mut stream = within(site.host(0), || Ok(TcpStream::connect(address)?))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let source = vec![0x5a; 256 << 10];
        let began = Instant::now();
        for _ in 0..BYTES / source.len() {
            stream.write_all(&source)?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_exact(&mut [0])?;
        let took = began.elapsed().as_secs_f64();
        let got = sink.join().map_err(|_| anyhow::anyhow!("the other end panicked"))??;
        ensure!(got == BYTES, "{got} bytes of {BYTES} arrived");
        Ok(BYTES as f64 / 1e6 / took)
    })
}

/// Makes a socket in another network; it stays there.
fn within<T>(there: &Namespace, make: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let _visit = Visit::to(there)?;
    make()
}
