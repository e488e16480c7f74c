//! Live pre-copy (Clark et al., *Live Migration of Virtual Machines*, NSDI 2005): memory is sent while the guest runs, then what it has written
//! meanwhile, and so on, until so little is left that the guest may stand still for it. The state is taken at that instant, together with
//! the last pages; the guest goes on at once, and its log from there is the new backup's.
//!
//! A thread of its own reads and packs. What it makes goes through a short queue; if that is full the link is the bottleneck, and what is packed next is
//! compressed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

use super::outgoing::Outgoing;
use super::outlets::Outlets;

use crate::backends::world::{Captured, World};
use crate::console::hub::Protection;
use crate::disk::DiskError;

use crate::machine::pages::Pages;
use crate::machine::vcpu::KvmError;
use crate::transfer::chunk::{PAGE, Packer, is_zero, page_numbers};
use crate::transfer::state::GuestState;

/// Chunks that may wait for the link.
const QUEUE: usize = 4;
/// Rounds after which the guest is stopped whatever is left.
const MAX_ROUNDS: u32 = 40;
/// The last pages may take this long on the link.
const LAST_ROUND: Duration = Duration::from_millis(10);
/// So little is always sent in the last round, so much never if it can be helped, bytes.
const LAST_BYTES: (u64, u64) = (256 << 10, 16 << 20);
/// How much of its time a guest gives away, per mille, for each round that does not bring the end nearer, and at most.
const SLOW_DOWN: (u64, u64) = (100, 900);

/// What a transfer is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// The most bytes a second on the link; `None`: as many as it takes.
    pub bytes_per_s: Option<u64>,
}

/// Why a transfer cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// KVM does not say what the guest writes.
    #[error("cannot follow what the guest writes")]
    Pages(#[from] KvmError),
    /// The disk's image cannot be read.
    #[error("cannot copy the disk")]
    Disk(#[from] DiskError),
    /// The machine has ended, or takes no more part.
    #[error("the machine is gone")]
    MachineGone,
}

/// What a transfer sends, in this order: chunks, the cut, the last chunks, the state.
#[derive(Debug)]
pub enum Sent {
    /// The payload of a Chunk frame.
    Chunk(Vec<u8>),
    /// The guest has stood still before this entry; outputs from it on are held.
    Cut {
        /// Entries before.
        entries: u64,
    },
    /// The payload of the State frame. Nothing follows.
    State(Vec<u8>),
    /// It cannot go on. Nothing follows.
    Failed(TransferError),
}

/// How a transfer gets on.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of memory and disk that the backup has to get, as far as known.
    pub total_bytes: AtomicU64,
    /// Of those, bytes packed so far, again and again what changes.
    pub copied_bytes: AtomicU64,
    /// Bytes sent.
    pub sent_bytes: AtomicU64,
    /// Rounds begun.
    pub round: AtomicU64,
    /// Time that the guest stood still for its state, nanoseconds.
    pub stop_ns: AtomicU64,
}

/// A transfer under way. Dropping it ends it; the guest is not touched.
pub struct PreCopy {
    sent: Receiver<Sent>,
    /// How it gets on.
    pub progress: Arc<Progress>,
    cancel: Arc<Cancel>,
}

/// Whether a transfer has been given up.
#[derive(Default)]
struct Cancel {
    flag: AtomicBool,
    /// Held while the vCPU thread takes the state: whoever has given the transfer up knows afterwards that nothing more is cut, held or taken for it.
    taking: Mutex<()>,
}

impl Cancel {
    fn is_set(&self) -> bool {
        self.flag.load(SeqCst)
    }

    fn set(&self) {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        self.flag.store(true, SeqCst);
    }

    /// Does `what` unless the transfer was given up, and not while it is.
    fn unless_set(&self, what: impl FnOnce()) {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_set() {
            what();
        }
    }
}

/// The thread of a transfer. It may outlive the transfer for a moment, in which it still asks what the guest has written.
pub type Copying = JoinHandle<()>;

/// What is copied, and from where.
pub struct Source {
    /// The guest's memory.
    pub pages: Pages,
    /// Its world: there its state is asked for.
    pub world: Arc<World>,
    /// Its log, which is cut where the state belongs.
    pub outgoing: Arc<Outgoing>,
    /// What is held from there on.
    pub outlets: Outlets,
}

impl PreCopy {
    /// Begins to copy, once the thread of the transfer before, which has been given up or is complete, has ended: there is one account of what is written, and a
    /// page that the one thread is told of, the other never hears of.
    pub fn begin(source: Source, settings: Settings, before: Option<Copying>) -> std::io::Result<(Self, Copying)> {
        let (to, sent) = channel(QUEUE);
        let (progress, cancel) = (Arc::new(Progress::default()), Arc::new(Cancel::default()));
        let pace = Pace::new(&source.world);
        let mut copier = Copier {
            source: Arc::new(source),
            settings,
            to,
            progress: progress.clone(),
            cancel: cancel.clone(),
            packer: Packer::default(),
            compress: false,
            began: Instant::now(),
            packing_since: Instant::now(),
            pace,
        };
        let copying = thread::Builder::new().name("transfer".into()).spawn(move || {
            if let Some(before) = before {
                // Whether it has panicked does not matter here.
                let _ = before.join();
            }
            let result = copier.copy();
            // With digests on, which a pair's machine always has, this only forgets.
            let _ = copier.source.pages.end_copy();
            if let Err(Stop::Failed(error)) = result {
                let _ = copier.to.blocking_send(Sent::Failed(error));
            }
        })?;
        Ok((PreCopy { sent, progress, cancel }, copying))
    }

    /// What is to be sent next; for ever nothing behind the end.
    pub async fn next(&mut self) -> Sent {
        match self.sent.recv().await {
            Some(sent) => sent,
            None => std::future::pending().await,
        }
    }
}

impl Drop for PreCopy {
    fn drop(&mut self) {
        self.cancel.set();
    }
}

/// Why the copying thread stops before its time.
enum Stop {
    /// Nobody takes what it makes.
    Cancelled,
    Failed(TransferError),
}

impl<E: Into<TransferError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

struct Copier {
    source: Arc<Source>,
    settings: Settings,
    to: Sender<Sent>,
    progress: Arc<Progress>,
    cancel: Arc<Cancel>,
    packer: Packer,
    compress: bool,
    began: Instant,
    packing_since: Instant,
    pace: Pace,
}

/// How much of its time the copying gives to the guest: so many times as long as a chunk took to be packed, for a guest that never waits, and
/// in proportion less for one that does.
///
/// Reading, sending and receiving a page take processors on either side that the guest and its network want, too. A guest that has nothing to do is
/// copied as fast as the link takes it.
struct Pace {
    patience: f64,
    /// When the last chunk had left, and how long the guest had waited by then.
    since: Instant,
    idle_ns: u64,
    busy: f64,
    /// Rest that is saved up.
    owed: Duration,
}

/// The patience of a transfer that brings its end nearer with each round.
const PATIENCE: f64 = 10.0;
/// A rest shorter than this is saved up.
const SHORTEST_REST: Duration = Duration::from_micros(500);
/// The least time over which it is measured how busy the guest is.
const BUSY_OVER: Duration = Duration::from_millis(5);

impl Pace {
    fn new(world: &World) -> Self {
        Pace { patience: PATIENCE, since: Instant::now(), idle_ns: world.idle_ns(), busy: 0.0, owed: Duration::ZERO }
    }

    /// Rests after a chunk that took `packed` to be packed. Short rests are saved up.
    fn rest(&mut self, world: &World, packed: Duration) {
        let elapsed = self.since.elapsed();
        if elapsed >= BUSY_OVER {
            let idle_ns = world.idle_ns();
            let waited = idle_ns.saturating_sub(self.idle_ns) as f64 / elapsed.as_nanos() as f64;
            (self.since, self.idle_ns, self.busy) = (Instant::now(), idle_ns, (1.0 - waited).clamp(0.0, 1.0));
        }
        self.owed += packed.mul_f64(self.patience * self.busy);
        if self.owed >= SHORTEST_REST {
            let began = Instant::now();
            thread::sleep(self.owed);
            self.owed = self.owed.saturating_sub(began.elapsed());
        }
    }

    /// The end does not come nearer: less is given to the guest. False: there is nothing left to take.
    fn hurry(&mut self) -> bool {
        let had = self.patience > 0.0;
        self.patience = if self.patience > 1.0 { self.patience / 4.0 } else { 0.0 };
        had
    }
}

/// What the vCPU thread hands over from the instant at which the guest stood still.
struct Still {
    state: GuestState,
    chunks: Result<Vec<Vec<u8>>, TransferError>,
    stop: Duration,
}

fn bytes_of(written: &[u64]) -> u64 {
    written.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() * PAGE as u64
}

impl Copier {
    fn copy(&mut self) -> Result<(), Stop> {
        let source = self.source.clone();
        source.pages.begin_copy()?;
        if let Some(disk) = &source.outlets.disk {
            disk.begin_copy();
        }
        let mut written = source.pages.take_written()?;
        let (mut left, mut slow_down) = (bytes_of(&written) + self.left_of_disk(), 0);
        self.progress.total_bytes.store(left, SeqCst);
        for round in 0.. {
            self.progress.round.store(round + 1, SeqCst);
            let (begun, sent_before) = (Instant::now(), self.progress.sent_bytes.load(SeqCst));
            self.copy_pages(&written, round == 0)?;
            self.copy_disk()?;
            self.flush()?;
            let sent = self.progress.sent_bytes.load(SeqCst) - sent_before;
            let per_s = sent as f64 / begun.elapsed().as_secs_f64().max(1e-6);
            written = source.pages.take_written()?;
            let before = std::mem::replace(&mut left, bytes_of(&written) + self.left_of_disk());
            let may_be_left = ((per_s * LAST_ROUND.as_secs_f64()) as u64).clamp(LAST_BYTES.0, LAST_BYTES.1);
            tracing::debug!(round, sent, left, may_be_left, "a round of the state transfer");
            if left <= may_be_left || round + 1 >= u64::from(MAX_ROUNDS) {
                break;
            }
            self.progress.total_bytes.fetch_add(left, SeqCst);
            if round > 0 && left > before / 2 && !self.pace.hurry() {
                // The guest writes about as fast as the link carries: it gives some of its time away, so that this comes to an end.
                slow_down = (slow_down + SLOW_DOWN.0).min(SLOW_DOWN.1);
                source.world.set_slow_down(slow_down);
            }
        }
        let still = self.stand_still(written);
        source.world.set_slow_down(0);
        let still = still?;
        self.progress.stop_ns.store(still.stop.as_nanos() as u64, SeqCst);
        self.send(Sent::Cut { entries: still.state.position.entries() })?;
        for chunk in still.chunks? {
            self.progress.sent_bytes.fetch_add(chunk.len() as u64, SeqCst);
            self.send(Sent::Chunk(chunk))?;
        }
        self.send(Sent::State(still.state.to_bytes()))
    }

    fn left_of_disk(&self) -> u64 {
        self.source.outlets.disk.as_ref().map_or(0, |disk| disk.left_to_copy())
    }

    /// Packs the pages that `written` names; with `fresh`, zeros need not be told.
    fn copy_pages(&mut self, written: &[u64], fresh: bool) -> Result<(), Stop> {
        let source = self.source.clone();
        let mut page = [0; PAGE];
        for number in page_numbers(written) {
            source.pages.read(number, &mut page);
            let zero = is_zero(&page);
            if !(zero && fresh) {
                self.packer.page(number, (!zero).then_some(&page));
            }
            self.progress.copied_bytes.fetch_add(PAGE as u64, SeqCst);
            if self.packer.is_full() {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn copy_disk(&mut self) -> Result<(), Stop> {
        let source = self.source.clone();
        let Some(disk) = &source.outlets.disk else { return Ok(()) };
        while let Some(piece) = disk.next_piece()? {
            self.packer.piece(piece.at, piece.length, &piece.bytes);
            self.progress.copied_bytes.fetch_add(piece.length.into(), SeqCst);
            if self.packer.is_full() {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        if self.packer.is_empty() {
            return if self.cancel.is_set() { Err(Stop::Cancelled) } else { Ok(()) };
        }
        let (chunk, _) = self.packer.take(self.compress);
        self.send_chunk(chunk)
    }

    /// Sends a chunk, and gives the guest its time.
    fn send_chunk(&mut self, chunk: Vec<u8>) -> Result<(), Stop> {
        let packed = self.packing_since.elapsed();
        let sent = self.progress.sent_bytes.fetch_add(chunk.len() as u64, SeqCst) + chunk.len() as u64;
        if let Some(per_s) = self.settings.bytes_per_s {
            let due = Duration::from_secs_f64(sent as f64 / per_s.max(1) as f64);
            thread::sleep(due.saturating_sub(self.began.elapsed()));
        }
        self.send(Sent::Chunk(chunk))?;
        self.pace.rest(&self.source.world, packed);
        self.packing_since = Instant::now();
        Ok(())
    }

    fn send(&mut self, sent: Sent) -> Result<(), Stop> {
        if self.cancel.is_set() {
            return Err(Stop::Cancelled);
        }
        match self.to.try_send(sent) {
            Ok(()) => {
                // The link keeps up: the processor's time is better spent on the guest.
                self.compress = false;
                Ok(())
            }
            Err(TrySendError::Full(sent)) => {
                self.compress = true;
                self.to.blocking_send(sent).map_err(|_| Stop::Cancelled)
            }
            Err(TrySendError::Closed(_)) => Err(Stop::Cancelled),
        }
    }

    /// Has the guest stand still, with `written` yet to be sent, until its state and all that it has written since are taken.
    fn stand_still(&mut self, written: Vec<u64>) -> Result<Still, Stop> {
        let (say, said) = blocking::channel();
        let (source, cancel) = (self.source.clone(), self.cancel.clone());
        self.source.world.request_capture(Box::new(move |captured| {
            cancel.unless_set(|| {
                // Nobody waits any more only where it was given up.
                let _ = say.send(take(&source, written, captured));
            });
        }));
        // The machine drops the request, and with it the sender, when it ends.
        loop {
            match said.recv_timeout(Duration::from_millis(50)) {
                Ok(still) => return Ok(still),
                Err(blocking::RecvTimeoutError::Disconnected) => return Err(TransferError::MachineGone.into()),
                Err(blocking::RecvTimeoutError::Timeout) if self.cancel.is_set() || self.to.is_closed() => {
                    return Err(Stop::Cancelled);
                }
                Err(blocking::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// On the vCPU thread: all that has to be of one instant.
fn take(source: &Source, mut written: Vec<u64>, captured: Captured) -> Still {
    let began = Instant::now();
    let Captured { state: machine, position, guest_clock_ns } = captured;
    // From here on the new backup has to hold what leaves.
    source.outgoing.cut();
    source.outlets.set_protection(Protection::HeldFrom(position.entries()));
    let console = source.outlets.hub.state();
    let chunks = take_last(source, &mut written);
    let state = GuestState { machine: *machine, position, guest_clock_ns, console };
    Still { state, chunks, stop: began.elapsed() }
}

fn take_last(source: &Source, written: &mut [u64]) -> Result<Vec<Vec<u8>>, TransferError> {
    for (word, more) in written.iter_mut().zip(source.pages.take_written()?) {
        *word |= more;
    }
    // Nobody says when the host writes to this one.
    if let Some(page) = source.pages.safepoint_page() {
        written[page as usize / 64] |= 1 << (page % 64);
    }
    let (mut chunks, mut packer, mut page) = (Vec::new(), Packer::default(), [0; PAGE]);
    for number in page_numbers(written) {
        source.pages.read(number, &mut page);
        packer.page(number, (!is_zero(&page)).then_some(&page));
        if packer.is_full() {
            chunks.push(packer.take(false).0);
        }
    }
    if let Some(disk) = &source.outlets.disk {
        disk.freeze();
        let mut copied = Ok(());
        loop {
            match disk.next_piece() {
                Ok(Some(piece)) => packer.piece(piece.at, piece.length, &piece.bytes),
                Ok(None) => break,
                Err(error) => {
                    copied = Err(error);
                    break;
                }
            }
            if packer.is_full() {
                chunks.push(packer.take(false).0);
            }
        }
        disk.thaw();
        copied?;
    }
    if !packer.is_empty() {
        chunks.push(packer.take(false).0);
    }
    Ok(chunks)
}
