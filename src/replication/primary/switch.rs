//! The planned change of roles: the guest stands still behind an entry that both sides have, nothing leaves either side, and the backup wins
//! the next generation at the arbiter.
//!
//! The two are a pair the whole time: the backup wins the generation *for the pair* (see `backup/taking.rs`), and this side is its backup from the moment on
//! at which it has won, whether it knows it already or not. So if the new primary is lost before its first word, this side may win the generation after that.

use super::{Action, Flow, Lease, Primary, State, Suspicion};
use crate::arbiter::Claim;
use crate::replication::backup::Backup;
use crate::replication::election::{Answer, Election, Question};
use crate::replication::heritage::Heritage;
use crate::replication::message::Message;
use crate::replication::primary::NoSwitch;

/// How far a switch has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Switch {
    /// There is none.
    No,
    /// The arbiter is asked whether it can be reached.
    Reading,
    /// The vCPU is asked to stand still.
    Parking,
    /// The same, and it will not be needed: the backup is lost.
    Returning,
    /// It stands still, and the backup gets the rest of the log.
    Parked,
    /// The backup has been asked to take over.
    HandedOver,
    /// The backup has won the next generation, and is gone.
    HeirLost,
}

impl Switch {
    /// Whether the other side may have won a generation because it was asked to.
    pub(super) fn has_handed_over(self) -> bool {
        matches!(self, Switch::HandedOver | Switch::HeirLost)
    }

    /// The guest has ended: its vCPU will not stand still any more.
    pub(super) fn end(&mut self) {
        if matches!(self, Switch::Reading | Switch::Parking | Switch::Returning) {
            *self = Switch::No;
        }
    }
}

impl Primary {
    /// The longest that a backup may take to take over, in time-outs.
    const TAKE_OVER_TIMEOUTS: u64 = 5;

    /// The primary that a backup becomes which has gone live, see [`backup::Action::BecomePrimary`](crate::replication::backup::Action::BecomePrimary): alone
    /// after a failure, protected by the old primary after a handover. To be fed [`Input::Start`](super::Input::Start) at once.
    ///
    /// # Panics
    /// If the backup has not gone live.
    pub fn from_backup(backup: Backup) -> Self {
        let heritage = backup.into_heritage();
        let entries = heritage.entries;
        Primary {
            flow: Flow::new(&heritage.settings),
            me: heritage.me,
            settings: heritage.settings,
            state: if heritage.alone { State::Unprotected } else { State::Protected },
            link: heritage.link,
            generation: heritage.generation,
            peer: heritage.peer,
            guest_clock_ns: heritage.guest_clock_ns,
            appended: entries,
            acked: entries,
            executed: entries,
            stamp: heritage.stamp,
            base: entries,
            transfer: 0,
            // It begins with the first word of the old primary as a backup.
            lease: Lease::default(),
            left: heritage.left,
            switch: Switch::No,
            ended: heritage.ended,
            stop_requested: heritage.stop_requested,
            patience_ends: None,
        }
    }

    /// What is left to the backup that takes this machine's place.
    pub(in crate::replication) fn into_heritage(self) -> Heritage {
        assert_eq!(self.state, State::HandedOver, "a primary that has not handed over stays one");
        Heritage {
            left: self.released(),
            me: self.me,
            settings: self.settings,
            link: self.link,
            generation: self.generation,
            peer: self.peer,
            guest_clock_ns: self.guest_clock_ns,
            entries: self.appended,
            stamp: self.stamp,
            alone: false,
            ended: false,
            stop_requested: self.stop_requested,
        }
    }

    /// The start of a primary that was a backup.
    pub(super) fn on_start_with_heritage(&mut self, now: u64, out: &mut Vec<Action>) {
        match self.state {
            State::Unprotected => self.go_on_alone(now, out),
            // The connection was lost while it went live.
            State::Protected if !self.link.is_up() => self.lose_link(now, Suspicion::Closed, out),
            State::Protected => {}
            _ => return,
        }
        if std::mem::take(&mut self.stop_requested) {
            self.on_stop_requested(out);
        }
    }

    pub(super) fn on_switch_requested(&mut self, out: &mut Vec<Action>) {
        let why_not = match (&self.state, self.switch) {
            _ if self.ended => NoSwitch::Ended,
            (State::Protected, Switch::No) => {
                // An arbiter that cannot be reached must not be found out about by a guest that stands still.
                self.switch = Switch::Reading;
                return out.push(Action::Ask(Question::Read));
            }
            (State::Protected | State::HandingOver { .. }, _) => NoSwitch::UnderWay,
            (_, _) => NoSwitch::Unprotected,
        };
        out.push(Action::NoSwitch(why_not));
    }

    /// The arbiter has answered, and nothing was to be won.
    pub(super) fn on_register_read(&mut self, answer: &Answer, out: &mut Vec<Action>) {
        if self.switch != Switch::Reading {
            return;
        }
        let why_not = match answer {
            Answer::Holds(Some(generation)) if *generation == self.generation => {
                self.switch = Switch::Parking;
                return out.push(Action::SwitchGuest);
            }
            Answer::Holds(_) => NoSwitch::Renamed,
            Answer::Unreachable => NoSwitch::Unreachable,
            // Of an earlier question.
            Answer::Won | Answer::Lost(_) => return,
        };
        self.switch = Switch::No;
        out.push(Action::NoSwitch(why_not));
    }

    pub(super) fn on_parked(&mut self, now: u64, out: &mut Vec<Action>) {
        match self.switch {
            Switch::Parking => {
                self.switch = Switch::Parked;
                self.hand_over_if_acked(now, out);
            }
            Switch::Returning => {
                self.switch = Switch::No;
                out.push(Action::TakeBack);
            }
            Switch::No | Switch::Reading | Switch::Parked | Switch::HandedOver | Switch::HeirLost => {}
        }
    }

    /// Once the backup has every entry.
    pub(super) fn hand_over_if_acked(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.switch != Switch::Parked || self.state != State::Protected || self.acked < self.appended {
            return;
        }
        self.switch = Switch::HandedOver;
        let patience_ns = self.settings.timeout_ns.saturating_mul(Self::TAKE_OVER_TIMEOUTS);
        self.state = State::HandingOver { until: now.saturating_add(patience_ns) };
        self.link.fence.expect(self.generation.saturating_add(1));
        // In this order: a backup that is asked to take over may be live a moment later.
        out.push(Action::Hold);
        out.push(self.say(Message::Handover { entries: self.appended, released: self.released() }));
    }

    /// The backup is lost. Where it cannot have taken over, there is no switch any more.
    pub(super) fn give_up_switch(&mut self, out: &mut Vec<Action>) {
        match self.switch {
            Switch::Reading | Switch::Parking | Switch::Parked => out.push(Action::NoSwitch(NoSwitch::BackupLost)),
            Switch::No | Switch::Returning | Switch::HandedOver | Switch::HeirLost => {}
        }
        match self.switch {
            Switch::Reading => self.switch = Switch::No,
            Switch::Parking => self.switch = Switch::Returning,
            Switch::Parked => {
                self.switch = Switch::No;
                out.push(Action::TakeBack);
            }
            Switch::No | Switch::Returning | Switch::HandedOver | Switch::HeirLost => {}
        }
    }

    /// Won, so the other side has not taken over and never will: the guest that was handed over goes on here.
    pub(super) fn take_back(&mut self, out: &mut Vec<Action>) {
        if self.switch.has_handed_over() {
            self.switch = Switch::No;
            out.push(Action::NoSwitch(NoSwitch::BackupLost));
            out.push(Action::TakeBack);
            if std::mem::take(&mut self.stop_requested) {
                out.push(Action::StopGuest);
            }
        }
    }

    /// Whether the backup that was asked to take over has done so, and shares the generation that it won with this side.
    pub(super) fn heir_has_won(&self, holder: Option<&Claim>) -> bool {
        // The register has to say so. A backup that was asked, and never heard of it, may have won the same generation alone.
        self.switch == Switch::HandedOver
            && holder.is_some_and(|holder| {
                let next = holder.generation == self.generation.saturating_add(1);
                next && holder.shared_with == Some(self.me.host())
            })
    }

    /// The new primary won `generation`, for a pair in which this side is the backup, and then was lost.
    pub(super) fn ask_after_heir(&mut self, generation: u64, out: &mut Vec<Action>) {
        self.switch = Switch::HeirLost;
        self.generation = generation;
        let (election, question) = Election::after(generation);
        self.state = State::Asking(election);
        out.push(Action::Ask(question));
    }

    /// The other side has won the next generation: its token says so.
    pub(super) fn on_took(&mut self, stamp: u64, out: &mut Vec<Action>) {
        self.generation = self.generation.saturating_add(1);
        self.stamp = stamp;
        self.state = State::HandedOver;
        out.push(Action::BecomeBackup);
    }
}
