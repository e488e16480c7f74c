//! Is there one order of these calls that explains every answer, and in which a call that was answered before another was made
//! comes before it? The search of Wing and Gong with Lowe's memory of what was tried: a state that was reached by the same calls
//! in another order need not be looked at again. `stateright`'s tester, which has no such memory, is its judge on small
//! histories (`tests/net_checker.rs`).

#![allow(clippy::disallowed_types, reason = "membership alone matters: nothing goes through these sets in order")]

use std::collections::HashSet;
use std::time::Instant;

use stateright::semantics::SequentialSpec;

use super::object::{Ask, Object, Told};

/// One call on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who called.
    pub client: usize,
    /// What for.
    pub ask: Ask,
    /// When, before the first byte was sent.
    pub called: Instant,
    /// When the last byte of the answer was there, and what it said; `None`: never, so it may have happened or not.
    pub answered: Option<(Instant, Told)>,
}

/// No order explains the calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexplained {
    /// The first call that has no place, in the order that comes furthest.
    pub call: Call,
    /// The calls under way at the same time, in the order of their begin.
    pub beside: Vec<Call>,
    /// How many calls that order has before it.
    pub explained: usize,
}

impl std::fmt::Display for Unexplained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "after {} calls, no order explains\n  {:?}\nbeside", self.explained, self.call)?;
        self.beside.iter().try_for_each(|call| writeln!(f, "  {call:?}"))
    }
}

/// The calls that an order has so far.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Placed(Vec<u64>);

impl Placed {
    fn flip(&mut self, call: usize) {
        self.0[call / 64] ^= 1 << (call % 64);
    }
}

/// Begins and ends of calls in the order of time, as a list from which calls can be taken and put back.
struct Events {
    /// The call that begins or ends here.
    calls: Vec<usize>,
    begins: Vec<bool>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where each call begins and ends.
    places: Vec<(usize, Option<usize>)>,
}

/// Before the first event; and, as `next` of the last one, behind it.
const EDGE: usize = 0;

impl Events {
    fn of(calls: &[Call]) -> Events {
        // At the same instant begins come first: calls that touch are counted as simultaneous.
        let mut order: Vec<(Instant, bool, usize)> = Vec::new();
        for (index, call) in calls.iter().enumerate() {
            order.push((call.called, false, index));
            order.extend(call.answered.map(|(at, _)| (at, true, index)));
        }
        order.sort();
        let length = order.len() + 1;
        let mut events = Events {
            calls: vec![usize::MAX],
            begins: vec![false],
            next: (1..=length).map(|event| event % length).collect(),
            previous: (0..length).map(|event| (event + length - 1) % length).collect(),
            places: vec![(EDGE, None); calls.len()],
        };
        for (event, &(_, ends, call)) in order.iter().enumerate() {
            events.calls.push(call);
            events.begins.push(!ends);
            let place = &mut events.places[call];
            if ends {
                place.1 = Some(event + 1);
            } else {
                place.0 = event + 1;
            }
        }
        events
    }

    fn unlink(&mut self, event: usize) {
        let (previous, next) = (self.previous[event], self.next[event]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn link(&mut self, event: usize) {
        let (previous, next) = (self.previous[event], self.next[event]);
        self.next[previous] = event;
        self.previous[next] = event;
    }

    fn take(&mut self, call: usize) {
        let (begin, end) = self.places[call];
        self.unlink(begin);
        end.into_iter().for_each(|end| self.unlink(end));
    }

    /// Puts back the call that was taken last.
    fn put_back(&mut self, call: usize) {
        let (begin, end) = self.places[call];
        end.into_iter().for_each(|end| self.link(end));
        self.link(begin);
    }
}

/// Looks for an order of the calls on one key, which begins as `start`.
pub fn explain(start: Object, calls: &[Call]) -> Result<(), Box<Unexplained>> {
    let mut events = Events::of(calls);
    let mut left = calls.iter().filter(|call| call.answered.is_some()).count();
    let mut state = start;
    let mut placed = Placed(vec![0; calls.len().div_ceil(64)]);
    let mut tried = HashSet::new();
    let mut order: Vec<(usize, Object)> = Vec::new();
    let mut furthest: Option<(usize, usize)> = None;
    let mut at = events.next[EDGE];
    while left > 0 {
        if at != EDGE && events.begins[at] {
            let call = events.calls[at];
            let mut after = state;
            let told = after.invoke(&calls[call].ask);
            let possible = calls[call].answered.is_none_or(|(_, answer)| answer == told);
            placed.flip(call);
            if possible && tried.insert((placed.clone(), after)) {
                order.push((call, state));
                state = after;
                left -= usize::from(calls[call].answered.is_some());
                events.take(call);
                at = events.next[EDGE];
            } else {
                placed.flip(call);
                at = events.next[at];
            }
            continue;
        }
        // The answer of a call that found no place (or the end, with unanswered calls only): one step back.
        if at != EDGE && furthest.is_none_or(|(length, _)| order.len() > length) {
            furthest = Some((order.len(), events.calls[at]));
        }
        let Some((call, before)) = order.pop() else {
            let (explained, call) = furthest.expect("an answered call is left, and its answer was met");
            return Err(Box::new(unexplained(calls, calls[call], explained)));
        };
        state = before;
        placed.flip(call);
        left += usize::from(calls[call].answered.is_some());
        events.put_back(call);
        at = events.next[events.places[call].0];
    }
    Ok(())
}

fn unexplained(calls: &[Call], call: Call, explained: usize) -> Unexplained {
    let ended = |call: &Call| call.answered.map(|(at, _)| at);
    let overlaps = |other: &&Call| {
        **other != call
            && ended(&call).is_none_or(|end| other.called <= end)
            && ended(other).is_none_or(|end| call.called <= end)
    };
    let mut beside: Vec<Call> = calls.iter().filter(overlaps).copied().collect();
    beside.sort_by_key(|call| call.called);
    Unexplained { call, beside, explained }
}
