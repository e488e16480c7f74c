//! Promise: the checker that judges the clients' histories accepts what one server could have said, refuses what it could not (a lost
//! write, a write applied twice, a stale read, answers out of order), and agrees with `stateright`'s tester wherever that
//! one is fast enough to be asked.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::time::{Duration, Instant};

use common::{Random, count_from, seed};
use net::linear::{Call, explain};
use net::object::{Ask, Items, Object, Told};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

/// A history from lines of `client, begin, end, what, answer`; an `end` of 0 is an answer that never came.
struct Script(Instant, Vec<Call>);

impl Script {
    fn new() -> Script {
        Script(Instant::now(), Vec::new())
    }

    fn call(mut self, client: usize, begin: u64, end: u64, ask: Ask, told: Told) -> Script {
        let at = |ms| self.0 + Duration::from_millis(ms);
        let answered = (end > 0).then(|| (at(end), told));
        self.1.push(Call { client, ask, called: at(begin), answered });
        self
    }

    #[track_caller]
    fn accepted(self) {
        explain(Object::Absent, &self.1).unwrap_or_else(|wrong| panic!("{wrong}"));
    }

    #[track_caller]
    fn refused(self) {
        assert!(explain(Object::Absent, &self.1).is_err(), "accepted: {:?}", self.1);
    }
}

use Ask::{Get, Incr, Push, Range, Set};
use Told::{Done, Nothing, Number};

#[test]
fn what_a_server_could_have_said_is_accepted() {
    Script::new().accepted();
    Script::new().call(0, 1, 2, Set(7), Done).call(1, 3, 4, Get, Number(7)).accepted();
    // Under way at the same time: both orders are possible.
    Script::new().call(0, 1, 9, Set(7), Done).call(1, 2, 3, Get, Nothing).call(1, 4, 5, Get, Number(7)).accepted();
    Script::new().call(0, 1, 9, Incr, Number(2)).call(1, 1, 9, Incr, Number(1)).accepted();
    // Never answered: it happened here, and there it did not.
    Script::new().call(0, 1, 0, Set(7), Done).call(1, 5, 6, Get, Number(7)).accepted();
    Script::new().call(0, 1, 0, Set(7), Done).call(1, 5, 6, Get, Nothing).accepted();
    Script::new().call(0, 1, 0, Set(7), Done).call(1, 5, 6, Get, Nothing).call(1, 7, 8, Get, Number(7)).accepted();
    let list = Told::Items(Items::default().with(5).with(4));
    Script::new()
        .call(0, 1, 6, Push(4), Number(2))
        .call(1, 2, 5, Push(5), Number(1))
        .call(0, 7, 8, Range, list)
        .accepted();
}

#[test]
fn a_lost_write_is_refused() {
    Script::new().call(0, 1, 2, Set(7), Done).call(1, 3, 4, Get, Nothing).refused();
    Script::new().call(0, 1, 2, Incr, Number(1)).call(1, 3, 4, Incr, Number(1)).refused();
    let list = Told::Items(Items::default().with(4));
    Script::new()
        .call(0, 1, 2, Push(4), Number(1))
        .call(0, 3, 4, Push(5), Number(2))
        .call(1, 5, 6, Range, list)
        .refused();
    // Seen once, it has happened for good.
    Script::new().call(0, 1, 0, Set(7), Done).call(1, 5, 6, Get, Number(7)).call(1, 7, 8, Get, Nothing).refused();
}

#[test]
fn a_write_applied_twice_is_refused() {
    Script::new().call(0, 1, 2, Incr, Number(1)).call(1, 3, 4, Incr, Number(3)).refused();
    Script::new().call(0, 1, 2, Incr, Number(2)).refused();
    // Neither may one that was never answered.
    Script::new().call(0, 1, 0, Incr, Done).call(1, 2, 3, Incr, Number(3)).refused();
    let list = Told::Items(Items::default().with(4).with(4));
    Script::new().call(0, 1, 2, Push(4), Number(1)).call(1, 3, 4, Range, list).refused();
    // An old value comes back after a new one: the write has been applied a second time.
    Script::new()
        .call(0, 1, 2, Set(7), Done)
        .call(1, 3, 4, Set(8), Done)
        .call(2, 5, 6, Get, Number(8))
        .call(2, 7, 8, Get, Number(7))
        .refused();
}

#[test]
fn a_stale_read_is_refused() {
    Script::new().call(0, 1, 2, Set(7), Done).call(0, 3, 4, Set(8), Done).call(1, 5, 6, Get, Number(7)).refused();
    Script::new().call(0, 1, 9, Set(7), Done).call(1, 2, 3, Get, Number(7)).call(2, 4, 5, Get, Nothing).refused();
}

#[test]
fn lists_in_two_orders_are_refused() {
    let list = Told::Items(Items::default().with(4).with(5));
    Script::new()
        .call(0, 1, 6, Push(4), Number(2))
        .call(1, 2, 5, Push(5), Number(1))
        .call(0, 7, 8, Range, list)
        .refused();
}

/// A history of `clients` on one key: each call takes effect somewhere between its begin and its end. At most `silent` of
/// them are never answered: each such one doubles what a checker has to look at from there on.
fn lived(random: &mut Random, clients: usize, calls: usize, mut silent: u64, kind: u64) -> Vec<Call> {
    let start = Instant::now();
    let mut object = Object::Absent;
    let mut now = 0;
    let mut under_way: Vec<Option<(Call, Option<Told>)>> = vec![None; clients];
    let mut history = Vec::new();
    let mut begun = 0;
    while begun < calls || under_way.iter().any(Option::is_some) {
        now += 1;
        let at = start + Duration::from_micros(now);
        let client = random.below(clients as u64) as usize;
        match &mut under_way[client] {
            None if begun < calls => {
                let ask = match (kind, random.below(3)) {
                    (0, 0) => Set(now),
                    (0, _) => Get,
                    (1, 0..2) => Incr,
                    (1, _) => Get,
                    (_, 0..2) => Push(now),
                    (_, _) => Range,
                };
                under_way[client] = Some((Call { client, ask, called: at, answered: None }, None));
                begun += 1;
            }
            None => {}
            // Of the calls that are never answered some never happen.
            Some((call, effect @ None)) if silent == 0 || random.below(8) > 0 => {
                *effect = Some(object.invoke(&call.ask));
            }
            Some((call, effect)) => {
                match effect.filter(|_| silent == 0 || random.below(30) > 0) {
                    Some(told) => call.answered = Some((at, told)),
                    None => silent -= 1,
                }
                history.push(*call);
                // A client whose call was not answered calls no more: another takes its seat.
                under_way[client] = None;
            }
        }
    }
    for (seat, call) in history.iter_mut().enumerate().filter(|(_, call)| call.answered.is_none()) {
        call.client = clients + seat;
    }
    history
}

/// `stateright`'s opinion.
fn judge(calls: &[Call]) -> bool {
    let mut events: Vec<(Instant, bool, usize)> = Vec::new();
    for (index, call) in calls.iter().enumerate() {
        events.push((call.called, false, index));
        events.extend(call.answered.map(|(at, _)| (at, true, index)));
    }
    events.sort();
    let mut tester = LinearizabilityTester::new(Object::Absent);
    for (_, ends, index) in events {
        let call = &calls[index];
        let noted = match call.answered.filter(|_| ends) {
            Some((_, told)) => tester.on_return(call.client, told).map(|_| ()),
            None => tester.on_invoke(call.client, call.ask).map(|_| ()),
        };
        noted.expect("one call of a client at a time");
    }
    tester.is_consistent()
}

#[test]
fn the_checker_agrees_with_another() {
    let mut random = Random::new(seed());
    let (mut right, mut wrong) = (0, 0);
    for round in 0..count_from("LOCKSTEP_HISTORIES", 3000) {
        let mut calls = lived(&mut random, 3, 9, 3, round % 3);
        assert!(explain(Object::Absent, &calls).is_ok(), "lived, and refused: {calls:?}");
        // Now one answer is another one's, or a little too high.
        let (at, from) = (random.below(9) as usize, random.below(9) as usize);
        if let (Some((when, old)), Some((_, other))) = (calls[at].answered, calls[from].answered) {
            let changed = match old {
                Number(value) if random.below(2) == 0 => Number(value + 1),
                _ => other,
            };
            calls[at].answered = Some((when, changed));
        }
        let expected = judge(&calls);
        assert_eq!(explain(Object::Absent, &calls).is_ok(), expected, "{calls:?}");
        if expected { right += 1 } else { wrong += 1 }
    }
    println!("{right} histories accepted by both, {wrong} refused by both");
    assert!(right > 100 && wrong > 100);
}

#[test]
fn long_histories_are_judged() {
    let mut random = Random::new(seed());
    for kind in 0..3 {
        let mut calls = lived(&mut random, 10, 2000, 1, kind);
        explain(Object::Absent, &calls).unwrap_or_else(|wrong| panic!("{wrong}"));
        let last_number = |call: &&mut Call| matches!(call.answered, Some((_, Number(_))));
        let call = calls.iter_mut().rev().find(last_number).expect("an answer with a number");
        call.answered = call.answered.map(|(when, _)| (when, Number(u64::MAX)));
        assert!(explain(Object::Absent, &calls).is_err(), "a number that nobody wrote, accepted");
    }
}
