//! A guest that has nothing but a disk: it asks for random things, and knows what has to come of them. Requests that overlap are carried out in the order in which they
//! were asked for, so what a read must find is known when it is asked for.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;

use lockstep::disk::faults::Dice;
use lockstep::machine::blocks::{Ask, Completions, Outcome, Request, Requests};

/// Sectors of the disk: few, so that requests overlap.
pub const SECTORS: u64 = 96;

/// What a sector holds: zeros, or this write's mark.
type Value = u64;

/// The guest. A copy of it is the guest at that moment.
#[derive(Clone)]
pub struct Guest {
    dice: Dice,
    next_id: u64,
    next_value: Value,
    /// Everything that each sector was to hold, in order.
    history: Vec<Vec<Value>>,
    /// In flight, with the place in its sectors' histories at which it was asked.
    in_flight: BTreeMap<u64, (Ask, Vec<usize>)>,
    /// In flight when the machine changed hands: what was asked for after it may have been done before it.
    loose: Vec<u64>,
    pub completed: u64,
    /// Whether discards, which may leave anything, are asked for.
    pub discards: bool,
}

fn sector(number: u64, value: Value) -> [u8; 512] {
    let mut bytes = [0; 512];
    if value > 0 {
        let word = (value << 16 | number).to_le_bytes();
        bytes.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&word));
    }
    bytes
}

impl Guest {
    pub fn new(seed: u64) -> Self {
        Guest {
            dice: Dice::new(seed),
            next_id: 0,
            next_value: 1,
            history: vec![vec![0]; SECTORS as usize],
            in_flight: BTreeMap::new(),
            loose: Vec::new(),
            completed: 0,
            discards: true,
        }
    }

    pub fn dice(&mut self) -> &mut Dice {
        &mut self.dice
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// As the device would hand it out with the machine's state.
    pub fn requests_in_flight(&self) -> Requests {
        self.in_flight.iter().map(|(id, (ask, _))| Request { id: *id, ask: ask.clone() }).collect()
    }

    /// Another host goes on.
    pub fn changed_hands(&mut self) {
        self.loose = self.in_flight.keys().copied().collect();
    }

    fn set(&mut self, first: u64, sectors: u64, value: Value) {
        for number in first..first + sectors {
            self.history[number as usize].push(value);
        }
    }

    /// Asks for some things.
    pub fn ask(&mut self) -> Requests {
        let count = 1 + self.dice.below(6);
        (0..count).map(|_| self.ask_one()).collect()
    }

    fn ask_one(&mut self) -> Request {
        let sectors = 1 + self.dice.below(12);
        let first = self.dice.below(SECTORS - sectors + 1);
        let places =
            self.history[first as usize..][..sectors as usize].iter().map(|history| history.len() - 1).collect();
        let ask = match self.dice.below(100) {
            0..45 => Ask::Read { sector: first, bytes: sectors as u32 * 512 },
            45..80 => {
                let value = self.next_value;
                self.next_value += 1;
                self.set(first, sectors, value);
                let data = (first..first + sectors).flat_map(|number| sector(number, value)).collect();
                Ask::Write { sector: first, data }
            }
            80..88 => Ask::Flush,
            88..94 if self.discards => {
                self.set(first, sectors, 0);
                Ask::Discard { sector: first, sectors: sectors as u32 }
            }
            choice => {
                self.set(first, sectors, 0);
                Ask::WriteZeroes { sector: first, sectors: sectors as u32, may_unmap: choice % 2 == 0 }
            }
        };
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight.insert(id, (ask.clone(), places));
        Request { id, ask }
    }

    /// Hears of these ends, and checks what was read.
    pub fn hear(&mut self, completions: &Completions) {
        for completion in completions {
            let id = completion.id;
            let Some((ask, places)) = self.in_flight.remove(&id) else {
                panic!("request {id} has come to an end twice, or was not made")
            };
            self.completed += 1;
            match (&ask, &completion.outcome) {
                (Ask::Read { sector: first, bytes }, Outcome::Read(read)) => {
                    assert_eq!(read.len(), *bytes as usize);
                    for (index, found) in read.chunks(512).enumerate() {
                        let number = first + index as u64;
                        let history = &self.history[number as usize];
                        let from = places[index];
                        let to = if self.loose.contains(&id) { history.len() } else { from + 1 };
                        let right = history[from..to].iter().any(|value| sector(number, *value) == found);
                        let word = u64::from_le_bytes(found[..8].try_into().unwrap());
                        assert!(
                            right,
                            "request {id} finds {:#x} in sector {number}, which was to hold one of {:?}",
                            word >> 16,
                            &history[from..to]
                        );
                    }
                }
                (Ask::Read { .. }, other) => panic!("request {id} is a read, and comes to {other:?}"),
                (_, outcome) => assert_eq!(*outcome, Outcome::Done, "request {id}: {ask:?}"),
            }
        }
    }

    /// What the disk must hold when nothing is in flight.
    pub fn contents(&self) -> Vec<u8> {
        assert!(self.in_flight.is_empty());
        let newest = |(number, history): (usize, &Vec<Value>)| sector(number as u64, *history.last().unwrap());
        self.history.iter().enumerate().flat_map(newest).collect()
    }
}
