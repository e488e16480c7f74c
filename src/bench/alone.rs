//! A guest on this host alone, in this process: what is measured against, and what is recorded.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::backends::priority::ordinary_this_thread;
use crate::backends::world::World;
use crate::cli::machine_args::MachineArgs;
use crate::doors::live::{LiveDoor, Log};
use crate::doors::{Behind, Console};
use crate::host::vcpu_thread::VcpuThread;
use crate::machine::doors::{ConsoleInput, EndReason};
use crate::machine::snapshot::Boot;
use crate::machine::{Machine, Tracking};

/// What a guest printed.
#[derive(Default)]
struct Printed(Mutex<Vec<u8>>);

impl Console for Printed {
    fn output(&self, _: u64, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }

    fn take(&self, _: usize) -> Option<ConsoleInput> {
        None
    }

    fn logged(&self, _: &ConsoleInput, _: u64) {}

    fn ended(&self, _: u64, _: &EndReason) {}

    fn replayed_output(&self, _: u64, _: &[u8]) {}

    fn replayed_input(&self, _: &ConsoleInput, _: u64) {}
}

/// A run that is over.
pub struct Ran<L> {
    /// What the guest printed.
    pub printed: String,
    /// How long it ran, from its first instruction to its last.
    pub took: Duration,
    /// Processor time of its vCPU thread in this.
    pub processor: Duration,
    /// Its log.
    pub log: L,
}

/// The boot of an application of the built-in guest.
pub fn boot(application: &str, arguments: &str) -> anyhow::Result<Boot> {
    let arguments = arguments.split_whitespace().map(str::to_owned).collect();
    MachineArgs {
        guest: application.into(),
        memory: 64,
        name: "bench".into(),
        net: None,
        pcap: None,
        disk: None,
        arguments,
    }
    .boot(&None)
}

/// Runs the guest to its end, or stops it after `limit`; every 20 ms `watch` may give it up.
pub fn run<L: Log + Send + 'static>(
    boot: &Boot,
    log: L,
    limit: Option<Duration>,
    mut watch: impl FnMut(Duration) -> anyhow::Result<()>,
) -> anyhow::Result<Ran<L>> {
    let tracking = if L::DIGESTS { Tracking::On } else { Tracking::Off };
    let mut machine = Machine::new(boot, tracking)?;
    let world = World::new(machine.safepoints(), 0, 0);
    let printed = Arc::new(Printed::default());
    let began = Instant::now();
    let thread = {
        let (world, printed) = (world.clone(), printed.clone());
        VcpuThread::spawn(move || {
            ordinary_this_thread();
            let mut door = LiveDoor::new(world, Behind::console(printed), log, DIGEST_EVERY_NS);
            let (began, used) = (Instant::now(), processor_time());
            let result = machine.run(&mut door);
            (result, began.elapsed(), processor_time().saturating_sub(used), door.into_log())
        })?
    };
    let give_up = AtomicBool::new(false);
    let mut trouble = None;
    while !thread.finished() {
        std::thread::sleep(Duration::from_millis(20));
        let elapsed = began.elapsed();
        if let Err(error) = watch(elapsed) {
            trouble.get_or_insert(error);
            give_up.store(true, SeqCst);
        }
        if give_up.load(SeqCst) {
            world.abandon();
            thread.kick();
        } else if limit.is_some_and(|limit| elapsed >= limit) {
            world.stop();
        }
    }
    world.end();
    let (result, took, processor, log) = thread.join().map_err(|_| anyhow::anyhow!("the vCPU thread panicked"))?;
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    result?;
    let bytes = std::mem::take(&mut *printed.0.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Ran { printed: String::from_utf8_lossy(&bytes).into_owned(), took, processor, log })
}

/// Processor time that the calling thread has used; zero where the system does not tell.
pub fn processor_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// As `lockstep record` does it.
const DIGEST_EVERY_NS: u64 = 1_000_000_000;

/// The time that `compute` measured itself: `compute done: N rounds in X us`.
pub fn compute_seconds(printed: &str) -> anyhow::Result<f64> {
    let line = printed.lines().find(|line| line.starts_with("compute done:")).context("`compute` did not finish")?;
    let us = line.split(' ').rev().nth(1).and_then(|word| word.parse::<f64>().ok());
    Ok(us.with_context(|| format!("not what `compute` ends with: {line}"))? / 1e6)
}
