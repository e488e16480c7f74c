//! The log on this member's disk: the crate `redb`, behind a thread of its own.
//!
//! One database file holds the entries, the vote and who this member is. Everything is written by one thread, in the order asked
//! for; what waits for it goes with one commit, and so with one flush. The newest entries are kept in memory, for the members that
//! follow closely.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use bytes::{Bytes, BytesMut};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, ErrorSubject, ErrorVerb, OptionalSend, RaftLogId, RaftLogReader, StorageIOError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::entry::{self, CodecError};
use crate::member::MemberId;
use crate::raft::{Entry, LogId, StorageError, Types, Vote};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

const MEMBER: &str = "member";
const START: &str = "start";
const VOTE: &str = "vote";
const PURGED: &str = "purged";

/// Bytes of entries that are kept in memory.
const CACHE_BYTES: usize = 32 << 20;
/// Bytes of entries that are read at once for a member that is behind.
const READ_BYTES: usize = 4 << 20;

/// What went wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database itself.
    #[error("the log's database")]
    Database(#[from] redb::Error),
    /// What stands in it cannot be read.
    #[error("{what} in the log's database cannot be read")]
    Content {
        /// What it should be.
        what: &'static str,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// The database belongs to another member.
    #[error("the database is that of member {found}, not of {wanted}")]
    OtherMember {
        /// Whose it is.
        found: u32,
        /// Whose it should be.
        wanted: u32,
    },
    /// The thread that writes is gone.
    #[error("the log's thread has ended")]
    Thread,
}

/// All errors of the database are told as one.
fn database(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(error.into())
}

/// Something to be written.
enum Write {
    Entry(u64, Bytes),
    Fact(&'static str, Vec<u8>),
    RemoveFrom(u64),
    RemoveUpTo(u64),
}

type Done = Box<dyn FnOnce(Result<(), Arc<StoreError>>) + Send>;

/// Things that are to be written together, and who is told when they are durable.
struct Job {
    writes: Vec<Write>,
    done: Done,
}

fn carry_out(db: &Database, jobs: &[Job]) -> Result<(), StoreError> {
    let transaction = db.begin_write().map_err(database)?;
    {
        let mut log = transaction.open_table(LOG).map_err(database)?;
        let mut facts = transaction.open_table(FACTS).map_err(database)?;
        for write in jobs.iter().flat_map(|job| &job.writes) {
            match write {
                Write::Entry(index, bytes) => drop(log.insert(index, &bytes[..]).map_err(database)?),
                Write::Fact(name, bytes) => drop(facts.insert(name, &bytes[..]).map_err(database)?),
                Write::RemoveFrom(index) => log.retain_in::<u64, _>(*index.., |_, _| false).map_err(database)?,
                Write::RemoveUpTo(index) => log.retain_in::<u64, _>(..=*index, |_, _| false).map_err(database)?,
            }
        }
    }
    transaction.commit().map_err(database)
}

/// Who writes.
#[derive(Clone)]
enum Writer {
    /// A thread of its own, so that the flush of a disk holds nobody up but whoever waits for it.
    Thread(mpsc::Sender<Job>),
    /// Whoever asks: for simulations, where a thread would bring in the real world's time.
    Caller(Arc<Database>),
}

/// Jobs that go with one commit.
const MAX_JOBS: usize = 64;

impl Writer {
    fn thread(db: Arc<Database>) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("log".into()).spawn(move || {
            while let Ok(first) = inbox.recv() {
                let mut jobs = vec![first];
                jobs.extend(inbox.try_iter().take(MAX_JOBS - 1));
                let result = carry_out(&db, &jobs).map_err(Arc::new);
                for job in jobs {
                    (job.done)(result.clone());
                }
            }
        })?;
        Ok(Writer::Thread(jobs))
    }

    fn write(&self, writes: Vec<Write>, done: Done) {
        let job = Job { writes, done };
        match self {
            Writer::Thread(jobs) => {
                if let Err(mpsc::SendError(job)) = jobs.send(job) {
                    (job.done)(Err(Arc::new(StoreError::Thread)));
                }
            }
            Writer::Caller(db) => {
                let result = carry_out(db, std::slice::from_ref(&job)).map_err(Arc::new);
                (job.done)(result);
            }
        }
    }

    /// Writes, and waits until it is durable.
    async fn write_through(&self, writes: Vec<Write>) -> Result<(), Arc<StoreError>> {
        let (done, is_done) = oneshot::channel();
        self.write(writes, Box::new(|result| drop(done.send(result))));
        is_done.await.unwrap_or_else(|_| Err(Arc::new(StoreError::Thread)))
    }
}

/// What is known of the log without reading it.
#[derive(Debug, Default)]
struct Known {
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    /// The newest entries, one after the other up to the last.
    newest: BTreeMap<u64, Entry>,
    bytes: usize,
    since_snapshot: u64,
}

fn bytes_of(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(batch) => batch.0.len() + 64,
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 64,
    }
}

impl Known {
    fn append(&mut self, entry: Entry) {
        self.last = Some(entry.log_id);
        self.bytes += bytes_of(&entry);
        self.since_snapshot += bytes_of(&entry) as u64;
        self.newest.insert(entry.log_id.index, entry);
        while self.bytes > CACHE_BYTES && self.newest.len() > 1 {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, entry)) = self.newest.pop_first() {
            self.bytes -= bytes_of(&entry);
        }
    }
}

/// Who this member is, and which of its starts this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Number and incarnation.
    pub member: MemberId,
    /// Counts from 1.
    pub start: u64,
}

/// The log of this member.
#[derive(Clone)]
pub struct LogStore {
    db: Arc<Database>,
    known: Arc<Mutex<Known>>,
    writer: Writer,
}

impl LogStore {
    /// The log in `db`, that of member `id`, and who this is. A new database gets `incarnation`.
    pub fn open(db: Database, id: u32, incarnation: u64, threaded: bool) -> Result<(Self, Identity), StoreError> {
        let db = Arc::new(db);
        let setup = db.begin_write().map_err(database)?;
        let identity = {
            let mut facts = setup.open_table(FACTS).map_err(database)?;
            setup.open_table(LOG).map_err(database)?;
            let member = fact(&facts, MEMBER)?.unwrap_or(MemberId { id, incarnation });
            if member.id != id {
                return Err(StoreError::OtherMember { found: member.id, wanted: id });
            }
            let start = fact::<u64>(&facts, START)?.unwrap_or(0) + 1;
            facts.insert(MEMBER, &entry::cold(&member)[..]).map_err(database)?;
            facts.insert(START, &entry::cold(&start)[..]).map_err(database)?;
            Identity { member, start }
        };
        setup.commit().map_err(database)?;

        let reading = db.begin_read().map_err(database)?;
        let facts = reading.open_table(FACTS).map_err(database)?;
        let log = reading.open_table(LOG).map_err(database)?;
        let mut known = Known { vote: fact(&facts, VOTE)?, purged: fact(&facts, PURGED)?, ..Known::default() };
        known.last = known.purged;
        if let Some((_, bytes)) = log.last().map_err(database)? {
            known.last = Some(read_entry(bytes.value())?.log_id);
        }
        let writer = match threaded {
            true => Writer::thread(db.clone()).map_err(|error| StoreError::Database(redb::Error::Io(error)))?,
            false => Writer::Caller(db.clone()),
        };
        Ok((LogStore { db, known: Arc::new(Mutex::new(known)), writer }, identity))
    }

    /// Bytes of the entries that were appended since a snapshot was begun.
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.known().since_snapshot
    }

    /// A snapshot is begun.
    pub fn begin_snapshot(&self) {
        self.known().since_snapshot = 0;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries from `first` to before `end`, or fewer if they are many; of those that are not in memory, from the disk.
    fn entries(&self, first: u64, end: u64, max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut enough = |entry: &Entry, found: &Vec<Entry>| {
            bytes += bytes_of(entry);
            bytes > max_bytes && !found.is_empty()
        };
        let in_memory = {
            let known = self.known();
            let in_memory = known.newest.first_key_value().map(|(index, _)| *index).filter(|index| *index <= first);
            if in_memory.is_some() {
                for entry in known.newest.range(first..end.max(first)).map(|(_, entry)| entry) {
                    if enough(entry, &found) {
                        break;
                    }
                    found.push(entry.clone());
                }
            }
            in_memory.is_some()
        };
        if !in_memory && first < end {
            let reading = self.db.begin_read().map_err(database)?;
            let log = reading.open_table(LOG).map_err(database)?;
            for item in log.range(first..end).map_err(database)? {
                let (_, value) = item.map_err(database)?;
                let entry = read_entry(value.value())?;
                if enough(&entry, &found) {
                    break;
                }
                found.push(entry);
            }
        }
        Ok(found)
    }
}

fn fact<T: DeserializeOwned>(
    facts: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &'static str,
) -> Result<Option<T>, StoreError> {
    let Some(bytes) = facts.get(name).map_err(database)? else { return Ok(None) };
    let read = entry::read_cold(bytes.value());
    read.map(Some).map_err(|source| StoreError::Content { what: name, source })
}

fn read_entry(bytes: &[u8]) -> Result<Entry, StoreError> {
    entry::read(&Bytes::copy_from_slice(bytes)).map_err(|source| StoreError::Content { what: "an entry", source })
}

fn failed(
    subject: ErrorSubject<MemberId>,
    verb: ErrorVerb,
    error: &(impl std::error::Error + 'static),
) -> StorageError {
    StorageIOError::new(subject, verb, AnyError::new(error)).into()
}

/// The first and the last-but-one index of a range.
fn bounds(range: impl RangeBounds<u64>) -> (u64, u64) {
    let first = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index + 1,
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (first, end)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let (first, end) = bounds(range);
        self.entries(first, end, usize::MAX).map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.entries(start, end, READ_BYTES).map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let known = self.known();
        Ok(LogState { last_purged_log_id: known.purged, last_log_id: known.last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let written = self.writer.write_through(vec![Write::Fact(VOTE, entry::cold(vote))]).await;
        written.map_err(|error| failed(ErrorSubject::Vote, ErrorVerb::Write, &*error))?;
        self.known().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.known().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut writes = Vec::new();
        {
            let mut known = self.known();
            let mut bytes = BytesMut::new();
            for entry in entries {
                entry::write(&entry, &mut bytes);
                writes.push(Write::Entry(entry.log_id.index, bytes.split().freeze()));
                known.append(entry);
            }
        }
        let done =
            |result: Result<(), Arc<StoreError>>| callback.log_io_completed(result.map_err(std::io::Error::other));
        self.writer.write(writes, Box::new(done));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let written = self.writer.write_through(vec![Write::RemoveFrom(log_id.index)]).await;
        written.map_err(|error| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &*error))?;
        let before = log_id.index.checked_sub(1).map(|index| self.entries(index, log_id.index, usize::MAX));
        let before = before.transpose().map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))?;
        let mut known = self.known();
        let gone = known.newest.split_off(&log_id.index);
        known.bytes -= gone.values().map(bytes_of).sum::<usize>();
        known.last = before.and_then(|entries| entries.last().map(|entry| *entry.get_log_id())).or(known.purged);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        // What is purged is in a durable snapshot, or has come with one: that it is gone need not be on disk first.
        let writes = vec![Write::Fact(PURGED, entry::cold(&log_id)), Write::RemoveUpTo(log_id.index)];
        let written = self.writer.write_through(writes).await;
        written.map_err(|error| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &*error))?;
        let mut known = self.known();
        while known.newest.first_key_value().is_some_and(|(index, _)| *index <= log_id.index) {
            known.drop_first();
        }
        known.purged = Some(log_id);
        known.last = known.last.max(Some(log_id));
        Ok(())
    }
}
