//! The loads: requests, round trips of one client, and bytes in bulk. Each is put on one primary and measured over a window.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::window::{Look, Window};
use crate::bench::{Bench, pause};
use crate::cli::loopback::{PATIENCE, Side};
use crate::cli::redis_benchmark;
use crate::cli::site::{GUEST, LOG, Namespace, Site, Visit};
use crate::load::connection::Connection;
use crate::load::requests::{self, Command};
use crate::load::resp::Reply;

/// The port of `kv`.
pub const KV: u16 = 6379;
/// The port of `stream` that takes.
const SINK: u16 = 5001;
/// The port of `stream` that gives.
const SOURCE: u16 = 5002;
const CLIENTS: usize = 50;
/// Bulk transfers get up to speed within this.
const WARM_UP: Duration = Duration::from_millis(700);
/// Read or written at once.
const CHUNK_BYTES: usize = 256 << 10;

/// How many requests of each kind `pipeline` deep take about `seconds`, by a short try.
pub fn requests_for(bench: &Bench, primary: &Side, pipeline: usize, seconds: f64) -> anyhow::Result<usize> {
    let window = requests(bench, primary, pipeline, 2000 * pipeline.min(8))?;
    Ok((window.rate * seconds) as usize)
}

/// `count` SETs and `count` GETs, by `redis-benchmark` where it is installed.
pub fn requests(bench: &Bench, primary: &Side, pipeline: usize, count: usize) -> anyhow::Result<Window> {
    let before = bench.block_on(Look::at(primary))?;
    let (made, rate) = if redis_benchmark::installed() {
        let rates = redis_benchmark::measure((GUEST, KV), "set,get", CLIENTS, pipeline, count)?;
        (count * rates.len(), rates.len() as f64 / rates.iter().map(|(_, rate)| 1.0 / rate).sum::<f64>())
    } else {
        let began = Instant::now();
        let mut made = 0;
        for command in [Command::Set, Command::Get] {
            let address = format!("{GUEST}:{KV}");
            made += bench.block_on(requests::make(&address, command, CLIENTS, pipeline, count))?;
        }
        (made, made as f64 / began.elapsed().as_secs_f64())
    };
    let after = bench.block_on(Look::at(primary))?;
    // The program's own start and end belong to the window, but not to the rate.
    Ok(Window { rate, ..after.since(&before, made as f64) })
}

/// Round trips of one client that asks the next when it has the answer, microseconds.
pub async fn round_trips(count: usize) -> anyhow::Result<Vec<f64>> {
    let mut client = Connection::open(&format!("{GUEST}:{KV}")).await?;
    let mut samples = Vec::with_capacity(count);
    let pong = |reply: Reply| (reply == Reply::Simple(b"PONG")).then_some(());
    for round in 0..count + count / 10 {
        let began = Instant::now();
        client.call(&["PING"], pong).await?;
        if round >= count / 10 {
            samples.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(samples)
}

fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect((GUEST, port)).context("cannot connect to the guest")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Moves bytes by `step` for `long`; the window of it.
fn bulk(
    bench: &Bench,
    primary: &Side,
    long: Duration,
    mut step: impl FnMut() -> std::io::Result<usize>,
) -> anyhow::Result<Window> {
    let mut moved_for = |long: Duration| -> anyhow::Result<f64> {
        let (began, mut moved) = (Instant::now(), 0);
        while began.elapsed() < long {
            match step().context("the bulk connection broke")? {
                0 => bail!("the guest closed the bulk connection"),
                bytes => moved += bytes,
            }
        }
        Ok(moved as f64)
    };
    moved_for(WARM_UP)?;
    let before = bench.block_on(Look::at(primary))?;
    let moved = moved_for(long)?;
    Ok(bench.block_on(Look::at(primary))?.since(&before, moved))
}

/// The guest sends.
pub fn transmit(bench: &Bench, primary: &Side, long: Duration) -> anyhow::Result<Window> {
    let mut stream = connect(SOURCE)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    bulk(bench, primary, long, || stream.read(&mut buffer))
}

/// The guest receives. What waits in the client's socket is the same at both ends of the window.
pub fn receive(bench: &Bench, primary: &Side, long: Duration) -> anyhow::Result<Window> {
    let mut stream = connect(SINK)?;
    let buffer = vec![0x5a; CHUNK_BYTES];
    bulk(bench, primary, long, || stream.write(&buffer))
}

/// Round trips of one byte on the logging channel's cable, between the two hosts' own TCP; microseconds.
pub fn link_round_trips(site: &Site, count: usize) -> anyhow::Result<Vec<f64>> {
    std::thread::scope(|scope| {
        let listener = within(site.host(1), || Ok(TcpListener::bind((LOG[1], 0))?))?;
        let address = listener.local_addr()?;
        let echo = scope.spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut byte = [0];
            while stream.read(&mut byte)? > 0 {
                stream.write_all(&byte)?;
            }
            Ok(())
        });
        let mut stream = within(site.host(0), || Ok(TcpStream::connect(address)?))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            stream.write_all(&[0])?;
            stream.read_exact(&mut [0])?;
            samples.push(began.elapsed().as_secs_f64() * 1e6);
        }
        drop(stream);
        ensure!(echo.join().is_ok_and(|echoed| echoed.is_ok()), "the logging link's other end failed");
        Ok(samples)
    })
}

/// Makes a socket in another network; it stays there.
fn within<T>(there: &Namespace, make: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let _visit = Visit::to(there)?;
    make()
}

/// Lets a guest that has just started come to rest.
pub fn settle(bench: &Bench) {
    bench.block_on(pause(crate::cli::loopback::SETTLE));
}
