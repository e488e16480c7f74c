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

use super::election::{Answer, Election, Outcome};
use super::fence::Fence;
use super::heritage::Heritage;
use super::link::{Link, Phase};
use super::message::{self, Envelope, Goodbye, Hello, Kind, Message, Refusal, Role};
use super::{Identity, Settings, StopReason, Suspicion, Violation};
use std::sync::Arc;

mod figures;
mod taking;
mod terms;

pub use terms::{Action, Input, State};

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
    /// The primary has handed over: the generation after its own is won for a pair, in which it is the backup.
    handover: bool,
    /// Stamp of the `Took` that was sent; 0: none.
    took_stamp: u64,
    /// The operator wanted the machine to stop while the roles changed.
    stop_requested: bool,
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
            handover: false,
            took_stamp: 0,
            stop_requested: false,
        }
    }

    /// Takes one input at `now` (ns of a local clock that never goes back and also runs while the host sleeps) and appends what is to be done, in order.
    pub fn on(&mut self, now: u64, input: Input, out: &mut Vec<Action>) {
        // A primary has taken this machine's place.
        if matches!(self.state, State::Live | State::Stopped(_)) {
            return;
        }
        // Before the input is looked at: a process that slept must not act on what waited for it.
        if let Some(silence_ns) = self.link.silence(now, self.settings.timeout_ns) {
            self.lose_link(now, Suspicion::Silence { silence_ns }, out);
        }
        match input {
            Input::Start => self.on_start(out),
            Input::Tick => {}
            Input::Connected => self.on_connected(now, out),
            Input::Disconnected => self.on_disconnected(now, out),
            Input::Heard => self.link.heard(now),
            Input::Received(envelope) => self.on_received(now, envelope, out),
            Input::Loaded => {
                if matches!(self.state, State::Loading | State::Restoring) {
                    self.state = State::Ready;
                    out.push(self.say(Message::Welcome));
                }
            }
            Input::Executed { entries, stamp } => self.on_executed(entries, stamp),
            Input::Diverged { entry, text } => self.on_diverged(entry, &text, out),
            Input::WentLive => self.on_went_live(now, out),
            Input::GuestEnded => {
                self.ended = self.has_machine();
                self.finish_if_done(out);
            }
            Input::Arbiter(answer) => self.on_answer(now, answer, out),
            Input::StopRequested => self.on_stop_requested(out),
        }
        self.on_time(now, out);
    }

    fn on_start(&mut self, out: &mut Vec<Action>) {
        if self.state != State::Following {
            return out.push(Action::Connect);
        }
        // The old primary, just now: the new one lets nothing out before it knows that this side is its backup.
        self.send_ack(out);
        if self.stop_requested {
            self.on_stop_requested(out);
        }
    }

    /// Whether there is a machine whose log this is. One that is forgotten may still be heard of.
    fn has_machine(&self) -> bool {
        match self.state {
            State::Connecting { .. } | State::Loading | State::Receiving | State::Restoring | State::Stopped(_) => {
                false
            }
            State::Ready
            | State::Following
            | State::Finishing
            | State::Taking(_)
            | State::Asking(_)
            | State::GoingLive
            | State::Live => true,
        }
    }

    fn on_executed(&mut self, entries: u64, stamp: u64) {
        if self.has_machine() {
            self.executed = self.executed.max(entries).min(self.received);
            self.executed_stamp = self.executed_stamp.max(stamp);
            self.told = false;
        }
    }

    fn on_connected(&mut self, now: u64, out: &mut Vec<Action>) {
        match self.state {
            State::Connecting { again_at: None } if !self.link.is_up() => {
                self.link.open(now, Fence::Unknown);
                let hello = Hello::new(Role::Backup, &self.me, &self.settings);
                out.push(self.say(Message::Hello(Box::new(hello))));
                // The primary may take its time: it has a generation to win first.
                self.link.greet(now);
            }
            // Not asked for: the driver connects on `Connect` only, and once.
            State::Connecting { .. }
            | State::Loading
            | State::Receiving
            | State::Restoring
            | State::Ready
            | State::Following
            | State::Finishing
            | State::Taking(_)
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

    /// Whether a message of this kind and generation may come. What comes beside the others is not to be looked at.
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
                self.on_message(now, generation, message, out);
            }
            Err(violation) => self.lose_link(now, Suspicion::Violation(violation), out),
        }
    }

    /// This, for the generation that this side holds or shares.
    fn say(&self, message: Message) -> Action {
        Action::Send(Envelope { generation: self.generation, message })
    }

    fn on_message(&mut self, now: u64, generation: u64, message: Message, out: &mut Vec<Action>) {
        let kind = message.kind();
        if let Message::Entries { stamp, released, .. }
        | Message::Horizon { stamp, released, .. }
        | Message::Heartbeat { stamp, released, .. } = message
        {
            if !self.have_left(now, released, out) {
                return;
            }
            self.received_stamp = self.received_stamp.max(stamp);
        }
        match (message, &self.state) {
            (Message::Entries { first, count, stamp, .. }, State::Restoring | State::Ready | State::Following) => {
                self.on_entries(now, first, count, stamp, out)
            }
            (Message::Horizon { entries, at, stamp, .. }, State::Restoring | State::Ready | State::Following) => {
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
            (Message::Hello(hello), State::Connecting { .. }) => self.on_hello(now, generation, hello, out),
            (Message::OtherVersion { version }, State::Connecting { .. }) => {
                self.refuse(Refusal::Version { ours: message::VERSION, theirs: version }, out);
            }
            (Message::Boot, State::Loading) => out.push(Action::Load),
            (Message::Transfer, State::Loading) => {
                self.state = State::Receiving;
                out.push(Action::LoadBlank);
            }
            (Message::Chunk, State::Receiving) => out.push(Action::Apply),
            (Message::State { entries }, State::Receiving) => self.on_state(entries, out),
            (Message::Welcome, State::Ready) => {
                self.state = State::Following;
                self.send_ack(out);
            }
            (Message::Handover { entries, released }, State::Following) => {
                self.on_handover(now, entries, released, out)
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
            // It ended while this side was on its way to a backup: all of its output has left.
            (Message::Goodbye(Goodbye::Ended { .. }), State::Receiving | State::Restoring | State::Ready) => {
                self.stop(StopReason::Ended, out);
            }
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
                | Message::Ack { .. }
                | Message::Diverged { .. },
                _,
            ) => self.lose_link(now, Suspicion::Violation(Violation::Unexpected(kind)), out),
        }
    }

    /// Outputs of entries below `released` have left the primary. False: that cannot be, and the primary is given up.
    fn have_left(&mut self, now: u64, released: u64, out: &mut Vec<Action>) -> bool {
        let possible = released <= self.received;
        if !possible {
            let violation = Violation::Released { released, acknowledged: self.received };
            self.lose_link(now, Suspicion::Violation(violation), out);
        } else if released > self.left {
            self.left = released;
            out.push(Action::Left { below: released });
        }
        possible
    }

    fn on_hello(&mut self, now: u64, generation: u64, hello: Box<Hello>, out: &mut Vec<Action>) {
        if let Some(refusal) = hello.mismatch(&self.me, Role::Primary) {
            return self.refuse(refusal, out);
        }
        if generation == 0 {
            // A primary says hello when it has won one.
            let violation = Violation::Generation { kind: Kind::Hello, expected: 1, found: 0 };
            return self.lose_link(now, Suspicion::Violation(violation), out);
        }
        self.settings.heartbeat_ns = hello.heartbeat_ns;
        self.settings.timeout_ns = hello.timeout_ns;
        self.generation = generation;
        self.link.fence = Fence::at(generation);
        self.peer = Some(Arc::from(hello));
        self.state = State::Loading;
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Vec<Action>) {
        out.push(Action::Send(Envelope::refuse(refusal.clone())));
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
        if self.state == State::Following {
            self.send_ack(out);
        }
    }

    /// The last piece of the state: the log goes on from here.
    fn on_state(&mut self, entries: u64, out: &mut Vec<Action>) {
        (self.received, self.executed, self.left) = (entries, entries, entries);
        self.state = State::Restoring;
        out.push(Action::Restore { entries });
    }

    fn send_ack(&mut self, out: &mut Vec<Action>) {
        let (received, executed) = (self.received, self.executed);
        let (executed_stamp, received_stamp) = (self.executed_stamp, self.received_stamp);
        out.push(self.say(Message::Ack { received, executed, executed_stamp, received_stamp }));
        self.told = true;
    }

    /// The connection is no use any more. Shuts the gate for acknowledgements, then does what the state asks for.
    fn lose_link(&mut self, now: u64, suspicion: Suspicion, out: &mut Vec<Action>) {
        let was_up = self.link.close();
        if suspicion != Suspicion::Closed {
            out.push(Action::Disconnect);
        }
        match &self.state {
            State::Following => {
                out.push(Action::Suspect(suspicion));
                self.ask_for_the_next(out);
            }
            State::Taking(election) => {
                out.push(Action::Suspect(suspicion));
                self.state = State::Asking(election.clone());
            }
            State::GoingLive if was_up => out.push(Action::Suspect(suspicion)),
            State::Connecting { .. } | State::Loading | State::Receiving | State::Restoring | State::Ready => {
                out.push(Action::Suspect(suspicion));
                self.state = State::Connecting { again_at: Some(now.saturating_add(self.settings.retry_ns)) };
                self.forget();
            }
            State::Finishing | State::Asking(_) | State::GoingLive | State::Live | State::Stopped(_) => {}
        }
    }

    /// There is no primary, and no log.
    fn forget(&mut self) {
        self.peer = None;
        self.generation = 0;
        (self.received, self.executed, self.left) = (0, 0, 0);
        (self.received_stamp, self.executed_stamp) = (0, 0);
        (self.told, self.ended) = (true, false);
    }

    fn ask_for_the_next(&mut self, out: &mut Vec<Action>) {
        let (election, question) = Election::after(self.generation);
        self.state = State::Asking(election);
        out.push(Action::Ask(question));
    }

    fn on_diverged(&mut self, entry: u64, text: &str, out: &mut Vec<Action>) {
        let text: Box<str> = message::clip(text).into();
        if self.link.phase() == Phase::Greeted {
            out.push(self.say(Message::Diverged { entry, text: text.clone() }));
        }
        self.stop(StopReason::Diverged { entry, text }, out);
    }

    fn on_answer(&mut self, now: u64, answer: Answer, out: &mut Vec<Action>) {
        let (State::Taking(election) | State::Asking(election)) = &mut self.state else { return };
        match election.on_answer(now, answer, self.settings.retry_ns) {
            Outcome::Ask(question) => out.push(Action::Ask(question)),
            Outcome::Won(generation) => self.on_won(generation, out),
            Outcome::Lost { generation, holder } => self.stop(StopReason::Lost { generation, holder }, out),
            Outcome::Pending => {}
        }
    }

    fn finish_if_done(&mut self, out: &mut Vec<Action>) {
        match self.state {
            State::Finishing if self.ended => self.stop(StopReason::Ended, out),
            // Following: only the primary knows whether all has left, so its goodbye or its death is awaited. Live: a primary knows what to do.
            State::Connecting { .. }
            | State::Loading
            | State::Receiving
            | State::Restoring
            | State::Ready
            | State::Following
            | State::Finishing
            | State::Taking(_)
            | State::Asking(_)
            | State::GoingLive
            | State::Live
            | State::Stopped(_) => {}
        }
    }

    fn on_stop_requested(&mut self, out: &mut Vec<Action>) {
        match self.state {
            // The primary that this side will be has the guest stopped.
            State::GoingLive => self.stop_requested = true,
            State::Connecting { .. }
            | State::Loading
            | State::Receiving
            | State::Restoring
            | State::Ready
            | State::Following
            | State::Finishing
            | State::Taking(_)
            | State::Asking(_) => {
                if self.link.phase() == Phase::Greeted {
                    out.push(self.say(Message::Goodbye(Goodbye::Operator)));
                }
                self.stop(StopReason::Operator, out);
            }
            State::Live | State::Stopped(_) => {}
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
            State::Taking(election) | State::Asking(election) => out.extend(election.on_time(now).map(Action::Ask)),
            // The next heartbeat is a primary's.
            State::Live => return,
            State::Loading
            | State::Receiving
            | State::Restoring
            | State::Ready
            | State::Following
            | State::Finishing
            | State::GoingLive
            | State::Stopped(_) => {}
        }
        if self.link.beat(now, self.settings.heartbeat_ns) {
            let (guest_clock_ns, released) = (self.guest_clock_ns, self.left);
            out.push(self.say(Message::Heartbeat { stamp: now, guest_clock_ns, released }));
            if self.state == State::Following && !self.told {
                self.send_ack(out);
            }
        }
    }

    /// When to call [`on`](Self::on) with [`Input::Tick`] at the latest, ns.
    pub fn next_deadline(&self) -> Option<u64> {
        let again_at = match &self.state {
            State::Connecting { again_at } => *again_at,
            State::Taking(election) | State::Asking(election) => election.deadline(),
            State::Live => return None,
            State::Loading
            | State::Receiving
            | State::Restoring
            | State::Ready
            | State::Following
            | State::Finishing
            | State::GoingLive
            | State::Stopped(_) => None,
        };
        [self.link.deadline(self.settings.timeout_ns), again_at].into_iter().flatten().min()
    }
}
