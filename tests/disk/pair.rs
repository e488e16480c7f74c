//! A guest on two hosts, without machine and network: the test plays the vCPU threads, the log between them, and the deaths.

use std::path::{Path, PathBuf};

use lockstep::console::hub::Protection;
use lockstep::doors::Disk;
use lockstep::machine::blocks::{Completions, Outcome, Requests};
use lockstep::machine::snapshot::DiskConfig;

use crate::guest::{Guest, SECTORS};
use crate::host::{self, Host};

#[derive(Clone)]
enum Entry {
    Asked(Requests),
    /// As the log has it, and as the guest got it.
    Ended(Completions, Completions),
}

struct Backup {
    host: Host,
    /// Entries that it has executed.
    executed: usize,
}

/// The pair.
pub struct Pair {
    _directory: tempfile::TempDir,
    settings: String,
    separate: bool,
    /// Where the images of the hosts are: one, or two.
    images: [PathBuf; 2],
    config: DiskConfig,
    generation: u64,
    /// Which host is live.
    place: usize,
    live: Host,
    backup: Option<Backup>,
    log: Vec<Entry>,
    /// The guest after so many entries.
    guests: Vec<Guest>,
    acked: usize,
}

impl Pair {
    pub fn new(settings: &str, seed: u64) -> Self {
        println!("{settings} seed {seed}");
        let directory = host::directory();
        let separate = settings.contains("separate");
        let names: [&str; 2] = if separate { ["a.img", "b.img"] } else { ["a.img", "a.img"] };
        let images = names.map(|name| host::image(directory.path(), name, SECTORS));
        let live = Host::open(&images[0], settings).unwrap();
        let config = live.port.config();
        live.port.go_live(1, Protection::Unprotected).unwrap();
        Pair {
            _directory: directory,
            settings: settings.into(),
            separate,
            images,
            config,
            generation: 1,
            place: 0,
            live,
            backup: None,
            log: Vec::new(),
            guests: vec![Guest::new(seed)],
            acked: 0,
        }
    }

    fn guest(&mut self) -> &mut Guest {
        self.guests.last_mut().unwrap()
    }

    pub fn completed(&self) -> u64 {
        self.guests.last().unwrap().completed
    }

    fn ask(&mut self) {
        let mut guest = self.guest().clone();
        let requests = guest.ask();
        self.live.port.submit(self.log.len() as u64, requests.clone());
        self.log.push(Entry::Asked(requests));
        self.guests.push(guest);
    }

    fn hear(&mut self, completions: Completions) {
        let mut logged = completions.clone();
        if self.live.port.backup_reads() {
            for completion in &mut logged {
                if let Outcome::Read(bytes) = &completion.outcome {
                    let check = xxhash_rust::xxh3::xxh3_64(bytes);
                    completion.outcome = Outcome::ReadElsewhere { bytes: bytes.len() as u32, check };
                }
            }
        }
        let mut guest = self.guest().clone();
        guest.hear(&completions);
        self.live.port.completed(self.log.len() as u64, &completions);
        self.log.push(Entry::Ended(logged, completions));
        self.guests.push(guest);
    }

    /// Something happens.
    pub fn step(&mut self) {
        match self.guest().dice().below(6) {
            0 | 1 if self.guest().in_flight() < 30 => self.ask(),
            2 | 3 => {
                if let Some(completions) = self.live.port.take() {
                    self.hear(completions);
                }
            }
            4 => self.ack(),
            _ => {
                if let Some(backup) = &self.backup {
                    let behind = (self.acked - backup.executed) as u64;
                    let some = self.guest().dice().below(behind + 1) as usize;
                    self.replay(some);
                }
            }
        }
    }

    /// The backup gets some more of the log.
    fn ack(&mut self) {
        if self.backup.is_some() {
            let more = (self.log.len() - self.acked) as u64;
            self.acked += self.guest().dice().below(more + 1) as usize;
            self.live.port.release(self.acked as u64);
        }
    }

    /// The backup executes the next entries.
    fn replay(&mut self, entries: usize) {
        let Some(backup) = &mut self.backup else { return };
        for _ in 0..entries {
            let number = backup.executed as u64;
            match self.log[backup.executed].clone() {
                Entry::Asked(mut requests) => backup.host.port.replayed(number, &mut requests),
                Entry::Ended(mut logged, real) => {
                    backup.host.port.replayed_completed(number, &mut logged).unwrap();
                    assert!(logged == real, "the replayed guest gets what the live one got");
                }
            }
            backup.executed += 1;
        }
        self.live.port.executed(backup.executed as u64);
    }

    /// The live host dies, and what of its log the backup has not got dies with it.
    pub fn fail_over(&mut self) {
        let lost = (self.log.len() - self.acked) as u64;
        let received = self.acked + self.guest().dice().below(lost + 1) as usize;
        self.log.truncate(received);
        self.guests.truncate(received + 1);
        let executed = self.backup.as_ref().expect("a backup").executed;
        let backup = self.backup.take().unwrap();
        // The dead host's port is gone before the other goes live, with its lock.
        let dead = std::mem::replace(&mut self.live, backup.host);
        drop(dead);
        let port = self.live.port.clone();
        for (number, entry) in self.log.clone().into_iter().enumerate().skip(executed) {
            match entry {
                Entry::Asked(mut requests) => port.replayed(number as u64, &mut requests),
                Entry::Ended(mut logged, real) => {
                    port.replayed_completed(number as u64, &mut logged).unwrap();
                    assert!(logged == real);
                }
            }
        }
        self.generation += 1;
        self.place = 1 - self.place;
        port.go_live(self.generation, Protection::Unprotected).unwrap();
        self.guest().changed_hands();
    }

    /// The live host takes a backup at the other place, while the guest runs.
    pub fn take_backup(&mut self) {
        let host = Host::open(&self.images[1 - self.place], &self.settings).unwrap();
        host.port.fit(&self.config).unwrap();
        assert_eq!(host.port.needs_copy(), self.separate);
        if self.separate {
            host.port.begin_receiving().unwrap();
            self.live.port.begin_copy();
            // The guest goes on meanwhile.
            for _ in 0..50 {
                self.step();
                if let Some(piece) = self.live.port.next_piece().unwrap() {
                    host.port.receive(&piece).unwrap();
                }
            }
            self.live.port.freeze();
            while let Some(piece) = self.live.port.next_piece().unwrap() {
                host.port.receive(&piece).unwrap();
            }
            assert_eq!(self.live.port.left_to_copy(), 0);
            host.port.copied(self.generation).unwrap();
        }
        let entries = self.log.len();
        self.live.port.set_protection(Protection::HeldFrom(entries as u64));
        host.port.adopt(self.guest().requests_in_flight());
        self.live.port.thaw();
        self.acked = entries;
        self.backup = Some(Backup { host, executed: entries });
    }

    /// The primary hands the machine to its backup, and becomes the backup of it.
    pub fn switch(&mut self) {
        self.acked = self.log.len();
        self.live.port.release(self.acked as u64);
        self.live.port.hold();
        self.live.port.quiesce();
        let behind = self.log.len() - self.backup.as_ref().expect("a backup").executed;
        self.replay(behind);
        self.generation += 1;
        self.place = 1 - self.place;
        let backup = self.backup.take().unwrap();
        backup.host.port.go_live(self.generation, Protection::HeldFrom(self.log.len() as u64)).unwrap();
        let old = std::mem::replace(&mut self.live, backup.host);
        old.port.follow(self.generation).unwrap();
        self.backup = Some(Backup { host: old, executed: self.log.len() });
        self.guest().changed_hands();
    }

    /// Everything comes to its end, and the image is what the guest has made of it, on both hosts.
    pub fn finish(mut self) {
        while self.guest().in_flight() > 0 {
            if self.backup.is_some() {
                self.acked = self.log.len();
                self.live.port.release(self.acked as u64);
                let behind = self.log.len() - self.backup.as_ref().unwrap().executed;
                self.replay(behind);
            }
            let completions = self.live.wait();
            self.hear(completions);
        }
        if let Some(backup) = &self.backup {
            let behind = self.log.len() - backup.executed;
            self.replay(behind);
        }
        self.live.port.ended().unwrap();
        let contents = self.guest().contents();
        assert!(std::fs::read(&self.images[self.place]).unwrap() == contents, "the live host's image");
        let config = self.live.port.config();
        drop(self.live);
        let Some(backup) = self.backup else { return };
        assert!(backup.host.port.broken().is_none());
        backup.host.port.ended().unwrap();
        assert!(std::fs::read(&self.images[1 - self.place]).unwrap() == contents, "the backup's image");
        drop(backup);
        // Both know that they are the same: nothing has to be copied when they meet again.
        let [live, other] = [self.place, 1 - self.place].map(|place| &self.images[place]);
        let again = Host::open(other, &self.settings).unwrap();
        again.port.fit(&config).unwrap();
        assert!(!again.port.needs_copy());
        drop(again);
        check_opens(live, &self.settings, self.generation);
    }
}

fn check_opens(image: &Path, settings: &str, generation: u64) {
    Host::open(image, settings).unwrap().port.check_generation(Some(generation)).unwrap();
}
