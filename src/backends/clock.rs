//! The guest's clock: nanoseconds since its boot, out of the host's monotonic clock, never going backwards.
//!
//! After a failover it starts at the last value that the log holds and catches up with the time that really went by at
//! a bounded rate, so that a guest sees a clock that runs a little fast for a moment, not one that jumps.

/// While behind, the clock runs this much faster: numerator over [`CATCH_UP_DENOMINATOR`] is added to the elapsed time.
const CATCH_UP_NUMERATOR: u64 = 1;
/// See [`CATCH_UP_NUMERATOR`].
const CATCH_UP_DENOMINATOR: u64 = 2;

/// The host's wall clock, nanoseconds since 1970 UTC; 0 on a host that is before it.
pub fn wall_clock_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

/// The host's clock for the protocol: nanoseconds since the host booted, the time it slept included. A host that slept must notice.
pub fn boot_clock_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// Pure arithmetic over host times that the caller passes in.
#[derive(Clone, Copy, Debug)]
pub struct GuestClock {
    /// The last value given out or computed, and the host time it belongs to.
    last_ns: u64,
    last_host_ns: u64,
    /// How far the last value was behind the time it should have shown.
    behind_ns: u64,
    /// It stands still: the machine is paused.
    standing: bool,
}

impl GuestClock {
    /// A clock that shows `shown_ns` at host time `host_ns` and should show `due_ns` (less than `shown_ns` counts as equal).
    pub fn starting_at(shown_ns: u64, due_ns: u64, host_ns: u64) -> Self {
        GuestClock {
            last_ns: shown_ns,
            last_host_ns: host_ns,
            behind_ns: due_ns.saturating_sub(shown_ns),
            standing: false,
        }
    }

    /// From host time `host_ns` on the clock stands still, or goes on.
    pub fn set_standing(&mut self, standing: bool, host_ns: u64) {
        self.read(host_ns);
        self.standing = standing;
    }

    /// The time at host time `host_ns`.
    pub fn read(&mut self, host_ns: u64) -> u64 {
        let elapsed = if self.standing { 0 } else { host_ns.saturating_sub(self.last_host_ns) };
        let catch_up = (elapsed / CATCH_UP_DENOMINATOR).saturating_mul(CATCH_UP_NUMERATOR).min(self.behind_ns);
        self.behind_ns -= catch_up;
        self.last_ns = self.last_ns.saturating_add(elapsed).saturating_add(catch_up);
        self.last_host_ns = self.last_host_ns.max(host_ns);
        self.last_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_host() {
        let mut clock = GuestClock::starting_at(0, 0, 1_000);
        assert_eq!(clock.read(1_500), 500);
        assert_eq!(clock.read(2_500), 1_500);
    }

    #[test]
    fn never_backwards_even_if_the_host_is() {
        let mut clock = GuestClock::starting_at(0, 0, 1_000);
        let first = clock.read(2_000);
        assert!(clock.read(1_000) >= first);
        assert_eq!(clock.read(2_000), first, "and time is not counted twice");
    }

    #[test]
    fn catches_up_after_a_failover_without_a_jump() {
        let mut clock = GuestClock::starting_at(1_000, 1_300, 0);
        assert_eq!(clock.read(0), 1_000);
        assert_eq!(clock.read(100), 1_150);
        assert_eq!(clock.read(1_000), 1_000 + 1_000 + 300);
        assert_eq!(clock.read(2_000), 3_300, "caught up: the host's pace again");
    }

    #[test]
    fn stands_still_while_paused_and_goes_on_from_there() {
        let mut clock = GuestClock::starting_at(0, 100, 0);
        clock.set_standing(true, 100);
        assert_eq!(clock.read(100), 150);
        assert_eq!(clock.read(9_000), 150);
        clock.set_standing(true, 9_500);
        clock.set_standing(false, 10_000);
        assert_eq!(clock.read(10_000), 150);
        assert_eq!(clock.read(10_500), 150 + 500 + 50, "and still catches up");
    }

    #[test]
    fn an_estimate_behind_the_log_does_not_count() {
        let mut clock = GuestClock::starting_at(1_000, 500, 0);
        assert_eq!(clock.read(10), 1_010);
    }
}
