//! Promise: whatever a power failure leaves of the sectors that were not flushed (the old bytes, the new ones, or some of each), and however
//! often it strikes, a log gives back a prefix of what was appended, with everything that it had called durable. I/O errors on the way change
//! nothing of that.

mod disk;

use disk::{Disk, Trouble};
use lockstep_aof::{Io, Log, RewriteError, Storage, Sync};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What is appended: number and length of the payload; the model is the sum of all.
fn payload(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((0..length).map(|at| (number as usize * 31 + at) as u8));
    bytes
}

/// The records since the beginning, of which a rewriting keeps the last few in one.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Model(Vec<u64>);

const REWRITTEN: u8 = 0xee;

impl Model {
    fn apply(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        if bytes[0] == REWRITTEN && bytes.len() % 8 == 1 && bytes[1..9] == [0xff; 8] {
            if bytes[9] == 0 {
                self.0.clear();
            }
            self.0.extend(bytes[17..].chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())));
            return Ok(());
        }
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        if bytes != payload(number, bytes.len() - 8) {
            return Err("altered");
        }
        self.0.push(number);
        Ok(())
    }

    /// The same in a few records.
    fn summary(&self) -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for (part, numbers) in self.0.chunks(100).enumerate() {
            let mut bytes = vec![REWRITTEN];
            bytes.extend([0xff; 8]);
            bytes.extend((part as u64).to_le_bytes());
            numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
            all.push(bytes);
        }
        all
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    /// So many requests are carried out.
    Work(usize),
    Rewrite,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![4 => 0_usize..200, 2 => 400_usize..1100, 1 => 4000_usize..60_000].prop_map(Step::Append),
        6 => (1_usize..6).prop_map(Step::Work),
        1 => Just(Step::Rewrite),
    ]
}

struct Run {
    disk: Disk,
    log: Log,
    model: Model,
    /// Sequence number and how many records the model had then.
    appended: Vec<(u64, usize)>,
    next: u64,
}

impl Run {
    fn step(&mut self, step: &Step) -> Result<(), Trouble> {
        match *step {
            Step::Append(length) => {
                let bytes = payload(self.next, length);
                if bytes.len() > self.log.room() {
                    return Ok(());
                }
                self.model.0.push(self.next);
                self.next += 1;
                let sequence = self.log.append(7, &bytes);
                self.appended.push((sequence, self.model.0.len()));
            }
            Step::Work(times) => {
                for _ in 0..times {
                    if self.log.is_in_doubt() {
                        without_faults(self.log.resolve(&mut self.disk))?;
                    }
                    self.log.retry();
                    let Some(io) = self.log.next_io() else { break };
                    let result = match &io {
                        Io::Write { sector, bytes } => self.disk.write(*sector, bytes),
                        Io::Flush => self.disk.flush(),
                    };
                    if result == Err(Trouble::Power) {
                        return Err(Trouble::Power);
                    }
                    self.log.io_ended(result.is_ok());
                }
            }
            Step::Rewrite if self.log.is_at_rest() && !self.log.is_in_doubt() => {
                let model = &self.model;
                let result =
                    self.log.rewrite(&mut self.disk, 7, |put| model.summary().iter().try_for_each(|bytes| put(bytes)));
                if let Err(RewriteError::Storage(Trouble::Power)) = result {
                    return Err(Trouble::Power);
                }
            }
            Step::Rewrite => {}
        }
        Ok(())
    }

    /// How many of the model's records are durable.
    fn durable(&self) -> usize {
        let durable = self.log.durable();
        self.appended
            .iter()
            .filter(|(sequence, _)| *sequence <= durable)
            .map(|&(_, records)| records)
            .max()
            .unwrap_or(0)
    }
}

fn without_faults(result: Result<(), Trouble>) -> Result<(), Trouble> {
    if result == Err(Trouble::Fault) { Ok(()) } else { result }
}

fn open(disk: &mut Disk) -> Result<(Log, Model), Trouble> {
    let mut model = Model::default();
    let opened = Log::open(disk, Sync::Always, false, |time_ms, bytes| {
        assert_eq!(time_ms, 7);
        model.apply(bytes)
    });
    match opened {
        Ok((log, _)) => Ok((log, model)),
        Err(lockstep_aof::OpenError::Storage(trouble)) => Err(trouble),
        Err(error) => panic!("the log cannot be opened: {error}"),
    }
}

/// Lives of one disk: what is done in each, and after how many sectors written or flushes the power fails.
fn lives() -> impl Strategy<Value = Vec<(Vec<Step>, usize)>> {
    prop::collection::vec((prop::collection::vec(step(), 0..60), 0_usize..400), 1..8)
}

fn survives(seed: u64, fault_every: u64, lives: &[(Vec<Step>, usize)]) -> u64 {
    let mut disk = Disk::new(16 + 2 * 512, seed);
    let (mut known, mut durable) = (Model::default(), 0);
    let (mut next, mut tries, mut found) = (0, 0, 0);
    for (steps, power) in lives {
        disk.power = *power;
        disk.fault_every = fault_every;
        // What is recovered must be a prefix of what was appended before, as long as what was durable.
        let check = |recovered: &Model, known: &Model, durable: usize| {
            assert!(known.0.starts_with(&recovered.0), "no prefix: {recovered:?} of {known:?}");
            assert!(recovered.0.len() >= durable, "{} of {durable} durable ones", recovered.0.len());
        };
        let (log, model) = match open(&mut disk) {
            Ok(opened) => opened,
            Err(_) => {
                // Also while it is being opened the power may fail; then with all that is needed.
                disk.fail();
                disk.fault_every = 0;
                tries += 1;
                match open(&mut disk) {
                    Ok(opened) => opened,
                    Err(trouble) => panic!("{trouble}"),
                }
            }
        };
        check(&model, &known, durable);
        found += model.0.len() as u64;
        let records = model.0.len();
        let mut run = Run { disk, log, model, appended: Vec::new(), next };
        // What was recovered counts, whatever happens now.
        run.appended.push((0, records));
        let _ = steps.iter().try_for_each(|step| run.step(step));
        (known, durable, next) = (run.model.clone(), run.durable().max(records), run.next);
        disk = run.disk;
        disk.fail();
        disk.fault_every = 0;
    }
    let (_, model) = open(&mut disk).expect("power and no faults");
    assert!(known.0.starts_with(&model.0) && model.0.len() >= durable, "{model:?} of {known:?}, {durable} durable");
    found + model.0.len() as u64 + tries
}

#[test]
fn a_prefix_with_all_that_was_durable_survives() {
    let config = Config { cases: 1500, failure_persistence: None, ..Config::default() };
    let found = std::cell::Cell::new(0_u64);
    TestRunner::new(config)
        .run(&(any::<u64>(), prop_oneof![Just(0_u64), 5_u64..60], lives()), |(seed, fault_every, lives)| {
            found.set(found.get() + survives(seed, fault_every, &lives));
            Ok(())
        })
        .unwrap();
    assert!(found.get() > 10_000, "hardly anything was ever recovered: {}", found.get());
}

/// A flush that fails within a rewriting may lose what the log had written before it, unflushed: a case that random search found.
#[test]
fn a_flush_that_fails_in_a_rewriting_is_also_one_of_what_was_written_before() {
    use Step::{Append, Rewrite, Work};
    let first = vec![
        Append(0),
        Append(0),
        Rewrite,
        Append(0),
        Work(1),
        Append(0),
        Rewrite,
        Append(0),
        Work(1),
        Append(0),
        Work(3),
        Rewrite,
        Append(0),
        Work(2),
    ];
    let second = vec![
        Append(12241),
        Append(400),
        Append(16),
        Append(0),
        Append(0),
        Work(1),
        Append(0),
        Append(0),
        Work(2),
        Append(0),
        Work(1),
        Rewrite,
    ];
    let third = vec![Append(0), Work(1), Append(0), Append(0), Rewrite, Append(465), Work(1), Rewrite, Work(1)];
    survives(8738878180555064122, 19, &[(first, 22), (second, 36), (third, 14)]);
    // The same at every moment, with faults that come often.
    let steps = vec![Append(9), Work(1), Append(9), Rewrite, Work(1), Append(9), Work(4), Rewrite, Work(3)];
    for (seed, power) in (0..3000_u64).zip((0..40).cycle()) {
        survives(seed, 4, &[(steps.clone(), power), (steps.clone(), 400), (steps.clone(), power / 2)]);
    }
}

/// Where a life ends makes no difference: at every single sector of one that has everything in it.
#[test]
fn it_does_not_matter_when_the_power_fails() {
    let steps: Vec<Step> = (0..40)
        .flat_map(|number| {
            let rewrite = (number % 13 == 12).then_some(Step::Rewrite);
            [Step::Append(number * 37 % 1500), Step::Work(1 + number % 4)].into_iter().chain(rewrite)
        })
        .collect();
    for power in 0..420 {
        for seed in 0..6 {
            survives(seed, 0, &[(steps.clone(), power), (steps.clone(), 60), (steps.clone(), power / 2)]);
        }
    }
}

#[test]
fn a_disk_with_something_else_on_it_is_left_alone() {
    let mut disk = Disk::new(16 + 2 * 512, 1);
    disk.stable[3] = 1;
    let before = disk.stable.clone();
    let opened = Log::open(&mut disk, Sync::Always, false, |_, _| Ok::<(), &str>(()));
    assert_eq!(opened.err(), Some(lockstep_aof::OpenError::Foreign));
    assert!(disk.stable == before && disk.cached.is_empty());
    let (_, opened) = Log::open(&mut disk, Sync::Always, true, |_, _| Ok::<(), &str>(())).unwrap();
    assert!(opened.formatted);
    let mut small = Disk::new(100, 1);
    let opened = Log::open(&mut small, Sync::Always, false, |_, _| Ok::<(), &str>(()));
    assert_eq!(opened.err(), Some(lockstep_aof::OpenError::TooSmall(100)));
}
