//! How fast the log may grow: what is under way to the backup, when the vCPU has to wait for it, and how much the guest is slowed
//! down because the backup's execution lags.

use super::Settings;
use super::lag::{LagControl, catch_up_per_mille};
use super::ledger::Ledger;
use super::primary::Action;

/// The flow of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    window_bytes: u64,
    backlog_bytes: u64,
    /// By entry number; what is not acknowledged.
    unacked: Ledger,
    /// By stamp; what is not executed.
    unexecuted: Ledger,
    /// Outputs wait for a new lease: what is under way has to get through first.
    lapsed: bool,
    stalled: bool,
    lag: LagControl,
    lag_ns: u64,
    /// The slow-down asked for last.
    per_mille: u16,
}

impl Flow {
    /// Nothing is under way.
    pub fn new(settings: &Settings) -> Self {
        Flow {
            window_bytes: settings.window_bytes,
            backlog_bytes: settings.backlog_bytes,
            unacked: Ledger::default(),
            unexecuted: Ledger::default(),
            lapsed: false,
            stalled: false,
            lag: LagControl::new(settings.lag_limit_ns),
            lag_ns: 0,
            per_mille: 0,
        }
    }

    /// Makes room for all that can be under way.
    pub fn reserve(&mut self) {
        self.unacked.reserve();
        self.unexecuted.reserve();
    }

    /// `bytes` of entries are under way, up to entry `appended`, sent at `stamp`.
    pub fn entries(&mut self, appended: u64, stamp: u64, bytes: u64) {
        self.unacked.note(appended, bytes);
        self.unexecuted.note(stamp, bytes);
    }

    /// A horizon is under way, sent at `stamp`.
    pub fn horizon(&mut self, stamp: u64) {
        self.unexecuted.note(stamp, 0);
    }

    /// The backup holds `received` entries and has passed what was sent at `executed_stamp`.
    pub fn acknowledged(&mut self, now: u64, received: u64, executed_stamp: u64, out: &mut Vec<Action>) {
        self.unacked.settle(received);
        self.unexecuted.settle(executed_stamp);
        self.stall_or_resume(out);
        self.lag_ns = self.unexecuted.oldest().map_or(0, |stamp| now.saturating_sub(stamp));
        let per_mille = self.lag.sample(now, self.lag_ns).max(catch_up_per_mille(self.lag_ns));
        self.slow_down(per_mille, out);
    }

    /// Whether the lease on letting outputs out has lapsed.
    ///
    /// With a slow link between the hosts, it lapses since what is under way takes longer than a time-out: the vCPU waits until there is less of it,
    /// else its outputs might never leave.
    pub fn set_lapsed(&mut self, lapsed: bool) {
        self.lapsed = lapsed;
    }

    /// Stalls the vCPU if too much is under way; lets it go on when half of that is.
    pub fn stall_or_resume(&mut self, out: &mut Vec<Action>) {
        let (unacked, backlog) = (self.unacked.bytes(), self.unexecuted.bytes());
        if !self.stalled && (self.lapsed || unacked >= self.window_bytes || backlog >= self.backlog_bytes) {
            self.stalled = true;
            out.push(Action::Stall);
        } else if self.stalled && !self.lapsed && unacked <= self.window_bytes / 2 && backlog <= self.backlog_bytes / 2
        {
            self.stalled = false;
            out.push(Action::Resume);
        }
    }

    fn slow_down(&mut self, per_mille: u16, out: &mut Vec<Action>) {
        if per_mille != self.per_mille {
            self.per_mille = per_mille;
            out.push(Action::SlowDown { per_mille });
        }
    }

    /// There is no backup any more: nothing is under way, and nothing slows the guest down.
    pub fn end(&mut self, out: &mut Vec<Action>) {
        self.unacked.clear();
        self.unexecuted.clear();
        self.lapsed = false;
        self.lag_ns = 0;
        self.lag.reset();
        self.slow_down(0, out);
        self.stall_or_resume(out);
    }

    /// Execution lag at the last acknowledgement, ns: the age of the oldest frame that was not executed.
    pub fn lag_ns(&self) -> u64 {
        self.lag_ns
    }

    /// How much the guest is slowed down, per mille of its full speed.
    pub fn slow_down_per_mille(&self) -> u16 {
        self.per_mille
    }

    /// Bytes of the log not acknowledged.
    pub fn unacked_bytes(&self) -> u64 {
        self.unacked.bytes()
    }

    /// Whether the vCPU has to wait.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }
}
