//! What the tests share that run real pairs: processes that end with the test, a relay in the logging channel, console
//! clients that remember what they saw, and the checker that holds all accounts of one guest together.
#![allow(dead_code, reason = "every test is a crate of its own and uses the part it needs")]
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

pub mod account;
pub mod checker;
pub mod console;
pub mod etcd;
pub mod load;
pub mod members;
pub mod pair;
pub mod process;
pub mod qemu;
pub mod relay;
pub mod valve;
pub mod zookeeper;

use std::time::{Duration, Instant};

/// How long a test waits for something that must come. Far beyond what anything takes: reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` sees what it looks for.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {} s in vain: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Random numbers of a printed seed.
pub struct Random(lockstep_kernels::random::SplitMix64);

impl Random {
    /// The numbers of `seed`.
    pub fn new(seed: u64) -> Self {
        Random(lockstep_kernels::random::SplitMix64::new(seed))
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// The seed of a run: `LOCKSTEP_SEED`, or one from the clock. Printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let seed = std::env::var("LOCKSTEP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        now.as_nanos() as u64 % 1_000_000_007
    });
    println!("LOCKSTEP_SEED={seed}");
    seed
}

/// A number from the environment, or `otherwise`.
pub fn count_from(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable)
        .map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}
