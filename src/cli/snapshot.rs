//! `lockstep snapshot`: the state of a running guest, into a file.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use super::remote::{address, runtime};
use crate::console::control;
use crate::log::boot::decode_boot;
use crate::log::frame::{Frame, FrameKind};
use crate::transfer::chunk::{ChunkError, Part, Unpacker};

/// Take a snapshot of a running guest, for `lockstep run --from` and `lockstep record --from`.
///
/// The guest runs on, and stands still only for a moment at the end. A disk's contents are not part of the snapshot.
#[derive(Clone, Debug, clap::Args)]
pub struct SnapshotArgs {
    /// Console port of the host that runs it: HOST:PORT
    #[arg(value_name = "ADDR", value_parser = address)]
    pub address: String,
    /// The file to write
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `lockstep snapshot`.
pub fn run(args: SnapshotArgs) -> anyhow::Result<ExitCode> {
    // What is there already is lost only to a whole snapshot.
    let mut partial = args.file.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let cannot = || format!("cannot write the snapshot {}", args.file.display());
    let out = File::create(&partial).with_context(cannot)?;
    let taken = take(&args.address, out).and_then(|taken| {
        std::fs::rename(&partial, &args.file).with_context(cannot)?;
        Ok(taken)
    });
    let Taken { bytes, entries, disk } = taken.inspect_err(|_| discard(&partial))?;
    if disk {
        eprintln!(
            "lockstep: the guest has a disk, whose contents are not in the snapshot: keep a copy of the image as it is now, or the guest will find another one"
        );
    }
    println!("{}: {bytes} bytes, as before log entry {entries}", args.file.display());
    Ok(ExitCode::SUCCESS)
}

fn discard(partial: &Path) {
    // It is not there, or says by its name what it is.
    let _ = std::fs::remove_file(partial);
}

struct Taken {
    bytes: u64,
    entries: u64,
    disk: bool,
}

fn take(address: &str, mut out: File) -> anyhow::Result<Taken> {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(0)
            .with_style(ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} of memory {eta}")?)
    } else {
        ProgressBar::hidden()
    };
    let mut taken = Taken { bytes: 0, entries: 0, disk: false };
    let mut unpacker = Unpacker::default();
    let answer = runtime()?.block_on(control::snapshot(address, PATIENCE, |frame: Frame<'_>, whole: &[u8]| {
        match frame.kind {
            FrameKind::Transfer => {
                let boot = decode_boot(frame.payload).map_err(std::io::Error::other)?;
                bar.set_length(boot.memory_bytes);
                taken.disk = boot.disk.is_some();
            }
            FrameKind::Chunk => {
                // As far as the pages go that have come; those of zeros do not.
                let mut last = 0;
                let told = |part: Part<'_>| {
                    if let Part::Page { number, .. } = part {
                        last = (u64::from(number) + 1) << 12;
                    }
                    Ok::<(), ChunkError>(())
                };
                unpacker.unpack(frame.payload, told).map_err(std::io::Error::other)?;
                bar.set_position(bar.position().max(last));
            }
            FrameKind::State => taken.entries = frame.number,
            _ => {}
        }
        taken.bytes += whole.len() as u64;
        out.write_all(whole)
    }))?;
    bar.finish_and_clear();
    anyhow::ensure!(answer.accepted, "{address}: {}", answer.text);
    out.sync_all().context("cannot write the snapshot")?;
    Ok(taken)
}
