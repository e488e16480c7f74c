//! Until when a primary may let outputs out: no longer than its backup certainly keeps still.
//!
//! A backup gives its primary up for silence a time-out after it last got something. When that was, the primary does not know;
//! but it was not before the primary sent it, and every acknowledgement says what was the newest thing that the backup had got. So the
//! lease runs for a time-out from the *sending* of that, less a margin for clocks that do not run equally fast and for the
//! moment between the look at the clock and the write. It does not matter how long the acknowledgement took.

/// The lease of a primary on letting outputs out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Newest stamp that the backup is known to have received; 0: none yet.
    stamp: u64,
    /// 0: there has been none.
    until_ns: u64,
}

impl Lease {
    /// What of the time-out is not used, ns.
    pub fn margin_ns(timeout_ns: u64) -> u64 {
        timeout_ns / 10
    }

    /// Whoever begins to count as a backup with what is sent at `now` does not give this side up for its silence before a time-out from
    /// then. Returns the end of the lease, ns.
    pub fn begin(&mut self, now: u64, timeout_ns: u64) -> u64 {
        self.until_ns = self.until_ns.max(now.saturating_add(timeout_ns - Self::margin_ns(timeout_ns)));
        self.until_ns
    }

    /// The backup has received what was sent at `stamp`. Returns the end of the lease, ns, if that moves it.
    pub fn renew(&mut self, stamp: u64, timeout_ns: u64) -> Option<u64> {
        if stamp <= self.stamp {
            return None;
        }
        self.stamp = stamp;
        let before = self.until_ns;
        (self.begin(stamp, timeout_ns) > before).then_some(self.until_ns)
    }

    /// Newest stamp that the backup is known to have received; 0: none yet.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Whether there is or was a lease.
    pub fn has_begun(&self) -> bool {
        self.until_ns > 0
    }

    /// Whether there was a lease, and it has run out.
    pub fn has_lapsed(&self, now: u64) -> bool {
        self.has_begun() && now >= self.until_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_from_the_sending_of_what_was_received_and_never_gets_shorter() {
        let mut lease = Lease::default();
        assert!(!lease.has_lapsed(u64::MAX), "there was none");
        assert_eq!(lease.renew(50, 200), Some(230));
        assert_eq!(lease.renew(50, 200), None, "nothing new");
        assert_eq!(lease.renew(40, 200), None);
        assert_eq!((lease.has_lapsed(229), lease.has_lapsed(230)), (false, true));
        assert_eq!(lease.renew(60, 200), Some(240));
        assert!(!lease.has_lapsed(239));
    }
}
