//! What a member has done for its clients: what `stat` and `mntr` tell.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counts since the start of the process.
#[derive(Debug)]
pub struct Statistics {
    /// Frames that came from clients.
    pub received: AtomicU64,
    /// Frames that went to clients.
    pub sent: AtomicU64,
    requests: AtomicU64,
    latency_us: AtomicU64,
    least_us: AtomicU64,
    most_us: AtomicU64,
}

impl Default for Statistics {
    fn default() -> Self {
        Statistics {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            latency_us: AtomicU64::new(0),
            least_us: AtomicU64::new(u64::MAX),
            most_us: AtomicU64::new(0),
        }
    }
}

impl Statistics {
    /// A frame came in.
    pub fn count_received(&self) {
        self.received.fetch_add(1, Relaxed);
    }

    /// A frame is sent.
    pub fn count_sent(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    /// A change was answered after so long.
    pub fn note_latency(&self, latency: Duration) {
        let us = latency.as_micros() as u64;
        self.requests.fetch_add(1, Relaxed);
        self.latency_us.fetch_add(us, Relaxed);
        self.least_us.fetch_min(us, Relaxed);
        self.most_us.fetch_max(us, Relaxed);
    }

    /// Times from a change's arrival to its answer, milliseconds: least, mean, most.
    pub fn latency_ms(&self) -> (u64, f64, u64) {
        let requests = self.requests.load(Relaxed);
        if requests == 0 {
            return (0, 0.0, 0);
        }
        let mean = self.latency_us.load(Relaxed) as f64 / requests as f64 / 1e3;
        (self.least_us.load(Relaxed) / 1000, mean, self.most_us.load(Relaxed) / 1000)
    }
}
