//! Where the world's threads and the vCPU thread meet: timer ticks, waiting console input, requests to stop.
//!
//! Whoever brings something sets its flag and *rings*: the guest stops at its next safepoint, or wakes from its halt. The vCPU
//! thread sets the limit first and looks at the flags afterwards, so a ring between the two is not lost.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use lockstep_abi::pv::HOST_NAME_WORDS;

use super::clock::GuestClock;
use super::priority::prefer_this_thread;
use crate::log::codec::Encoder;
use crate::machine::doors::Control;
use crate::machine::safepoint::Safepoints;
use crate::machine::snapshot::MachineState;

/// What is due.
#[derive(Clone, Copy, Debug, Default)]
pub struct Due {
    /// The timer ticked.
    pub tick: bool,
    /// Console input waits.
    pub input: bool,
    /// Packets wait.
    pub packets: bool,
    /// Requests to the disk have come to their end.
    pub disk: bool,
    /// Somebody wants the machine's state.
    pub capture: bool,
    /// The operator wants something done.
    pub control: bool,
    /// The machine shall stop here.
    pub stop: bool,
    /// The operator has paused the machine: of all this, it gets a stop, a capture, and what the operator wants next.
    pub paused: bool,
}

impl Due {
    /// Whether any of it is there. (Being paused is nothing that comes.)
    fn anything(&self) -> bool {
        self.tick || self.input || self.packets || self.disk || self.capture || self.control || self.stop
    }
}

/// A machine's state, and what goes with it.
pub struct Captured {
    /// The machine's.
    pub state: Box<MachineState>,
    /// The log's: an encoder that would write the next entry.
    pub position: Encoder,
    /// What the guest's clock shows, nanoseconds since boot.
    pub guest_clock_ns: u64,
}

/// Takes the state, on the vCPU thread: the guest stands still until it returns, and memory belongs to the state.
pub type Capture = Box<dyn FnOnce(Captured) + Send>;

#[derive(Default)]
struct State {
    due: Due,
    /// Period of the guest's timer as the vCPU thread saw it last; 0: off.
    period_ns: u64,
    /// The vCPU thread sleeps until something is due.
    idle: bool,
    ended: bool,
    /// The machine is paused.
    paused: bool,
    /// What the operator wants done, in order.
    controls: VecDeque<Control>,
}

/// The meeting point of one machine.
pub struct World {
    /// The host's name for the guest, once it is known.
    host_name: OnceLock<[u64; HOST_NAME_WORDS as usize]>,
    began: Instant,
    safepoints: Safepoints,
    clock: Mutex<GuestClock>,
    state: Mutex<State>,
    /// Something became due: wakes an idle vCPU thread.
    woken: Condvar,
    /// The timer was reprogrammed: wakes the timer thread.
    reprogrammed: Condvar,
    /// Mirrors "something is due", so that an exit at which nothing is costs no lock.
    anything: AtomicBool,
    /// The period that the timer thread knows.
    period_ns: AtomicU64,
    abandoned: AtomicBool,
    /// How much of its time the guest has to give away, in per mille.
    slow_down_per_mille: AtomicU64,
    pace: Mutex<Pace>,
    capture: Mutex<Option<Capture>>,
    /// How long the guest has waited for events, and since when it does now (0: it does not); host time, nanoseconds.
    idle_ns: AtomicU64,
    idle_since_ns: AtomicU64,
}

/// What the vCPU thread owes to the execution-lag control.
#[derive(Default)]
struct Pace {
    /// When it was asked last, host time in ns.
    last_ns: u64,
    /// Pauses it has saved up, ns.
    owed_ns: u64,
}

/// A pause shorter than this is saved up.
const SHORTEST_PAUSE_NS: u64 = 1_000_000;
/// The most time between two ticks that counts, ns: a guest that was idle owes nothing for it.
const LONGEST_SLICE_NS: u64 = 100_000_000;

impl World {
    /// The meeting point of the machine with these safepoints, and its timer thread. Its clock shows `shown_ns` now, and should
    /// show `due_ns` (see [`GuestClock`]).
    pub fn new(safepoints: Safepoints, shown_ns: u64, due_ns: u64) -> Arc<Self> {
        let world = Arc::new(World {
            host_name: OnceLock::new(),
            began: Instant::now(),
            safepoints,
            clock: Mutex::new(GuestClock::starting_at(shown_ns, due_ns, 0)),
            state: Mutex::new(State::default()),
            woken: Condvar::new(),
            reprogrammed: Condvar::new(),
            anything: AtomicBool::new(false),
            period_ns: AtomicU64::new(0),
            abandoned: AtomicBool::new(false),
            slow_down_per_mille: AtomicU64::new(0),
            pace: Mutex::new(Pace::default()),
            capture: Mutex::new(None),
            idle_ns: AtomicU64::new(0),
            idle_since_ns: AtomicU64::new(0),
        });
        let timer = Arc::downgrade(&world);
        thread::Builder::new().name("timer".into()).spawn(move || run_timer(&timer)).expect("a thread for the timer");
        world
    }

    /// Host time: nanoseconds since this machine's world began.
    pub fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// What this host is called, for a guest that asks. Cut to what fits; the first call counts.
    pub fn set_host_name(&self, name: &str) {
        let mut bytes = [0; 8 * HOST_NAME_WORDS as usize];
        let name = &name[..name.floor_char_boundary(bytes.len())];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let _ = self.host_name.set(std::array::from_fn(|_| words.next().unwrap_or(0)));
    }

    /// A part of the host's name, eight bytes; 0 behind its end.
    pub fn host_name(&self, word: usize) -> u64 {
        self.host_name.get().and_then(|words| words.get(word)).copied().unwrap_or(0)
    }

    /// The guest boots now: its clock shows 0.
    pub fn start_clock(&self) {
        let now = self.now_ns();
        *self.clock.lock().expect("no thread panics while it holds this lock") = GuestClock::starting_at(0, 0, now);
    }

    /// The guest's clock now, nanoseconds since its boot.
    pub fn guest_ns(&self) -> u64 {
        self.clock.lock().expect("no thread panics while it holds this lock").read(self.now_ns())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds this lock")
    }

    fn bring(&self, what: impl FnOnce(&mut State)) {
        what(&mut self.state());
        self.anything.store(true, SeqCst);
        self.safepoints.ring();
        self.woken.notify_all();
    }

    /// Console input waits.
    pub fn input_waits(&self) {
        self.bring(|state| state.due.input = true);
    }

    /// Packets wait. They are taken at the guest's next exit, and an idle guest wakes; a guest that computes is not disturbed for
    /// them at once. False: it computes, and somebody has to [remind](Self::remind_of_packets) it if it does for long.
    pub fn packets_wait(&self) -> bool {
        let mut state = self.state();
        state.due.packets = true;
        let idle = state.idle;
        drop(state);
        self.anything.store(true, SeqCst);
        if idle {
            self.woken.notify_all();
        }
        idle
    }

    /// Stops a computing guest at its next safepoint if packets still wait.
    pub fn remind_of_packets(&self) {
        if self.state().due.packets {
            self.safepoints.ring();
        }
    }

    /// Requests to the disk have come to their end.
    pub fn disk_done(&self) {
        self.bring(|state| state.due.disk = true);
    }

    /// Has the machine hand out its state at its next instant. One at a time: a second one takes the place of the first.
    pub fn request_capture(&self, capture: Capture) {
        *self.capture.lock().expect("no thread panics while it holds this lock") = Some(capture);
        self.bring(|state| state.due.capture = true);
    }

    /// vCPU thread: about to have the machine hand out its state.
    pub fn about_to_capture(&self) {
        self.state().due.capture = false;
    }

    /// vCPU thread: what [`take_control`](Self::take_control) would give.
    pub fn next_control(&self) -> Option<Control> {
        self.state().controls.front().copied()
    }

    /// vCPU thread: the next thing that the operator wants done.
    pub fn take_control(&self) -> Option<Control> {
        let mut state = self.state();
        let control = state.controls.pop_front();
        state.due.control = !state.controls.is_empty();
        control
    }

    /// vCPU thread: here it is.
    pub fn captured(&self, captured: Captured) {
        let capture = self.capture.lock().expect("no thread panics while it holds this lock").take();
        if let Some(capture) = capture {
            capture(captured);
        }
    }

    /// How long the guest has waited for events so far, nanoseconds; roughly.
    pub fn idle_ns(&self) -> u64 {
        let now = match self.idle_since_ns.load(SeqCst) {
            0 => 0,
            since => self.now_ns().saturating_sub(since),
        };
        self.idle_ns.load(SeqCst) + now
    }

    /// Asks for `control` at the machine's next instant.
    pub fn control(&self, control: Control) {
        self.bring(|state| {
            state.due.control = true;
            state.controls.push_back(control);
        });
    }

    /// Asks the machine to stop at its next instant.
    pub fn stop(&self) {
        self.bring(|state| state.due.stop = true);
    }

    /// Gives the machine up where it stands: the vCPU thread leaves at the next signal, safepoint or exit.
    pub fn abandon(&self) {
        self.abandoned.store(true, SeqCst);
        self.stop();
    }

    /// Whether the machine was given up.
    pub fn abandoned(&self) -> bool {
        self.abandoned.load(SeqCst)
    }

    /// vCPU thread: what is due. A tick and a request are handed over; waiting input stays until somebody is
    /// [`looking_for_input`](Self::looking_for_input), and so do packets.
    /// `period_ns` is the guest's timer period now.
    pub fn take_due(&self, period_ns: u64) -> Due {
        if self.period_ns.load(SeqCst) != period_ns {
            self.period_ns.store(period_ns, SeqCst);
            self.state().period_ns = period_ns;
            self.reprogrammed.notify_all();
        }
        if !self.anything.load(SeqCst) {
            return Due::default();
        }
        let mut state = self.state();
        let due = Due { paused: state.paused, ..state.due };
        // One thing at a time: the caller asks again after each event. What comes before a tick leaves that where it is.
        if !(due.stop || due.capture || due.control || due.paused) {
            state.due.tick = false;
        }
        self.anything.store(state.due.anything() || state.paused, SeqCst);
        due
    }

    /// vCPU thread: from here on the machine gets nothing but what [`Due::paused`] says, and its clock and its timer stand still; or they go on.
    pub fn set_paused(&self, paused: bool) {
        let now = self.now_ns();
        self.clock.lock().expect("no thread panics while it holds this lock").set_standing(paused, now);
        let mut state = self.state();
        state.paused = paused;
        self.anything.store(state.due.anything() || paused, SeqCst);
        drop(state);
        self.reprogrammed.notify_all();
    }

    /// Whether the machine is paused.
    pub fn paused(&self) -> bool {
        self.state().paused
    }

    /// vCPU thread: about to look for input. Before the look, not after it: what comes in between says so again.
    pub fn looking_for_input(&self) {
        self.state().due.input = false;
    }

    /// vCPU thread: there was input, and there may be more.
    pub fn input_may_remain(&self) {
        self.state().due.input = true;
        self.anything.store(true, SeqCst);
    }

    /// vCPU thread: about to look for packets. Before the look, as with input.
    pub fn looking_for_packets(&self) {
        self.state().due.packets = false;
    }

    /// vCPU thread: there were packets, and there may be more.
    pub fn packets_may_remain(&self) {
        self.state().due.packets = true;
        self.anything.store(true, SeqCst);
    }

    /// vCPU thread of an idle guest: waits until something is due; waiting input counts if there is room for it, and so do packets.
    pub fn wait(&self, input_room: bool, packet_room: bool) {
        let mut state = self.state();
        let nothing = |state: &mut State| {
            let due = state.due;
            let always = due.stop || due.capture || due.control;
            let running = due.tick || due.disk || due.input && input_room || due.packets && packet_room;
            !(always || running && !state.paused)
        };
        state.idle = true;
        let since = self.now_ns();
        self.idle_since_ns.store(since.max(1), SeqCst);
        state = self.woken.wait_while(state, nothing).expect("no thread panics while it holds this lock");
        state.idle = false;
        self.idle_ns.fetch_add(self.now_ns() - since, SeqCst);
        self.idle_since_ns.store(0, SeqCst);
    }

    /// vCPU thread: about to look for disk completions. Before the look, as with input.
    pub fn looking_for_disk(&self) {
        self.state().due.disk = false;
    }

    /// vCPU thread: there were disk completions, and there may be more.
    pub fn disk_may_remain(&self) {
        self.state().due.disk = true;
        self.anything.store(true, SeqCst);
    }

    /// How much of its time the guest has to give away, in per mille (0–900): the execution-lag control's lever.
    pub fn set_slow_down(&self, per_mille: u64) {
        self.slow_down_per_mille.store(per_mille.min(900), SeqCst);
    }

    /// vCPU thread, at every tick: gives away the share of the time since the last tick that was asked for. Small shares
    /// are saved up to a pause worth its wake-up.
    pub fn slow_down(&self) {
        let share = self.slow_down_per_mille.load(SeqCst);
        let mut pace = self.pace.lock().expect("no thread panics while it holds this lock");
        let now = self.now_ns();
        let ran = now.saturating_sub(pace.last_ns).min(LONGEST_SLICE_NS);
        pace.owed_ns = if share > 0 { pace.owed_ns + ran * share / (1000 - share) } else { 0 };
        if pace.owed_ns >= SHORTEST_PAUSE_NS {
            thread::sleep(Duration::from_nanos(pace.owed_ns));
            // A pause that was longer than asked for counts in full.
            pace.owed_ns = pace.owed_ns.saturating_sub(self.now_ns() - now);
        }
        pace.last_ns = self.now_ns();
    }

    /// Whether the machine has ended.
    pub fn ended(&self) -> bool {
        self.state().ended
    }

    /// The machine has ended; its timer stops.
    pub fn end(&self) {
        self.state().ended = true;
        self.reprogrammed.notify_all();
    }
}

/// Ticks at the period that the guest programmed. Ticks that the guest could not take in time are one tick, as with the real chip.
fn run_timer(world: &Weak<World>) {
    prefer_this_thread();
    let mut deadline: Option<Instant> = None;
    let mut period = 0;
    loop {
        let Some(world) = world.upgrade() else { return };
        let mut state = world.state();
        if state.ended {
            return;
        }
        // The timer of a paused machine stands still, and begins anew.
        let wanted = if state.paused { 0 } else { state.period_ns };
        if wanted != period {
            period = wanted;
            deadline = (period > 0).then(|| Instant::now() + Duration::from_nanos(period));
        }
        let now = Instant::now();
        let rest = match deadline {
            Some(at) if at <= now => {
                drop(state);
                world.bring(|state| state.due.tick = true);
                let next = at + Duration::from_nanos(period);
                deadline = Some(if next > now { next } else { now + Duration::from_nanos(period) });
                continue;
            }
            Some(at) => at - now,
            // Now and then, look whether the machine is still there.
            None => Duration::from_millis(500),
        };
        state = world.reprogrammed.wait_timeout(state, rest).expect("no thread panics while it holds this lock").0;
        drop(state);
    }
}
