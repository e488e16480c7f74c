//! `kv persist=1`: every command that changes data goes to a log on the disk, and its reply leaves when it is there.
//!
//! All that the connections ask for in one turn of the server is one batch: one write and one flush, whatever the number of clients. What is
//! asked meanwhile is the next. When the log has grown to twice what it amounts to, or its half of the disk is full, it is rewritten; nobody is served
//! until that is done.

use lockstep_aof::{Io, Log, OpenError, RewriteError, Storage, Sync};
use lockstep_disk::{Ask, Disk, DiskError};
use lockstep_kv::{JournalTrouble, Replay, ReplayError, Settings, Store};
use lockstep_net::service::Output;
use lockstep_runtime::{Args, nucleus, println, safepoint};

/// After a failure, so long passes before the disk is asked again.
const RETRY_MS: u64 = 1000;
/// Between two attempts to rewrite a log that cannot be made much shorter.
const IN_VAIN_MS: u64 = 5000;
/// Under `fsync=everysec`.
const FLUSH_MS: u64 = 1000;
/// A log smaller than this is not worth rewriting as long as there is room.
const SMALL_BYTES: u64 = 1 << 20;

/// The disk, for the log's opening and rewriting.
struct Waiting<'a>(&'a mut Disk);

impl Storage for Waiting<'_> {
    type Error = DiskError;

    fn sectors(&self) -> u64 {
        self.0.shape().sectors
    }

    fn read(&mut self, sector: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read(sector, buffer)
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.0.write(sector, bytes)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.0.flush()
    }
}

/// Why there is no log.
pub(super) enum NoLog {
    /// There is no disk.
    NoDisk,
    /// `fsync=` is something else.
    Fsync(&'static str),
    /// The disk has no log that can be read.
    Open(OpenError<DiskError, ReplayError>),
}

impl core::fmt::Display for NoLog {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        match self {
            NoLog::NoDisk => write!(f, "this machine has no disk that can be written"),
            NoLog::Fsync(text) => write!(f, "fsync={text}: neither always nor everysec nor no"),
            NoLog::Open(OpenError::Foreign) => {
                write!(f, "the disk holds something else (format=1 makes it an empty log)")
            }
            NoLog::Open(error) => write!(f, "cannot open the log: {error}"),
        }
    }
}

/// The log of a store.
pub(super) struct Persist {
    disk: Disk,
    log: Log,
    /// Requests under way.
    flying: usize,
    sync: Sync,
    now_ms: u64,
    flushed_ms: u64,
    /// When something failed last.
    failed_ms: Option<u64>,
    /// The last record, and the time, when a rewriting did not help, if none has since.
    in_vain: Option<(u64, u64)>,
    /// What was durable when the connections were last served.
    served_durable: u64,
}

impl Persist {
    /// Opens the log on the disk, and makes the store what it says.
    pub(super) fn open(args: &Args, settings: Settings, now_ms: u64) -> Result<(Persist, Store), NoLog> {
        let sync = match args.setting("fsync") {
            None | Some("always") => Sync::Always,
            Some("everysec") => Sync::Sometimes,
            Some("no") => Sync::Never,
            Some(text) => return Err(NoLog::Fsync(text)),
        };
        let mut disk = Disk::find().filter(|disk| !disk.shape().read_only).ok_or(NoLog::NoDisk)?;
        let format = args.setting("format") == Some("1");
        let mut store = Store::new(settings);
        let mut replay = Replay::begin(&mut store);
        let opened = Log::open(&mut Waiting(&mut disk), sync, format, |time_ms, record| {
            safepoint();
            replay.apply(&mut store, time_ms, record)
        });
        let commands = replay.commands;
        replay.end(&mut store);
        let (log, opened) = opened.map_err(NoLog::Open)?;
        if opened.formatted {
            println!("kv: a new log of {} bytes", log.capacity());
        }
        println!("kv: recovered {commands} commands ({} records, {} keys)", opened.records, store.len());
        store.begin_journal();
        let mut persist = Persist {
            disk,
            log,
            flying: 0,
            sync,
            now_ms,
            flushed_ms: now_ms,
            failed_ms: None,
            in_vain: None,
            served_durable: 0,
        };
        persist.tell_room(&mut store);
        Ok((persist, store))
    }

    /// Takes in what has become of the disk's work.
    pub(super) fn turn(&mut self, store: &mut Store, now_ms: u64) {
        self.now_ms = now_ms;
        self.take_in();
        self.advance(store);
        if self.failed_ms.is_some_and(|failed_ms| now_ms.saturating_sub(failed_ms) >= RETRY_MS) {
            self.failed_ms = None;
            self.try_again();
        }
        if self.sync == Sync::Sometimes && now_ms.saturating_sub(self.flushed_ms) >= FLUSH_MS {
            self.flushed_ms = now_ms;
            self.log.flush_soon();
            self.submit();
        }
        self.tell_room(store);
        self.served_durable = self.log.durable();
    }

    fn try_again(&mut self) {
        if self.log.resolve(&mut Waiting(&mut self.disk)).is_ok() {
            self.log.retry();
            self.submit();
        } else {
            self.failed_ms = Some(self.now_ms);
        }
    }

    /// A connection's requests have been carried out; what was said to it waits until they are safe.
    pub(super) fn received(&mut self, store: &mut Store, output: &mut Output) {
        let now_ms = self.now_ms;
        let log = &mut self.log;
        let noted = store.take_journal(|record| {
            log.append(now_ms, record);
        });
        // Nobody shall read what a power failure could still undo; except when the disk fails, or nobody could even be told so.
        let waits = noted > 0 || self.failed_ms.is_none() && self.log.durable() < self.log.appended();
        if waits && self.sync == Sync::Always {
            output.hold(self.log.appended());
        }
    }

    /// All connections have been served: begins to write what they have noted.
    pub(super) fn served(&mut self, store: &mut Store) {
        self.advance(store);
        self.tell_room(store);
    }

    /// Lets the disk do what is to be done next, or rewrites the log if it is time for that.
    fn advance(&mut self, store: &Store) {
        if self.failed_ms.is_none() && self.log.is_at_rest() && self.should_rewrite() {
            self.rewrite(store);
        }
        self.submit();
    }

    fn should_rewrite(&self) -> bool {
        let (used, base) = self.log.used();
        let capacity = self.log.capacity();
        let worth_it = used > SMALL_BYTES && used > 2 * base || used > capacity / 2 && used > base + capacity / 4;
        let full = self.log.is_over_full() || used > capacity / 16 * 15;
        // What did not help once, may do so when something has changed.
        let in_vain = self.in_vain.is_some_and(|(appended, tried_ms)| {
            !self.log.is_over_full() && appended == self.log.appended()
                || self.now_ms.saturating_sub(tried_ms) < IN_VAIN_MS
        });
        (worth_it || full) && !in_vain
    }

    /// What may leave: see [`Service::released`](lockstep_net::service::Service::released).
    pub(super) fn released(&self) -> u64 {
        match self.sync {
            Sync::Always => self.log.durable(),
            Sync::Sometimes | Sync::Never => u64::MAX,
        }
    }

    /// Whether there is something to do already: for the disk's work, or for the connections, whose replies may leave.
    pub(super) fn before_sleep(&mut self) -> bool {
        self.disk.before_sleep() || self.log.durable() != self.served_durable
    }

    /// Waits until all is safe; without hope, until the disk has failed.
    pub(super) fn settle(&mut self, store: &mut Store) {
        self.advance(store);
        while self.failed_ms.is_none() && self.flying > 0 {
            safepoint();
            let seen = nucleus::interrupts();
            if !self.disk.has_done() {
                self.disk.idle(seen);
            }
            self.take_in();
            self.advance(store);
        }
    }

    fn tell_room(&mut self, store: &mut Store) {
        let trouble = self.failed_ms.map(|_| JournalTrouble::Io);
        store.set_journal_room(self.log.room(), trouble);
    }

    fn take_in(&mut self) {
        while let Some(done) = self.disk.poll() {
            self.flying -= 1;
            self.ended(done.result);
        }
        // A batch may end as failed long after one of its writes did.
        if self.log.has_failed() && self.failed_ms.is_none() {
            self.failed_ms = Some(self.now_ms);
        }
    }

    fn ended(&mut self, result: Result<(), DiskError>) {
        self.log.io_ended(result.is_ok());
        if let Err(error) = result {
            self.failed(error);
        }
    }

    fn failed(&mut self, error: DiskError) {
        if self.failed_ms.replace(self.now_ms).is_none() {
            println!("kv: cannot write the log: {error}");
        }
    }

    /// Gives the disk what there is to be done.
    fn submit(&mut self) {
        while self.disk.room() > 0
            && let Some(io) = self.log.next_io()
        {
            let ask = match io {
                Io::Write { sector, bytes } => Ask::Write { sector, buffer: bytes },
                // What is completed is on stable storage.
                Io::Flush if !self.disk.shape().flush => {
                    self.log.io_ended(true);
                    continue;
                }
                Io::Flush => Ask::Flush,
            };
            match self.disk.submit(ask) {
                Ok(_) => self.flying += 1,
                Err((error, _)) => self.ended(Err(error)),
            }
        }
    }

    fn rewrite(&mut self, store: &Store) {
        let before = self.log.used().0;
        let now_ms = self.now_ms;
        let mut storage = Waiting(&mut self.disk);
        match self.log.rewrite(&mut storage, now_ms, |put| store.snapshot(now_ms, put)) {
            Ok(()) => {
                let after = self.log.used().0;
                // Nearly full again at once: not for every single command.
                self.in_vain = (after > self.log.capacity() / 4 * 3).then_some((self.log.appended(), now_ms));
                println!("kv: the log is rewritten: {before} bytes are {after} now");
            }
            Err(RewriteError::Full(most)) => {
                println!("kv: the log is full: {before} bytes, and the data do not fit into {most}");
                self.in_vain = Some((self.log.appended(), now_ms));
            }
            Err(RewriteError::Storage(error)) => self.failed(error),
        }
    }
}
