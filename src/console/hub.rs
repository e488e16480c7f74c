//! Where the vCPU thread, the log's acknowledgements and the console's connections meet.
//!
//! The vCPU thread [writes](Hub::output) and [takes](Hub::take_input); the acknowledgement path
//! [releases](Hub::release), which frees output for clients and tells them which input is safe; the
//! protocol says who is [live](Hub::go_live). Connections wait on two notifications: `changed` (there
//! may be something to send) and `room` (the guest took input). One lock, held for a copy at most, and never
//! while calling anything outside; nobody is woken by an output that is held.

use super::held_times::HeldTimes;
use super::history::{History, Read};
use super::input::{InputError, InputTable};
use super::state::{ConsoleState, MAX_OUTPUT};
use super::status::{ConsoleStatus, Role};
use super::wire::{Attach, Attached, Ended, NotLive, Refusal, Start};
use crate::backends::clock::boot_clock_ns;
use crate::machine::doors::{ConsoleInput, EndReason};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Called when input has been queued, on the thread that received it.
pub type InputWaker = Box<dyn Fn() + Send + Sync>;

/// Whether a live machine's outputs wait for a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Outputs of entries from this number on leave when they are [released](Hub::release).
    HeldFrom(u64),
    /// There is no backup: everything leaves at once.
    Unprotected,
}

/// The meeting point. Starts as the hub of a machine that is not live.
pub struct Hub {
    vm: String,
    host: String,
    inner: Mutex<Inner>,
    /// Bytes of input waiting for the guest, readable without the lock.
    waiting_bytes: AtomicUsize,
    changed: Notify,
    room: Notify,
}

struct Inner {
    live: Option<u64>,
    /// The protocol lets nothing leave at all.
    on_hold: bool,
    /// What is released may leave before this, by [`boot_clock_ns`].
    lease_until_ns: u64,
    /// A connection found that the lease has run out, and waits for the next one.
    lease_awaited: bool,
    role: Role,
    peer: Option<String>,
    history: History,
    held_times: HeldTimes,
    /// Where the output of this host's own live machine begins in the stream.
    live_from_byte: u64,
    input: InputTable,
    /// The guest's end, and the entry number it waits for.
    ended: Option<(u64, Ended)>,
    /// Entries below this number are released.
    below_entry: u64,
    /// Entries below this number are in the log, as far as the console has heard of any.
    entries: u64,
    waker: Option<Arc<InputWaker>>,
    /// The connection that speaks for each attached session, and the client's search that made it.
    seats: BTreeMap<u64, (u64, u64)>,
    next_seat: u64,
}

/// An attached connection. Given back to [`Hub::detach`].
#[derive(Debug, PartialEq, Eq)]
pub struct Seat {
    session: u64,
    number: u64,
}

/// The answer to an attach.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Attached.
    Attached(Seat, Attached),
    /// This host does not run the machine now.
    NotLive(NotLive),
    /// Never.
    Refused(Refusal),
}

/// What there is to send to an attached client.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes from the asked position on are in the buffer.
    Output,
    /// Bytes up to this position are no longer kept.
    Gap(u64),
    /// Nothing now.
    Wait,
    /// The client has everything, and the guest has ended.
    Ended(Ended),
    /// The host is live no more.
    NotLive(NotLive),
    /// The connection is to be closed.
    Refused(Refusal),
}

impl Hub {
    /// The hub of a machine called `vm` on `host`, keeping `history_bytes` of output.
    pub fn new(vm: impl Into<String>, host: impl Into<String>, history_bytes: usize) -> Self {
        Hub {
            vm: vm.into(),
            host: host.into(),
            inner: Mutex::new(Inner {
                live: None,
                on_hold: false,
                lease_until_ns: u64::MAX,
                lease_awaited: false,
                role: Role::Backup,
                peer: None,
                history: History::new(history_bytes),
                held_times: HeldTimes::default(),
                live_from_byte: 0,
                input: InputTable::default(),
                ended: None,
                below_entry: 0,
                entries: 0,
                waker: None,
                seats: BTreeMap::new(),
                next_seat: 0,
            }),
            waiting_bytes: AtomicUsize::new(0),
            changed: Notify::new(),
            room: Notify::new(),
        }
    }

    // ---- the vCPU thread, live -------------------------------------------------------------

    /// The guest wrote `bytes`, and log entry `entry` stands for it. Returns how many bytes are held
    /// now, by which the caller bounds what a guest may run ahead.
    pub fn output(&self, entry: u64, bytes: &[u8]) -> u64 {
        let mut inner = self.lock();
        let before = inner.history.released();
        inner.entries = entry + 1;
        inner.history.append(entry, bytes);
        let (held, moved) = (inner.history.held_bytes(), inner.history.released() > before);
        if held > 0 {
            inner.held_times.hold(entry, now());
        }
        drop(inner);
        if moved {
            self.changed.notify_waiters();
        }
        held
    }

    /// Bytes of input that wait for the guest. Costs one load.
    pub fn input_waiting(&self) -> usize {
        self.waiting_bytes.load(Ordering::Acquire)
    }

    /// The next input for the guest, at most `max` bytes. To be [logged](Self::input_logged) before
    /// the next is taken.
    pub fn take_input(&self, max: usize) -> Option<ConsoleInput> {
        if self.input_waiting() == 0 {
            return None;
        }
        let mut inner = self.lock();
        let input = inner.input.take(max);
        self.publish_waiting(&inner);
        drop(inner);
        if input.is_some() {
            self.room.notify_waiters();
        }
        input
    }

    /// Log entry `entry` carries what was taken.
    pub fn input_logged(&self, input: &ConsoleInput, entry: u64) {
        let mut inner = self.lock();
        inner.entries = entry + 1;
        let safe = inner.input.logged(input, entry);
        drop(inner);
        if safe {
            self.changed.notify_waiters();
        }
    }

    /// The guest ended, and log entry `entry` says so. Clients are told when that is released.
    pub fn ended(&self, entry: u64, reason: &EndReason) {
        self.lock().ended = Some((entry, Ended { reason: reason.to_string(), code: exit_code(reason) }));
        self.changed.notify_waiters();
    }

    // ---- the vCPU thread, replaying ----------------------------------------------------------

    /// The replay wrote `bytes`, which entry `entry` stands for. The log holds it, so it may leave
    /// as soon as this host is live.
    pub fn replayed_output(&self, entry: u64, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.entries = entry + 1;
        inner.history.append(entry, bytes);
        inner.history.release_all();
    }

    /// The replay met `input` in log entry `entry`.
    pub fn replayed_input(&self, input: &ConsoleInput, entry: u64) -> Result<(), InputError> {
        let mut inner = self.lock();
        inner.entries = entry.saturating_add(1);
        inner.input.replayed(input, entry)
    }

    // ---- state transfer ---------------------------------------------------------------------

    /// The console as it is now, behind everything the vCPU thread has told it.
    pub fn state(&self) -> ConsoleState {
        let inner = self.lock();
        let (start, output) = inner.history.newest(MAX_OUTPUT);
        let (sessions, evicted_entry) = inner.input.log_view();
        ConsoleState { start, output, sessions, evicted_entry }
    }

    /// Goes on from `state`, which belongs before entry `entries`; what was here is forgotten. Only while this host is not live.
    pub fn restore(&self, state: &ConsoleState, entries: u64) {
        let mut inner = self.lock();
        inner.history.restore(state.start, &state.output);
        inner.input = InputTable::from_log_view(&state.sessions, state.evicted_entry);
        inner.held_times = HeldTimes::default();
        (inner.ended, inner.below_entry, inner.entries) = (None, 0, entries);
        self.publish_waiting(&inner);
    }

    // ---- the acknowledgement path and the protocol -------------------------------------------

    /// Everything in entries below `below_entry` is held by the backup: outputs leave, input is safe.
    pub fn release(&self, below_entry: u64) {
        let mut inner = self.lock();
        let ended = inner.ended.as_ref().is_some_and(|&(entry, _)| entry < below_entry && entry >= inner.below_entry);
        inner.below_entry = inner.below_entry.max(below_entry);
        let moved = inner.history.release(below_entry) | inner.input.safe(below_entry) | ended;
        inner.held_times.release(below_entry, now);
        drop(inner);
        if moved {
            self.changed.notify_waiters();
        }
    }

    /// This host runs the machine now, in `generation`. What clients had queued elsewhere or before
    /// and the log does not have, they send again.
    pub fn go_live(&self, generation: u64, protection: Protection) {
        let mut inner = self.lock();
        inner.input.drop_queued();
        self.publish_waiting(&inner);
        inner.live = Some(generation);
        inner.live_from_byte = inner.history.produced();
        inner.protect(protection);
        inner.seats.clear();
        drop(inner);
        self.changed.notify_waiters();
        self.room.notify_waiters();
    }

    /// Nothing leaves until the next [`set_protection`](Self::set_protection), not even what was released and is not sent yet.
    pub fn hold(&self) {
        self.lock().on_hold = true;
    }

    /// What is released may leave before `until_ns` on the clock of [`boot_clock_ns`], and not later (`u64::MAX`: at any time).
    pub fn set_lease(&self, until_ns: u64) {
        let mut inner = self.lock();
        inner.lease_until_ns = until_ns;
        if std::mem::take(&mut inner.lease_awaited) {
            drop(inner);
            self.changed.notify_waiters();
        }
    }

    /// The live machine has lost or got its backup.
    pub fn set_protection(&self, protection: Protection) {
        self.lock().protect(protection);
        self.changed.notify_waiters();
    }

    /// This host does not run the machine (any more); attached clients are sent away.
    pub fn not_live(&self, role: Role) {
        let mut inner = self.lock();
        inner.input.drop_queued();
        self.publish_waiting(&inner);
        inner.live = None;
        inner.role = role;
        inner.seats.clear();
        drop(inner);
        self.changed.notify_waiters();
        self.room.notify_waiters();
    }

    /// This host replays from now on what another one does: all it has in its log is safe there.
    pub fn follow(&self, role: Role) {
        self.not_live(role);
        let mut inner = self.lock();
        inner.history.release_all();
        inner.input.safe(u64::MAX);
        inner.held_times.forget();
    }

    /// Console port of the other host, which clients are told.
    pub fn set_peer(&self, peer: Option<String>) {
        self.lock().peer = peer;
        self.changed.notify_waiters();
    }

    /// `waker` is called whenever input has been queued, on a server thread.
    pub fn set_input_waker(&self, waker: InputWaker) {
        self.lock().waker = Some(Arc::new(waker));
    }

    /// The console's figures.
    pub fn console_status(&self) -> ConsoleStatus {
        let inner = self.lock();
        ConsoleStatus {
            produced_bytes: inner.history.produced(),
            released_bytes: inner.history.released(),
            held_bytes: inner.history.held_bytes(),
            outputs_held: inner.history.held_outputs() as u64,
            clients: inner.seats.len() as u32,
            input_queued_bytes: inner.input.waiting_bytes() as u64,
            live_from_byte: inner.live.map(|_| inner.live_from_byte),
            output_delay_ns: inner.held_times.quantiles(),
        }
    }

    // ---- connections -------------------------------------------------------------------------

    /// A client asks for the console.
    pub fn attach(&self, attach: &Attach) -> Admission {
        let mut inner = self.lock();
        // A client that has seen a higher generation knows better than this host who is live.
        let Some(generation) = inner.live.filter(|&generation| generation >= attach.generation) else {
            return Admission::NotLive(inner.where_else());
        };
        if inner.seats.get(&attach.session).is_some_and(|&(_, search)| search >= attach.search) {
            return Admission::Refused(Refusal::Superseded);
        }
        let output_position = match attach.start {
            Start::At(position) if position > inner.history.released() => {
                return Admission::Refused(Refusal::OtherMachine);
            }
            Start::At(position) => position,
            Start::Tail(bytes) => inner.history.tail(bytes),
        };
        let input_offset = match inner.input.attach(attach) {
            Ok(offset) => offset,
            Err(InputError::Forgotten(_)) => return Admission::Refused(Refusal::Forgotten),
            Err(_) => return Admission::Refused(Refusal::OtherMachine),
        };
        self.publish_waiting(&inner);
        let seat = Seat { session: attach.session, number: inner.next_seat };
        inner.next_seat += 1;
        let superseded = inner.seats.insert(seat.session, (seat.number, attach.search)).is_some();
        let (peer, entries) = (inner.peer.clone(), inner.entries.min(inner.below_entry));
        drop(inner);
        if superseded {
            self.changed.notify_waiters();
            self.room.notify_waiters();
        }
        let (vm, host) = (self.vm.clone(), self.host.clone());
        Admission::Attached(seat, Attached { vm, host, generation, output_position, input_offset, entries, peer })
    }

    /// The connection is gone.
    pub fn detach(&self, seat: &Seat) {
        let mut inner = self.lock();
        if inner.speaks(seat) {
            inner.seats.remove(&seat.session);
            inner.input.detach(seat.session);
            self.publish_waiting(&inner);
        }
    }

    /// The client typed. Returns how many of the bytes are dealt with; the rest waits for room.
    pub fn offer(&self, seat: &Seat, offset: u64, bytes: &[u8]) -> Result<usize, InputError> {
        let mut inner = self.lock();
        if !inner.speaks(seat) {
            return Err(InputError::NotAttached(seat.session));
        }
        let before = inner.input.waiting_bytes();
        let done = inner.input.offer(seat.session, offset, bytes)?;
        let waker = if inner.input.waiting_bytes() > before { inner.waker.clone() } else { None };
        self.publish_waiting(&inner);
        drop(inner);
        if let Some(waker) = waker {
            waker();
        }
        Ok(done)
    }

    /// What to send next to a client that has output up to `position`; output goes to `buffer`, at
    /// most `max` bytes.
    pub fn step(&self, seat: &Seat, position: u64, max: usize, buffer: &mut Vec<u8>) -> Step {
        let mut inner = self.lock();
        if inner.live.is_none() {
            return Step::NotLive(inner.where_else());
        }
        if !inner.speaks(seat) {
            return Step::Refused(Refusal::Superseded);
        }
        // A process that was stopped meanwhile finds out here that somebody else may have gone on.
        inner.lease_awaited |= inner.lease_until_ns < u64::MAX && boot_clock_ns() >= inner.lease_until_ns;
        if inner.on_hold || inner.lease_awaited {
            return Step::Wait;
        }
        match inner.history.read(position, max, buffer) {
            Read::Bytes(_) => Step::Output,
            Read::Gap(to) => Step::Gap(to),
            Read::Ahead => Step::Refused(Refusal::OtherMachine),
            Read::Nothing => match &inner.ended {
                Some((entry, ended)) if *entry < inner.below_entry && inner.history.held_bytes() == 0 => {
                    Step::Ended(ended.clone())
                }
                _ => Step::Wait,
            },
        }
    }

    /// The offset below which the client's input is safe.
    pub fn safe_offset(&self, seat: &Seat) -> u64 {
        self.lock().input.safe_offset(seat.session)
    }

    /// Completes when there may be something to send. Enable it, look, then wait for it.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Completes when there may be room for input. Enable it, look, then wait for it.
    pub fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    /// A panic elsewhere leaves the tables consistent: they change by whole calls.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish_waiting(&self, inner: &Inner) {
        self.waiting_bytes.store(inner.input.waiting_bytes(), Ordering::Release);
    }
}

#[expect(clippy::disallowed_methods, reason = "measures how long outputs are held; nothing is decided by it")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

impl Inner {
    fn protect(&mut self, protection: Protection) {
        self.on_hold = false;
        self.held_times.forget();
        match protection {
            Protection::Unprotected => {
                self.below_entry = u64::MAX;
                self.history.release(u64::MAX);
                self.input.safe(u64::MAX);
            }
            Protection::HeldFrom(entry) => {
                self.below_entry = entry;
                self.history.hold_from(entry);
                self.input.hold_from(entry);
            }
        }
    }

    fn speaks(&self, seat: &Seat) -> bool {
        self.seats.get(&seat.session).is_some_and(|&(number, _)| number == seat.number)
    }

    fn where_else(&self) -> NotLive {
        NotLive { role: self.role, peer: self.peer.clone() }
    }
}

/// The exit code that stands for an end at a shell.
pub fn exit_code(reason: &EndReason) -> u8 {
    match reason {
        EndReason::Exit(code) => *code,
        EndReason::Stopped => 0,
        EndReason::HaltedForever => 124,
        EndReason::TripleFault => 125,
        EndReason::CannotExecute(_) | EndReason::SafepointsWentBack => 126,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(session: u64, generation: u64) -> Attach {
        Attach { session, start: Start::At(0), unacknowledged: 0, sent: 0, born: u64::MAX, search: 1, generation }
    }

    fn seat(hub: &Hub, session: u64, search: u64) -> Seat {
        match hub.attach(&Attach { search, ..attach(session, 0) }) {
            Admission::Attached(seat, _) => seat,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_live_host_of_the_newest_generation_attaches() {
        let hub = Hub::new("v", "h", 100);
        hub.set_peer(Some("b:1".into()));
        let elsewhere = Admission::NotLive(NotLive { role: Role::Backup, peer: Some("b:1".into()) });
        assert_eq!(hub.attach(&attach(1, 0)), elsewhere);
        hub.go_live(4, Protection::Unprotected);
        assert_eq!(hub.attach(&attach(1, 5)), elsewhere, "somebody else has been live since");
        assert!(matches!(hub.attach(&attach(1, 4)), Admission::Attached(_, attached) if attached.generation == 4));
        hub.not_live(Role::Retired);
        assert!(matches!(hub.attach(&attach(1, 4)), Admission::NotLive(NotLive { role: Role::Retired, .. })));
    }

    #[test]
    fn a_position_or_input_that_this_machine_never_had_is_refused() {
        let hub = Hub::new("v", "h", 100);
        hub.go_live(1, Protection::HeldFrom(0));
        hub.output(0, b"abc");
        let ahead = Attach { start: Start::At(1), ..attach(1, 0) };
        assert_eq!(hub.attach(&ahead), Admission::Refused(Refusal::OtherMachine));
        let typed = Attach { unacknowledged: 1, sent: 1, ..attach(1, 0) };
        assert_eq!(hub.attach(&typed), Admission::Refused(Refusal::OtherMachine));
    }

    #[test]
    fn a_session_speaks_through_its_newest_connection_only() {
        let hub = Hub::new("v", "h", 100);
        hub.go_live(1, Protection::Unprotected);
        let old = seat(&hub, 1, 1);
        assert_eq!(hub.offer(&old, 0, b"ab"), Ok(2));
        assert_eq!(hub.attach(&attach(1, 0)), Admission::Refused(Refusal::Superseded), "a call of the same search");
        let new = seat(&hub, 1, 2);
        assert_eq!(hub.input_waiting(), 0, "the new connection sends it again");
        assert_eq!(hub.offer(&old, 0, b"ab"), Err(InputError::NotAttached(1)));
        assert_eq!(hub.step(&old, 0, 10, &mut Vec::new()), Step::Refused(Refusal::Superseded));
        hub.detach(&old);
        assert_eq!(hub.offer(&new, 0, b"ab"), Ok(2));
        assert_eq!(hub.console_status().clients, 1);
        hub.detach(&new);
        assert_eq!((hub.console_status().clients, hub.input_waiting()), (0, 0));
    }

    #[test]
    fn the_end_is_told_after_the_last_output_and_its_own_release() {
        let hub = Hub::new("v", "h", 100);
        hub.go_live(1, Protection::HeldFrom(0));
        let seat = seat(&hub, 1, 1);
        let step = |position| {
            let mut buffer = Vec::new();
            (hub.step(&seat, position, 100, &mut buffer), buffer)
        };
        hub.output(0, b"last");
        hub.ended(1, &EndReason::Exit(9));
        assert_eq!(step(0), (Step::Wait, vec![]));
        hub.release(1);
        assert_eq!(step(0), (Step::Output, b"last".to_vec()));
        assert_eq!(step(4), (Step::Wait, vec![]));
        hub.release(2);
        assert_eq!(step(0).0, Step::Output);
        assert!(matches!(step(4).0, Step::Ended(Ended { code: 9, .. })));
    }

    #[test]
    fn nothing_leaves_after_the_lease_until_the_next_one() {
        let hub = Hub::new("v", "h", 100);
        hub.go_live(1, Protection::HeldFrom(0));
        let seat = seat(&hub, 1, 1);
        hub.output(0, b"ab");
        hub.set_lease(1);
        hub.release(1);
        assert_eq!(hub.step(&seat, 0, 100, &mut Vec::new()), Step::Wait, "released, and the lease has run out");
        hub.set_lease(u64::MAX);
        assert_eq!(hub.step(&seat, 0, 100, &mut Vec::new()), Step::Output);
    }

    #[test]
    fn a_replay_may_leave_once_live_and_what_follows_is_held() {
        let hub = Hub::new("v", "h", 100);
        hub.replayed_output(0, b"ab");
        let input = ConsoleInput { session: 5, offset: 0, bytes: b"x".to_vec() };
        hub.replayed_input(&input, 1).unwrap();
        hub.go_live(2, Protection::HeldFrom(2));
        assert_eq!(hub.output(2, b"cde"), 3);
        let Admission::Attached(seat, attached) = hub.attach(&Attach { sent: 4, ..attach(5, 1) }) else {
            panic!("refused")
        };
        assert_eq!((attached.input_offset, attached.entries, hub.safe_offset(&seat)), (1, 2, 1));
        let mut buffer = Vec::new();
        assert_eq!(hub.step(&seat, 0, 100, &mut buffer), Step::Output);
        assert_eq!(buffer, b"ab");
        hub.set_protection(Protection::Unprotected);
        assert_eq!(hub.console_status().held_bytes, 0);
    }
}
