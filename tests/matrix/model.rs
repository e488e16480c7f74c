//! What must become of a VM, by what has failed: a small function of machines and cables, without a clock and without any of lockstep's own code.
//!
//! A side that has lost its partner may go on if it reaches a majority of the arbiters, and not otherwise; a healthy pair asks nobody. Agents act when a
//! majority hears them.

use std::collections::BTreeSet;

use super::fault::Deed;
use super::site::{ARBITERS, Cable, HOSTS, Machine};

/// What has failed.
#[derive(Clone, Debug, Default)]
pub struct World(BTreeSet<Deed>);

/// What must become of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on as it is.
    Stays,
    /// It goes on, and the VM is moved to one of these hosts, where its clients are.
    Moves(Vec<usize>),
    /// It goes on. Whether the VM is moved to where its clients are, depends on who has seen what: the agent of the host that runs it is not heard.
    Undecided,
    /// One of these hosts goes on, in a new generation.
    OneOf(Vec<usize>),
    /// Nobody goes on until something is repaired.
    Nobody,
    /// Nobody has its state any more.
    Lost,
}

/// What must become of a VM that runs on a host without protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alone {
    /// The hosts that can protect it.
    pub protectors: Vec<usize>,
    /// Where its clients reach it in the end; empty: nowhere.
    pub served_at: Vec<usize>,
}

impl World {
    /// Something more has failed.
    pub fn suffers(&mut self, deed: Deed) {
        self.0.insert(deed);
    }

    /// Everything that has failed.
    pub fn deeds(&self) -> Vec<Deed> {
        self.0.iter().copied().collect()
    }

    fn is_killed(&self, machine: Machine) -> bool {
        self.0.contains(&Deed::Kill(machine))
    }

    /// Whether a machine's processes go on.
    pub fn is_up(&self, machine: Machine) -> bool {
        !self.is_killed(machine) && !self.0.contains(&Deed::Freeze(machine))
    }

    fn is_cut(&self, cable: Cable) -> bool {
        self.0.contains(&Deed::Cut(cable))
    }

    fn hear_each_other(&self, one: usize, other: usize) -> bool {
        let channel = |host| self.is_up(Machine::Host(host)) && !self.is_cut(Cable::Channel(host));
        let between = [Cable::Between(one, other), Cable::Between(other, one)];
        channel(one) && channel(other) && !between.into_iter().any(|cable| self.is_cut(cable))
    }

    /// Whether a majority of the arbiters hear each other.
    pub fn has_majority(&self) -> bool {
        let there = |arbiter: &usize| self.is_up(Machine::Arbiter(*arbiter)) && !self.is_cut(Cable::Arbiter(*arbiter));
        2 * (0..ARBITERS).filter(there).count() > ARBITERS
    }

    /// Whether a host is heard by them.
    fn is_heard(&self, host: usize) -> bool {
        self.is_up(Machine::Host(host)) && !self.is_cut(Cable::Manage(host)) && self.has_majority()
    }

    /// Whether the guest's clients reach a host.
    pub fn is_reached(&self, host: usize) -> bool {
        !self.is_cut(Cable::Guests(host))
    }

    /// What must become of a pair.
    pub fn pair(&self, primary: usize, backup: usize) -> Fate {
        if !self.hear_each_other(primary, backup) {
            return self.parted(primary, backup);
        }
        if self.is_reached(primary) || !self.has_majority() {
            return Fate::Stays;
        }
        if !self.is_heard(primary) {
            return Fate::Undecided;
        }
        let better = |host: &usize| self.is_heard(*host) && self.is_reached(*host);
        let third = |host: &usize| better(host) && *host != backup && self.hear_each_other(primary, *host);
        match (better(&backup), others(&[primary]).find(third)) {
            (true, _) => Fate::Moves(vec![backup]),
            (false, Some(third)) => Fate::Moves(vec![third]),
            (false, None) => Fate::Stays,
        }
    }

    fn parted(&self, primary: usize, backup: usize) -> Fate {
        let pair = [primary, backup];
        if pair.iter().all(|host| self.is_killed(Machine::Host(*host))) {
            return Fate::Lost;
        }
        let may: Vec<usize> = pair.into_iter().filter(|host| self.is_heard(*host)).collect();
        if may.is_empty() { Fate::Nobody } else { Fate::OneOf(may) }
    }

    /// What must become of a VM that runs on a host without protection.
    pub fn alone(&self, host: usize) -> Alone {
        let can = |other: &usize| self.is_heard(host) && self.is_heard(*other) && self.hear_each_other(host, *other);
        let protectors: Vec<usize> = others(&[host]).filter(can).collect();
        let served_at = if self.is_reached(host) {
            vec![host]
        } else {
            protectors.iter().copied().filter(|other| self.is_reached(*other)).collect()
        };
        Alone { protectors, served_at }
    }
}

fn others(hosts: &[usize]) -> impl Iterator<Item = usize> {
    (0..HOSTS).filter(move |host| !hosts.contains(host))
}

#[test]
fn the_model_says_what_a_person_would() {
    let fate = |deeds: &[Deed]| {
        let mut world = World::default();
        deeds.iter().for_each(|deed| world.suffers(*deed));
        world.pair(0, 1)
    };
    let kill = |host| Deed::Kill(Machine::Host(host));
    let freeze = |host| Deed::Freeze(Machine::Host(host));
    let arbiters = [Deed::Kill(Machine::Arbiter(0)), Deed::Cut(Cable::Arbiter(2))];
    assert_eq!(fate(&[]), Fate::Stays);
    assert_eq!(fate(&[kill(0)]), Fate::OneOf(vec![1]));
    assert_eq!(fate(&[freeze(1)]), Fate::OneOf(vec![0]));
    assert_eq!(fate(&[kill(0), kill(1)]), Fate::Lost);
    assert_eq!(fate(&[kill(0), freeze(1)]), Fate::Nobody);
    assert_eq!(fate(&arbiters), Fate::Stays);
    assert_eq!(fate(&[arbiters[0], arbiters[1], kill(0)]), Fate::Nobody);
    assert_eq!(fate(&[arbiters[0], kill(0)]), Fate::OneOf(vec![1]));
    assert_eq!(fate(&[Deed::Cut(Cable::Between(0, 1))]), Fate::OneOf(vec![0, 1]));
    assert_eq!(fate(&[Deed::Cut(Cable::Between(0, 1)), Deed::Cut(Cable::Manage(1))]), Fate::OneOf(vec![0]));
    assert_eq!(fate(&[Deed::Cut(Cable::Guests(0))]), Fate::Moves(vec![1]));
    assert_eq!(fate(&[Deed::Cut(Cable::Guests(0)), Deed::Cut(Cable::Guests(1))]), Fate::Moves(vec![2]));
    assert_eq!(fate(&[Deed::Cut(Cable::Guests(0)), Deed::Cut(Cable::Manage(0))]), Fate::Undecided);
}
