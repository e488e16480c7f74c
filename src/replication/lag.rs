//! Slowing the primary when the backup's execution falls behind: feedback, not a cliff.
//!
//! A proportional-integral controller in velocity form: each sample of the execution lag moves the slow-down by a
//! little, up while the lag is above its limit and down while it is below, the more the farther it is, and
//! against the direction in which it moves (which is what damps the loop: the lag answers to the slow-down
//! only after itself). The speed of change is bounded, so that the guest never meets a wall.

/// The controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LagControl {
    limit_ns: u64,
    /// Slow-down in millionths, 0 to [`LagControl::MAX_PER_MILLE`] thousandths.
    level_ppm: i64,
    /// When the last sample was taken, ns, and its error in millionths of the limit.
    last: Option<(u64, i64)>,
}

impl LagControl {
    /// The strongest slow-down: the guest keeps a tenth of its speed.
    pub const MAX_PER_MILLE: u16 = 900;
    /// The fastest change of the slow-down, per mille of full speed in a second.
    pub const MAX_PER_MILLE_PER_SECOND: u16 = 1000;
    /// Samples farther apart than this count as this far apart, ns.
    const MAX_GAP_NS: u64 = 100_000_000;
    /// Change in a second for an error of one limit, millionths.
    const INTEGRAL_PPM: i64 = 250_000;
    /// Change for a change of the error by one limit, millionths.
    const PROPORTIONAL_PPM: i64 = 150_000;
    /// Errors count up to this many limits.
    const MAX_ERROR: i64 = 4;
    const ONE: i64 = 1_000_000;

    /// No slow-down; it begins above a lag of `limit_ns`.
    pub fn new(limit_ns: u64) -> Self {
        LagControl { limit_ns: limit_ns.max(1), level_ppm: 0, last: None }
    }

    /// The lag is `lag_ns` now. Returns the slow-down from now on, per mille of full speed.
    pub fn sample(&mut self, now: u64, lag_ns: u64) -> u16 {
        let error = self.error(lag_ns);
        if let Some((then, before)) = self.last {
            let gap = i64::try_from(now.saturating_sub(then).min(Self::MAX_GAP_NS)).expect("a short gap");
            // Products stay below 2^63: 4e6 * 2.5e5 / 1e6 * 1e8 = 1e14.
            let integral = error * Self::INTEGRAL_PPM / Self::ONE * gap / 1_000_000_000;
            let proportional = (error - before) * Self::PROPORTIONAL_PPM / Self::ONE;
            let most = i64::from(Self::MAX_PER_MILLE_PER_SECOND) * 1000 * gap / 1_000_000_000;
            // Growing is no reason to slow down as long as the limit is not reached.
            let proportional = if error <= 0 { proportional.min(0) } else { proportional };
            let change = (integral + proportional).clamp(-most, most);
            self.level_ppm = (self.level_ppm + change).clamp(0, i64::from(Self::MAX_PER_MILLE) * 1000);
        }
        self.last = Some((now, error));
        self.per_mille()
    }

    /// Back to full speed: there is no backup any more.
    pub fn reset(&mut self) {
        self.level_ppm = 0;
        self.last = None;
    }

    /// The slow-down, per mille of full speed.
    pub fn per_mille(&self) -> u16 {
        u16::try_from(self.level_ppm / 1000).expect("at most MAX_PER_MILLE")
    }

    /// How far the lag is from the limit, in millionths of the limit: -1 to [`Self::MAX_ERROR`] limits.
    fn error(&self, lag_ns: u64) -> i64 {
        let limits_ppm = u128::from(lag_ns) * Self::ONE as u128 / u128::from(self.limit_ns);
        i64::try_from(limits_ppm).unwrap_or(i64::MAX).min((1 + Self::MAX_ERROR) * Self::ONE) - Self::ONE
    }
}

/// The lag up to which a backup counts as close behind, ns: a horizon's interval and a scheduler's hiccup.
const CLOSE_NS: u64 = 2_500_000;
/// The lag from which on the primary waits for its backup with all of [`CATCH_UP_PER_MILLE`], ns.
const BEHIND_NS: u64 = 10_000_000;
/// The most that the primary gives up so that its backup catches up.
const CATCH_UP_PER_MILLE: u64 = 30;

/// The slow-down, per mille, that lets a backup catch up which lags by `lag_ns`.
///
/// Two processors of one kind run a computing guest equally fast, so whatever a backup once falls behind (a late start, a stolen
/// slice of time) it stays behind: the lag would only ever grow up to the limit at which [`LagControl`] begins. A few per cent for a moment
/// take it back.
pub fn catch_up_per_mille(lag_ns: u64) -> u16 {
    let over = lag_ns.clamp(CLOSE_NS, BEHIND_NS) - CLOSE_NS;
    u16::try_from(over * CATCH_UP_PER_MILLE / (BEHIND_NS - CLOSE_NS)).expect("at most CATCH_UP_PER_MILLE")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const MS: u64 = 1_000_000;

    /// A primary under control and a backup with `speed` per mille of its speed, sampled every 20 ms for
    /// `seconds`; the lag after every sample, ms.
    fn run(control: &mut LagControl, speed: u64, seconds: u64) -> Vec<u64> {
        let (mut done, mut sent, mut lags) = (0u64, VecDeque::new(), Vec::new());
        let mut made = 0u64;
        for ms in 1..=seconds * 1000 {
            made += 1000 - u64::from(control.per_mille());
            sent.push_back((made, ms));
            done = (done + speed).min(made);
            while sent.front().is_some_and(|(work, _)| *work <= done) {
                sent.pop_front();
            }
            let lag = sent.front().map_or(0, |(_, at)| ms - at);
            if ms % 20 == 0 {
                control.sample(ms * MS, lag * MS);
                lags.push(lag);
            }
        }
        lags
    }

    #[test]
    fn a_slower_backup_settles_at_the_limit() {
        for speed in [200, 300, 500, 700, 900, 990] {
            let lags = run(&mut LagControl::new(100 * MS), speed, 120);
            let (worst, tail) = (lags.iter().max().unwrap(), &lags[lags.len() / 2..]);
            let (low, high) = (tail.iter().min().unwrap(), tail.iter().max().unwrap());
            println!("speed {speed}: worst {worst} ms, settled {low}..{high} ms");
            assert!(*high <= 150, "speed {speed}: still {high} ms after a minute");
            assert!(*worst <= 2500, "speed {speed}: {worst} ms on the way");
        }
    }

    #[test]
    fn a_backup_catches_up_at_a_small_price() {
        assert_eq!(catch_up_per_mille(0), 0);
        assert_eq!(catch_up_per_mille(CLOSE_NS), 0);
        assert_eq!(catch_up_per_mille(BEHIND_NS), 30);
        assert_eq!(catch_up_per_mille(u64::MAX), 30);
        // 80 ms behind a primary of the same speed, sampled every 20 ms.
        let mut lag_ns = 80 * MS;
        for _ in 0..250 {
            lag_ns -= (20 * MS * u64::from(catch_up_per_mille(lag_ns)) / 1000).min(lag_ns);
        }
        assert!(lag_ns < 4 * MS, "{lag_ns} ns behind after 5 s");
    }

    #[test]
    fn above_the_limit_a_few_per_cent_more_at_a_time_and_released_the_same_way() {
        let mut control = LagControl::new(100 * MS);
        let (mut before, mut rose, mut fell) = (0, 0, 0);
        for n in 0..400 {
            let level = control.sample(n * 20 * MS, if n < 200 { 300 } else { 10 } * MS);
            assert!(level.abs_diff(before) <= 20, "{before} to {level} per mille from one heartbeat to the next");
            rose += u32::from(level > before);
            fell += u32::from(level < before);
            before = level;
        }
        assert!(rose > 20 && fell > 20, "{rose} steps up, {fell} down");
        assert_eq!(before, 0, "released");
    }

    #[test]
    fn an_equal_backup_never_slows_the_primary() {
        let mut control = LagControl::new(100 * MS);
        run(&mut control, 1000, 10);
        assert_eq!(control.per_mille(), 0);
    }

    proptest! {
        #[test]
        fn no_cliff_and_always_within_bounds(samples in prop::collection::vec((1..300u64, prop_oneof![0..400 * MS, 0..u64::MAX]), 1..200)) {
            let mut control = LagControl::new(100 * MS);
            let (mut now, mut before) = (0, 0);
            for (gap_ms, lag_ns) in samples {
                now += gap_ms * MS;
                let level = control.sample(now, lag_ns);
                prop_assert!(lag_ns > 100 * MS || level <= before, "slowed down at a lag of {lag_ns} ns");
                prop_assert!(level <= LagControl::MAX_PER_MILLE);
                let most = gap_ms.min(100) * u64::from(LagControl::MAX_PER_MILLE_PER_SECOND) / 1000 + 1;
                prop_assert!(u64::from(level.abs_diff(before)) <= most, "{before} to {level} within {gap_ms} ms");
                before = level;
            }
        }

        #[test]
        fn a_steady_lag_moves_it_one_way_and_it_recovers(over_ms in 110..5000u64, under_ms in 0..90u64) {
            let mut control = LagControl::new(100 * MS);
            let mut now = 0;
            let mut steady = |lag_ms: u64, samples: u64| -> Vec<u16> {
                (0..samples).map(|_| { now += 20 * MS; control.sample(now, lag_ms * MS) }).collect()
            };
            let up = steady(over_ms, 3000);
            prop_assert!(up.is_sorted(), "not gradually up: {up:?}");
            prop_assert_eq!(up.last(), Some(&LagControl::MAX_PER_MILLE));
            let down = steady(under_ms, 3000);
            prop_assert!(down.iter().rev().is_sorted(), "not gradually down: {down:?}");
            prop_assert_eq!(down.last(), Some(&0));
        }
    }
}
