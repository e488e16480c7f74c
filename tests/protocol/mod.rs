//! What the simulator's hosts run and what its world has seen: a tiny deterministic guest, and the checker of the
//! promises.

mod faults;
mod guests;
mod hosts;
mod process;
mod roles;
mod surroundings;
pub mod world;

use std::collections::BTreeMap;

/// SplitMix64: one seed, one run.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(mix(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `low..high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// An entry of the simulated log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Something that somebody chose.
    Event(u64),
    /// An output; its content follows from all entries before it.
    Output(u64),
}

impl Entry {
    pub const BYTES: usize = 9;

    pub fn encode(self, bytes: &mut Vec<u8>) {
        let (kind, value) = match self {
            Entry::Event(value) => (0, value),
            Entry::Output(value) => (1, value),
        };
        bytes.push(kind);
        bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub fn decode(bytes: &[u8]) -> Entry {
        let value = u64::from_le_bytes(bytes[1..].try_into().unwrap());
        if bytes[0] == 0 { Entry::Event(value) } else { Entry::Output(value) }
    }
}

/// The guest: everything it does follows from the entries it has passed.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    pub passed: u64,
    hash: u64,
    /// Entry number and content of each output, by position.
    pub outputs: Vec<(u64, u64)>,
}

impl Guest {
    pub fn event(&mut self, value: u64) -> Entry {
        self.hash = mix(self.hash ^ value);
        self.passed += 1;
        Entry::Event(value)
    }

    pub fn output(&mut self) -> Entry {
        let content = mix(self.hash ^ self.passed);
        self.outputs.push((self.passed, content));
        self.hash = mix(content);
        self.passed += 1;
        Entry::Output(content)
    }

    pub fn replay(&mut self, entry: Entry) {
        let made = match entry {
            Entry::Event(value) => self.event(value),
            Entry::Output(_) => self.output(),
        };
        assert_eq!(made, entry, "the simulated guest is not deterministic");
    }
}

/// Which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// It starts as the primary.
    A,
    /// It starts as the backup.
    B,
}

impl std::ops::Not for Side {
    type Output = Side;

    fn not(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// Both hosts live.
    TwoLive,
    /// An output left that the backup did not hold, while the backup might have been the survivor.
    ReleasedUnheld,
    /// An output left with another content than it had before.
    Contradicted,
    /// An output left before one that comes earlier.
    OutOfOrder,
    /// The survivor's history lacks an output that had left.
    Lost,
    /// An output left a host that had given its peer up and not won.
    ReleasedWhileAsking,
    /// An output left a host that had slept longer than the time-out.
    ReleasedAfterSleep,
    /// The backup went live because its primary was silent, and then an output left that primary.
    LeftAfterTheSurvivor,
    /// An output that the primary had not let out was not repeated by the survivor.
    Missing,
    /// Something was sent by a backup that had given up its primary.
    SentAfterSuspicion,
    /// What was said for an older generation had another effect than that the connection was given up.
    HeardAnOlderGeneration,
    /// A side gave the other up in a run without faults.
    Needless,
    /// Faults over, and nothing came of it.
    NoProgress(String),
}

/// What the outside world has seen.
#[derive(Debug, Default)]
pub struct Checker {
    /// Content of each output that has left, by position; `None`: given up by a network that did not take it.
    seen: Vec<Option<u64>>,
    /// Outputs at positions below this may be given up: the network did not take them within a time-out, and then a backup that
    /// does not have them was taken.
    pub given_up: usize,
    pub broken: BTreeMap<Broken, u64>,
}

impl Checker {
    pub fn broke(&mut self, what: Broken, now: u64) {
        self.broken.entry(what).or_insert(now);
    }

    pub fn expect(&mut self, promise: bool, otherwise: Broken, now: u64) {
        if !promise {
            self.broke(otherwise, now);
        }
    }

    /// The output at `position` leaves a host.
    pub fn on_release(&mut self, now: u64, position: usize, content: u64) {
        let gap = self.seen.len()..position;
        if !gap.is_empty() && position <= self.given_up {
            self.seen.resize(position, None);
        }
        if position == self.seen.len() {
            return self.seen.push(Some(content));
        }
        match self.seen.get_mut(position) {
            Some(before) => {
                let before = *before.get_or_insert(content);
                self.expect(before == content, Broken::Contradicted, now);
            }
            None => self.broke(Broken::OutOfOrder, now),
        }
    }

    /// A host goes on with a guest that has put this out, by entry number and content.
    pub fn on_survivor(&mut self, now: u64, outputs: &[(u64, u64)]) {
        let held =
            outputs.iter().zip(&self.seen).filter(|((_, held), seen)| seen.is_none_or(|seen| seen == *held)).count();
        self.expect(held == self.seen.len(), Broken::Lost, now);
    }

    pub fn outputs_seen(&self) -> usize {
        self.seen.len()
    }
}
