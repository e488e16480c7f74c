//! What a guest pays for being one: the same rounds of the same code in an unprotected guest (100 Hz ticks, safepoints and
//! all) and on a thread of this process.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use anyhow::Context as _;

use super::report::{Row, Target};
use super::statistics::median;
use super::{Bench, alone};
use crate::doors::live::NoLog;
use lockstep_kernels::work::{Kind, Work};

pub const NAME: &str = "compute";

/// Rounds in a sample: about a second on the development machines.
const ROUNDS: u64 = 40;

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let (mut plain, mut polling, mut guest) = (Vec::new(), Vec::new(), Vec::new());
    let samples = bench.size(3, 11);
    for sample in 1..=samples {
        bench.say(format!("{NAME}: {sample} of {samples}"));
        plain.push(on_a_thread(|| native(&mut || {}))?);
        guest.push(in_a_guest(ROUNDS)?);
        let (count, limit) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        polling.push(on_a_thread(move || {
            native(&mut || {
                // What a safepoint does, in the same instructions: no lock, two words of memory.
                let next = count.load(Relaxed).wrapping_add(1);
                count.store(next, Relaxed);
                if next >= limit.load(Relaxed) {
                    std::process::abort();
                }
            })
        })?);
    }
    let note = format!(
        "{samples} samples each of {ROUNDS} rounds; native {:.3} s, guest {:.3} s (medians)",
        median(&plain),
        median(&guest)
    );
    Ok(vec![
        Row::new(NAME, "compute unprotected / native process", median(&plain) / median(&guest), "")
            .target(Target::AtLeast(0.95))
            .note(note),
        Row::new(NAME, "  the same, native with safepoints", median(&polling) / median(&guest), "")
            .note("the native process counts at every safepoint, too"),
    ])
}

/// The time that an unprotected guest takes for this many rounds, seconds.
pub fn in_a_guest(rounds: u64) -> anyhow::Result<f64> {
    let boot = alone::boot("compute", &format!("{rounds} hz=100"))?;
    alone::compute_seconds(&alone::run(&boot, NoLog, None, |_| Ok(()))?.printed)
}

fn native(poll: &mut impl FnMut()) -> f64 {
    let mut work = Work::new(1);
    let began = Instant::now();
    for _ in 0..ROUNDS {
        std::hint::black_box(work.round(&Kind::ALL, poll));
    }
    began.elapsed().as_secs_f64()
}

/// On a fresh thread, as the guest's vCPU is one.
fn on_a_thread(body: impl FnOnce() -> f64 + Send + 'static) -> anyhow::Result<f64> {
    std::thread::Builder::new().name("native".into()).spawn(body)?.join().ok().context("the native thread panicked")
}
