//! The primary: it runs the guest, sends the log, and lets an output out when the backup holds everything
//! that led to it.
//!
//! ```text
//!            hello          won g          welcome          suspicion         won g+1
//!  Waiting ---------> Claiming ----> Preparing ----> Protected ----> Asking ---------> Unprotected
//!     ^                                  | (lost link)    | guest ended,  | lost            | guest ended
//!     +----------------------------------+                v all acked     v                 v
//!                                                                     Stopped
//! ```
//!
//! With `start_alone` it goes from Claiming straight to Unprotected. From there the guest gets a backup while it runs, and from
//! Protected the operator may have the two sides change their roles:
//!
//! ```text
//!               hello              captured          welcome             parked, all acked               took g+1
//!  Unprotected --------> Transferring ----> Joining ----------> Protected ----------------> HandingOver ----------> HandedOver
//!     ^    ^                 | lost link       | lost link                                      | lost link, or not taken
//!     |    +-----------------+-----------------+                                                v
//!     +-------------------------------------------------------------------- won g+1 ------- Asking
//! ```
//!
//! A survivor begins in Unprotected, and a backup that was handed the guest in Protected ([`Primary::from_backup`]).

use super::election::{Answer, Election, Outcome};
use super::fence::Fence;
use super::flow::Flow;
use super::lease::Lease;
use super::link::{Link, Phase};
use super::message::{self, Envelope, Goodbye, Hello, Kind, Message, Refusal, Role};
use super::{Identity, Settings, StopReason, Suspicion, Violation};
use crate::machine::instant::Instant;
use std::sync::Arc;
use switch::Switch;

mod figures;
mod joining;
mod switch;
mod terms;

pub use terms::{Action, Input, NoSwitch, State};

/// The primary's state machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Primary {
    me: Arc<Identity>,
    settings: Settings,
    state: State,
    link: Link,
    /// 0 until the first one is won.
    generation: u64,
    peer: Option<Arc<Hello>>,
    guest_clock_ns: u64,
    /// Entries appended, and of those acknowledged and executed by the backup: `executed <= acked <= appended`.
    appended: u64,
    acked: u64,
    executed: u64,
    /// Stamp of the newest entries or horizon sent.
    stamp: u64,
    /// Where the pair's log begins. The outputs of all entries before were queued when it began.
    base: u64,
    /// How many transfers have begun.
    transfer: u64,
    lease: Lease,
    /// Outputs of entries below this number have left, by what [`Input::Left`] said.
    left: u64,
    flow: Flow,
    switch: Switch,
    ended: bool,
    /// The operator wanted the machine to stop while it was being handed over.
    stop_requested: bool,
    /// Until when a guest that has ended waits for its last outputs to leave, ns.
    patience_ends: Option<u64>,
}

impl Primary {
    /// A primary that has done nothing yet.
    pub fn new(me: Identity, settings: Settings) -> Self {
        Primary {
            me: Arc::new(me),
            settings,
            state: State::Waiting,
            link: Link::down(),
            generation: 0,
            peer: None,
            guest_clock_ns: 0,
            appended: 0,
            acked: 0,
            executed: 0,
            stamp: 0,
            base: 0,
            transfer: 0,
            lease: Lease::default(),
            left: 0,
            flow: Flow::new(&settings),
            switch: Switch::No,
            ended: false,
            stop_requested: false,
            patience_ends: None,
        }
    }

    /// Takes one input at `now` (ns of a local clock that never goes back and also runs while the host sleeps) and appends what is to be done, in order.
    pub fn on(&mut self, now: u64, input: Input, out: &mut Vec<Action>) {
        // A backup has taken the place of one that has handed over.
        if matches!(self.state, State::HandedOver | State::Stopped(_)) {
            return;
        }
        // Before the input is looked at: a process that slept must not act on what waited for it.
        if let Some(silence_ns) = self.link.silence(now, self.settings.timeout_ns) {
            self.lose_link(now, Suspicion::Silence { silence_ns }, out);
        }
        match input {
            Input::Start => self.on_start(now, out),
            Input::Tick { guest_clock_ns } => self.guest_clock_ns = guest_clock_ns,
            Input::Connected => {
                self.on_disconnected(now, out);
                // A backup that has just come knows of no generation.
                self.link.open(now, Fence::at(0));
            }
            Input::Disconnected => self.on_disconnected(now, out),
            Input::Heard => self.link.heard(now),
            Input::Received(envelope) => self.on_received(now, envelope, out),
            Input::Appended { entries, bytes } => self.on_appended(now, entries, bytes, out),
            Input::Horizon { entries, at } => self.on_horizon(now, entries, at, out),
            Input::Left { below } => {
                // The vCPU thread appends an entry first and queues its output then; when it has appended the next one, it has.
                let newest = self.appended.saturating_sub(1).max(self.base);
                let queued = if self.ended || below == u64::MAX { below } else { below.min(newest) };
                self.left = self.left.max(queued);
                self.admit_if_left(now, out);
                self.finish_if_done(now, out);
            }
            Input::GuestEnded => {
                self.ended = true;
                self.switch.end();
                self.finish_if_done(now, out);
            }
            Input::Arbiter(answer) => self.on_answer(now, answer, out),
            Input::StopRequested => self.on_stop_requested(out),
            Input::Captured { transfer, entries } => self.on_captured(transfer, entries, out),
            Input::SwitchRequested => self.on_switch_requested(out),
            Input::Parked => self.on_parked(now, out),
            Input::Fenced { newer } => {
                // Whoever has put that there has won it.
                out.push(Action::Hold);
                self.stop(StopReason::Fenced { generation: self.generation, newer }, out);
            }
        }
        self.on_time(now, out);
    }

    fn on_disconnected(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.link.is_up() {
            self.lose_link(now, Suspicion::Closed, out);
        }
    }

    fn on_start(&mut self, now: u64, out: &mut Vec<Action>) {
        self.flow.reserve();
        if self.settings.start_alone && self.state == State::Waiting {
            self.claim_first(out);
        }
        self.on_start_with_heritage(now, out);
    }

    fn claim_first(&mut self, out: &mut Vec<Action>) {
        let (election, question) = Election::first(self.settings.only_after);
        self.state = State::Claiming(election);
        out.push(Action::Ask(question));
    }

    /// Whether a message of this kind and generation may come.
    pub fn admits(&self, kind: Kind, generation: u64) -> bool {
        self.link.fence.admits(kind, generation)
    }

    fn on_received(&mut self, now: u64, Envelope { generation, message }: Envelope, out: &mut Vec<Action>) {
        if !self.link.is_up() {
            return;
        }
        match self.link.admit(message.kind(), generation) {
            Ok(()) => {
                self.link.heard(now);
                self.on_message(now, message, out);
            }
            Err(violation) => self.lose_link(now, Suspicion::Violation(violation), out),
        }
    }

    /// This, for the generation that this side holds.
    fn say(&self, message: Message) -> Action {
        Action::Send(Envelope { generation: self.generation, message })
    }

    fn on_message(&mut self, now: u64, message: Message, out: &mut Vec<Action>) {
        let kind = message.kind();
        match (message, &self.state) {
            (Message::Ack { received, executed, executed_stamp, received_stamp }, State::Protected) => {
                self.on_ack(now, (received, executed), (executed_stamp, received_stamp), out);
            }
            (Message::Heartbeat { .. }, _) => self.link.heartbeats.0 += 1,
            (Message::Hello(hello), _) if self.link.phase() == Phase::Open => self.on_hello(now, hello, out),
            (Message::OtherVersion { version }, _) if self.link.phase() == Phase::Open => {
                self.refuse(Refusal::Version { ours: message::VERSION, theirs: version }, out);
            }
            (Message::Welcome, State::Preparing | State::Joining { patience_ends: None }) => self.on_welcome(now, out),
            // Of entries that it had acknowledged before it was asked to take over.
            (Message::Ack { .. }, State::HandingOver { .. }) => {}
            (Message::Took { stamp }, State::HandingOver { .. }) => self.on_took(stamp, out),
            // Packets that came to the old primary after it had handed over; perhaps while this side is handing over in its turn.
            (Message::Strays, State::Protected | State::HandingOver { .. }) => out.push(Action::Inject),
            (Message::Diverged { entry, text }, _) => self.lose_link(now, Suspicion::Diverged { entry, text }, out),
            (Message::Refuse(refusal), _) => self.lose_link(now, Suspicion::Refused(*refusal), out),
            (Message::Goodbye(goodbye), _) => self.lose_link(now, Suspicion::Left(goodbye), out),
            (
                Message::Hello(_)
                | Message::OtherVersion { .. }
                | Message::Welcome
                | Message::Boot
                | Message::Transfer
                | Message::Chunk
                | Message::State { .. }
                | Message::Handover { .. }
                | Message::Strays
                | Message::Took { .. }
                | Message::Entries { .. }
                | Message::Horizon { .. }
                | Message::Ack { .. },
                _,
            ) => self.lose_link(now, Suspicion::Violation(Violation::Unexpected(kind)), out),
        }
    }

    fn on_hello(&mut self, now: u64, hello: Box<Hello>, out: &mut Vec<Action>) {
        if let Some(refusal) = hello.mismatch(&self.me, Role::Backup) {
            return self.refuse(refusal, out);
        }
        match &self.state {
            State::Waiting => {
                self.peer = Some(Arc::from(hello));
                self.link.greet(now);
                if self.generation == 0 { self.claim_first(out) } else { self.prepare(out) }
            }
            // The backup was cut off while its primary claimed, and is back.
            State::Claiming(_) if !self.settings.start_alone => {
                self.peer = Some(Arc::from(hello));
                self.link.greet(now);
            }
            State::Unprotected => {
                self.peer = Some(Arc::from(hello));
                self.link.greet(now);
                self.begin_transfer(out);
            }
            State::Claiming(_)
            | State::Preparing
            | State::Protected
            | State::Asking(_)
            | State::Transferring
            | State::Joining { .. }
            | State::HandingOver { .. } => self.refuse(Refusal::Busy, out),
            State::HandedOver | State::Stopped(_) => {}
        }
    }

    /// The connection is not wanted; the state stays what it is.
    fn refuse(&mut self, refusal: Refusal, out: &mut Vec<Action>) {
        out.push(Action::Send(Envelope::refuse(refusal)));
        out.push(Action::Disconnect);
        self.link.close();
    }

    fn say_hello(&mut self, out: &mut Vec<Action>) {
        // With it the backup learns what to speak for.
        self.link.fence.expect(self.generation);
        out.push(self.say(Message::Hello(Box::new(Hello::new(Role::Primary, &self.me, &self.settings)))));
    }

    fn prepare(&mut self, out: &mut Vec<Action>) {
        self.say_hello(out);
        out.push(self.say(Message::Boot));
        self.state = State::Preparing;
    }

    fn on_welcome(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.state == State::Preparing {
            self.protect(now, out);
            return out.push(Action::StartGuest);
        }
        self.state = State::Joining { patience_ends: Some(now.saturating_add(self.settings.timeout_ns)) };
        self.admit_if_left(now, out);
    }

    /// The backup counts.
    fn protect(&mut self, now: u64, out: &mut Vec<Action>) {
        // From here on the guest may have run with this backup, and only the arbiter lets this side go on alone. The backup
        // asks only after it has this welcome: until then it knows that nothing that it lacks has left. And it hears the welcome after now, so it does not
        // give this side up for its silence before a time-out from now.
        self.state = State::Protected;
        out.push(Action::Lease { until_ns: self.lease.begin(now, self.settings.timeout_ns) });
        out.push(self.say(Message::Welcome));
    }

    fn on_appended(&mut self, now: u64, entries: u32, bytes: u32, out: &mut Vec<Action>) {
        let first = self.appended;
        match self.state {
            State::Protected | State::Asking(_) | State::Joining { .. } => {
                self.appended += u64::from(entries);
                let stamp = self.next_stamp(now);
                self.flow.entries(self.appended, stamp, bytes.into());
                if self.sends_the_log() {
                    let released = self.released();
                    out.push(self.say(Message::Entries { first, count: entries, bytes, stamp, released }));
                }
                self.flow.stall_or_resume(out);
            }
            State::Unprotected | State::Transferring => self.appended += u64::from(entries),
            State::HandingOver { .. } | State::HandedOver => panic!("the vCPU stands still, and has appended an entry"),
            // No guest has started, or none should run any more.
            State::Waiting | State::Claiming(_) | State::Preparing | State::Stopped(_) => {}
        }
    }

    fn on_horizon(&mut self, now: u64, entries: u64, at: Instant, out: &mut Vec<Action>) {
        // One that was overtaken by entries allows nothing that these do not.
        if self.sends_the_log() && entries == self.appended {
            let stamp = self.next_stamp(now);
            self.flow.horizon(stamp);
            let released = self.released();
            out.push(self.say(Message::Horizon { entries, at, stamp, released }));
        }
    }

    fn sends_the_log(&self) -> bool {
        matches!(self.state, State::Protected | State::Joining { .. })
    }

    fn next_stamp(&mut self, now: u64) -> u64 {
        self.stamp = now.max(self.stamp + 1);
        self.stamp
    }

    /// `received` and `executed` count entries; of the stamps, the first is that of what was executed, the second that of what was received.
    fn on_ack(&mut self, now: u64, (received, executed): (u64, u64), stamps: (u64, u64), out: &mut Vec<Action>) {
        let (executed_stamp, received_stamp) = stamps;
        let grows = received >= self.acked && executed >= self.executed && received_stamp >= self.lease.stamp();
        // Heartbeats are stamped with the time alone.
        let sent = executed_stamp <= self.stamp && received_stamp <= self.stamp.max(now);
        if !grows || !sent || received > self.appended || executed > received {
            let violation = Violation::Acknowledged { received, appended: self.appended };
            return self.lose_link(now, Suspicion::Violation(violation), out);
        }
        let lapsed = !self.lease.has_begun() || self.lease.has_lapsed(now);
        out.extend(
            self.lease.renew(received_stamp, self.settings.timeout_ns).map(|until_ns| Action::Lease { until_ns }),
        );
        if received > self.acked || lapsed {
            self.acked = received;
            out.push(Action::Release { below: received });
        }
        self.executed = executed;
        self.flow.set_lapsed(self.lease.has_lapsed(now));
        self.flow.acknowledged(now, received, executed_stamp, out);
        self.hand_over_if_acked(now, out);
        self.finish_if_done(now, out);
    }

    /// Outputs of entries below this number have left, as the backup may hear it.
    fn released(&self) -> u64 {
        // A backup that is still to get its state has no outputs.
        if self.state == State::Transferring { 0 } else { self.left.min(self.acked) }
    }

    /// The connection is no use any more. What that means depends on whether the backup may be the survivor.
    fn lose_link(&mut self, now: u64, suspicion: Suspicion, out: &mut Vec<Action>) {
        self.link.close();
        if self.state == State::Protected {
            // In this order: a backup that finds the connection closed may be live a moment later.
            out.push(Action::Hold);
        }
        if suspicion != Suspicion::Closed {
            out.push(Action::Disconnect);
        }
        match self.state {
            State::Protected | State::HandingOver { .. } => {
                out.push(Action::Suspect(suspicion));
                self.give_up_switch(out);
                let (election, question) = Election::after(self.generation);
                self.state = State::Asking(election);
                out.push(Action::Ask(question));
            }
            State::Transferring | State::Joining { .. } => {
                out.push(Action::Suspect(suspicion));
                self.end_transfer(now, out);
            }
            State::Preparing => {
                out.push(Action::Suspect(suspicion));
                self.state = State::Waiting;
                self.peer = None;
            }
            State::Claiming(_) => self.peer = None,
            State::Waiting | State::Asking(_) | State::Unprotected | State::HandedOver | State::Stopped(_) => {}
        }
    }

    fn on_answer(&mut self, now: u64, answer: Answer, out: &mut Vec<Action>) {
        let (State::Claiming(election) | State::Asking(election)) = &mut self.state else {
            return self.on_register_read(&answer, out);
        };
        match election.on_answer(now, answer, self.settings.retry_ns) {
            Outcome::Ask(question) => out.push(Action::Ask(question)),
            Outcome::Won(generation) => self.on_won(now, generation, out),
            Outcome::Lost { generation, holder } => {
                if self.heir_has_won(holder.as_ref()) {
                    return self.ask_after_heir(generation, out);
                }
                self.stop(StopReason::Lost { generation, holder }, out);
            }
            Outcome::Pending => {}
        }
    }

    fn on_won(&mut self, now: u64, generation: u64, out: &mut Vec<Action>) {
        self.generation = generation;
        match self.state {
            State::Claiming(_) if self.settings.start_alone => {
                out.push(Action::StartGuest);
                self.go_on_alone(now, out);
            }
            State::Claiming(_) if self.peer.is_some() => self.prepare(out),
            State::Claiming(_) => self.state = State::Waiting,
            State::Asking(_) => self.go_on_alone(now, out),
            State::Waiting
            | State::Preparing
            | State::Protected
            | State::Unprotected
            | State::Transferring
            | State::Joining { .. }
            | State::HandingOver { .. }
            | State::HandedOver
            | State::Stopped(_) => {}
        }
    }

    fn go_on_alone(&mut self, now: u64, out: &mut Vec<Action>) {
        self.state = State::Unprotected;
        self.let_all_out(out);
        self.flow.end(out);
        self.take_back(out);
        self.finish_if_done(now, out);
    }

    fn let_all_out(&mut self, out: &mut Vec<Action>) {
        out.push(Action::Lease { until_ns: u64::MAX });
        out.push(Action::Release { below: u64::MAX });
    }

    /// After the guest's end, once everything it put out has left.
    fn finish_if_done(&mut self, now: u64, out: &mut Vec<Action>) {
        if !self.ended {
            return;
        }
        match self.state {
            // Before the lease has begun, an old primary may not know yet that it is the backup.
            State::Protected if self.acked == self.appended && self.lease.has_begun() => {
                if self.lease.has_lapsed(now) {
                    self.patience_ends = None;
                }
                // A network that takes nothing any more must not keep the guest from ending.
                let patience_ends = *self.patience_ends.get_or_insert(now.saturating_add(self.settings.timeout_ns));
                if self.released() == self.appended || now >= patience_ends {
                    // Only now: a backup that has the goodbye lets the rest be, so nothing may be left to release. And nobody
                    // will contradict what a slow reader has yet to take.
                    out.push(Action::Lease { until_ns: u64::MAX });
                    let entries = self.appended;
                    out.push(self.say(Message::Goodbye(Goodbye::Ended { entries })));
                    self.stop(StopReason::Ended, out);
                }
            }
            State::Unprotected => self.stop(StopReason::Ended, out),
            State::Transferring | State::Joining { .. } => {
                let entries = self.appended;
                out.push(self.say(Message::Goodbye(Goodbye::Ended { entries })));
                self.end_transfer(now, out);
            }
            State::Waiting
            | State::Claiming(_)
            | State::Preparing
            | State::Protected
            | State::Asking(_)
            | State::HandingOver { .. }
            | State::HandedOver
            | State::Stopped(_) => {}
        }
    }

    fn on_stop_requested(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Waiting | State::Claiming(_) | State::Preparing => {
                if self.link.is_up() {
                    out.push(self.say(Message::Goodbye(Goodbye::Operator)));
                }
                self.stop(StopReason::Operator, out);
            }
            State::Protected | State::Unprotected | State::Transferring | State::Joining { .. } => {
                out.push(Action::StopGuest);
            }
            // The guest stands still.
            State::HandingOver { .. } => self.stop_requested = true,
            State::Asking(_) if self.switch.has_handed_over() => self.stop_requested = true,
            State::Asking(_) => out.push(Action::StopGuest),
            State::HandedOver | State::Stopped(_) => {}
        }
    }

    fn stop(&mut self, reason: StopReason, out: &mut Vec<Action>) {
        if self.link.close() {
            out.push(Action::Disconnect);
        }
        out.push(Action::Stop(reason.clone()));
        self.state = State::Stopped(reason);
    }

    fn on_time(&mut self, now: u64, out: &mut Vec<Action>) {
        if let State::Claiming(election) | State::Asking(election) = &mut self.state {
            out.extend(election.on_time(now).map(Action::Ask));
        }
        match self.state {
            // The next heartbeat is a backup's.
            State::HandedOver => return,
            State::HandingOver { until } if now >= until => self.lose_link(now, Suspicion::NotTaken, out),
            State::Joining { .. } => self.admit_if_left(now, out),
            State::HandingOver { .. }
            | State::Waiting
            | State::Claiming(_)
            | State::Preparing
            | State::Protected
            | State::Asking(_)
            | State::Unprotected
            | State::Transferring
            | State::Stopped(_) => {}
        }
        if self.link.beat(now, self.settings.heartbeat_ns) {
            let (guest_clock_ns, released) = (self.guest_clock_ns, self.released());
            out.push(self.say(Message::Heartbeat { stamp: now, guest_clock_ns, released }));
        }
        if self.state == State::Protected {
            self.flow.set_lapsed(self.lease.has_lapsed(now));
            self.flow.stall_or_resume(out);
            self.finish_if_done(now, out);
        }
    }

    /// When to call [`on`](Self::on) with [`Input::Tick`] at the latest, ns.
    pub fn next_deadline(&self) -> Option<u64> {
        let other = match &self.state {
            State::Claiming(election) | State::Asking(election) => election.deadline(),
            State::Joining { patience_ends } => *patience_ends,
            State::HandingOver { until } => Some(*until),
            State::HandedOver => return None,
            State::Waiting
            | State::Preparing
            | State::Protected
            | State::Unprotected
            | State::Transferring
            | State::Stopped(_) => None,
        };
        [self.link.deadline(self.settings.timeout_ns), other].into_iter().flatten().min()
    }
}
