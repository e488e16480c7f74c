//! A disk behind the doors of a machine under test: some bytes, and a thread that carries out what is asked for whenever it likes, in whatever order it
//! may, and sometimes not at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lockstep::backends::world::World;
use lockstep::doors::{Disk, DiskReplayError};
use lockstep::machine::blocks::{
    Ask, Completion, Completions, MAX_COUNT, MAX_REQUEST, Outcome, Request, Requests, SECTOR,
};
use lockstep::machine::snapshot::DiskConfig;

use super::load::next;

/// The disk as the guest finds it: 4 MiB.
pub const CONFIG: DiskConfig =
    DiskConfig { sectors: 8192, read_only: false, serial: *b"disk of a recording\0", identity: 1 };

/// What a disk has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub requests: u64,
    pub batches: u64,
    /// Requests that came to their end before one that was made earlier.
    pub overtaken: u64,
    pub failed: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// How a disk works.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub seed: u64,
    /// A request takes up to so many microseconds.
    pub slow_us: u64,
    /// One request of so many fails; 0: none.
    pub fails: u64,
    /// Whoever replays reads by himself.
    pub backup_reads: bool,
}

struct State {
    image: Vec<u8>,
    queue: Vec<Request>,
    done: Vec<Completion>,
    work: Work,
    over: bool,
}

struct Shared {
    manner: Manner,
    state: Mutex<State>,
    asked: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds this lock")
    }
}

/// The disk of a machine that is being recorded.
pub struct SlowDisk {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

impl SlowDisk {
    pub fn start(world: &Arc<World>, manner: Manner) -> Self {
        let image = vec![0; (CONFIG.sectors * SECTOR) as usize];
        let state = State { image, queue: Vec::new(), done: Vec::new(), work: Work::default(), over: false };
        let shared = Arc::new(Shared { manner, state: Mutex::new(state), asked: Condvar::new() });
        let (working, world) = (shared.clone(), world.clone());
        let worker = thread::spawn(move || work(&working, &world));
        SlowDisk { shared, worker: Some(worker) }
    }

    pub fn done(&self) -> Work {
        self.shared.state().work
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.asked.notify_one();
        if let Some(worker) = self.worker.take() {
            // A disk that panicked is seen by a guest that waits for it.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, world: &World) {
    let mut random = shared.manner.seed | 1;
    loop {
        let mut state = shared.state();
        while state.queue.is_empty() && !state.over {
            state = shared.asked.wait(state).expect("no thread panics while it holds this lock");
        }
        if state.over {
            return;
        }
        drop(state);
        // Mostly quick, so that the guest has something to do, and now and then not.
        let longest =
            if next(&mut random).is_multiple_of(8) { shared.manner.slow_us } else { shared.manner.slow_us / 8 };
        thread::sleep(Duration::from_micros(next(&mut random) % (longest + 1)));
        let mut state = shared.state();
        let some = 1 + next(&mut random) as usize % state.queue.len();
        for _ in 0..some {
            let may: Vec<usize> = (0..state.queue.len()).filter(|&at| may_go(&state.queue, at)).collect();
            let at = may[next(&mut random) as usize % may.len()];
            let request = state.queue.remove(at);
            let fails = shared.manner.fails > 0 && next(&mut random).is_multiple_of(shared.manner.fails);
            let outcome = if fails { Outcome::Failed } else { carry_out(&mut state.image, &request.ask) };
            state.work.requests += 1;
            state.work.overtaken += u64::from(at > 0);
            state.work.failed += u64::from(fails);
            state.work.bytes_read += if let Outcome::Read(bytes) = &outcome { bytes.len() as u64 } else { 0 };
            state.work.bytes_written += if let Ask::Write { data, .. } = &request.ask { data.len() as u64 } else { 0 };
            state.done.push(Completion { id: request.id, outcome });
        }
        drop(state);
        world.disk_done();
    }
}

/// Whether a request need not wait for one that was made earlier.
fn may_go(queue: &[Request], at: usize) -> bool {
    let Some((start, length)) = queue[at].ask.extent() else { return true };
    queue[..at].iter().all(|earlier| {
        let apart = earlier
            .ask
            .extent()
            .is_none_or(|(other, other_length)| other + other_length <= start || start + length <= other);
        apart || !(earlier.ask.changes() || queue[at].ask.changes())
    })
}

fn carry_out(image: &mut [u8], ask: &Ask) -> Outcome {
    let range = ask.extent().map_or(0..0, |(at, length)| at as usize..(at + length) as usize);
    match ask {
        Ask::Read { .. } => return Outcome::Read(image[range].to_vec()),
        Ask::Write { data, .. } => image[range].copy_from_slice(data),
        Ask::Flush => {}
        Ask::Discard { .. } | Ask::WriteZeroes { .. } => image[range].fill(0),
    }
    Outcome::Done
}

impl Disk for SlowDisk {
    fn submit(&self, _: u64, requests: Requests) {
        self.shared.state().queue.extend(requests);
        self.shared.asked.notify_one();
    }

    fn take(&self) -> Option<Completions> {
        let mut state = self.shared.state();
        let (mut count, mut bytes) = (0, 0);
        for completion in &state.done {
            bytes += if let Outcome::Read(read) = &completion.outcome { read.len() } else { 0 };
            if count == MAX_COUNT || bytes > MAX_REQUEST {
                break;
            }
            count += 1;
        }
        state.work.batches += u64::from(count > 0);
        (count > 0).then(|| state.done.drain(..count).collect())
    }

    fn backup_reads(&self) -> bool {
        self.shared.manner.backup_reads
    }

    fn replayed(&self, _: u64, _: &mut Requests) {
        unreachable!("this disk is a recorder's")
    }

    fn replayed_completed(&self, _: u64, _: &mut Completions) -> Result<(), DiskReplayError> {
        unreachable!("this disk is a recorder's")
    }
}

/// The disk of a replay whose log has left the reads to it. It carries everything out at once and in order.
#[derive(Default)]
pub struct ReadingDisk(Mutex<Reading>);

#[derive(Default)]
struct Reading {
    image: Vec<u8>,
    read: BTreeMap<u64, Vec<u8>>,
    /// How many reads were filled in.
    filled: u64,
}

impl ReadingDisk {
    pub fn new() -> Self {
        let reading = Reading { image: vec![0; (CONFIG.sectors * SECTOR) as usize], ..Reading::default() };
        ReadingDisk(Mutex::new(reading))
    }

    pub fn filled(&self) -> u64 {
        self.0.lock().expect("no thread panics while it holds this lock").filled
    }

    /// Changes a byte of the image.
    pub fn damage(&self, at: usize) {
        self.0.lock().expect("no thread panics while it holds this lock").image[at] ^= 1;
    }
}

impl Disk for ReadingDisk {
    fn submit(&self, _: u64, _: Requests) {
        unreachable!("this disk is a replay's")
    }

    fn take(&self) -> Option<Completions> {
        None
    }

    fn replayed(&self, _: u64, requests: &mut Requests) {
        let mut reading = self.0.lock().expect("no thread panics while it holds this lock");
        for request in requests {
            if let Outcome::Read(bytes) = carry_out(&mut reading.image, &request.ask) {
                reading.read.insert(request.id, bytes);
            }
        }
    }

    fn replayed_completed(&self, _: u64, completions: &mut Completions) -> Result<(), DiskReplayError> {
        let mut reading = self.0.lock().expect("no thread panics while it holds this lock");
        for completion in completions {
            if let Outcome::ReadElsewhere { check, .. } = completion.outcome {
                let id = completion.id;
                let bytes = reading.read.remove(&id).ok_or(DiskReplayError::NoSuchRequest(id))?;
                if xxhash_rust::xxh3::xxh3_64(&bytes) != check {
                    return Err(DiskReplayError::OtherBytes(id));
                }
                completion.outcome = Outcome::Read(bytes);
                reading.filled += 1;
            }
        }
        Ok(())
    }
}
