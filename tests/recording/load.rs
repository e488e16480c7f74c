//! A busy host: threads on every core that compute, touch memory and sleep by turns, so that the scheduler takes the
//! processor away from a vCPU at moments that nobody chose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The load; it ends when this is dropped.
pub struct Load {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Loads every core.
    pub fn start(seed: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let threads = (0..cores)
            .map(|core| {
                let over = over.clone();
                thread::spawn(move || burn(seed ^ core << 32, &over))
            })
            .collect();
        Load { over, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A load that panicked has loaded less; no promise hangs on it.
            let _ = thread.join();
        }
    }
}

fn burn(seed: u64, over: &AtomicBool) {
    let mut memory = vec![0u64; 1 << 18];
    let mut random = seed | 1;
    while !over.load(Relaxed) {
        let until = Instant::now() + Duration::from_micros(50 + next(&mut random) % 3000);
        while Instant::now() < until {
            for _ in 0..256 {
                let at = next(&mut random) as usize % memory.len();
                memory[at] = memory[at].wrapping_add(random);
            }
        }
        thread::sleep(Duration::from_micros(next(&mut random) % 4000));
    }
}

/// The next number of xorshift64.
pub fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}
