//! The backup: it takes the log, acknowledges it at once, replays it, and lives on when the primary dies.
//!
//! ```text
//!               primary's hello         loaded         primary's welcome         suspicion        won g+1
//!  Connecting ------------------> Loading -----> Ready -----------------> Following --------> Asking -------> GoingLive
//!    ^  |  refused                   | lost link   |                         | goodbye          | lost            | went live
//!    |  +--> Stopped                 |             |                         v                  v                 v
//!    +-------------------------------+-------------+                     Finishing --------> Stopped             Live
//! ```
//!
//! Up to Ready nothing has left the primary, so a backup that loses its primary there only connects again.
//! From Following on it may be the survivor. The gate for acknowledgements is the connection: a suspicion
//! drops it *before* the arbiter is asked, and nothing is ever acknowledged again.

use super::election::{Answer, Election, Outcome, Question};
use super::link::{Link, Phase};
use super::message::{self, Goodbye, Hello, Message, Refusal, Role};
use super::{Identity, Settings, StopReason, Suspicion, Violation};
use crate::machine::instant::Instant;
use std::sync::Arc;

mod figures;

/// What happens to a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Once, before anything else.
    Start,
    /// Time has passed.
    Tick,
    /// The connection asked for stands.
    Connected,
    /// The connection asked for cannot be made, was closed, or broke.
    Disconnected,
    /// Part of a message has arrived: a sign of life.
    Heard,
    /// A message has arrived.
    Received(Message),
    /// The machine that the last [`Action::Load`] asked for stands at its boot.
    Loaded,
    /// The vCPU has got on. Neither value ever decreases.
    Executed {
        /// Entries it has passed.
        entries: u64,
        /// Stamp of the newest frame whose entries or horizon it has passed.
        stamp: u64,
    },
    /// The vCPU is not where the log is; it has stopped.
    Diverged {
        /// The entry that was not met.
        entry: u64,
        /// The first difference, for people; cut at [`message::MAX_TEXT`] bytes.
        text: Box<str>,
    },
    /// After [`Action::GoLive`]: the vCPU has passed every received entry, and the world stands at its doors.
    WentLive,
    /// The guest has ended, in replay or live.
    GuestEnded,
    /// The arbiter has answered the question asked last.
    Arbiter(Answer),
    /// The operator wants this side to stop.
    StopRequested,
}

/// What a backup does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Connect to the primary; answer with `Connected` or `Disconnected`. A machine that was loaded, or
    /// is being loaded, is forgotten.
    Connect,
    /// Send this.
    Send(Message),
    /// Close the connection after what was sent has left; forget what it still delivers.
    Disconnect,
    /// Build the machine from the bulk of the message just given; answer with [`Input::Loaded`].
    Load,
    /// Give the bulk of the message just given to the vCPU for replay.
    Replay {
        /// Number of the first entry.
        first: u64,
        /// How many.
        count: u32,
        /// Stamp of the frame, for [`Input::Executed`].
        stamp: u64,
    },
    /// The vCPU may run to `at` once it has passed `entries` entries.
    RunTo {
        /// Entries before the horizon.
        entries: u64,
        /// The horizon.
        at: Instant,
        /// Stamp of the frame, for [`Input::Executed`].
        stamp: u64,
    },
    /// Outputs of entries below this number have left the primary: going live need not repeat them. Only ever more.
    Left {
        /// The first number that may not have.
        below: u64,
    },
    /// Ask the arbiter; answer with [`Input::Arbiter`], if need be with [`Answer::Unreachable`].
    Ask(Question),
    /// Let the vCPU pass every received entry, then put the world at its doors; answer with [`Input::WentLive`].
    GoLive {
        /// The generation won.
        generation: u64,
        /// Entries of the history this side goes on from.
        entries: u64,
    },
    /// Let the outputs of entries below this number leave. Always `u64::MAX` here: all, those of the replayed
    /// history as well, which may or may not have left the primary.
    Release {
        /// The first number that still waits.
        below: u64,
    },
    /// Deliver the stop event to the guest; [`Input::GuestEnded`] follows.
    StopGuest,
    /// For the log of the process: the primary is given up, and why.
    Suspect(Suspicion),
    /// The end: stop the machine, say why.
    Stop(StopReason),
}

/// Where a backup stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Looking for its primary, or waiting for the primary's hello.
    Connecting {
        /// When to connect again, ns; `None` while a connection is being made or stands.
        again_at: Option<u64>,
    },
    /// The boot is awaited, or the machine is being built from it.
    Loading,
    /// The machine stands at its boot; the guest may not have started.
    Ready,
    /// The guest runs; this side replays.
    Following,
    /// The guest has ended and all its output has left; this side replays to the end.
    Finishing,
    /// The primary is given up and the arbiter asked; nothing is acknowledged.
    Asking(Election),
    /// Won; the vCPU passes what was received.
    GoingLive,
    /// The guest runs here, unprotected.
    Live,
    /// The end.
    Stopped(StopReason),
}

impl State {
    /// The state's name, for `status`.
    pub fn name(&self) -> &'static str {
        match self {
            State::Connecting { .. } => "connecting",
            State::Loading => "loading",
            State::Ready => "ready",
            State::Following => "following",
            State::Finishing => "finishing",
            State::Asking(_) => "asking",
            State::GoingLive => "going live",
            State::Live => "live",
            State::Stopped(_) => "stopped",
        }
    }
}

/// The backup's state machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Backup {
    me: Arc<Identity>,
    /// Heartbeat and time-out are the primary's from its hello on.
    settings: Settings,
    state: State,
    link: Link,
    /// The pair's, then the one won; 0 before the primary's hello.
    generation: u64,
    peer: Option<Arc<Hello>>,
    guest_clock_ns: u64,
    /// Entries in memory.
    received: u64,
    /// Entries passed, and the newest stamp passed.
    executed: u64,
    executed_stamp: u64,
    /// Newest stamp received.
    received_stamp: u64,
    /// Outputs of entries below this number have left the primary.
    left: u64,
    /// Whether the primary knows what has been executed.
    told: bool,
    ended: bool,
}

impl Backup {
    /// A backup that has done nothing yet.
    pub fn new(me: Identity, settings: Settings) -> Self {
        Backup {
            me: Arc::new(me),
            settings,
            state: State::Connecting { again_at: None },
            link: Link::down(),
            generation: 0,
            peer: None,
            guest_clock_ns: 0,
            received: 0,
            executed: 0,
            executed_stamp: 0,
            received_stamp: 0,
            left: 0,
            told: true,
            ended: false,
        }
    }

    /// Takes one input at `now` (ns of a local clock that never goes back and also runs while the host sleeps) and appends what is to be done, in order.
    pub fn on(&mut self, now: u64, input: Input, out: &mut Vec<Action>) {
        if let State::Stopped(_) = self.state {
            return;
        }
        // Before the input is looked at: a process that slept must not act on what waited for it.
        if let Some(silence_ns) = self.link.silence(now, self.settings.timeout_ns) {
            self.lose_link(now, Suspicion::Silence { silence_ns }, out);
        }
        match input {
            Input::Start => out.push(Action::Connect),
            Input::Tick => {}
            Input::Connected => self.on_connected(now, out),
            Input::Disconnected => self.on_disconnected(now, out),
            Input::Heard => self.link.heard(now),
            Input::Received(message) => {
                if self.link.is_up() {
                    self.link.heard(now);
                    self.on_message(now, message, out);
                }
            }
            Input::Loaded => {
                if self.state == State::Loading {
                    self.state = State::Ready;
                    out.push(Action::Send(Message::Welcome { generation: self.generation }));
                }
            }
            Input::Executed { entries, stamp } => {
                self.executed = self.executed.max(entries).min(self.received);
                self.executed_stamp = self.executed_stamp.max(stamp);
                self.told = false;
            }
            Input::Diverged { entry, text } => self.on_diverged(entry, &text, out),
            Input::WentLive => self.on_went_live(out),
            Input::GuestEnded => {
                self.ended = true;
                self.finish_if_done(out);
            }
            Input::Arbiter(answer) => self.on_answer(now, answer, out),
            Input::StopRequested => self.on_stop_requested(out),
        }
        self.on_time(now, out);
    }

    fn on_connected(&mut self, now: u64, out: &mut Vec<Action>) {
        match self.state {
            State::Connecting { again_at: None } if !self.link.is_up() => {
                self.link.open(now);
                let hello = Hello::new(Role::Backup, &self.me, &self.settings, 0);
                out.push(Action::Send(Message::Hello(Box::new(hello))));
                // The primary may take its time: it has a generation to win first.
                self.link.greet(now);
            }
            // Not asked for: the driver connects on `Connect` only, and once.
            State::Connecting { .. }
            | State::Loading
            | State::Ready
            | State::Following
            | State::Finishing
            | State::Asking(_)
            | State::GoingLive
            | State::Live
            | State::Stopped(_) => {}
        }
    }

    fn on_disconnected(&mut self, now: u64, out: &mut Vec<Action>) {
        let attempt_failed = self.state == State::Connecting { again_at: None };
        if self.link.is_up() || attempt_failed {
            self.lose_link(now, Suspicion::Closed, out);
        }
    }

    fn on_message(&mut self, now: u64, message: Message, out: &mut Vec<Action>) {
        let kind = message.kind();
        if let Message::Entries { stamp, released, .. }
        | Message::Horizon { stamp, released, .. }
        | Message::Heartbeat { stamp, released, .. } = message
        {
            if released > self.received {
                let violation = Violation::Released { released, acknowledged: self.received };
                return self.lose_link(now, Suspicion::Violation(violation), out);
            }
            self.received_stamp = self.received_stamp.max(stamp);
            if released > self.left {
                self.left = released;
                out.push(Action::Left { below: released });
            }
        }
        match (message, &self.state) {
            (Message::Entries { first, count, stamp, .. }, State::Following) => {
                self.on_entries(now, first, count, stamp, out);
            }
            (Message::Horizon { entries, at, stamp, .. }, State::Following) => {
                if entries == self.received {
                    out.push(Action::RunTo { entries, at, stamp });
                } else {
                    let violation = Violation::Gap { expected: self.received, found: entries };
                    self.lose_link(now, Suspicion::Violation(violation), out);
                }
            }
            (Message::Heartbeat { guest_clock_ns, .. }, state) => {
                self.link.heartbeats.0 += 1;
                self.guest_clock_ns = self.guest_clock_ns.max(guest_clock_ns);
                if *state == State::Following {
                    // At once: it renews the primary's lease.
                    self.send_ack(out);
                }
            }
            (Message::Hello(hello), State::Connecting { .. }) => self.on_hello(hello, out),
            (Message::OtherVersion { version }, State::Connecting { .. }) => {
                self.refuse(Refusal::Version { ours: message::VERSION, theirs: version }, out);
            }
            (Message::Boot, State::Loading) => out.push(Action::Load),
            (Message::Welcome { generation }, State::Ready) if generation == self.generation => {
                self.state = State::Following;
            }
            (Message::Refuse(refusal), State::Connecting { .. }) if *refusal != Refusal::Busy => {
                self.stop(StopReason::Refused(*refusal), out);
            }
            (Message::Refuse(refusal), _) => self.lose_link(now, Suspicion::Refused(*refusal), out),
            (Message::Goodbye(Goodbye::Ended { entries }), State::Following) if entries == self.received => {
                self.state = State::Finishing;
                self.link.close();
                out.push(Action::Disconnect);
                self.finish_if_done(out);
            }
            (Message::Goodbye(goodbye), _) => self.lose_link(now, Suspicion::Left(goodbye), out),
            (
                Message::Hello(_)
                | Message::OtherVersion { .. }
                | Message::Welcome { .. }
                | Message::Boot
                | Message::Entries { .. }
                | Message::Horizon { .. }
                | Message::Ack { .. }
                | Message::Diverged { .. },
                _,
            ) => self.lose_link(now, Suspicion::Violation(Violation::Unexpected(kind)), out),
        }
    }

    fn on_hello(&mut self, hello: Box<Hello>, out: &mut Vec<Action>) {
        if let Some(refusal) = hello.mismatch(&self.me, Role::Primary) {
            return self.refuse(refusal, out);
        }
        self.settings.heartbeat_ns = hello.heartbeat_ns;
        self.settings.timeout_ns = hello.timeout_ns;
        self.generation = hello.generation;
        self.peer = Some(Arc::from(hello));
        self.state = State::Loading;
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Vec<Action>) {
        out.push(Action::Send(Message::Refuse(Box::new(refusal.clone()))));
        self.stop(StopReason::Mismatch(refusal), out);
    }

    fn on_entries(&mut self, now: u64, first: u64, count: u32, stamp: u64, out: &mut Vec<Action>) {
        if first != self.received {
            let violation = Violation::Gap { expected: self.received, found: first };
            return self.lose_link(now, Suspicion::Violation(violation), out);
        }
        self.received += u64::from(count);
        // In this order: what is acknowledged is where the vCPU will replay it.
        out.push(Action::Replay { first, count, stamp });
        self.send_ack(out);
    }

    fn send_ack(&mut self, out: &mut Vec<Action>) {
        let (received, executed) = (self.received, self.executed);
        let (executed_stamp, received_stamp) = (self.executed_stamp, self.received_stamp);
        out.push(Action::Send(Message::Ack { received, executed, executed_stamp, received_stamp }));
        self.told = true;
    }

    /// The connection is no use any more. Shuts the gate for acknowledgements, then does what the state asks for.
    fn lose_link(&mut self, now: u64, suspicion: Suspicion, out: &mut Vec<Action>) {
        self.link.close();
        if suspicion != Suspicion::Closed {
            out.push(Action::Disconnect);
        }
        match self.state {
            State::Following => {
                out.push(Action::Suspect(suspicion));
                let (election, question) = Election::after(self.generation);
                self.state = State::Asking(election);
                out.push(Action::Ask(question));
            }
            State::Connecting { .. } | State::Loading | State::Ready => {
                out.push(Action::Suspect(suspicion));
                self.state = State::Connecting { again_at: Some(now.saturating_add(self.settings.retry_ns)) };
                self.peer = None;
                self.generation = 0;
                self.received_stamp = 0;
            }
            State::Finishing | State::Asking(_) | State::GoingLive | State::Live | State::Stopped(_) => {}
        }
    }

    fn on_diverged(&mut self, entry: u64, text: &str, out: &mut Vec<Action>) {
        let text: Box<str> = message::clip(text).into();
        if self.link.phase() == Phase::Greeted {
            out.push(Action::Send(Message::Diverged { entry, text: text.clone() }));
        }
        self.stop(StopReason::Diverged { entry, text }, out);
    }

    fn on_answer(&mut self, now: u64, answer: Answer, out: &mut Vec<Action>) {
        let State::Asking(election) = &mut self.state else { return };
        match election.on_answer(now, answer, self.settings.retry_ns) {
            Outcome::Ask(question) => out.push(Action::Ask(question)),
            Outcome::Won(generation) => {
                self.generation = generation;
                self.state = State::GoingLive;
                out.push(Action::GoLive { generation, entries: self.received });
            }
            Outcome::Lost { generation, holder } => self.stop(StopReason::Lost { generation, holder }, out),
            Outcome::Pending => {}
        }
    }

    fn on_went_live(&mut self, out: &mut Vec<Action>) {
        if self.state == State::GoingLive {
            self.state = State::Live;
            out.push(Action::Release { below: u64::MAX });
            self.finish_if_done(out);
        }
    }

    fn finish_if_done(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Finishing | State::Live if self.ended => self.stop(StopReason::Ended, out),
            // Following: only the primary knows whether all has left, so its goodbye or its death is awaited.
            State::Connecting { .. }
            | State::Loading
            | State::Ready
            | State::Following
            | State::Finishing
            | State::Asking(_)
            | State::GoingLive
            | State::Live
            | State::Stopped(_) => {}
        }
    }

    fn on_stop_requested(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::GoingLive | State::Live => out.push(Action::StopGuest),
            State::Connecting { .. }
            | State::Loading
            | State::Ready
            | State::Following
            | State::Finishing
            | State::Asking(_) => {
                if self.link.phase() == Phase::Greeted {
                    out.push(Action::Send(Message::Goodbye(Goodbye::Operator)));
                }
                self.stop(StopReason::Operator, out);
            }
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
        match &mut self.state {
            State::Connecting { again_at } => {
                out.extend(again_at.take_if(|at| *at <= now).map(|_| Action::Connect));
            }
            State::Asking(election) => out.extend(election.on_time(now).map(Action::Ask)),
            State::Loading
            | State::Ready
            | State::Following
            | State::Finishing
            | State::GoingLive
            | State::Live
            | State::Stopped(_) => {}
        }
        if self.link.beat(now, self.settings.heartbeat_ns) {
            let (guest_clock_ns, released) = (self.guest_clock_ns, self.left);
            out.push(Action::Send(Message::Heartbeat { stamp: now, guest_clock_ns, released }));
            if self.state == State::Following && !self.told {
                self.send_ack(out);
            }
        }
    }

    /// When to call [`on`](Self::on) with [`Input::Tick`] at the latest, ns.
    pub fn next_deadline(&self) -> Option<u64> {
        let again_at = match &self.state {
            State::Connecting { again_at } => *again_at,
            State::Asking(election) => election.deadline(),
            State::Loading
            | State::Ready
            | State::Following
            | State::Finishing
            | State::GoingLive
            | State::Live
            | State::Stopped(_) => None,
        };
        [self.link.deadline(self.settings.timeout_ns), again_at].into_iter().flatten().min()
    }
}
