//! Promise: in every order of the calls of several claimants (and with any of them stopped for ever, or for long, between any two calls), the register is one: each generation
//! has one winner, nobody sees it go back or empty, and whoever comes then and is not stopped wins.
//!
//! A stateright model of the real code, over the directory of `ladder/mod.rs`.

mod ladder;

use std::collections::BTreeMap;

use ladder::{Calls, Files, How, Plant, Result_};
use lockstep::arbiter::register::RegisterFile;
use lockstep::arbiter::{Arbiter, Claim, Verdict};
use stateright::{Checker, HasDiscoveries, Model, Property};

const VM: &str = "vm";

/// What a process has learnt by a call of the register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Learnt {
    Holds(Option<(u64, u64)>),
    Won(u64),
    Lost(Option<(u64, u64)>),
}

/// A process that reads the register and claims the next generation, so often; none: it claims the first one without a look.
fn behave(calls: &Calls, host: u64, rounds: u32, learnt: &mut Vec<Learnt>) -> Result<(), String> {
    let register = RegisterFile::within(calls.clone(), 1);
    let short = |claim: Claim| (claim.generation, claim.host);
    for _ in 0..rounds.max(1) {
        let held = if rounds > 0 { register.read(VM).map_err(|error| format!("{error:?}"))? } else { None };
        let expected = held.as_ref().map(|claim| claim.generation);
        if rounds > 0 {
            learnt.push(Learnt::Holds(held.map(short)));
        }
        let generation = expected.unwrap_or(0) + 1;
        let claim = Claim { generation, host, host_name: "host".into(), shared_with: None };
        let verdict = register.compare_and_set(VM, expected, &claim).map_err(|error| format!("{error:?}"))?;
        if matches!(&verdict, Verdict::Lost(Some(holder)) if short(holder.clone()) == (generation, host)) {
            return Err("it has lost to itself".into());
        }
        learnt.push(match verdict {
            Verdict::Won => Learnt::Won(generation),
            Verdict::Lost(holder) => Learnt::Lost(holder.map(short)),
        });
    }
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    results: Vec<Result_>,
    /// What it has learnt.
    learnt: Vec<Learnt>,
    /// What was known to somebody when its present call began.
    known_at_call: u64,
    done: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    files: Files,
    processes: Vec<Process>,
    lost_answers: u8,
    /// The newest generation that a call which has ended has told of.
    known: u64,
    /// Who won which generation, by what anybody has learnt.
    winners: BTreeMap<u64, u64>,
    broken: Option<String>,
}

impl State {
    fn learns(&mut self, process: usize, learnt: &Learnt, host: u64) {
        let at_call = self.processes[process].known_at_call;
        let (seen, at_least) = match learnt {
            Learnt::Holds(held) | Learnt::Lost(held) => (*held, at_call),
            Learnt::Won(generation) => (Some((*generation, host)), at_call),
        };
        let (generation, winner) = seen.unwrap_or((0, 0));
        if generation < at_least {
            self.broken = Some(format!("{learnt:?} by {host}, when {at_least} was known"));
        }
        if generation > 0 {
            let known = *self.winners.entry(generation).or_insert(winner);
            if known != winner {
                self.broken = Some(format!("{generation} was won by {known} and by {winner}"));
            }
        }
        self.known = self.known.max(generation);
    }

    /// Runs a process one call further. False: nothing came of it.
    fn step(&mut self, how: How, process: usize, rounds: u32) -> bool {
        let before = self.processes[process].learnt.len();
        let (mut learnt, host) = (Vec::new(), process as u64 + 1);
        let code = |calls: &Calls| behave(calls, host, rounds, &mut learnt);
        let gone = ladder::step(how, &self.files, process, &self.processes[process].results, code);
        if how.lose && !gone.lost {
            return false;
        }
        self.files = gone.files;
        self.lost_answers += u8::from(gone.lost);
        self.processes[process].results = gone.results;
        self.processes[process].done = !gone.more;
        if let (false, Err(error)) = (gone.more, gone.end) {
            self.broken = Some(format!("{host} fails: {error}"));
        }
        for learnt in &learnt[before..] {
            self.learns(process, learnt, host);
            self.processes[process].known_at_call = self.known;
        }
        self.processes[process].learnt = learnt;
        true
    }

    /// Whether somebody who comes now, and whom nobody interrupts, wins a generation.
    fn lets_another_win(&self, how: How) -> bool {
        let mut state = self.clone();
        state.processes.push(fresh());
        let newcomer = state.processes.len() - 1;
        state.processes[newcomer].known_at_call = state.known;
        for _ in 0..40 {
            state.step(how, newcomer, 1);
            if state.processes[newcomer].done {
                return state.broken.is_none() && matches!(state.processes[newcomer].learnt[..], [_, Learnt::Won(_)]);
            }
        }
        false
    }
}

fn fresh() -> Process {
    Process { results: Vec::new(), learnt: Vec::new(), known_at_call: 0, done: false }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// A process makes its next call.
    Go(usize),
    /// It is a link that is made, and its answer is lost.
    GoLosingTheAnswer(usize),
}

struct Claimants {
    plant: Plant,
    /// Nobody notices new files, and no answer is lost.
    coarse: bool,
    /// How many generations each of them tries to win.
    rounds: Vec<u32>,
    /// What is there at first.
    files: Files,
}

impl Claimants {
    fn how(&self, lose: bool) -> How {
        How { plant: self.plant, coarse: self.coarse, lose }
    }
}

impl Model for Claimants {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            files: self.files.clone(),
            processes: self.rounds.iter().map(|_| fresh()).collect(),
            lost_answers: 0,
            known: 0,
            winners: BTreeMap::new(),
            broken: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (process, _) in state.processes.iter().enumerate().filter(|(_, process)| !process.done) {
            actions.push(Action::Go(process));
            if state.lost_answers == 0 && !self.coarse {
                actions.push(Action::GoLosingTheAnswer(process));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let (process, lose) = match action {
            Action::Go(process) => (process, false),
            Action::GoLosingTheAnswer(process) => (process, true),
        };
        state.step(self.how(lose), process, self.rounds[process]).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the register is one", |_, state: &State| state.broken.is_none()),
            Property::always("whoever is not stopped wins", |model: &Claimants, state: &State| {
                state.broken.is_some() || state.lets_another_win(model.how(false))
            }),
            Property::sometimes("two claim the same generation", |_, state: &State| {
                state.processes.iter().filter(|process| matches!(process.learnt.get(1), Some(Learnt::Lost(_)))).count()
                    == 1
                    && state.winners.contains_key(&1)
            }),
            Property::sometimes("a claimant is overtaken by several generations", |_, state: &State| {
                state.processes.iter().any(|process| match process.learnt[..] {
                    [Learnt::Holds(held), Learnt::Lost(Some((generation, _))), ..] => {
                        generation > held.map_or(0, |(held, _)| held) + 1
                    }
                    _ => false,
                })
            }),
            Property::sometimes("an answer is lost, and its claim has won", |_, state: &State| {
                state.lost_answers > 0 && state.processes.iter().all(|process| process.done) && state.winners.len() > 1
            }),
        ]
    }
}

/// A register of format 1.
fn old() -> Files {
    let body = "lockstep register 1\nvm vm\ngeneration 1\nhost 0000000000000063\nhost-name alpha\n";
    let text = format!("{body}check {:08x}\n", crc32fast::hash(body.as_bytes()));
    [("vm.register".to_string(), text.into_bytes())].into()
}

fn long() -> bool {
    std::env::var("LOCKSTEP_STEPS").is_ok()
}

fn check(rounds: &[u32], coarse: bool, files: Files) -> impl Checker<Claimants> {
    let claimants = Claimants { plant: Plant::Nothing, coarse, rounds: rounds.to_vec(), files };
    let checker = claimants.checker().threads(2).spawn_dfs().join();
    println!("{rounds:?}: {} different states", checker.unique_state_count());
    checker.assert_no_discovery("the register is one");
    checker.assert_no_discovery("whoever is not stopped wins");
    assert!(checker.is_done());
    checker
}

#[test]
fn every_order_of_two_claimants() {
    // `LOCKSTEP_STEPS` is the long run, here and below.
    check(&[1, 1], !long(), Files::new());
    let checker = check(&[1, 2], !long(), Files::new());
    for fact in ["two claim the same generation", "a claimant is overtaken by several generations"] {
        checker.assert_any_discovery(fact);
    }
    if long() {
        checker.assert_properties();
    }
}

#[test]
fn every_order_of_two_claimants_one_of_whom_does_not_hear_that_it_has_linked() {
    check(&[1, 1], false, Files::new()).assert_any_discovery("an answer is lost, and its claim has won");
}

#[test]
fn every_order_of_two_claimants_that_find_a_register_of_format_1() {
    check(if long() { &[2, 2] } else { &[1, 1] }, !long(), old());
}

#[test]
fn every_order_of_three_claimants() {
    check(if long() { &[1, 1, 1] } else { &[0, 0, 0] }, true, Files::new());
}

fn finds(plant: Plant, property: &'static str) {
    let model = Claimants { plant, coarse: false, rounds: vec![1, 2], files: Files::new() };
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AllOf([property].into())).spawn_dfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{plant:?} keeps `{property}`"));
    println!("{plant:?}: {:?}", path.last_state().broken);
}

#[test]
fn a_link_that_replaces_is_found() {
    finds(Plant::LinkReplaces, "the register is one");
}

#[test]
fn a_look_that_was_taken_before_the_link_is_found() {
    finds(Plant::OldListing, "the register is one");
}

#[test]
fn a_top_that_is_cleared_away_is_found() {
    finds(Plant::ClearTooMuch, "the register is one");
}
