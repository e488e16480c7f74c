//! Promise: in every order of what several hosts do to take a shared image over (and with any of them stopped for ever, or for long, anywhere in between), nobody finds his right to change the image
//! standing when a later generation has changed it; and whoever comes with the newest generation, and is not stopped, gets it.
//!
//! A stateright model of the real code, over the directory of `ladder/mod.rs`. What lies between a look and the change that it allows is left out: see `docs/disk.md`.

mod ladder;

use ladder::{Calls, Files, How, Plant, Result_};
use lockstep::disk::fence::{Fences, Raised};
use lockstep::disk::spec::Mode;
use lockstep::disk::stamp::{ImageRole, Stamp};
use stateright::{Checker, HasDiscoveries, Model, Property};

fn stamp(generation: u64) -> Stamp {
    let number = "0".repeat(32);
    Stamp {
        format: lockstep::disk::stamp::FORMAT,
        disk: number.clone(),
        contents: number,
        vm: "vm".into(),
        mode: Mode::Shared,
        generation,
        role: ImageRole::Live,
        clean: false,
    }
}

/// What a host has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Found {
    /// It may change the image, at this moment, or it may not.
    May(bool),
    /// It has changed it.
    Changed,
    /// A later generation has taken it.
    Passed,
}

/// The generation that has the image at first.
const FIRST: u64 = 1;

/// A host that has won `generation` takes the image over, if it does not have it, and changes it, so often.
fn behave(calls: &Calls, generation: u64, changes: u32, found: &mut Vec<Found>) -> Result<(), String> {
    let (fences, own) = (Fences::within(calls.clone(), "s"), stamp(generation));
    let raised = match generation {
        FIRST => Raised::Newest(1),
        _ => fences.raise(&own, 0).map_err(|error| format!("{error:?}"))?,
    };
    let Raised::Newest(number) = raised else {
        found.push(Found::Passed);
        return Ok(());
    };
    let stopped = |_| "stopped".to_string();
    for _ in 0..changes {
        let name = format!("s.{number}");
        let may = calls.also(|files| files.get(&name) == Some(&own.sealed())).map_err(stopped)?;
        found.push(Found::May(may));
        if !may {
            return Ok(());
        }
        calls.also(|_| true).map_err(stopped)?;
        found.push(Found::Changed);
    }
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Host {
    results: Vec<Result_>,
    found: Vec<Found>,
    done: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    files: Files,
    hosts: Vec<Host>,
    /// The newest generation that has changed the image.
    changed: u64,
    broken: Option<String>,
}

impl State {
    fn step(&mut self, (plant, changes): (Plant, u32), host: usize, generation: u64) {
        let (before, mut found) = (self.hosts[host].found.len(), Vec::new());
        // Of three hosts nobody notices the new files.
        let how = How { plant, coarse: changes == 1, lose: false };
        let gone = ladder::step(how, &self.files, host, &self.hosts[host].results, |calls| {
            behave(calls, generation, changes, &mut found)
        });
        for found in &found[before..] {
            match found {
                Found::May(true) if generation < self.changed => {
                    self.broken = Some(format!("{generation} may change it after {}", self.changed));
                }
                Found::Changed => self.changed = self.changed.max(generation),
                Found::May(_) | Found::Passed => {}
            }
        }
        if let (false, Err(error)) = (gone.more, gone.end) {
            self.broken = Some(format!("{generation} fails: {error}"));
        }
        self.files = gone.files;
        self.hosts[host] = Host { results: gone.results, found, done: !gone.more };
    }

    /// Whether the newest generation, if it comes now and nobody stops it, gets the image.
    fn the_next_one_gets_it(&self, how: (Plant, u32)) -> bool {
        let mut state = self.clone();
        state.hosts.push(Host { results: Vec::new(), found: Vec::new(), done: false });
        let newest = state.hosts.len() - 1;
        for _ in 0..60 {
            state.step(how, newest, 99);
            if state.hosts[newest].done {
                return state.changed == 99 && state.broken.is_none();
            }
        }
        false
    }
}

struct Hosts {
    plant: Plant,
    /// What they have won.
    generations: Vec<u64>,
    /// How often each changes the image.
    changes: u32,
}

impl Model for Hosts {
    type State = State;
    type Action = usize;

    fn init_states(&self) -> Vec<State> {
        let host = Host { results: Vec::new(), found: Vec::new(), done: false };
        let files = Files::from([("s.1".to_string(), stamp(FIRST).sealed())]);
        vec![State { files, hosts: vec![host; self.generations.len()], changed: 0, broken: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<usize>) {
        actions.extend((0..state.hosts.len()).filter(|host| !state.hosts[*host].done));
    }

    fn next_state(&self, last: &State, host: usize) -> Option<State> {
        let mut state = last.clone();
        state.step((self.plant, self.changes), host, self.generations[host]);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nobody changes it after a later generation has", |_, state: &State| {
                state.broken.is_none()
            }),
            Property::always("the newest gets it", |model: &Hosts, state: &State| {
                state.broken.is_some() || state.the_next_one_gets_it((model.plant, model.changes))
            }),
            Property::sometimes("an older one comes too late", |_, state: &State| {
                state.hosts.iter().any(|host| host.found == [Found::Passed])
            }),
            Property::sometimes("an older one is fenced between two changes", |_, state: &State| {
                state.hosts.iter().any(|host| host.found == [Found::May(true), Found::Changed, Found::May(false)])
            }),
            Property::sometimes("all of them change it, one after the other", |_, state: &State| {
                state.hosts.iter().all(|host| host.found.last() == Some(&Found::Changed))
            }),
        ]
    }
}

fn check(generations: &[u64], changes: u32) -> impl Checker<Hosts> {
    let hosts = Hosts { plant: Plant::Nothing, generations: generations.to_vec(), changes };
    let checker = hosts.checker().threads(2).spawn_dfs().join();
    println!("{generations:?}: {} different states", checker.unique_state_count());
    checker.assert_no_discovery("nobody changes it after a later generation has");
    checker.assert_no_discovery("the newest gets it");
    assert!(checker.is_done());
    checker
}

#[test]
fn every_order_of_two_hosts() {
    check(&[2, 3], 2).assert_properties();
}

#[test]
fn every_order_of_three_hosts() {
    // One has it, and two take it over.
    let checker = check(&[FIRST, 2, 3], 1);
    for fact in ["an older one comes too late", "all of them change it, one after the other"] {
        checker.assert_any_discovery(fact);
    }
}

fn finds(plant: Plant) {
    let property = "nobody changes it after a later generation has";
    let model = Hosts { plant, generations: vec![2, 3], changes: 2 };
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AllOf([property].into())).spawn_dfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{plant:?} keeps `{property}`"));
    println!("{plant:?}: {:?}", path.last_state().broken);
}

#[test]
fn an_older_stamp_that_stays_is_found() {
    finds(Plant::ClearNothing);
}

#[test]
fn a_stamp_that_replaces_is_found() {
    finds(Plant::LinkReplaces);
}
