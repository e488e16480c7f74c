//! The threads that carry requests out, and what they share with everybody else.
//!
//! One lock, `state`, under which nobody makes a system call; what is at work on the image is outside of it. Whether a shared image may still be changed is
//! looked at again right before each call that changes it: see [`Shared::may_change`]. The threads also put the stamp that lets this host change it at all.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::copy::ToCopy;
use super::fence::{Fence, Fences, Raised};
use super::image::{Buffer, Image, Trouble};
use super::requests::{Job, Queue, Word};
use super::stamp::{Stamp, StampError};
use crate::backends::clock::boot_clock_ns;
use crate::backends::priority::prefer_this_thread;
use crate::console::status::DiskStatus;
use crate::machine::blocks::{Ask, Outcome};

use super::port::Waker;

/// How many requests are carried out at the same time. The vCPU thread reads by itself what needs no waiting.
const THREADS: usize = 4;

/// Why an image is no copy of the primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It never was.
    NotACopy,
    /// It could not do what the primary's did.
    Broken,
}

/// How long after a failure a stamp is put again, ns.
const STAMP_AGAIN_NS: u64 = 200_000_000;

/// A stamp that is to be put before a shared image is changed.
#[derive(Clone, Debug)]
pub struct Stamping {
    /// This one.
    pub stamp: Stamp,
    /// Not before this, ns: it has failed.
    due_ns: Option<u64>,
}

impl Stamping {
    /// As soon as a thread comes to it.
    pub fn of(stamp: Stamp) -> Self {
        Stamping { stamp, due_ns: None }
    }
}

/// What the vCPU thread, the threads of the engine and the protocol's thread meet in.
pub struct State {
    pub queue: Queue,
    pub stamp: Option<Stamp>,
    /// Shared: number of the newest stamp that this host has seen, the one that it has to put, and the generation that has taken the image over from it.
    pub seen: u64,
    pub stamping: Option<Stamping>,
    pub lost: Option<u64>,
    /// A thread is just putting a stamp.
    pub is_stamping: bool,
    /// Contents of the disk as the machine's configuration has them.
    pub contents: u128,
    /// Separate, backup: the image is a copy of the primary's.
    pub is_copy: bool,
    /// This side has replayed, or is about to.
    pub follows: bool,
    /// The stamp's role was found to be good for a start.
    pub checked: bool,
    pub flaw: Option<Flaw>,
    /// What a new backup lacks, while one is being copied for.
    pub copying: Option<ToCopy>,
    /// The newest entry that this disk had to do with, and whether any of them changed it.
    pub last_entry: u64,
    pub changed: bool,
    pub counters: DiskStatus,
    /// Kinds of trouble that were reported.
    reported: BTreeSet<(&'static str, i32)>,
    closing: bool,
}

impl State {
    /// The state of a disk that was just opened.
    pub fn new(queue: Queue, stamp: Option<Stamp>, seen: u64, contents: u128) -> Self {
        State {
            queue,
            stamp,
            seen,
            stamping: None,
            lost: None,
            is_stamping: false,
            contents,
            is_copy: false,
            follows: false,
            checked: false,
            flaw: None,
            copying: None,
            last_entry: 0,
            changed: false,
            counters: DiskStatus::default(),
            reported: BTreeSet::new(),
            closing: false,
        }
    }

    /// Whether waiting has become useless.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// The VM has gone live elsewhere, in this generation: nothing is changed here any more.
    fn lose(&mut self, generation: u64) {
        self.queue.set_stamped(false);
        self.stamping = None;
        if self.lost.replace(generation).is_none() {
            tracing::error!(generation, "the disk image was taken over elsewhere: nothing is changed here any more");
        }
    }
}

/// What is shared.
pub struct Shared {
    pub image: Image,
    pub path: PathBuf,
    pub state: Mutex<State>,
    /// Something may have become ready to begin.
    work: Condvar,
    /// Something has come to its end.
    progress: Condvar,
    waker: Mutex<Option<Arc<Waker>>>,
    /// No change of a shared image begins from this time on.
    lease_until_ns: AtomicU64,
    /// No change of a shared image begins.
    forbidden: AtomicBool,
    /// Shared images that can be changed: where stamps are put, and this host's own.
    fences: Option<Fences>,
    fence: Mutex<Option<Arc<Fence>>>,
    /// A thread went to sleep although something was ready: perhaps a longer lease is all it needs.
    starved: AtomicBool,
}

impl Shared {
    /// What is shared about this image.
    pub fn new(image: Image, path: PathBuf, fences: Option<Fences>, state: State) -> Arc<Self> {
        Arc::new(Shared {
            image,
            path,
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            waker: Mutex::new(None),
            lease_until_ns: AtomicU64::new(u64::MAX),
            forbidden: AtomicBool::new(true),
            fences,
            fence: Mutex::new(None),
            starved: AtomicBool::new(false),
        })
    }

    /// Starts the threads.
    pub fn start(self: &Arc<Self>) -> io::Result<Vec<thread::JoinHandle<()>>> {
        let one = |index| {
            let shared = self.clone();
            thread::Builder::new().name(format!("disk{index}")).spawn(move || shared.work())
        };
        (0..THREADS).map(one).collect()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has come to its end.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.progress.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as `unfinished`, or until this disk is given up.
    pub fn wait_while<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        unfinished: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        while !state.closing && unfinished(&state) {
            state = self.wait(state);
        }
        state
    }

    /// Something may have become ready to begin.
    pub fn something_is_ready(&self) {
        self.work.notify_all();
    }

    /// One thing may have become ready to begin.
    pub fn one_is_ready(&self) {
        self.work.notify_one();
    }

    /// Whether changes of a shared image may begin, as far as this host's own side is asked.
    pub fn forbid(&self, forbidden: bool) {
        self.forbidden.store(forbidden, SeqCst);
    }

    /// Changes of a shared image may begin before this time.
    pub fn set_lease(&self, until_ns: u64) {
        self.lease_until_ns.store(until_ns, SeqCst);
        if self.starved.swap(false, SeqCst) {
            // Under the lock: the thread that starves has looked at the lease before and sleeps by now.
            let _state = self.state();
            self.work.notify_all();
        }
    }

    /// Whether a shared image may be changed at this very moment.
    fn may_change(&self) -> Result<(), Trouble> {
        let fence = self.fence().clone().ok_or(Trouble::NotAllowed)?;
        if !fence.holds().map_err(|error| Trouble::Io("look at the stamp of", error))? {
            let newest = self.fences.as_ref().map(Fences::newest).transpose().ok().flatten().flatten();
            return Err(Trouble::Fenced(newest.map_or(0, |(_, stamp)| stamp.generation)));
        }
        // The clock last: nothing may take time between the look at it and the call.
        if self.forbidden.load(SeqCst) || boot_clock_ns() >= self.lease_until_ns.load(SeqCst) {
            return Err(Trouble::NotAllowed);
        }
        Ok(())
    }

    fn fence(&self) -> MutexGuard<'_, Option<Arc<Fence>>> {
        self.fence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a stamp on a shared image: this host may change it from now on. `Some`: it may not, for the VM has gone live since in this generation.
    pub fn raise(&self, stamp: &Stamp, seen: u64) -> Result<Result<u64, u64>, StampError> {
        let Some(fences) = &self.fences else { return Ok(Ok(seen)) };
        loop {
            let number = match fences.raise(stamp, seen)? {
                Raised::Newest(number) => number,
                Raised::Passed(generation) => return Ok(Err(generation)),
            };
            let path = fences.path(number);
            let opened = Fence::open(&path);
            // If it is gone, there is a newer one: the next round says of which generation.
            if let Some(fence) = opened.map_err(|source| StampError::File { what: "open", path, source })? {
                *self.fence() = Some(Arc::new(fence));
                return Ok(Ok(number));
            }
        }
    }

    /// The stamp to put now, if there is one.
    fn next_stamp(&self, state: &mut State) -> Option<(Stamping, u64)> {
        let now_ns = boot_clock_ns();
        let stamping = state
            .stamping
            .take_if(|stamping| !state.is_stamping && stamping.due_ns.is_none_or(|due_ns| due_ns <= now_ns))?;
        state.is_stamping = true;
        Some((stamping, state.seen))
    }

    fn put_stamp(&self, stamping: Stamping, seen: u64) -> MutexGuard<'_, State> {
        let raised = self.raise(&stamping.stamp, seen);
        let mut state = self.state();
        state.is_stamping = false;
        match raised {
            // This host is live in another generation by now, or not any more.
            _ if state.stamping.is_some() || !state.queue.is_live() => {}
            Ok(Ok(number)) => {
                (state.stamp, state.seen) = (Some(stamping.stamp), number);
                state.queue.set_stamped(true);
            }
            Ok(Err(generation)) => state.lose(generation),
            Err(error) => {
                if stamping.due_ns.is_none() {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the disk's stamp cannot be put: changes of the disk wait for it");
                }
                state.stamping = Some(Stamping { due_ns: Some(boot_clock_ns() + STAMP_AGAIN_NS), ..stamping });
            }
        }
        self.something_is_ready();
        self.progress.notify_all();
        state
    }

    /// Waits until there may be something to do.
    fn wait_for_work<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        match state.stamping.as_ref().and_then(|stamping| stamping.due_ns) {
            Some(due_ns) => {
                let wait = Duration::from_nanos(due_ns.saturating_sub(boot_clock_ns()));
                self.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Whom to tell that requests have come to their end.
    pub fn set_waker(&self, waker: Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(waker));
    }

    /// Tells the vCPU thread to come and take what is done.
    pub fn wake(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waker) = waker {
            waker();
        }
    }

    /// The threads end when what they are at is done.
    pub fn close(&self) {
        self.state().closing = true;
        self.work.notify_all();
        self.progress.notify_all();
    }

    fn next_job(&self, state: &mut State) -> Option<Job> {
        // Said before the look at the lease: whoever moves it after the look finds it said.
        self.starved.store(true, SeqCst);
        state.queue.set_lease(self.lease_until_ns.load(SeqCst));
        let now_ns = boot_clock_ns();
        let job = state.queue.begin(now_ns)?;
        if state.queue.has_work(now_ns) {
            self.work.notify_one();
        }
        Some(job)
    }

    fn work(&self) {
        if !prefer_this_thread() {
            tracing::debug!("no real-time priority for the disk's threads (CAP_SYS_NICE)");
        }
        let mut buffer = Buffer::default();
        let mut state = self.state();
        while !state.closing {
            if let Some((stamping, seen)) = self.next_stamp(&mut state) {
                drop(state);
                state = self.put_stamp(stamping, seen);
                continue;
            }
            let Some(job) = self.next_job(&mut state) else {
                state = self.wait_for_work(state);
                continue;
            };
            drop(state);
            let may = || if job.needs_leave { self.may_change() } else { Ok(()) };
            let perform = || self.image.perform(&job.ask, &mut buffer, &may);
            // A guest that hears nothing waits for ever, so a bug below must not take the request with it.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(perform))
                .unwrap_or_else(|_| Err(Trouble::Io("use", io::Error::other("a thread of the disk panicked"))));
            state = self.state();
            if self.conclude(&mut state, &job, result) {
                drop(state);
                self.wake();
                state = self.state();
            }
        }
    }

    /// A request was carried out, or was not. Returns whether the guest has to hear of something.
    pub fn conclude(&self, state: &mut State, job: &Job, result: Result<Outcome, Trouble>) -> bool {
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(Trouble::NotAllowed) => {
                state.queue.put_back(job);
                self.progress.notify_all();
                return false;
            }
            Err(Trouble::Fenced(generation)) => {
                state.queue.put_back(job);
                state.lose(generation);
                self.progress.notify_all();
                return false;
            }
            Err(Trouble::Io(what, error)) => {
                state.counters.errors += 1;
                self.report(state, what, &job.ask, &error);
                Outcome::Failed
            }
        };
        count(&mut state.counters, &job.ask);
        if let (Some(copying), Some((at, length)), true) = (&mut state.copying, job.ask.extent(), job.ask.changes()) {
            copying.add(at, length);
        }
        if state.queue.finish(job, outcome) == Word::Broken {
            self.broke(state);
        }
        self.progress.notify_all();
        state.queue.has_done()
    }

    /// This image could not do what the primary's could.
    pub fn broke(&self, state: &mut State) {
        if state.flaw.is_none() {
            state.flaw = Some(Flaw::Broken);
            tracing::error!(image = %self.path.display(), "this host's disk image is no copy of the primary's any more");
        }
    }

    /// Says what went wrong, each kind of trouble once.
    fn report(&self, state: &mut State, what: &'static str, ask: &Ask, error: &io::Error) {
        let (at, length) = ask.extent().unwrap_or_default();
        let image = self.path.display();
        if state.reported.insert((what, error.raw_os_error().unwrap_or(0))) {
            tracing::warn!(%image, %error, at, length, "cannot {what} the disk image; the guest is told (and this is not said again)");
        } else {
            tracing::debug!(%image, %error, at, length, "cannot {what} the disk image");
        }
    }
}

fn count(counters: &mut DiskStatus, ask: &Ask) {
    match ask {
        Ask::Read { bytes, .. } => {
            counters.reads += 1;
            counters.read_bytes += u64::from(*bytes);
        }
        Ask::Write { data, .. } => {
            counters.writes += 1;
            counters.written_bytes += data.len() as u64;
        }
        Ask::Flush => counters.flushes += 1,
        Ask::Discard { .. } | Ask::WriteZeroes { .. } => counters.cleared += 1,
    }
}
