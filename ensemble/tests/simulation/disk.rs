//! A disk with a volatile cache: what was not flushed when its host dies is there or not, sector by sector, as it happens.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use lockstep_ensemble::raft::machine::SnapshotStore;
use redb::{Database, StorageBackend};

use super::random::Random;

const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct Platter {
    /// What a reader sees.
    now: Vec<u8>,
    /// Sectors as they were when they were flushed last, of those that were written since.
    before: BTreeMap<usize, Vec<u8>>,
    /// The length that was flushed last.
    flushed: usize,
    /// The host that has it open; writes of one that is dead do not arrive any more.
    owner: u64,
}

/// A disk, with a log's database and a snapshot on it.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    platter: Arc<Mutex<Platter>>,
    snapshot: Arc<Mutex<Option<bytes::Bytes>>>,
}

#[derive(Debug)]
struct Open {
    platter: Arc<Mutex<Platter>>,
    owner: u64,
}

impl Disk {
    /// The database on it, and where the snapshot is.
    pub fn open(&self) -> (Database, SnapshotStore) {
        let owner = {
            let mut platter = self.platter.lock().unwrap();
            platter.owner += 1;
            platter.owner
        };
        let backend = Open { platter: self.platter.clone(), owner };
        let database =
            Database::builder().create_with_backend(backend).expect("the database is sound after every crash");
        (database, SnapshotStore::Memory(self.snapshot.clone()))
    }

    /// The host's power fails.
    pub fn crash(&self, random: &mut Random) {
        let mut platter = self.platter.lock().unwrap();
        platter.owner += 1;
        let lost: Vec<(usize, Vec<u8>)> = std::mem::take(&mut platter.before).into_iter().collect();
        let flushed = platter.flushed;
        for (sector, bytes) in lost {
            if random.one_in(2) {
                let at = sector * SECTOR;
                let end = (at + bytes.len()).min(platter.now.len());
                if at < end {
                    platter.now[at..end].copy_from_slice(&bytes[..end - at]);
                }
            }
        }
        if platter.now.len() > flushed && random.one_in(2) {
            platter.now.truncate(flushed);
        }
        platter.flushed = platter.now.len();
    }

    /// Everything on it is gone.
    pub fn wipe(&self) {
        let mut platter = self.platter.lock().unwrap();
        *platter = Platter { owner: platter.owner + 1, ..Platter::default() };
        *self.snapshot.lock().unwrap() = None;
    }
}

impl Open {
    fn on<T>(&self, work: impl FnOnce(&mut Platter) -> T) -> Result<T, io::Error> {
        let mut platter = self.platter.lock().unwrap();
        if platter.owner != self.owner {
            return Err(io::Error::other("the host is dead"));
        }
        Ok(work(&mut platter))
    }
}

impl StorageBackend for Open {
    fn len(&self) -> Result<u64, io::Error> {
        self.on(|platter| platter.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.on(|platter| out.copy_from_slice(&platter.now[offset as usize..offset as usize + out.len()]))
    }

    fn set_len(&self, length: u64) -> Result<(), io::Error> {
        self.on(|platter| platter.now.resize(length as usize, 0))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.on(|platter| {
            platter.before.clear();
            platter.flushed = platter.now.len();
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.on(|platter| {
            let (from, to) = (offset as usize, offset as usize + data.len());
            for sector in from / SECTOR..to.div_ceil(SECTOR) {
                let (at, end) = (sector * SECTOR, ((sector + 1) * SECTOR).min(platter.now.len()));
                let bytes = platter.now[at..end].to_vec();
                platter.before.entry(sector).or_insert(bytes);
            }
            platter.now[from..to].copy_from_slice(data);
        })
    }
}
