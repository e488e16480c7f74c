//! What persists: every command that changed data, as Redis' append-only file has it, one record for each request.
//!
//! A request's commands are noted as they came, and a record has the time at which they were carried out: carried out again at the
//! same time, they do the same, be it to keys that were past their time then or to expiries counted from then. Only what is drawn at random is noted by its
//! result. `EXEC` is one record with the commands of its transaction that changed anything.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::Settings;
use crate::bytes::push_i64;
use crate::command::{Command, WRITE};
use crate::connection::Connection;
use crate::refusal::Refusal;
use crate::resp::Args;
use crate::store::{NEVER, Store};
use crate::value::Value;

/// Bytes that a record may take beside its commands' arguments.
const RECORD_BYTES: usize = 256;
/// Bytes that an argument takes besides: its length and the ends of lines.
const ARGUMENT_BYTES: usize = 32;
/// What gives room back may still be noted when there is hardly any.
const RESERVE_BYTES: usize = 64 << 10;

/// Why nothing can be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalTrouble {
    /// What is noted cannot be written.
    Io,
}

/// Requests that changed data and have not been taken by whoever writes them down.
#[derive(Debug)]
pub(crate) struct Journal {
    /// The commands of all records.
    bytes: Vec<u8>,
    /// Where each record ends.
    ends: Vec<usize>,
    /// Bytes of records that there is still room for.
    room: usize,
    trouble: Option<JournalTrouble>,
    /// Words that the command which is just being carried out has for itself.
    replaced: Option<Vec<u8>>,
}

/// A command in the protocol's words.
pub(crate) fn push_command<'a>(to: &mut Vec<u8>, args: impl ExactSizeIterator<Item = &'a [u8]>) {
    to.push(b'*');
    push_i64(to, args.len() as i64);
    to.extend_from_slice(b"\r\n");
    for arg in args {
        to.push(b'$');
        push_i64(to, arg.len() as i64);
        to.extend_from_slice(b"\r\n");
        to.extend_from_slice(arg);
        to.extend_from_slice(b"\r\n");
    }
}

impl Journal {
    /// Whether a command with these arguments may be begun.
    pub(crate) fn check(&self, command: &Command, args: Args<'_>) -> Result<(), Refusal> {
        self.check_all(core::iter::once((command, args)))
    }

    /// Whether commands with these arguments may be begun, to be noted in one record.
    pub(crate) fn check_all<'a>(&self, commands: impl Iterator<Item = (&'a Command, Args<'a>)>) -> Result<(), Refusal> {
        let (mut wanted, mut reserve) = (0_usize, 0);
        for (command, args) in commands.filter(|(command, _)| command.is(WRITE)) {
            wanted += args.total_bytes() + args.len() * ARGUMENT_BYTES + RECORD_BYTES;
            if command.takes_memory() {
                reserve = RESERVE_BYTES;
            }
        }
        match self.trouble {
            _ if wanted == 0 => Ok(()),
            Some(JournalTrouble::Io) => Err(Refusal::LogFailed),
            None if wanted + reserve > self.room => Err(Refusal::LogFull),
            None => Ok(()),
        }
    }

    /// A command has changed data: these are its words, unless it has said others.
    pub(crate) fn note(&mut self, args: Args<'_>) {
        match self.replaced.take() {
            Some(words) => self.bytes.extend_from_slice(&words),
            None => push_command(&mut self.bytes, args.from(0)),
        }
    }

    /// The command that is just being carried out is to be noted in other words.
    pub(crate) fn note_instead(&mut self, words: Vec<u8>) {
        self.replaced = Some(words);
    }

    /// The request is over: what it noted is one record.
    pub(crate) fn end_request(&mut self) {
        self.replaced = None;
        let start = self.ends.last().copied().unwrap_or(0);
        if self.bytes.len() > start {
            self.room = self.room.saturating_sub(self.bytes.len() - start + RECORD_BYTES);
            self.ends.push(self.bytes.len());
        }
    }
}

impl Store {
    /// From now on, notes what changes data; to be taken by [`Store::take_journal`].
    pub fn begin_journal(&mut self) {
        let (bytes, ends) = (Vec::new(), Vec::new());
        self.journal = Some(Box::new(Journal { bytes, ends, room: 0, trouble: None, replaced: None }));
    }

    /// What commands may still note: requests that would need more are refused. `trouble`: all that change data are.
    pub fn set_journal_room(&mut self, room_bytes: usize, trouble: Option<JournalTrouble>) {
        if let Some(journal) = &mut self.journal {
            journal.room = room_bytes;
            journal.trouble = trouble;
        }
    }

    /// Hands out what each request since the last call has noted, in order; how many there were.
    pub fn take_journal(&mut self, mut each: impl FnMut(&[u8])) -> usize {
        let Some(journal) = &mut self.journal else { return 0 };
        let mut start = 0;
        for &end in &journal.ends {
            each(&journal.bytes[start..end]);
            start = end;
        }
        let count = journal.ends.len();
        journal.ends.clear();
        journal.bytes.clear();
        // A single large request shall not hold its memory for ever.
        journal.bytes.shrink_to(256 << 10);
        count
    }

    /// Hands out commands that make an empty store what this one is, in pieces to be [carried out](Replay::apply) at `now_ms`. Ends with the first
    /// error of `put`.
    pub fn snapshot<E>(&self, now_ms: u64, mut put: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        const PIECE_BYTES: usize = 64 << 10;
        let mut piece = Vec::new();
        let mut flush = |piece: &mut Vec<u8>, least: usize| {
            (self.settings.poll)();
            if piece.len() > least {
                put(piece)?;
                piece.clear();
            }
            Ok(())
        };
        for at in 0..self.len() {
            let (key, slot) = self.at(at);
            if slot.expires_ms < now_ms {
                continue;
            }
            if let Value::Str(text) = &slot.value {
                push_command(&mut piece, [&b"SET"[..], key, text].into_iter());
                flush(&mut piece, PIECE_BYTES)?;
            } else {
                let (name, elements) = elements(&slot.value);
                let mut args: Vec<Element<'_>> = Vec::new();
                let mut bytes = 0;
                for element in elements {
                    bytes += element.iter().map(|part| part.len()).sum::<usize>();
                    args.push(element);
                    if args.len() == 64 || bytes > PIECE_BYTES {
                        push_elements(&mut piece, name, key, &args);
                        args.clear();
                        bytes = 0;
                        flush(&mut piece, PIECE_BYTES)?;
                    }
                }
                if !args.is_empty() {
                    push_elements(&mut piece, name, key, &args);
                    flush(&mut piece, PIECE_BYTES)?;
                }
            }
            if slot.expires_ms != NEVER {
                let mut digits = itoa::Buffer::new();
                let time = digits.format(slot.expires_ms).as_bytes();
                push_command(&mut piece, [&b"PEXPIREAT"[..], key, time].into_iter());
            }
        }
        flush(&mut piece, 0)
    }
}

/// The one or two arguments that make an element.
type Element<'a> = smallvec::SmallVec<[alloc::borrow::Cow<'a, [u8]>; 2]>;

/// The command that adds elements to a value, and all of them, in order.
fn elements(value: &Value) -> (&'static str, Box<dyn Iterator<Item = Element<'_>> + '_>) {
    use alloc::borrow::Cow::{Borrowed, Owned};
    let one = |text| smallvec::smallvec![Borrowed(text)];
    match value {
        Value::Str(text) => ("SET", Box::new(core::iter::once(one(&text[..])))),
        Value::List(list) => ("RPUSH", Box::new(list.iter().map(move |text| one(text)))),
        Value::Set(members) => ("SADD", Box::new(members.iter().map(move |entry| one(&entry.key)))),
        Value::Hash(fields) => (
            "HSET",
            Box::new(
                fields.iter().map(|entry| smallvec::smallvec![Borrowed(&entry.key[..]), Borrowed(&entry.value[..])]),
            ),
        ),
        Value::ZSet(zset) => (
            "ZADD",
            Box::new(zset.range(0, zset.len(), false).map(|(score, member)| {
                smallvec::smallvec![Owned(crate::bytes::f64_text(score).to_vec()), Borrowed(&member[..])]
            })),
        ),
    }
}

fn push_elements(to: &mut Vec<u8>, name: &str, key: &[u8], elements: &[Element<'_>]) {
    let mut args: Vec<&[u8]> = alloc::vec![name.as_bytes(), key];
    args.extend(elements.iter().flatten().map(|part| &part[..]));
    push_command(to, args.into_iter());
}

/// Why a record cannot be carried out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It is no row of commands.
    #[error("it is no row of commands")]
    Unreadable,
    /// A command was refused, and had not been before.
    #[error("a command in it is refused")]
    Refused,
}

/// Carries records out again, on a store that is empty at first.
#[derive(Debug)]
pub struct Replay {
    connection: Connection,
    settings: Settings,
    maxmemory_bytes: usize,
    out: Vec<u8>,
    /// Commands that were carried out.
    pub commands: u64,
}

impl Replay {
    /// Begins. Until the [end](Self::end), the store has no bounds: what was accepted once, is again.
    pub fn begin(store: &mut Store) -> Self {
        let (settings, maxmemory_bytes) = (store.settings, store.maxmemory_bytes);
        store.settings = Settings {
            seed: settings.seed,
            maxmemory_bytes: usize::MAX,
            heap_bytes: usize::MAX,
            bulk_bytes: u32::MAX as usize,
            request_bytes: u32::MAX as usize,
            reply_bytes: usize::MAX,
            high_water_bytes: usize::MAX,
            ..settings
        };
        store.maxmemory_bytes = usize::MAX;
        let connection = Connection::open(store, String::from("replay"), 0);
        Replay { connection, settings, maxmemory_bytes, out: Vec::new(), commands: 0 }
    }

    /// Carries out a record's commands, as they were at `time_ms`.
    pub fn apply(&mut self, store: &mut Store, time_ms: u64, record: &[u8]) -> Result<(), ReplayError> {
        let before = (store.stats.commands, store.stats.errors);
        let mut rest = record;
        while !rest.is_empty() {
            self.out.clear();
            let served = self.connection.serve(store, time_ms, rest, &mut self.out);
            rest = rest.get(served.consumed..).filter(|_| served.consumed > 0).ok_or(ReplayError::Unreadable)?;
        }
        self.commands += store.stats.commands - before.0;
        if store.stats.errors > before.1 { Err(ReplayError::Refused) } else { Ok(()) }
    }

    /// The end: the store has its bounds back, and knows nothing of this.
    pub fn end(self, store: &mut Store) {
        self.connection.close(store);
        store.settings = self.settings;
        store.maxmemory_bytes = self.maxmemory_bytes;
        store.stats = Default::default();
        store.started_ms = None;
        store.next_client = 1;
    }
}
