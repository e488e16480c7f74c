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
//! With `start_alone` it goes from Claiming straight to Unprotected. A second backup that comes later is
//! refused in Unprotected: that is where state transfer will begin.

use super::election::{Answer, Election, Outcome, Question};
use super::flow::Flow;
use super::lease::Lease;
use super::link::{Link, Phase};
use super::message::{self, Goodbye, Hello, Message, Refusal, Role};
use super::{Identity, Settings, StopReason, Suspicion, Violation};
use crate::machine::instant::Instant;
use std::sync::Arc;

mod figures;

/// What happens to a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Once, before anything else.
    Start,
    /// Time has passed.
    Tick {
        /// The guest's clock, ns.
        guest_clock_ns: u64,
    },
    /// A backup has connected. The driver keeps one connection at a time, refuses others as
    /// [`Refusal::Busy`], and after [`Action::Disconnect`] passes on nothing more from the old one.
    Connected,
    /// The backup closed the connection, or the network did.
    Disconnected,
    /// Part of a message has arrived: a sign of life.
    Heard,
    /// A message has arrived.
    Received(Message),
    /// The vCPU has appended entries to the log. Their bytes are the bulk of the message that comes of it.
    Appended {
        /// How many.
        entries: u32,
        /// Bytes they take.
        bytes: u32,
    },
    /// The vCPU publishes its horizon: after the first `entries` entries none follows up to and including `at`.
    Horizon {
        /// Entries there are.
        entries: u64,
        /// The guest may run to here.
        at: Instant,
    },
    /// Outputs of entries below this number have been handed to what carries them away, as far as they were queued by now
    /// (`u64::MAX`: nobody needs to know). What was released may wait for its lease, and does not count before it has left.
    Left {
        /// The first number that has not.
        below: u64,
    },
    /// The guest has ended; its last entry has been appended and its last output queued.
    GuestEnded,
    /// The arbiter has answered the question asked last.
    Arbiter(Answer),
    /// The operator wants the machine to stop.
    StopRequested,
}

/// What a primary does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send this; the bulk of `Boot` is the VM's boot, that of `Entries` what the input appended.
    Send(Message),
    /// Close the connection after what was sent has left; forget what it still delivers.
    Disconnect,
    /// Let the guest run.
    StartGuest,
    /// What is released may leave before `until_ns` on the clock that `on` is given, and not later (`u64::MAX`: at any time). Whoever lets an output
    /// out looks at that clock first, for the process may have been stopped meanwhile; what came too late waits for the next `Release`.
    Lease {
        /// The end of the lease, ns.
        until_ns: u64,
    },
    /// Let the outputs of entries below this number leave (`u64::MAX`: all, now and later).
    Release {
        /// The first number that still waits.
        below: u64,
    },
    /// Let nothing leave until the next `Release`, not even what was released and has not left.
    Hold,
    /// Stall the vCPU: too much of the log is under way.
    Stall,
    /// Let the vCPU go on.
    Resume,
    /// Slow the vCPU down.
    SlowDown {
        /// By this much of its full speed.
        per_mille: u16,
    },
    /// Ask the arbiter; answer with [`Input::Arbiter`], if need be with [`Answer::Unreachable`].
    Ask(Question),
    /// Deliver the stop event to the guest; [`Input::GuestEnded`] follows.
    StopGuest,
    /// For the log of the process: the backup is given up, and why.
    Suspect(Suspicion),
    /// The end: stop the guest, drop every held output, say why.
    Stop(StopReason),
}

/// Where a primary stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// No backup yet; the guest has not started.
    Waiting,
    /// Winning the VM's first generation. The guest has not started.
    Claiming(Election),
    /// The backup gets the boot. The guest has not started.
    Preparing,
    /// The guest runs; outputs leave when acknowledged.
    Protected,
    /// The backup is given up and the arbiter asked; no output leaves.
    Asking(Election),
    /// The guest runs without a backup; outputs leave at once.
    Unprotected,
    /// The end.
    Stopped(StopReason),
}

impl State {
    /// The state's name, for `status`.
    pub fn name(&self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Claiming(_) => "claiming",
            State::Preparing => "preparing",
            State::Protected => "protected",
            State::Asking(_) => "asking",
            State::Unprotected => "unprotected",
            State::Stopped(_) => "stopped",
        }
    }
}

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
    lease: Lease,
    /// Outputs of entries below this number have left, by what [`Input::Left`] said.
    left: u64,
    flow: Flow,
    ended: bool,
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
            lease: Lease::default(),
            left: 0,
            flow: Flow::new(&settings),
            ended: false,
            patience_ends: None,
        }
    }

    /// Takes one input at `now` (ns of a local clock that never goes back and also runs while the host sleeps) and appends what is to be done, in order.
    pub fn on(&mut self, now: u64, input: Input, out: &mut Vec<Action>) {
        if let State::Stopped(_) = self.state {
            return;
        }
        // Before the input is looked at: a process that slept must not act on what waited for it.
        if let Some(silence_ns) = self.link.silence(now, self.settings.timeout_ns) {
            self.lose_link(Suspicion::Silence { silence_ns }, out);
        }
        match input {
            Input::Start => self.on_start(out),
            Input::Tick { guest_clock_ns } => self.guest_clock_ns = guest_clock_ns,
            Input::Connected => {
                self.on_disconnected(out);
                self.link.open(now);
            }
            Input::Disconnected => self.on_disconnected(out),
            Input::Heard => self.link.heard(now),
            Input::Received(message) => {
                if self.link.is_up() {
                    self.link.heard(now);
                    self.on_message(now, message, out);
                }
            }
            Input::Appended { entries, bytes } => self.on_appended(now, entries, bytes, out),
            Input::Horizon { entries, at } => self.on_horizon(now, entries, at, out),
            Input::Left { below } => {
                // The vCPU thread appends an entry first and queues its output then; when it has appended the next one, it has.
                let newest = self.appended.saturating_sub(1);
                let queued = if self.ended || below == u64::MAX { below } else { below.min(newest) };
                self.left = self.left.max(queued);
                self.finish_if_done(now, out);
            }
            Input::GuestEnded => {
                self.ended = true;
                self.finish_if_done(now, out);
            }
            Input::Arbiter(answer) => self.on_answer(now, answer, out),
            Input::StopRequested => self.on_stop_requested(out),
        }
        self.on_time(now, out);
    }

    fn on_disconnected(&mut self, out: &mut Vec<Action>) {
        if self.link.is_up() {
            self.lose_link(Suspicion::Closed, out);
        }
    }

    fn on_start(&mut self, out: &mut Vec<Action>) {
        self.flow.reserve();
        if self.settings.start_alone {
            self.claim_first(out);
        }
    }

    fn claim_first(&mut self, out: &mut Vec<Action>) {
        let (election, question) = Election::first();
        self.state = State::Claiming(election);
        out.push(Action::Ask(question));
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
            (Message::Welcome { generation }, State::Preparing) => self.on_welcome(generation, out),
            (Message::Diverged { entry, text }, _) => self.lose_link(Suspicion::Diverged { entry, text }, out),
            (Message::Refuse(refusal), _) => self.lose_link(Suspicion::Refused(*refusal), out),
            (Message::Goodbye(goodbye), _) => self.lose_link(Suspicion::Left(goodbye), out),
            (
                Message::Hello(_)
                | Message::OtherVersion { .. }
                | Message::Welcome { .. }
                | Message::Boot
                | Message::Entries { .. }
                | Message::Horizon { .. }
                | Message::Ack { .. },
                _,
            ) => self.lose_link(Suspicion::Violation(Violation::Unexpected(kind)), out),
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
            State::Claiming(_) | State::Unprotected => self.refuse(Refusal::Unprotected, out),
            State::Preparing | State::Protected | State::Asking(_) => self.refuse(Refusal::Busy, out),
            State::Stopped(_) => {}
        }
    }

    /// The connection is not wanted; the state stays what it is.
    fn refuse(&mut self, refusal: Refusal, out: &mut Vec<Action>) {
        out.push(Action::Send(Message::Refuse(Box::new(refusal))));
        out.push(Action::Disconnect);
        self.link.close();
    }

    fn prepare(&mut self, out: &mut Vec<Action>) {
        let hello = Hello::new(Role::Primary, &self.me, &self.settings, self.generation);
        out.push(Action::Send(Message::Hello(Box::new(hello))));
        out.push(Action::Send(Message::Boot));
        self.state = State::Preparing;
    }

    fn on_welcome(&mut self, generation: u64, out: &mut Vec<Action>) {
        if generation != self.generation {
            let violation = Violation::Generation { expected: self.generation, found: generation };
            return self.lose_link(Suspicion::Violation(violation), out);
        }
        // From here on the guest may have run, and only the arbiter lets this side go on alone. The backup
        // asks only after it has this welcome: until then it knows that nothing has left.
        self.state = State::Protected;
        out.push(Action::Send(Message::Welcome { generation }));
        out.push(Action::StartGuest);
    }

    fn on_appended(&mut self, now: u64, entries: u32, bytes: u32, out: &mut Vec<Action>) {
        let first = self.appended;
        match self.state {
            State::Protected | State::Asking(_) => {
                self.appended += u64::from(entries);
                let stamp = self.next_stamp(now);
                self.flow.entries(self.appended, stamp, bytes.into());
                if self.state == State::Protected {
                    let released = self.released();
                    out.push(Action::Send(Message::Entries { first, count: entries, bytes, stamp, released }));
                }
                self.flow.stall_or_resume(out);
            }
            State::Unprotected => self.appended += u64::from(entries),
            // No guest has started, or none should run any more.
            State::Waiting | State::Claiming(_) | State::Preparing | State::Stopped(_) => {}
        }
    }

    fn on_horizon(&mut self, now: u64, entries: u64, at: Instant, out: &mut Vec<Action>) {
        // One that was overtaken by entries allows nothing that these do not.
        if self.state == State::Protected && entries == self.appended {
            let stamp = self.next_stamp(now);
            self.flow.horizon(stamp);
            let released = self.released();
            out.push(Action::Send(Message::Horizon { entries, at, stamp, released }));
        }
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
            return self.lose_link(Suspicion::Violation(violation), out);
        }
        let lapsed = self.lease.has_lapsed(now);
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
        self.finish_if_done(now, out);
    }

    /// Outputs of entries below this number have left.
    fn released(&self) -> u64 {
        self.left.min(self.acked)
    }

    /// The connection is no use any more. What that means depends on whether the guest has started.
    fn lose_link(&mut self, suspicion: Suspicion, out: &mut Vec<Action>) {
        self.link.close();
        if self.state == State::Protected {
            // In this order: a backup that finds the connection closed may be live a moment later.
            out.push(Action::Hold);
        }
        if suspicion != Suspicion::Closed {
            out.push(Action::Disconnect);
        }
        match self.state {
            State::Protected => {
                out.push(Action::Suspect(suspicion));
                let (election, question) = Election::after(self.generation);
                self.state = State::Asking(election);
                out.push(Action::Ask(question));
            }
            State::Preparing => {
                out.push(Action::Suspect(suspicion));
                self.state = State::Waiting;
                self.peer = None;
            }
            State::Claiming(_) => self.peer = None,
            State::Waiting | State::Asking(_) | State::Unprotected | State::Stopped(_) => {}
        }
    }

    fn on_answer(&mut self, now: u64, answer: Answer, out: &mut Vec<Action>) {
        let (State::Claiming(election) | State::Asking(election)) = &mut self.state else { return };
        match election.on_answer(now, answer, self.settings.retry_ns) {
            Outcome::Ask(question) => out.push(Action::Ask(question)),
            Outcome::Won(generation) => self.on_won(now, generation, out),
            Outcome::Lost { generation, holder } => self.stop(StopReason::Lost { generation, holder }, out),
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
            State::Waiting | State::Preparing | State::Protected | State::Unprotected | State::Stopped(_) => {}
        }
    }

    fn go_on_alone(&mut self, now: u64, out: &mut Vec<Action>) {
        self.state = State::Unprotected;
        out.push(Action::Lease { until_ns: u64::MAX });
        out.push(Action::Release { below: u64::MAX });
        self.flow.end(out);
        self.finish_if_done(now, out);
    }

    /// After the guest's end, once everything it put out has left.
    fn finish_if_done(&mut self, now: u64, out: &mut Vec<Action>) {
        if !self.ended {
            return;
        }
        match self.state {
            State::Protected if self.acked == self.appended => {
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
                    out.push(Action::Send(Message::Goodbye(Goodbye::Ended { entries })));
                    self.stop(StopReason::Ended, out);
                }
            }
            State::Unprotected => self.stop(StopReason::Ended, out),
            State::Waiting
            | State::Claiming(_)
            | State::Preparing
            | State::Protected
            | State::Asking(_)
            | State::Stopped(_) => {}
        }
    }

    fn on_stop_requested(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Waiting | State::Claiming(_) | State::Preparing => {
                if self.link.is_up() {
                    out.push(Action::Send(Message::Goodbye(Goodbye::Operator)));
                }
                self.stop(StopReason::Operator, out);
            }
            State::Protected | State::Asking(_) | State::Unprotected => out.push(Action::StopGuest),
            State::Stopped(_) => {}
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
        if self.link.beat(now, self.settings.heartbeat_ns) {
            let (guest_clock_ns, released) = (self.guest_clock_ns, self.released());
            out.push(Action::Send(Message::Heartbeat { stamp: now, guest_clock_ns, released }));
        }
        if self.state == State::Protected {
            self.flow.set_lapsed(self.lease.has_lapsed(now));
            self.flow.stall_or_resume(out);
            self.finish_if_done(now, out);
        }
    }

    /// When to call [`on`](Self::on) with [`Input::Tick`] at the latest, ns.
    pub fn next_deadline(&self) -> Option<u64> {
        let asking = match &self.state {
            State::Claiming(election) | State::Asking(election) => election.deadline(),
            State::Waiting | State::Preparing | State::Protected | State::Unprotected | State::Stopped(_) => None,
        };
        [self.link.deadline(self.settings.timeout_ns), asking].into_iter().flatten().min()
    }
}
