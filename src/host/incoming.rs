//! The log on its way into a backup: the channel thread puts entries and horizons here, the vCPU thread replays them.
//!
//! While the vCPU runs towards a horizon, the channel thread moves the guest's limit as soon as it knows more, so that
//! a backup that is close behind never stops at all.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::doors::replay::{Next, Source};
use crate::log::entry::Entry;
use crate::machine::doors::Halt;
use crate::machine::instant::Instant;
use crate::machine::safepoint::{NO_LIMIT, Safepoints};

/// How it goes on at the end of what was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// More will come.
    Open,
    /// Nothing more will come, and this host may go live.
    GoLive,
    /// The machine is to stop.
    Abandoned,
}

/// A frame that was received: when the vCPU has passed it, its stamp counts as executed.
#[derive(Clone, Copy, Debug)]
struct Mark {
    entries: u64,
    horizon: Option<Instant>,
    stamp: u64,
}

struct State {
    entries: VecDeque<Entry>,
    /// Number of the next entry to be received.
    next: u64,
    horizon: Option<Instant>,
    /// The vCPU runs towards the horizon, with this many exits behind it.
    running_at: Option<u64>,
    marks: VecDeque<Mark>,
    executed_stamp: u64,
    ending: Ending,
}

/// The meeting point of the channel and the vCPU thread.
pub struct Incoming {
    state: Mutex<State>,
    more: Condvar,
    safepoints: Safepoints,
    /// Entries that the vCPU thread has taken.
    executed: AtomicU64,
}

/// The most frames told apart in what is executed; beyond, the newest one stands for those that follow.
const MAX_MARKS: usize = 4096;

impl Incoming {
    /// An empty log for the machine with these safepoints, from its first entry.
    pub fn new(safepoints: Safepoints) -> Arc<Self> {
        Self::from_entry(safepoints, 0)
    }

    /// An empty log for the machine with these safepoints that has executed the first `entries` entries.
    pub fn from_entry(safepoints: Safepoints, entries: u64) -> Arc<Self> {
        let state = State {
            entries: VecDeque::new(),
            next: entries,
            horizon: None,
            running_at: None,
            marks: VecDeque::new(),
            executed_stamp: 0,
            ending: Ending::Open,
        };
        Arc::new(Incoming {
            state: Mutex::new(state),
            more: Condvar::new(),
            safepoints,
            executed: AtomicU64::new(entries),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds this lock")
    }

    /// Channel: these entries have come, sent at `stamp`.
    pub fn push(&self, entries: impl IntoIterator<Item = Entry>, stamp: u64) {
        let mut state = self.state();
        for entry in entries {
            self.extend_run(&state, entry.at);
            state.entries.push_back(entry);
            state.next += 1;
        }
        let entries = state.next;
        mark(&mut state.marks, Mark { entries, horizon: None, stamp });
        drop(state);
        self.more.notify_all();
    }

    /// Channel: no entry follows those received up to and including `at`, sent at `stamp`.
    pub fn clear_up_to(&self, at: Instant, stamp: u64) {
        let mut state = self.state();
        if state.horizon.is_none_or(|known| known < at) {
            state.horizon = Some(at);
            self.extend_run(&state, at);
        }
        let entries = state.next;
        mark(&mut state.marks, Mark { entries, horizon: Some(at), stamp });
        drop(state);
        self.more.notify_all();
    }

    /// While the guest runs towards an old horizon: it may go on to `at`, which is later. Not past an entry that it has yet to
    /// find here, whatever comes after that.
    fn extend_run(&self, state: &State, at: Instant) {
        if let (Some(exits), true) = (state.running_at, state.entries.is_empty()) {
            self.safepoints.move_limit(if at.exits == exits { at.polls } else { NO_LIMIT });
        }
    }

    fn end(&self, ending: Ending) {
        let mut state = self.state();
        if state.ending != Ending::Abandoned {
            state.ending = ending;
        }
        drop(state);
        self.more.notify_all();
    }

    /// Channel: nothing more will come; at the end of what was received, the machine goes live.
    pub fn go_live(&self) {
        self.end(Ending::GoLive);
        self.safepoints.ring();
    }

    /// The machine is to stop where it stands.
    pub fn abandon(&self) {
        self.end(Ending::Abandoned);
        self.safepoints.ring();
    }

    /// Entries executed, and the stamp of the newest frame that the vCPU has passed.
    pub fn executed(&self) -> (u64, u64) {
        let executed = self.executed.load(SeqCst);
        let at = Instant::new(self.safepoints.exits(), self.safepoints.count());
        let mut state = self.state();
        while let Some(mark) = state.marks.front().copied() {
            if mark.entries > executed || mark.horizon.is_some_and(|horizon| horizon > at) {
                break;
            }
            state.executed_stamp = mark.stamp;
            state.marks.pop_front();
        }
        (executed, state.executed_stamp)
    }

    /// The replay's end of this log.
    pub fn source(self: &Arc<Self>) -> IncomingSource {
        IncomingSource { incoming: self.clone(), taken: VecDeque::new(), number: self.executed.load(SeqCst) }
    }
}

fn mark(marks: &mut VecDeque<Mark>, mark: Mark) {
    if marks.len() >= MAX_MARKS {
        marks.pop_back();
    }
    marks.push_back(mark);
}

/// The replay's end of an [`Incoming`].
pub struct IncomingSource {
    incoming: Arc<Incoming>,
    /// Taken out of the shared queue in one go.
    taken: VecDeque<Entry>,
    /// Number of the first of them.
    number: u64,
}

impl IncomingSource {
    /// Waits for an entry, or, with `beyond`, for a horizon after it. `None` for such a horizon.
    fn fill(&mut self, at: Instant, beyond: Option<Instant>) -> Result<Option<Instant>, Halt> {
        if !self.taken.is_empty() {
            return Ok(None);
        }
        let mut state = self.incoming.state();
        loop {
            if state.ending == Ending::Abandoned {
                return Err(Halt::Requested(at));
            }
            if !state.entries.is_empty() {
                std::mem::swap(&mut state.entries, &mut self.taken);
                state.running_at = None;
                return Ok(None);
            }
            if state.ending == Ending::GoLive {
                return Err(Halt::EndOfLog(at));
            }
            if let (Some(horizon), Some(beyond)) = (state.horizon, beyond)
                && horizon > beyond
            {
                state.running_at = Some(at.exits);
                return Ok(Some(horizon));
            }
            state.running_at = None;
            state = self.incoming.more.wait(state).expect("no thread panics while it holds this lock");
        }
    }
}

impl Source for IncomingSource {
    fn next(&mut self, at: Instant) -> Result<Next<'_>, Halt> {
        Ok(match self.fill(at, Some(at))? {
            Some(horizon) => Next::ClearUpTo(horizon),
            None => Next::Entry(self.number, &self.taken[0]),
        })
    }

    fn next_entry(&mut self, at: Instant) -> Result<(u64, &Entry), Halt> {
        self.fill(at, None)?;
        Ok((self.number, &self.taken[0]))
    }

    fn take(&mut self) -> Option<Entry> {
        let entry = self.taken.pop_front();
        if entry.is_some() {
            self.number += 1;
            self.incoming.executed.store(self.number, SeqCst);
        }
        entry
    }

    fn abandoned(&self) -> bool {
        self.incoming.state().ending == Ending::Abandoned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::entry::Body;
    use crate::machine::memory;
    use lockstep_abi::safepoint::LIMIT;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn a_running_guest_is_not_sent_past_an_entry_that_it_has_not_met() {
        const PAGE: u64 = 4096;
        let memory = memory::map(memory::MIN).unwrap();
        let safepoints = Safepoints::new(memory.clone());
        assert!(safepoints.set_page(PAGE));
        let limit = || memory.read_obj::<u64>(GuestAddress(PAGE + LIMIT)).unwrap();
        let tick = |polls| Entry { at: Instant::new(7, polls), body: Body::Tick };

        let incoming = Incoming::new(safepoints);
        let mut source = incoming.source();
        incoming.clear_up_to(Instant::new(7, 10), 1);
        let next = source.next(Instant::new(7, 0));
        assert!(matches!(next, Ok(Next::ClearUpTo(at)) if at == Instant::new(7, 10)));
        incoming.clear_up_to(Instant::new(7, 15), 2);
        assert_eq!(limit(), 15, "nothing is in the way of a later horizon");
        incoming.push([tick(20)], 3);
        assert_eq!(limit(), 20, "it may run to the entry");
        incoming.clear_up_to(Instant::new(7, 25), 4);
        incoming.clear_up_to(Instant::new(9, 1), 5);
        incoming.push([tick(30), tick(40)], 6);
        assert_eq!(limit(), 20, "and not past it, whatever follows");
    }

    #[test]
    fn everything_received_is_replayed_before_the_machine_goes_live() {
        let memory = memory::map(memory::MIN).unwrap();
        let incoming = Incoming::new(Safepoints::new(memory));
        let mut source = incoming.source();
        incoming.push((1..=3).map(|polls| Entry { at: Instant::new(0, polls), body: Body::Tick }), 1);
        assert!(matches!(source.next(Instant::BOOT), Ok(Next::Entry(0, _))));
        assert!(source.take().is_some());
        incoming.push([Entry { at: Instant::new(0, 9), body: Body::Tick }], 2);
        incoming.clear_up_to(Instant::new(0, 50), 3);
        incoming.go_live();
        for number in 1..=3 {
            let met = source.next_entry(Instant::new(0, number)).map(|(number, _)| number);
            assert!(matches!(met, Ok(found) if found == number));
            assert!(source.take().is_some());
        }
        assert!(matches!(source.next(Instant::new(0, 9)), Err(Halt::EndOfLog(_))), "a horizon is no reason to wait");
        assert_eq!(incoming.executed().0, 4);
    }
}
