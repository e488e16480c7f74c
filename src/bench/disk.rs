//! A guest bound by its disk, protected and unprotected, and what its reads make of the log.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::report::{Row, Target};
use super::statistics::median;
use super::{Bench, pause};
use crate::cli::loopback::{LOOK_EVERY, PATIENCE, Pair, Place, Scratch, Side, ensure_protected, protected};
use crate::console::status::Status;

pub const NAME: &str = "disk";

/// A load of the guest's own benchmark.
struct Load {
    what: &'static str,
    arguments: &'static str,
    /// Past the host's cache: then it is the disk that the guest waits for.
    bound: bool,
}

const LOADS: [Load; 5] = [
    Load { what: "reads of 4 KiB, 1 at a time", arguments: "bench read size=4096 depth=1 seconds=60", bound: true },
    Load { what: "reads of 4 KiB, 16 at a time", arguments: "bench read size=4096 depth=16 seconds=60", bound: true },
    Load { what: "writes of 4 KiB, 1 at a time", arguments: "bench write size=4096 depth=1 seconds=60", bound: true },
    Load { what: "writes of 4 KiB, 16 at a time", arguments: "bench write size=4096 depth=16 seconds=60", bound: true },
    Load {
        what: "reads of 4 KiB from the host's cache, 16 at a time",
        arguments: "bench read size=4096 depth=16 seconds=60",
        bound: false,
    },
];

impl Load {
    /// What the hosts are told of the disk.
    fn disk(&self, image: &Path, more: &str) -> String {
        let cache = if self.bound { "none" } else { "writeback" };
        format!("{},mode=shared,cache={cache}{more}", image.display())
    }
}

const IMAGE_BYTES: u64 = 256 << 20;

/// What a window of one load showed.
#[derive(Clone, Copy)]
struct Window {
    operations: f64,
    log_bytes: f64,
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let scratch = Scratch::new()?;
    let image = scratch.path("disk.img");
    make_image(&image)?;
    let mut rows = Vec::new();
    for load in &LOADS {
        rows.extend(measure(bench, &image, load)?);
    }
    Ok(rows)
}

/// An image whose blocks are all there, so that a first write is like any other.
fn make_image(path: &Path) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let block = vec![0x5a; 1 << 20];
    for _ in 0..IMAGE_BYTES / block.len() as u64 {
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

fn measure(bench: &Bench, image: &Path, load: &Load) -> anyhow::Result<Vec<Row>> {
    let samples = bench.size(2, 5);
    let [mut alone, mut logged, mut backup] = [const { Vec::new() }; 3];
    for sample in 1..=samples {
        bench.say(format!("{NAME}: {}, {sample} of {samples}", load.what));
        alone.push(bench.block_on(unprotected(bench, image, load))?);
        logged.push(bench.block_on(with_a_backup(bench, image, load, ""))?);
        if load.arguments.contains("read") {
            backup.push(bench.block_on(with_a_backup(bench, image, load, ",reads=backup"))?);
        }
    }
    let of = |windows: &[Window], figure: fn(&Window) -> f64| median(&windows.iter().map(figure).collect::<Vec<_>>());
    let per_s = |windows: &[Window]| of(windows, |w| w.operations);
    let mbit = |windows: &[Window]| of(windows, |w| w.log_bytes) * 8.0 / 1e6;
    let what = load.what;
    let target = |row: Row| if load.bound { row.target(Target::AtLeast(0.95)) } else { row };
    let mut rows = vec![
        target(Row::new(NAME, format!("{what}: protected / unprotected"), per_s(&logged) / per_s(&alone), "")).note(
            format!(
                "{:.0} operations/s unprotected, {:.0} protected; image shared, {samples} samples; log {:.2} Mbit/s",
                per_s(&alone),
                per_s(&logged),
                mbit(&logged)
            ),
        ),
    ];
    if !backup.is_empty() {
        rows.push(Row::new(NAME, "  the same with reads=backup", per_s(&backup) / per_s(&alone), "").note(format!(
            "{:.0} operations/s; log {:.2} Mbit/s instead of {:.2}",
            per_s(&backup),
            mbit(&backup),
            mbit(&logged)
        )));
    }
    Ok(rows)
}

async fn unprotected(bench: &Bench, image: &Path, load: &Load) -> anyhow::Result<Window> {
    let disk = load.disk(image, "");
    let place = Place { disk: Some(&disk), ..Place::loopback("alpha") };
    let guest = Pair::unprotected_at(&place, "disk", load.arguments, &[])?;
    window(bench, &guest.primary).await
}

async fn with_a_backup(bench: &Bench, image: &Path, load: &Load, more: &str) -> anyhow::Result<Window> {
    let disk = load.disk(image, more);
    let place = |host| Place { disk: Some(&disk), ..Place::loopback(host) };
    let pair = Pair::start_at(&[place("alpha"), place("beta")], "disk", load.arguments, &[])?;
    protected(&pair.primary).await.with_context(|| pair.words())?;
    let window = window(bench, &pair.primary).await?;
    ensure_protected(&pair.primary.status().await?).with_context(|| pair.words())?;
    Ok(window)
}

/// What the disk does within some seconds.
async fn window(bench: &Bench, primary: &Side) -> anyhow::Result<Window> {
    let done = |status: &Status| status.disk.as_ref().map_or(0, |disk| disk.reads + disk.writes) as f64;
    let deadline = Instant::now() + PATIENCE;
    while done(&primary.status().await?) == 0.0 {
        ensure!(Instant::now() < deadline, "the guest does not use its disk");
        pause(LOOK_EVERY).await;
    }
    pause(Duration::from_millis(300)).await;
    let before = primary.status().await?;
    let began = Instant::now();
    pause(Duration::from_secs_f64(bench.size(1.0, 2.0))).await;
    let after = primary.status().await?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Window {
        operations: (done(&after) - done(&before)) / seconds,
        log_bytes: (after.log_bytes - before.log_bytes) as f64 / seconds,
    })
}
