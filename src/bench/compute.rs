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
    let (mut plain, mut polling, mut guest) = (Samples::default(), Samples::default(), Samples::default());
    let samples = bench.size(3, 11);
    for sample in 1..=samples {
        bench.say(format!("{NAME}: {sample} of {samples}"));
        plain.add(on_a_thread(|| native(&mut || {}))?);
        guest.add(in_a_guest(ROUNDS)?);
        let (count, limit) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        polling.add(on_a_thread(move || {
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
        median(&plain.elapsed),
        median(&guest.elapsed)
    );
    let by = |native: &Samples| {
        (median(&native.elapsed) / median(&guest.elapsed), median(&native.processor) / median(&guest.processor))
    };
    let ((plain, plain_processor), (polling, polling_processor)) = (by(&plain), by(&polling));
    let processor = |ratio: f64| format!("{ratio:.3} by processor time, the guest's boot included");
    Ok(vec![
        Row::new(NAME, "compute unprotected / native process", plain, "")
            .target(Target::AtLeast(0.95))
            .note(format!("{}; {note}", processor(plain_processor))),
        Row::new(NAME, "  the same, native with safepoints", polling, "")
            .note(format!("{}; the native process counts at every safepoint, too", processor(polling_processor))),
    ])
}

/// What a run of the rounds took, in seconds.
pub struct Took {
    /// By the clock.
    pub elapsed: f64,
    /// Of a processor: on a machine that does other work besides, the better measure.
    pub processor: f64,
}

#[derive(Default)]
struct Samples {
    elapsed: Vec<f64>,
    processor: Vec<f64>,
}

impl Samples {
    fn add(&mut self, took: Took) {
        self.elapsed.push(took.elapsed);
        self.processor.push(took.processor);
    }
}

/// What an unprotected guest takes for this many rounds; by its own clock.
pub fn in_a_guest(rounds: u64) -> anyhow::Result<Took> {
    let boot = alone::boot("compute", &format!("{rounds} hz=100"))?;
    let ran = alone::run(&boot, NoLog, None, |_| Ok(()))?;
    Ok(Took { elapsed: alone::compute_seconds(&ran.printed)?, processor: ran.processor.as_secs_f64() })
}

fn native(poll: &mut impl FnMut()) -> Took {
    let mut work = Work::new(1);
    let (began, used) = (Instant::now(), alone::processor_time());
    for _ in 0..ROUNDS {
        std::hint::black_box(work.round(&Kind::ALL, poll));
    }
    let processor = alone::processor_time().saturating_sub(used);
    Took { elapsed: began.elapsed().as_secs_f64(), processor: processor.as_secs_f64() }
}

/// On a fresh thread, as the guest's vCPU is one.
fn on_a_thread(body: impl FnOnce() -> Took + Send + 'static) -> anyhow::Result<Took> {
    std::thread::Builder::new().name("native".into()).spawn(body)?.join().ok().context("the native thread panicked")
}
