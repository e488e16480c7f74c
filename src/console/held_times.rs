//! How long the output rule holds outputs back: a bounded histogram of the time from an output's production to its release.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Instant;

/// A distribution of times, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quantiles {
    /// How many were measured.
    pub count: u64,
    /// Half of them were at most this.
    pub p50: u64,
    /// Ninety-nine of a hundred were at most this.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// Buckets to a power of two: values are kept to within 1/16.
const FINE: u64 = 16;
const FINE_BITS: u32 = FINE.trailing_zeros();
/// Values from 2^48 on (three days in nanoseconds) share the last bucket.
const BUCKETS: usize = (FINE as usize) * (48 - FINE_BITS as usize + 1);

/// Counts of values by size, in fixed memory.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: Box::new([0; BUCKETS]), count: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts `value`.
    pub fn add(&mut self, value: u64) {
        self.buckets[bucket(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// The distribution so far; quantiles are upper bounds, at most 1/16 above the true ones.
    pub fn quantiles(&self) -> Quantiles {
        Quantiles { count: self.count, p50: self.quantile(50), p99: self.quantile(99), max: self.max }
    }

    fn quantile(&self, percent: u64) -> u64 {
        let wanted = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return last_of(index).min(self.max);
            }
        }
        self.max
    }
}

/// The bucket of a value: small values have one each, larger ones share one with those that have the same first bits.
fn bucket(value: u64) -> usize {
    let power = u64::BITS - (value | (FINE - 1)).leading_zeros();
    let shift = power.saturating_sub(FINE_BITS + 1);
    let index = if value < FINE { value } else { u64::from(shift) * FINE + (value >> shift) };
    usize::try_from(index).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The largest value in a bucket.
fn last_of(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * FINE {
        return index;
    }
    let shift = index / FINE - 1;
    ((index % FINE + FINE + 1) << shift) - 1
}

/// The outputs under way, and how long those before them took.
#[derive(Debug, Default)]
pub struct HeldTimes {
    /// Log entry and time of production; ascending.
    held: VecDeque<(u64, Instant)>,
    times: Histogram,
}

impl HeldTimes {
    /// Outputs watched at a time; what comes beyond is not measured, so that a backlog costs no more memory.
    const WATCHED: usize = 4096;

    /// The output of log entry `entry` was produced at `now`, and is held.
    pub fn hold(&mut self, entry: u64, now: Instant) {
        if self.held.len() < Self::WATCHED {
            self.held.push_back((entry, now));
        }
    }

    /// Outputs of entries below `below_entry` leave; `now` is asked for only if there are any.
    pub fn release(&mut self, below_entry: u64, now: impl FnOnce() -> Instant) {
        if self.held.front().is_none_or(|&(entry, _)| entry >= below_entry) {
            return;
        }
        let now = now();
        while let Some((_, since)) = self.held.pop_front_if(|(entry, _)| *entry < below_entry) {
            self.times.add(now.saturating_duration_since(since).as_nanos() as u64);
        }
    }

    /// Forgets what is under way: it leaves for another reason than an acknowledgement, or never.
    pub fn forget(&mut self) {
        self.held.clear();
    }

    /// The times so far.
    pub fn quantiles(&self) -> Quantiles {
        self.times.quantiles()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test makes its own times")]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn quantiles_are_upper_bounds_within_a_sixteenth() {
        for scale in [1u64, 37, 1_000, 999_983] {
            let mut histogram = Histogram::default();
            (1..=1000).for_each(|n| histogram.add(n * scale));
            let found = histogram.quantiles();
            for (found, exact) in [(found.p50, 500 * scale), (found.p99, 990 * scale)] {
                assert!(found >= exact && found - exact <= exact / 16 + 1, "{found} for {exact}");
            }
            assert_eq!((found.count, found.max), (1000, 1000 * scale));
        }
    }

    #[test]
    fn every_value_has_a_bucket_that_holds_it() {
        let mut before = 0;
        for value in (0..5000).chain((13..60).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1])) {
            let index = bucket(value);
            assert!(index < BUCKETS);
            assert!(last_of(index) >= value || index == BUCKETS - 1, "{value} lies above bucket {index}");
            if value < 5000 {
                assert!(index == before || index == before + 1, "a hole below {value}");
                before = index;
            }
        }
    }

    #[test]
    fn an_output_counts_when_it_leaves_and_only_then() {
        let (mut times, start) = (HeldTimes::default(), Instant::now());
        times.hold(3, start);
        times.hold(5, start);
        times.release(3, || unreachable!("entry 3 itself is not below 3"));
        times.release(5, || start + Duration::from_micros(10));
        assert_eq!((times.quantiles().count, times.quantiles().max), (1, 10_000));
        times.forget();
        times.release(9, || unreachable!("forgotten"));
        assert_eq!(times.quantiles().count, 1);
    }
}
