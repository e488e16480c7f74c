//! A simulated disk, for tests of what must survive a power failure.

use std::collections::BTreeMap;

use lockstep_aof::{SECTOR, Storage};

/// A disk with a cache that a power failure loses in parts.
pub struct Disk {
    pub stable: Vec<u8>,
    /// Bytes that may or may not be on stable storage: for each sector, all versions since the last flush.
    pub cached: BTreeMap<u64, Vec<[u8; SECTOR]>>,
    /// So many more writes and flushes, then the power fails.
    pub power: usize,
    random: u64,
    /// One in so many requests fails.
    pub fault_every: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("no power")]
    Power,
    #[error("a fault")]
    Fault,
}

impl Disk {
    /// An empty disk.
    pub fn new(sectors: usize, seed: u64) -> Self {
        Disk {
            stable: vec![0; sectors * SECTOR],
            cached: BTreeMap::new(),
            power: usize::MAX,
            random: seed,
            fault_every: 0,
        }
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn fault(&mut self) -> bool {
        self.fault_every > 0 && self.random().is_multiple_of(self.fault_every)
    }

    fn stable_sector(&mut self, sector: u64) -> &mut [u8] {
        &mut self.stable[sector as usize * SECTOR..][..SECTOR]
    }

    /// Every sector that was not flushed is as it was, or as one of the writes left it, or torn between two of these.
    pub fn fail(&mut self) {
        for (sector, versions) in std::mem::take(&mut self.cached) {
            for version in versions {
                match self.random() % 4 {
                    0 => {}
                    1 => {
                        let (from, to) = (self.random() as usize % SECTOR, self.random() as usize % SECTOR);
                        let range = from.min(to)..from.max(to);
                        self.stable_sector(sector)[range.clone()].copy_from_slice(&version[range]);
                    }
                    _ => self.stable_sector(sector).copy_from_slice(&version),
                }
            }
        }
        self.power = usize::MAX;
    }

    fn spend(&mut self) -> Result<(), Trouble> {
        self.power = self.power.checked_sub(1).ok_or(Trouble::Power)?;
        Ok(())
    }
}

impl Storage for Disk {
    type Error = Trouble;

    fn sectors(&self) -> u64 {
        (self.stable.len() / SECTOR) as u64
    }

    fn read(&mut self, sector: u64, buffer: &mut [u8]) -> Result<(), Trouble> {
        for (at, bytes) in buffer.chunks_mut(SECTOR).enumerate() {
            let sector = sector + at as u64;
            match self.cached.get(&sector).and_then(|versions| versions.last()) {
                Some(version) => bytes.copy_from_slice(version),
                None => bytes.copy_from_slice(self.stable_sector(sector)),
            }
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), Trouble> {
        assert!(bytes.len().is_multiple_of(SECTOR) && !bytes.is_empty());
        assert!(sector + (bytes.len() / SECTOR) as u64 <= self.sectors(), "beyond the end");
        let fault = self.fault();
        for (at, bytes) in bytes.chunks(SECTOR).enumerate() {
            self.spend()?;
            // A write that fails may have got anywhere.
            if fault && self.random().is_multiple_of(2) {
                continue;
            }
            self.cached.entry(sector + at as u64).or_default().push(bytes.try_into().unwrap());
        }
        if fault { Err(Trouble::Fault) } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        self.spend()?;
        let fault = self.fault();
        for (sector, versions) in std::mem::take(&mut self.cached) {
            // Of a flush that fails, the cache may forget what it did not write: the harshest that systems do.
            if !fault || self.random().is_multiple_of(2) {
                self.stable_sector(sector).copy_from_slice(versions.last().unwrap());
            }
        }
        if fault { Err(Trouble::Fault) } else { Ok(()) }
    }
}
