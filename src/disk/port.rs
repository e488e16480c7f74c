//! The meeting point of the vCPU thread, the threads that read and write the image, and the protocol that says which changes may be made.
//!
//! ```text
//!  vCPU thread                        │ the disk's threads          │ the thread of channel and protocol
//!    submit, replayed ──► requests ───┼──► begin, on the image ◄────┼── release, hold, lease, executed: who may
//!    take ◄── done ◄──────────────────┼─── finish; wakes the guest  │   go_live, quiesce, not_live: whose it is
//!    completed, replayed_completed    │                             │   begin_copy …: a new backup's copy
//! ```
//!
//! A read that needs no waiting (its bytes are in the host's memory) is made in `submit`, on the vCPU thread: a hop to another thread and back would cost
//! several times what it does.

mod copying;
mod turns;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::copy::ToCopy;
use super::engine::{Flaw, Shared, State};
use super::image::{Buffer, Trouble};
use super::open::{Opened, Owner, open};
use super::requests::{OwnRead, Queue, Word};
use super::spec::{DiskSpec, Mode};
use super::stamp::{ImageRole, Stamp};
use super::{DiskError, Misfit};
use crate::console::hub::Protection;
use crate::console::status::DiskStatus;
use crate::doors::{Disk, DiskReplayError};
use crate::machine::blocks::{Ask, Completions, Outcome, Requests, SECTOR};
use crate::machine::snapshot::DiskConfig;

/// Says that requests have come to their end. Called on any thread.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// A read of more bytes is not made on the vCPU thread, whatever it needs.
const MAX_INLINE: u32 = 64 << 10;
/// Changes, and bytes of them, that a backup's image may be behind; then its guest waits.
const MAX_BEHIND: (usize, usize) = (4096, 64 << 20);

/// The disk of one host.
pub struct DiskPort {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    mode: Mode,
    backup_reads: bool,
    read_only: bool,
    force: bool,
    alone: bool,
    vm: String,
    stamp_path: PathBuf,
    /// Held as long as this lives, and longer than the threads.
    _lock: File,
}

/// A piece of a separate image for a new backup: `bytes` at position `at`, zeros if there are none of the `length`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, in bytes.
    pub at: u64,
    /// How long it is.
    pub length: u32,
    /// What is there; empty: zeros.
    pub bytes: Vec<u8>,
}

impl DiskPort {
    /// Opens the image for a VM without a partner. Nothing is changed before [`go_live`](Self::go_live).
    pub fn open(spec: &DiskSpec) -> Result<Arc<Self>, DiskError> {
        Self::open_for(spec, Owner::Alone("lockstep"))
    }

    /// Opens the image. Nothing is changed before [`go_live`](Self::go_live).
    pub fn open_for(spec: &DiskSpec, owner: Owner) -> Result<Arc<Self>, DiskError> {
        let Opened { image, lock, stamp, stamp_path, fences, seen, contents } = open(spec, owner)?;
        let queue = Queue::new(spec.mode, spec.backup_reads, image.align());
        let shared = Shared::new(image, spec.file.clone(), fences, State::new(queue, stamp, seen, contents));
        let started = shared.start();
        let threads = started.map_err(|source| DiskError::Image {
            what: "start threads for",
            path: spec.file.clone(),
            source,
        })?;
        Ok(Arc::new(DiskPort {
            shared,
            threads,
            mode: spec.mode,
            backup_reads: spec.backup_reads,
            read_only: spec.read_only,
            force: spec.force,
            alone: matches!(owner, Owner::Alone(_)),
            vm: owner.vm().into(),
            stamp_path,
            _lock: lock,
        }))
    }

    fn path(&self) -> PathBuf {
        self.shared.path.clone()
    }

    fn failed(&self, trouble: Trouble) -> DiskError {
        match trouble {
            Trouble::Io(what, source) => DiskError::Image { what, path: self.path(), source },
            Trouble::NotAllowed | Trouble::Fenced(_) => {
                DiskError::Image { what: "change", path: self.path(), source: io::ErrorKind::PermissionDenied.into() }
            }
        }
    }

    /// The disk as a guest that boots here finds it.
    pub fn config(&self) -> DiskConfig {
        let state = self.shared.state();
        let mut serial = [0; 20];
        let disk = state.stamp.as_ref().map_or(0, Stamp::disk);
        serial[..19].copy_from_slice(format!("ls-{:016x}", disk as u64).as_bytes());
        let sectors = self.shared.image.size() / SECTOR;
        DiskConfig { sectors, read_only: self.read_only, serial, identity: state.contents }
    }

    /// Backup: the primary's disk is this. An error if this host's image cannot stand for it. Whatever was asked for before is forgotten.
    pub fn fit(&self, config: &DiskConfig) -> Result<(), DiskError> {
        let misfit = |why| Err(DiskError::Misfit { path: self.path(), why });
        let own = self.config();
        if own.sectors != config.sectors {
            return misfit(Misfit::Size { own: own.sectors, primary: config.sectors });
        }
        if own.read_only != config.read_only {
            return misfit(Misfit::ReadOnly);
        }
        if self.mode == Mode::Shared && own.identity != config.identity {
            return misfit(Misfit::Other);
        }
        let mut state = self.shared.state();
        state.queue.clear();
        self.shared.forbid(true);
        state.follows = true;
        (state.flaw, state.lost, state.stamping) = (None, None, None);
        (state.last_entry, state.changed) = (0, false);
        let same = state
            .stamp
            .as_ref()
            .is_none_or(|stamp| stamp.clean && stamp.role != ImageRole::Copying && stamp.contents() == config.identity);
        state.is_copy = self.mode == Mode::Shared || self.read_only || same;
        state.contents = config.identity;
        if self.mode == Mode::Separate && state.is_copy {
            // From here on it changes with the primary's.
            self.put_stamp(&mut state, |stamp| (stamp.role, stamp.clean) = (ImageRole::Following, false))?;
        }
        Ok(())
    }

    /// Backup, after [`fit`](Self::fit): the image is not the primary's as it was when its guest booted, and it has to be [copied](Self::begin_receiving) first.
    pub fn needs_copy(&self) -> bool {
        !self.shared.state().is_copy
    }

    /// Backup: why this image is of no use any more. The backup has to leave: it may not go live.
    pub fn broken(&self) -> Option<DiskError> {
        let flaw = self.shared.state().flaw;
        flaw.map(|flaw| self.flaw(flaw))
    }

    fn flaw(&self, flaw: Flaw) -> DiskError {
        match flaw {
            Flaw::NotACopy => DiskError::NotACopy { path: self.path() },
            Flaw::Broken => DiskError::Broken { path: self.path() },
        }
    }

    /// Whether a new backup gets the contents of this image with the guest's state.
    pub fn takes_a_copy(&self) -> bool {
        self.mode == Mode::Separate && !self.read_only
    }

    /// Whom to tell that requests have come to their end.
    pub fn set_waker(&self, waker: Waker) {
        self.shared.set_waker(waker);
        if self.shared.state().queue.has_done() {
            self.shared.wake();
        }
    }

    /// A machine was made from a state: these are its requests in flight, before any other.
    pub fn adopt(&self, in_flight: Requests) {
        let mut state = self.shared.state();
        if self.lacks_a_copy(&mut state) {
            return;
        }
        state.queue.adopted();
        let replayed = state.follows;
        for request in in_flight {
            state.changed |= request.ask.changes();
            state.queue.push(0, request, replayed);
        }
        drop(state);
        self.shared.something_is_ready();
    }

    /// Backup: whether the image is another one than the primary's, perhaps with something on it. Then it is not touched.
    fn lacks_a_copy(&self, state: &mut State) -> bool {
        let lacks = self.mode == Mode::Separate && state.follows && !state.is_copy;
        if lacks {
            state.flaw.get_or_insert(Flaw::NotACopy);
        }
        lacks
    }

    fn flush(&self) -> Result<(), DiskError> {
        let flushed = self.shared.image.perform(&Ask::Flush, &mut Buffer::default(), &|| Ok(()));
        flushed.map(|_| ()).map_err(|trouble| self.failed(trouble))
    }

    /// Which changes wait for a backup.
    pub fn set_protection(&self, protection: Protection) {
        let mut state = self.shared.state();
        state.queue.protect(protection);
        self.shared.forbid(!state.queue.is_live());
        drop(state);
        self.shared.something_is_ready();
    }

    /// Changes of entries below `below` may be made (shared images; those of separate ones are made at once).
    pub fn release(&self, below: u64) {
        let mut state = self.shared.state();
        let before = state.queue.held();
        state.queue.release(below);
        self.shared.forbid(!state.queue.is_live());
        drop(state);
        if before > 0 {
            self.shared.one_is_ready();
        }
    }

    /// No change begins until the next release.
    pub fn hold(&self) {
        self.shared.forbid(true);
        self.shared.state().queue.hold();
    }

    /// Changes may begin before `until_ns`, a time of [`boot_clock_ns`](crate::backends::clock::boot_clock_ns), and not later.
    pub fn set_lease(&self, until_ns: u64) {
        self.shared.set_lease(until_ns);
    }

    /// The backup has executed this many entries: what it reads by itself, it has read.
    pub fn executed(&self, entries: u64) {
        if self.mode == Mode::Shared && self.shared.state().queue.executed(entries) {
            self.shared.one_is_ready();
        }
    }

    /// The counts so far.
    pub fn counters(&self) -> DiskStatus {
        let state = self.shared.state();
        DiskStatus {
            in_flight: state.queue.in_flight() as u64,
            held: if self.mode == Mode::Shared && state.queue.is_live() { state.queue.held() as u64 } else { 0 },
            to_copy_bytes: state.copying.as_ref().map_or(0, ToCopy::left_bytes),
            lost_to_generation: state.lost,
            ..state.counters
        }
    }

    /// Makes the reads that need no waiting, here and now.
    fn read_at_once(&self, ids: &[u64]) {
        for id in ids {
            let Some(job) = self.shared.state().queue.begin_read(*id) else { continue };
            let (at, length) = job.ask.extent().unwrap_or_default();
            let read = self.shared.image.try_read(at, length as usize);
            let mut state = self.shared.state();
            match read {
                Some(bytes) => {
                    self.shared.conclude(&mut state, &job, Ok(Outcome::Read(bytes)));
                }
                None => state.queue.put_back(&job),
            }
        }
    }
}

impl Disk for DiskPort {
    fn holds_changes(&self) -> bool {
        self.mode == Mode::Shared
    }

    fn submit(&self, entry: u64, requests: Requests) {
        let at_once = |ask: &Ask| matches!(ask, Ask::Read { bytes, .. } if *bytes <= MAX_INLINE);
        let mut ids = Vec::new();
        let mut state = self.shared.state();
        state.last_entry = state.last_entry.max(entry);
        for request in requests {
            state.changed |= request.ask.changes();
            if at_once(&request.ask) {
                ids.push(request.id);
            }
            state.queue.push(entry, request, false);
        }
        drop(state);
        self.read_at_once(&ids);
        let state = self.shared.state();
        let (work, done) = (state.queue.has_ready(), state.queue.has_done());
        drop(state);
        if work {
            self.shared.one_is_ready();
        }
        if done {
            self.shared.wake();
        }
    }

    fn take(&self) -> Option<Completions> {
        self.shared.state().queue.take()
    }

    fn backup_reads(&self) -> bool {
        self.backup_reads && self.shared.state().queue.batch_elsewhere()
    }

    fn completed(&self, entry: u64, completions: &Completions) {
        let mut state = self.shared.state();
        state.last_entry = state.last_entry.max(entry);
        state.queue.completed(entry, completions);
    }

    fn replayed(&self, entry: u64, requests: &mut Requests) {
        let separate = self.mode == Mode::Separate;
        let mut state = self.shared.state();
        state.last_entry = state.last_entry.max(entry);
        state.follows = true;
        if self.lacks_a_copy(&mut state) {
            return;
        }
        if let Some(first) = requests.first() {
            state.queue.ids_from(first.id);
        }
        for request in requests.drain(..) {
            state.changed |= request.ask.changes();
            state.queue.push(entry, request, true);
        }
        if separate || self.backup_reads {
            self.shared.one_is_ready();
        }
        if separate {
            let (changes, bytes) = MAX_BEHIND;
            drop(self.shared.wait_while(state, |state| {
                let behind = state.queue.unexecuted();
                behind.0 > changes || behind.1 > bytes
            }));
        }
    }

    fn replayed_completed(&self, entry: u64, completions: &mut Completions) -> Result<(), DiskReplayError> {
        let mut state = self.shared.state();
        state.last_entry = state.last_entry.max(entry);
        // The others first: a read may wait for a change that is over by the same entry.
        for completion in completions.iter() {
            if matches!(completion.outcome, Outcome::ReadElsewhere { .. }) {
                continue;
            }
            match state.queue.logged(completion.id, completion.outcome == Outcome::Failed) {
                Word::Settled => {}
                Word::Broken => self.shared.broke(&mut state),
                // What this image does is not known to be what the log says, and it is not going live.
                Word::Unknown if state.flaw.is_some() => {}
                Word::Unknown => return Err(DiskReplayError::NoSuchRequest(completion.id)),
            }
        }
        self.shared.something_is_ready();
        for completion in completions {
            let Outcome::ReadElsewhere { bytes, check } = completion.outcome else { continue };
            let id = completion.id;
            let read = loop {
                match state.queue.own_read(id) {
                    // Asked for before this side knew of anything, and forgotten by the guest since.
                    None if state.queue.may_be_unknown(id) => break Outcome::Failed,
                    None => return Err(DiskReplayError::NoSuchRequest(id)),
                    Some(OwnRead::Stuck) => return Err(DiskReplayError::OtherBytes(id)),
                    Some(OwnRead::Is(Outcome::Read(read))) => {
                        if read.len() != bytes as usize || xxhash_rust::xxh3::xxh3_64(&read) != check {
                            return Err(DiskReplayError::OtherBytes(id));
                        }
                        break Outcome::Read(read);
                    }
                    Some(OwnRead::Is(_)) => {
                        return Err(DiskReplayError::Read(io::Error::other("see the log of this host")));
                    }
                    Some(OwnRead::Pending) if !self.backup_reads => return Err(DiskReplayError::NotHere),
                    Some(OwnRead::Pending) if state.is_closing() => {
                        return Err(DiskReplayError::Read(io::ErrorKind::Interrupted.into()));
                    }
                    Some(OwnRead::Pending) => state = self.shared.wait(state),
                }
            };
            completion.outcome = read;
            state.queue.logged(id, false);
        }
        Ok(())
    }
}

impl Drop for DiskPort {
    fn drop(&mut self) {
        self.shared.close();
        // What is at work ends before the lock goes.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
