//! A medium on which things go wrong on purpose: for tests, and for whoever wants to see what a guest does about it. Not in the help texts, but
//! no secret: `--disk FILE,faults=seed:7+errors:0.01+short:0.2+delay:0.1@2000+full:0.01+volatile`.
//!
//! | word | what it does |
//! | --- | --- |
//! | `seed:N` | the same number, the same faults for the same calls in the same order |
//! | `errors:P` | a call fails with EIO, with this probability; nothing is done |
//! | `full:P` | a write fails with ENOSPC |
//! | `short:P` | a read or write does less than was asked for |
//! | `delay:P@US` | a call takes up to this many microseconds longer |
//! | `volatile` | what is written stays in this process until a flush, which writes it out block by block in any order; if the process is killed first, it is lost |
//!
//! `volatile` is a power failure played by SIGKILL. In a pair with a shared image it breaks what the survivor may expect of the storage (that what is
//! written is there), so it belongs to one machine alone, to separate images, or to the death of both hosts.
#![allow(clippy::disallowed_methods, reason = "a slow disk takes time")]

use std::collections::BTreeMap;
use std::io;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::libc;

use super::medium::Medium;
use crate::machine::blocks::SECTOR;

/// What goes wrong, and how often (probabilities, 0 to 1).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultSpec {
    /// Where the random numbers begin.
    pub seed: u64,
    /// EIO.
    pub errors: f64,
    /// ENOSPC of a write.
    pub full: f64,
    /// Reads and writes that do less than was asked for.
    pub short: f64,
    /// Calls that take longer.
    pub delay: f64,
    /// How much longer at most, microseconds.
    pub delay_us: u64,
    /// Whether writes are lost if the process is killed before a flush.
    pub volatile: bool,
}

/// What is wrong with `faults=`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no fault (seed:N, errors:P, full:P, short:P, delay:P@US, volatile; joined by `+`; P from 0 to 1)")]
pub struct FaultSpecError(String);

impl FromStr for FaultSpec {
    type Err = FaultSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut spec = FaultSpec::default();
        for word in text.split('+') {
            let wrong = || FaultSpecError(word.into());
            let probability = |text: &str| text.parse().ok().filter(|p| (0.0..=1.0).contains(p)).ok_or_else(wrong);
            match word.split_once(':') {
                None if word == "volatile" => spec.volatile = true,
                Some(("seed", value)) => spec.seed = value.parse().map_err(|_| wrong())?,
                Some(("errors", value)) => spec.errors = probability(value)?,
                Some(("full", value)) => spec.full = probability(value)?,
                Some(("short", value)) => spec.short = probability(value)?,
                Some(("delay", value)) => {
                    let (p, us) = value.split_once('@').ok_or_else(wrong)?;
                    (spec.delay, spec.delay_us) = (probability(p)?, us.parse().map_err(|_| wrong())?);
                }
                _ => return Err(wrong()),
            }
        }
        Ok(spec)
    }
}

/// SplitMix64: good enough for faults, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && (self.roll() >> 11) as f64 / ((1u64 << 53) as f64) < probability
    }
}

type Sector = [u8; SECTOR as usize];

struct State {
    dice: Dice,
    /// Written, and not flushed: by sector number.
    cache: BTreeMap<u64, Sector>,
}

/// Calls until `size` bytes are done.
fn whole(size: usize, mut call: impl FnMut(usize) -> io::Result<usize>) -> io::Result<()> {
    let mut done = 0;
    while done < size {
        match call(done)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => done += more,
        }
    }
    Ok(())
}

/// A medium with faults.
pub struct Faulty<M> {
    inner: M,
    spec: FaultSpec,
    /// Calls are cut to multiples of this, as by a kernel.
    align: u64,
    state: Mutex<State>,
}

impl<M: Medium> Faulty<M> {
    /// `inner`, which takes blocks of `align` bytes, with these faults.
    pub fn new(inner: M, spec: FaultSpec, align: u64) -> Self {
        let state = Mutex::new(State { dice: Dice::new(spec.seed), cache: BTreeMap::new() });
        Faulty { inner, spec, align: align.max(SECTOR), state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes wrong with this call before it begins.
    fn befall(&self, full: f64) -> io::Result<()> {
        let (error, is_full, delay_us) = {
            let dice = &mut self.state().dice;
            let delay_us = if dice.happens(self.spec.delay) { dice.below(self.spec.delay_us + 1) } else { 0 };
            (dice.happens(self.spec.errors), dice.happens(full), delay_us)
        };
        if delay_us > 0 {
            thread::sleep(Duration::from_micros(delay_us));
        }
        match (error, is_full) {
            (true, _) => Err(io::Error::from_raw_os_error(libc::EIO)),
            (false, true) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            (false, false) => Ok(()),
        }
    }

    /// How much of a call of `length` bytes is done.
    fn cut(&self, length: usize) -> usize {
        let dice = &mut self.state().dice;
        let blocks = length as u64 / self.align;
        if blocks > 1 && dice.happens(self.spec.short) {
            return ((1 + dice.below(blocks - 1)) * self.align) as usize;
        }
        length
    }

    /// Forgets what the cache has of a range, which `clear` clears behind it; no flush comes in between.
    fn forget(&self, at: u64, length: u64, clear: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state();
        let (from, to) = (at / SECTOR, (at + length) / SECTOR);
        state.cache.retain(|sector, _| !(from..to).contains(sector));
        clear()
    }
}

impl<M: Medium> Medium for Faulty<M> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.befall(0.0)?;
        let length = self.cut(buffer.len());
        // Under the lock: a flush takes sectors out of the cache.
        let state = self.state();
        let read = self.inner.read_at(&mut buffer[..length], at)?;
        for (index, part) in buffer[..read].chunks_exact_mut(SECTOR as usize).enumerate() {
            if let Some(sector) = state.cache.get(&(at / SECTOR + index as u64)) {
                part.copy_from_slice(sector);
            }
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.befall(self.spec.full)?;
        let length = self.cut(bytes.len());
        if !self.spec.volatile {
            return self.inner.write_at(&bytes[..length], at);
        }
        let mut state = self.state();
        for (index, sector) in bytes[..length].as_chunks().0.iter().enumerate() {
            state.cache.insert(at / SECTOR + index as u64, *sector);
        }
        Ok(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.befall(0.0)?;
        let mut state = self.state();
        let block = self.align / SECTOR;
        let mut blocks: Vec<u64> = state.cache.keys().map(|sector| sector / block).collect();
        blocks.dedup();
        for last in (1..blocks.len()).rev() {
            let other = state.dice.below(last as u64 + 1) as usize;
            blocks.swap(last, other);
        }
        // Whole blocks out of memory that is aligned like them: the medium may have no other way (O_DIRECT).
        let size = self.align as usize;
        let mut memory = vec![0; 2 * size];
        let start = memory.as_ptr().align_offset(size);
        let bytes = &mut memory[start..][..size];
        for number in blocks {
            let at = number * self.align;
            let sectors = number * block..(number + 1) * block;
            if state.cache.range(sectors.clone()).count() < block as usize {
                whole(size, |done| self.inner.read_at(&mut bytes[done..], at + done as u64))?;
            }
            for (sector, part) in sectors.clone().zip(bytes.chunks_exact_mut(SECTOR as usize)) {
                if let Some(written) = state.cache.get(&sector) {
                    part.copy_from_slice(written);
                }
            }
            whole(size, |done| self.inner.write_at(&bytes[done..], at + done as u64))?;
            for sector in sectors {
                state.cache.remove(&sector);
            }
        }
        self.inner.sync()
    }

    fn punch(&self, at: u64, length: u64) -> io::Result<()> {
        self.befall(0.0)?;
        self.forget(at, length, || self.inner.punch(at, length))
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        self.befall(self.spec.full)?;
        self.forget(at, length, || self.inner.zero(at, length))
    }

    fn data_from(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let inner = self.inner.data_from(from)?;
        let state = self.state();
        let Some((sector, _)) = state.cache.range(from / SECTOR..).next() else { return Ok(inner) };
        let begin = (sector * SECTOR).max(from);
        Ok(match inner {
            Some((first, end)) if first <= begin => Some((first, end)),
            Some(_) | None => Some((begin, (sector + 1) * SECTOR)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::image::{Buffer, Image, Trouble};
    use crate::disk::medium::RawFile;
    use crate::machine::blocks::{Ask, Outcome};

    fn image(file: &std::path::Path, spec: &str) -> Image {
        let raw = RawFile::open(file, false, false).unwrap();
        let size = raw.size();
        Image::new(Box::new(Faulty::new(raw, spec.parse().unwrap(), 1)), size, 1, false)
    }

    fn file(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    fn write(image: &Image, sector: u64, byte: u8, sectors: usize) -> Result<Outcome, Trouble> {
        image.perform(&Ask::Write { sector, data: vec![byte; sectors * 512] }, &mut Buffer::default(), &|| Ok(()))
    }

    #[test]
    fn an_unflushed_write_is_read_here_and_lost_with_the_process_and_a_flushed_one_is_kept() {
        let file = file(64 << 10);
        let disk = image(file.path(), "seed:1+volatile");
        write(&disk, 3, 7, 4).unwrap();
        assert_eq!(disk.read(3 * 512, 2048, &mut Buffer::default()).unwrap(), [7; 2048]);
        assert_eq!(disk.data_from(0).unwrap(), Some((1536, 2048)), "a copy must not miss it");
        assert!(std::fs::read(file.path()).unwrap().iter().all(|byte| *byte == 0), "not there yet");
        disk.perform(&Ask::Flush, &mut Buffer::default(), &|| Ok(())).unwrap();
        write(&disk, 3, 9, 1).unwrap();
        drop(disk);
        assert_eq!(std::fs::read(file.path()).unwrap()[1536..][..2048], [7; 2048]);
    }

    #[test]
    fn short_reads_and_writes_are_gone_on_with() {
        let file = file(256 << 10);
        let disk = image(file.path(), "seed:5+short:0.9");
        for round in 1..20 {
            write(&disk, round, round as u8, 200).unwrap();
            let read = disk.read(round * 512, 200 * 512, &mut Buffer::default()).unwrap();
            assert!(read.iter().all(|byte| *byte == round as u8), "round {round}");
        }
    }

    #[test]
    fn errors_come_about_as_often_as_was_asked_for_and_the_same_ones_for_the_same_seed() {
        let file = file(64 << 10);
        let failed = |seed: u64| {
            let disk = image(file.path(), &format!("seed:{seed}+errors:0.1+full:0.1"));
            (0..1000).map(|_| write(&disk, 0, 1, 1).is_err()).collect::<Vec<_>>()
        };
        let first = failed(3);
        let count = first.iter().filter(|failed| **failed).count();
        assert!((100..300).contains(&count), "{count} of 1000");
        assert_eq!(first, failed(3));
        assert_ne!(first, failed(4));
    }

    #[test]
    fn what_is_no_fault_is_named() {
        for text in ["", "x", "errors", "errors:2", "errors:-1", "errors:NaN", "delay:0.1", "seed:a", "volatile:1"] {
            assert!(text.parse::<FaultSpec>().is_err(), "{text}");
        }
    }
}
