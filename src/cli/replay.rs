//! `lockstep replay`: runs a recorded guest again and checks that it is the same execution.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::doors::replay::{ReplayDoor, Tally};
use crate::doors::{Behind, Console};
use crate::host::file_log::{FileSource, Watch};
use crate::host::vcpu_thread::VcpuThread;
use crate::log::entry::Entry;
use crate::log::file::{LogError, LogReader};
use crate::machine::Tracking;
use crate::machine::doors::{ConsoleInput, EndReason, Halt};
use crate::transfer;

/// Run a recorded guest again, and check every digest and output on the way.
///
/// Ends with "equivalent" and status 0, or names the first divergence (entry, instant, registers, page) and ends with status 3.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplayArgs {
    /// The log, written by `lockstep record` or kept by one side of a pair (`--log`)
    pub file: PathBuf,
    /// Start at the last snapshot in the log (`lockstep record --snapshot-every`) at or before entry number N
    #[arg(long, value_name = "N")]
    pub from_entry: Option<u64>,
    /// Show what the guest wrote to its console
    #[arg(long)]
    pub show: bool,
    /// For programs: one JSON object with the result
    #[arg(long)]
    pub json: bool,
}

/// What came of a replay.
#[derive(Debug)]
pub struct Replayed {
    /// What was met.
    pub tally: Tally,
    /// The entry from which on; 0 unless it started from a snapshot.
    pub from: u64,
    /// How the guest ended; `None`: the log ends before the guest does.
    pub end: Option<EndReason>,
    /// The log was closed in an orderly way.
    pub complete: bool,
    /// How long it took.
    pub took: Duration,
}

/// Where a replayed guest's output goes.
pub struct Screen {
    /// Standard output, or nowhere.
    pub show: bool,
}

impl Console for Screen {
    fn output(&self, _: u64, _: &[u8]) {}

    fn take(&self, _: usize) -> Option<ConsoleInput> {
        None
    }

    fn logged(&self, _: &ConsoleInput, _: u64) {}

    fn ended(&self, _: u64, _: &EndReason) {}

    fn replayed_output(&self, _: u64, bytes: &[u8]) {
        if self.show {
            // A closed pipe does not make the execution another one.
            let _ = std::io::stdout().write_all(bytes);
        }
    }

    fn replayed_input(&self, _: &ConsoleInput, _: u64) {}
}

/// Replays the log in `path`; `progress` is told how many bytes of it were used, now and then.
pub fn replay(path: &Path, show: bool, watch: Arc<Watch>, progress: impl Fn(u64)) -> anyhow::Result<Replayed> {
    replay_before(path, Behind::console(Arc::new(Screen { show })), |_| (), watch, progress)
}

fn open(path: &Path, from_entry: Option<u64>) -> anyhow::Result<LogReader<File>> {
    let opened = match from_entry {
        Some(entry) => LogReader::open_near(path, entry),
        None => LogReader::open(path),
    };
    opened.map_err(|error| match error {
        LogError::Open { .. } => anyhow::Error::new(error), // names the file itself
        error => anyhow::Error::new(error).context(path.display().to_string()),
    })
}

/// Replays the log in `path` with `behind` behind the doors; `seen` is told of each entry that the machine takes.
pub fn replay_before(
    path: &Path,
    behind: Behind,
    seen: impl FnMut(&Entry) + Send + 'static,
    watch: Arc<Watch>,
    progress: impl Fn(u64),
) -> anyhow::Result<Replayed> {
    replay_from(open(path, None)?, behind, seen, watch, progress)
}

/// Replays the log in `reader` from where that stands.
fn replay_from(
    mut reader: LogReader<File>,
    behind: Behind,
    seen: impl FnMut(&Entry) + Send + 'static,
    watch: Arc<Watch>,
    progress: impl Fn(u64),
) -> anyhow::Result<Replayed> {
    let (mut machine, state) = transfer::file::machine(&mut reader, Tracking::On)?;
    let from = state.map_or(0, |state| state.position.entries());
    let watched = watch.clone();
    let vcpu = VcpuThread::spawn(move || {
        let mut door =
            ReplayDoor::new(FileSource::new(reader, watched).telling(seen), behind).starting_paused(machine.paused());
        let began = Instant::now();
        let result = machine.run(&mut door);
        let took = began.elapsed();
        let complete = match result {
            Ok(_) | Err(Halt::EndOfLog(_)) => door.source_mut().finish(),
            Err(_) => Ok(false),
        };
        (result, door.tally(), complete, took)
    })?;
    while !vcpu.finished() {
        progress(watch.offset.load(Relaxed));
        if watch.abandon.load(SeqCst) {
            vcpu.kick();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let (result, tally, complete, took) = vcpu.join().map_err(|_| anyhow::anyhow!("the vCPU thread panicked"))?;
    let end = match result {
        Ok(reason) => Some(reason),
        Err(Halt::EndOfLog(_)) => None,
        Err(halt) => return Err(halt.into()),
    };
    let complete = complete?;
    Ok(Replayed { tally, from, end, complete, took })
}

/// `lockstep replay`.
pub fn run(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let watch = Arc::new(Watch::default());
    super::interrupts::on_signal({
        let watch = watch.clone();
        move || watch.abandon.store(true, SeqCst)
    })?;
    let bar = if std::io::stderr().is_terminal() && !args.show {
        let style = "{wide_bar} {bytes}/{total_bytes} {eta}";
        ProgressBar::new(std::fs::metadata(&args.file).map_or(0, |m| m.len()))
            .with_style(ProgressStyle::with_template(style)?)
    } else {
        ProgressBar::hidden()
    };
    let shown = bar.clone();
    let screen = Behind::console(Arc::new(Screen { show: args.show }));
    let result = open(&args.file, args.from_entry)
        .and_then(|reader| replay_from(reader, screen, |_| (), watch, move |offset| shown.set_position(offset)));
    bar.finish_and_clear();
    match result {
        Ok(replayed) => {
            report(&args, &replayed);
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => match error.downcast_ref::<Halt>() {
            Some(Halt::Diverged(divergence)) => {
                if args.json {
                    println!(
                        "{}",
                        serde_json::json!({
                            "equivalent": false,
                            "entry": divergence.entry,
                            "exits": divergence.at.exits,
                            "polls": divergence.at.polls,
                            "difference": divergence.to_string(),
                        })
                    );
                } else {
                    println!("{divergence}");
                }
                Ok(ExitCode::from(super::DIVERGED))
            }
            _ => Err(error),
        },
    }
}

fn report(args: &ReplayArgs, replayed: &Replayed) {
    let Replayed { tally, from, end, complete, took } = replayed;
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "equivalent": true,
                "from_entry": from,
                "events": tally.events,
                "outputs": tally.outputs,
                "digests": tally.digests,
                "complete": complete,
                "end": end.as_ref().map(ToString::to_string),
                "seconds": took.as_secs_f64(),
            })
        );
        return;
    }
    println!(
        "equivalent, {} events, {} digests ({} outputs, {:.3} s)",
        tally.events,
        tally.digests,
        tally.outputs,
        took.as_secs_f64()
    );
    if *from > 0 {
        println!("from the snapshot before entry {from} on");
    }
    match end {
        Some(reason) => {
            println!("{reason}");
            if !complete {
                println!("the log is incomplete: its writer did not close it");
            }
        }
        None if *complete => println!("the recording was ended before its guest"),
        None => println!("the log is incomplete: its writer did not close it"),
    }
}
