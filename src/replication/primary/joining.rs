//! A guest that runs without a backup gets one: its state goes over while it runs, then the log.
//!
//! Up to the primary's welcome the new backup does not count: whatever happens to it, this side goes on alone without asking anybody, and whatever happens
//! to this side, the backup looks for another primary. With the welcome both may be the survivor.

use super::{Action, Lease, Message, Primary, State};

impl Primary {
    pub(super) fn begin_transfer(&mut self, out: &mut Vec<Action>) {
        self.transfer += 1;
        self.state = State::Transferring;
        self.say_hello(out);
        out.push(self.say(Message::Transfer));
        out.push(Action::BeginTransfer { transfer: self.transfer });
    }

    /// The state before entry `entries` has been taken, and outputs from there on are held.
    pub(super) fn on_captured(&mut self, transfer: u64, entries: u64, out: &mut Vec<Action>) {
        match self.state {
            State::Transferring if transfer == self.transfer => {
                assert_eq!(entries, self.appended, "the state was taken where the log stands");
                (self.base, self.acked, self.executed) = (entries, entries, entries);
                // What has left of the outputs before is asked again, now that there are no new ones among them.
                self.left = 0;
                self.lease = Lease::default();
                self.state = State::Joining { patience_ends: None };
                out.push(self.say(Message::State { entries }));
            }
            // For a backup that is gone.
            State::Unprotected | State::Transferring => self.let_all_out(out),
            State::Waiting
            | State::Claiming(_)
            | State::Preparing
            | State::Protected
            | State::Asking(_)
            | State::Joining { .. }
            | State::HandingOver { .. }
            | State::HandedOver
            | State::Stopped(_) => {}
        }
    }

    /// A backup that is ready counts as soon as every output that it does not have has left: nobody else could repeat it.
    pub(super) fn admit_if_left(&mut self, now: u64, out: &mut Vec<Action>) {
        if let State::Joining { patience_ends: Some(patience_ends) } = self.state
            // A network that takes nothing must not keep the guest from being protected.
            && (self.left >= self.base || now >= patience_ends)
        {
            out.push(Action::Release { below: self.acked });
            self.protect(now, out);
        }
    }

    /// The backup that was on its way is gone; it has never counted.
    pub(super) fn end_transfer(&mut self, now: u64, out: &mut Vec<Action>) {
        out.push(Action::EndTransfer);
        match self.state {
            State::Joining { .. } => self.go_on_alone(now, out),
            _ => {
                self.state = State::Unprotected;
                self.finish_if_done(now, out);
            }
        }
    }
}
