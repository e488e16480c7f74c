//! How a backup becomes a primary, and a primary that has handed over becomes a backup.
//!
//! After a failure, the generation after the pair's is won *alone*: whoever holds it has no backup. After a handover it is won *for a pair*:
//! the old primary is the backup of the new one, whether it knows it already or not. So if the connection is lost meanwhile, the new primary has to win
//! the generation after that before anything may leave it, and the old primary may win it as well: it has every entry that there is.

use super::{Action, Backup, Election, Heritage, Message, State, Suspicion, Violation};
use crate::replication::link::Phase;
use crate::replication::primary::Primary;

impl Backup {
    /// The backup that a primary becomes which has handed over, see [`primary::Action::BecomeBackup`](crate::replication::primary::Action::BecomeBackup).
    /// It follows the new primary from where its own log ended. To be fed [`Input::Start`](super::Input::Start) at once.
    ///
    /// # Panics
    /// If the primary has not been told that the other side took over.
    pub fn handed_over(primary: Primary) -> Self {
        let heritage = primary.into_heritage();
        let entries = heritage.entries;
        Backup {
            me: heritage.me,
            settings: heritage.settings,
            state: State::Following,
            link: heritage.link,
            generation: heritage.generation,
            peer: heritage.peer,
            guest_clock_ns: heritage.guest_clock_ns,
            received: entries,
            executed: entries,
            executed_stamp: 0,
            received_stamp: heritage.stamp,
            left: heritage.left,
            told: true,
            ended: heritage.ended,
            handover: false,
            took_stamp: 0,
            stop_requested: heritage.stop_requested,
        }
    }

    /// What is left to the primary that takes this machine's place.
    pub(in crate::replication) fn into_heritage(self) -> Heritage {
        assert_eq!(self.state, State::Live, "a backup that has not gone live stays one");
        Heritage {
            me: self.me,
            settings: self.settings,
            link: self.link,
            generation: self.generation,
            peer: self.peer,
            guest_clock_ns: self.guest_clock_ns,
            entries: self.received,
            left: self.left,
            stamp: self.took_stamp,
            alone: !self.handover,
            ended: self.ended,
            stop_requested: self.stop_requested,
        }
    }

    /// The primary stands still behind its last entry and asks this side to take over.
    pub(super) fn on_handover(&mut self, now: u64, entries: u64, released: u64, out: &mut Vec<Action>) {
        if !self.have_left(now, released, out) {
            return;
        }
        if entries != self.received {
            let violation = Violation::Gap { expected: self.received, found: entries };
            return self.lose_link(now, Suspicion::Violation(violation), out);
        }
        self.handover = true;
        let (election, question) = Election::after_with(self.generation, self.peer.as_ref().map(|peer| peer.host));
        self.state = State::Taking(election);
        out.push(Action::Ask(question));
    }

    pub(super) fn on_won(&mut self, generation: u64, out: &mut Vec<Action>) {
        self.generation = generation;
        if matches!(self.state, State::Asking(_)) && std::mem::take(&mut self.handover) {
            // Won for a pair, and there is no pair any more.
            return self.ask_for_the_next(out);
        }
        self.state = State::GoingLive;
        out.push(Action::GoLive { generation, entries: self.received, alone: !self.handover });
    }

    pub(super) fn on_went_live(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.state != State::GoingLive {
            return;
        }
        self.state = State::Live;
        if self.handover && self.link.phase() == Phase::Greeted {
            self.took_stamp = now.max(1);
            self.link.fence.expect(self.generation);
            out.push(self.say(Message::Took { stamp: self.took_stamp }));
        }
        out.push(Action::BecomePrimary);
    }
}
