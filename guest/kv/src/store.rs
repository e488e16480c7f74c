//! The keyspace: keys with their values, expiry and versions, and what `INFO` tells about them.
//!
//! Keys past their time are gone for every command at once; [`Store::expire_some`] also frees them. For that, every
//! piece of the keyspace (256 keys) has a lower bound on when the first of its keys is due, so a walk looks only into
//! pieces where something may be.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::Settings;
use crate::bytes::Bytes;
use crate::client::ClientInfo;
use crate::command::Names;
use crate::journal::Journal;
use crate::refusal::Refusal;
use crate::table::{Entry, Hash, Seed, Table};
use crate::value::{Kind, Value, free_table};

/// The time at which a key without expiry is due.
pub(crate) const NEVER: u64 = u64::MAX;

/// What a key leads to.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The key is gone after this.
    pub(crate) expires_ms: u64,
    pub(crate) value: Value,
}

/// A key that clients watch.
#[derive(Clone, Copy, Debug)]
struct WatchedKey {
    watchers: usize,
    /// Number of the last change while it was watched; no two changes have the same.
    changed: u64,
}

/// Counts since the start or the last `CONFIG RESETSTAT`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) connections: u64,
    pub(crate) commands: u64,
    pub(crate) input_bytes: u64,
    pub(crate) output_bytes: u64,
    pub(crate) expired_keys: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) errors: u64,
}

/// One database with everything that its connections share.
#[derive(Debug)]
pub struct Store {
    pub(crate) settings: Settings,
    pub(crate) maxmemory_bytes: usize,
    pub(crate) seed: Seed,
    pub(crate) names: Box<Names>,
    pub(crate) stats: Stats,
    pub(crate) clients: BTreeMap<u64, ClientInfo>,
    pub(crate) next_client: u64,
    pub(crate) kills: u64,
    /// Where changes are noted, if they are.
    pub(crate) journal: Option<Box<Journal>>,
    /// When the first connection was opened.
    pub(crate) started_ms: Option<u64>,
    keys: Table<Slot>,
    /// For each piece of `keys`: nothing in it is due before. May be short: no key of the rest has an expiry.
    due: Vec<u64>,
    /// Lower bound on all of `due`.
    next_due_ms: u64,
    /// Keys with an expiry.
    volatile: usize,
    /// Keys that anybody watches, whether they are there or not.
    watched: Table<WatchedKey>,
    changes: u64,
    random: u64,
}

impl Store {
    /// An empty store.
    pub fn new(mut settings: Settings) -> Self {
        // Arguments' places in a request are kept in 32 bits.
        settings.request_bytes = settings.request_bytes.min(u32::MAX as usize);
        Store {
            maxmemory_bytes: settings.maxmemory_bytes,
            seed: Seed::new(settings.seed),
            names: Box::new(Names::new()),
            stats: Stats::default(),
            clients: BTreeMap::new(),
            next_client: 1,
            kills: 0,
            journal: None,
            started_ms: None,
            keys: Table::default(),
            due: Vec::new(),
            next_due_ms: NEVER,
            volatile: 0,
            watched: Table::default(),
            changes: 0,
            random: settings.seed,
            settings,
        }
    }

    /// A number that is another one after every change.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn poll(&self) {
        (self.settings.poll)();
    }

    /// Whether so many bytes more fit into `maxmemory`.
    pub(crate) fn room_for(&self, more: usize) -> Result<(), Refusal> {
        let used = (self.settings.heap_used)();
        if used.saturating_add(more) > self.maxmemory_bytes { Err(Refusal::OutOfMemory) } else { Ok(()) }
    }

    /// The next of a row of numbers that the seed determines (SplitMix64), below `bound`.
    pub(crate) fn random_below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }

    /// Number of keys, with those that are past their time and not freed yet.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys with an expiry.
    pub(crate) fn volatile(&self) -> usize {
        self.volatile
    }

    /// A key's number, if it is there and not past its time.
    #[inline]
    pub(crate) fn find_hashed(&mut self, hash: Hash, key: &[u8], now_ms: u64) -> Option<usize> {
        let at = self.keys.find(hash, key)?;
        if self.keys.at(at).value.expires_ms < now_ms {
            self.stats.expired_keys += 1;
            self.delete_at(at);
            return None;
        }
        Some(at)
    }

    #[inline]
    pub(crate) fn find(&mut self, key: &[u8], now_ms: u64) -> Option<usize> {
        self.find_hashed(self.seed.hash(key), key, now_ms)
    }

    /// The key and slot with a number below [`Store::len`].
    pub(crate) fn at(&self, at: usize) -> (&Bytes, &Slot) {
        let entry = self.keys.at(at);
        (&entry.key, &entry.value)
    }

    #[inline]
    pub(crate) fn slot(&self, at: usize) -> &Slot {
        &self.keys.at(at).value
    }

    /// A key's value, to be read.
    #[inline]
    pub(crate) fn read<T: Kind>(&mut self, key: &[u8], now_ms: u64) -> Result<Option<&T>, Refusal> {
        let Some(at) = self.find(key, now_ms) else {
            self.stats.misses += 1;
            return Ok(None);
        };
        self.stats.hits += 1;
        T::of(&self.keys.at(at).value.value).map(Some).ok_or(Refusal::WrongType)
    }

    /// As [`Store::read`], where several values are looked at together: frees nothing and counts nothing.
    pub(crate) fn view<T: Kind>(&self, key: &[u8], now_ms: u64) -> Result<Option<&T>, Refusal> {
        match self.keys.get(self.seed.hash(key), key) {
            Some(slot) if slot.expires_ms >= now_ms => T::of(&slot.value).map(Some).ok_or(Refusal::WrongType),
            _ => Ok(None),
        }
    }

    /// A key's number and value, to be changed; whoever changes it, says [`Store::changed`].
    #[inline]
    pub(crate) fn open<T: Kind>(&mut self, key: &[u8], now_ms: u64) -> Result<Option<(usize, &mut T)>, Refusal> {
        let Some(at) = self.find(key, now_ms) else { return Ok(None) };
        T::of_mut(&mut self.keys.value_mut(at).value).map(|value| Some((at, value))).ok_or(Refusal::WrongType)
    }

    /// As [`Store::open`]; a key that is not there gets an empty value.
    #[inline]
    pub(crate) fn open_or_new<T: Kind>(&mut self, key: &[u8], now_ms: u64) -> Result<(usize, &mut T), Refusal> {
        let hash = self.seed.hash(key);
        let at = match self.find_hashed(hash, key, now_ms) {
            Some(at) => at,
            None => self.insert_new(hash, key, T::empty()),
        };
        T::of_mut(&mut self.keys.value_mut(at).value).map(|value| (at, value)).ok_or(Refusal::WrongType)
    }

    fn insert_new(&mut self, hash: Hash, key: &[u8], value: Value) -> usize {
        let at = self.keys.insert_new(hash, Bytes::from_slice(key), Slot { expires_ms: NEVER, value });
        self.note_change(at);
        at
    }

    /// Notes that a key's value is another now; a collection without elements goes.
    #[inline]
    pub(crate) fn changed(&mut self, at: usize) {
        self.note_change(at);
        if self.slot(at).value.is_void() {
            self.delete_at(at);
        }
    }

    /// Those who watch the key are to know.
    #[inline]
    fn note_change(&mut self, at: usize) {
        self.changes += 1;
        if !self.watched.is_empty() {
            let entry = self.keys.at(at);
            if let Some(watched) = self.watched.find(entry.hash(), &entry.key) {
                self.watched.value_mut(watched).changed = self.changes;
            }
        }
    }

    /// Watches a key; gives what [`Store::changed_since`] wants to know.
    pub(crate) fn watch(&mut self, hash: Hash, key: &[u8], now_ms: u64) -> u64 {
        // A key past its time goes now, not as a change under the watcher's eyes.
        self.find_hashed(hash, key, now_ms);
        match self.watched.find(hash, key) {
            Some(at) => self.watched.value_mut(at).watchers += 1,
            None => {
                self.watched.insert_new(hash, Bytes::from_slice(key), WatchedKey { watchers: 1, changed: 0 });
            }
        }
        self.changes
    }

    pub(crate) fn unwatch(&mut self, hash: Hash, key: &[u8]) {
        if let Some(at) = self.watched.find(hash, key) {
            let watched = self.watched.value_mut(at);
            watched.watchers -= 1;
            if watched.watchers == 0 {
                self.watched.remove_at(at);
            }
        }
    }

    /// Whether a watched key has changed since then, be it by passing its time.
    pub(crate) fn changed_since(&mut self, hash: Hash, key: &[u8], since: u64, now_ms: u64) -> bool {
        self.find_hashed(hash, key, now_ms);
        self.watched.get(hash, key).is_some_and(|watched| watched.changed > since)
    }

    /// Gives a key a value, whatever it had before; its expiry is lost.
    pub(crate) fn put(&mut self, key: &[u8], value: Value, now_ms: u64) -> usize {
        let hash = self.seed.hash(key);
        match self.find_hashed(hash, key, now_ms) {
            Some(at) => {
                self.replace(at, value);
                self.set_expiry(at, NEVER);
                at
            }
            None => self.insert_new(hash, key, value),
        }
    }

    /// Gives a key another value; its expiry stays.
    #[inline]
    pub(crate) fn replace(&mut self, at: usize, value: Value) {
        let poll = self.settings.poll;
        self.note_change(at);
        match core::mem::replace(&mut self.keys.value_mut(at).value, value) {
            Value::Str(_) => {}
            old => old.free(poll),
        }
    }

    #[inline]
    pub(crate) fn set_expiry(&mut self, at: usize, expires_ms: u64) {
        let slot = self.keys.value_mut(at);
        let old = core::mem::replace(&mut slot.expires_ms, expires_ms);
        if old == expires_ms {
            return;
        }
        self.volatile -= usize::from(old != NEVER);
        self.volatile += usize::from(expires_ms != NEVER);
        self.note_due(at, expires_ms);
    }

    fn note_due(&mut self, at: usize, expires_ms: u64) {
        if expires_ms == NEVER {
            return;
        }
        let piece = at / Table::<Slot>::PIECE;
        if self.due.len() <= piece {
            self.due.resize(piece + 1, NEVER);
        }
        self.due[piece] = self.due[piece].min(expires_ms);
        self.next_due_ms = self.next_due_ms.min(expires_ms);
    }

    /// Takes a key out; the last one gets its number.
    pub(crate) fn take_at(&mut self, at: usize) -> Option<(Bytes, Slot)> {
        self.note_change(at);
        let entry = self.keys.remove_at(at)?;
        self.volatile -= usize::from(entry.value.expires_ms != NEVER);
        if at < self.keys.len() {
            self.note_due(at, self.keys.at(at).value.expires_ms);
        }
        Some((entry.key, entry.value))
    }

    /// Takes a key out and frees its value.
    pub(crate) fn delete_at(&mut self, at: usize) {
        if let Some((_, slot)) = self.take_at(at) {
            slot.value.free(self.settings.poll);
        }
    }

    /// Takes a key out, if it is there.
    pub(crate) fn delete(&mut self, key: &[u8], now_ms: u64) -> bool {
        let found = self.find(key, now_ms);
        if let Some(at) = found {
            self.delete_at(at);
        }
        found.is_some()
    }

    /// Takes all keys out.
    pub(crate) fn clear(&mut self) {
        let poll = self.settings.poll;
        self.changes += 1;
        for at in 0..self.watched.len() {
            let watched = self.watched.at(at);
            if self.keys.find(watched.hash(), &watched.key).is_some() {
                self.watched.value_mut(at).changed = self.changes;
            }
        }
        for piece in core::mem::take(&mut self.keys).into_pieces() {
            for entry in piece {
                entry.value.value.free(poll);
            }
            poll();
        }
        self.due = Vec::new();
        self.next_due_ms = NEVER;
        self.volatile = 0;
    }

    /// Frees keys that are past their time, up to about a thousand. Gives the time at which there is more to do.
    pub fn expire_some(&mut self, now_ms: u64) -> Option<u64> {
        const MOST: usize = 1000;
        let mut freed = 0;
        if self.next_due_ms < now_ms {
            let mut next = NEVER;
            for piece in 0..self.due.len() {
                if self.due[piece] < now_ms && freed < MOST {
                    freed += self.expire_piece(piece, now_ms);
                    self.poll();
                }
                next = next.min(self.due[piece]);
            }
            self.next_due_ms = next;
        }
        // Keys go once their time has passed.
        (self.volatile > 0).then_some(self.next_due_ms.saturating_add(1))
    }

    fn expire_piece(&mut self, piece: usize, now_ms: u64) -> usize {
        let first = piece * Table::<Slot>::PIECE;
        let mut freed = 0;
        let mut next = NEVER;
        for at in (first..first + Table::<Slot>::PIECE).rev() {
            // The last key of all moves to where one goes, and may be past its time as well.
            while at < self.keys.len() && self.slot(at).expires_ms < now_ms {
                self.delete_at(at);
                self.stats.expired_keys += 1;
                freed += 1;
            }
            if at < self.keys.len() {
                next = next.min(self.slot(at).expires_ms);
            }
        }
        self.due[piece] = next;
        freed
    }

    /// Bytes that a key takes beside its text and value.
    pub(crate) fn slot_bytes(&self) -> usize {
        size_of::<Entry<Slot>>() + size_of::<u32>()
    }

    /// How many clients `CLIENT KILL` has named so far: when it changes, look at [`Connection::is_killed`](crate::Connection::is_killed).
    pub fn kills(&self) -> u64 {
        self.kills
    }

    /// Frees a table with pauses.
    pub(crate) fn free_table<V>(&self, table: Table<V>) {
        free_table(table, self.settings.poll);
    }
}
