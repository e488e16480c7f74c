//! The hash table under everything: keyspace, hashes, sets, members of sorted sets.
//!
//! ```text
//!   heads (linear hashing, one more bucket for each entry)      entries (dense, in pieces)
//!   ┌───┬───┬───┬───┬───┐                                       ┌───────┬───────┬───────┐
//!   │ 2 │ – │ 0 │ – │ 1 │ ── number of an entry ──────────────► │ 0     │ 1     │ 2     │
//!   └───┴───┴───┴───┴───┘                                       │ next ─┼──►    │       │
//!                                                               └───────┴───────┴───────┘
//! ```
//!
//! Entries stand densely: walking and drawing at random are cheap, and the order depends on nothing but the calls made.
//! Removing an entry moves the last one into its place. A scan that walks *downwards* from the end therefore meets every
//! entry that stays: only the last entry ever moves, and only down. What moves is either behind the scan already, or
//! still ahead of it.
//!
//! Linear hashing splits (or merges) one bucket for each insertion (or removal). The usual tables double in one go: a pause
//! of milliseconds and three times the index's memory for a moment, where the guest has neither to give.

use crate::bytes::Bytes;
use crate::chunked::Chunked;

/// No entry.
const NONE: u32 = u32::MAX;

/// Up to this many entries are searched one after the other, without buckets.
const LINEAR: usize = 8;

/// A key's hash under the store's seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hash(u32);

/// What makes hashes of keys: the seed keeps clients from choosing keys that collide.
#[derive(Clone, Debug)]
pub(crate) struct Seed(foldhash::quality::FixedState);

impl Seed {
    pub(crate) fn new(seed: u64) -> Self {
        Seed(foldhash::quality::FixedState::with_seed(seed))
    }

    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> Hash {
        use core::hash::{BuildHasher, Hasher};
        let mut hasher = self.0.build_hasher();
        hasher.write(key);
        Hash(hasher.finish() as u32)
    }
}

/// One key with its value.
#[derive(Debug)]
pub(crate) struct Entry<V> {
    hash: Hash,
    next: u32,
    pub(crate) key: Bytes,
    pub(crate) value: V,
}

impl<V> Entry<V> {
    #[inline]
    pub(crate) fn hash(&self) -> Hash {
        self.hash
    }
}

/// Keys and values; the module's text has the shape.
#[derive(Debug)]
pub(crate) struct Table<V> {
    entries: Chunked<Entry<V>, 8>,
    /// Empty, or as many as linear hashing has made.
    heads: Chunked<u32, 10>,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Table { entries: Chunked::default(), heads: Chunked::default() }
    }
}

impl<V> Table<V> {
    /// Entries in a piece of the dense array.
    pub(crate) const PIECE: usize = Chunked::<Entry<V>, 8>::PIECE;

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.len() == 0
    }

    #[inline]
    fn bucket(&self, hash: Hash) -> usize {
        let buckets = self.heads.len();
        let mask = buckets.next_power_of_two() - 1;
        let bucket = hash.0 as usize & mask;
        if bucket < buckets { bucket } else { bucket & (mask >> 1) }
    }

    /// The number of a key's entry.
    #[inline]
    pub(crate) fn find(&self, hash: Hash, key: &[u8]) -> Option<usize> {
        if self.heads.len() == 0 {
            return self.entries.iter().position(|entry| entry.hash == hash && entry.key.as_slice() == key);
        }
        let mut at = self.heads[self.bucket(hash)];
        while at != NONE {
            let entry = &self.entries[at as usize];
            if entry.hash == hash && entry.key.as_slice() == key {
                return Some(at as usize);
            }
            at = entry.next;
        }
        None
    }

    #[inline]
    pub(crate) fn get(&self, hash: Hash, key: &[u8]) -> Option<&V> {
        self.find(hash, key).map(|at| &self.entries[at].value)
    }

    /// The entry with a number below [`Table::len`].
    #[inline]
    pub(crate) fn at(&self, at: usize) -> &Entry<V> {
        &self.entries[at]
    }

    #[inline]
    pub(crate) fn value_mut(&mut self, at: usize) -> &mut V {
        &mut self.entries[at].value
    }

    /// Puts in a key that is known not to be there; gives its number.
    pub(crate) fn insert_new(&mut self, hash: Hash, key: Bytes, value: V) -> usize {
        let at = self.entries.len();
        self.entries.push(Entry { hash, next: NONE, key, value });
        if self.heads.len() > 0 {
            self.link(at);
            self.split();
        } else if at >= LINEAR {
            self.heads.push(NONE);
            for at in 0..=at {
                self.link(at);
                self.split();
            }
        }
        at
    }

    /// Puts in a key or changes its value; says whether it is new.
    pub(crate) fn set(&mut self, hash: Hash, key: &[u8], value: V) -> bool {
        match self.find(hash, key) {
            Some(at) => {
                self.entries[at].value = value;
                false
            }
            None => {
                self.insert_new(hash, Bytes::from_slice(key), value);
                true
            }
        }
    }

    /// Takes an entry out; the last one gets its number.
    pub(crate) fn remove_at(&mut self, at: usize) -> Option<Entry<V>> {
        let last = self.entries.len().checked_sub(1)?;
        if self.heads.len() > 0 {
            let next = self.entries[at].next;
            self.relink(at, next);
            if last != at {
                self.relink(last, at as u32);
            }
        }
        let entry = self.entries.swap_remove(at);
        // Four at a time, so that an empty table ends without buckets.
        for _ in 0..4 {
            if self.heads.len() > 4 * self.entries.len() {
                self.merge();
            }
        }
        entry
    }

    pub(crate) fn remove(&mut self, hash: Hash, key: &[u8]) -> Option<Entry<V>> {
        self.find(hash, key).and_then(|at| self.remove_at(at))
    }

    fn link(&mut self, at: usize) {
        let bucket = self.bucket(self.entries[at].hash);
        self.entries[at].next = self.heads[bucket];
        self.heads[bucket] = at as u32;
    }

    /// Lets whatever leads to entry `at` lead to `to`.
    fn relink(&mut self, at: usize, to: u32) {
        let bucket = self.bucket(self.entries[at].hash);
        if self.heads[bucket] == at as u32 {
            self.heads[bucket] = to;
            return;
        }
        let mut before = self.heads[bucket] as usize;
        // Every entry is in its bucket, so the chain does not end before it.
        while self.entries[before].next != at as u32 {
            before = self.entries[before].next as usize;
        }
        self.entries[before].next = to;
    }

    /// One bucket more: the entries that belong to it come out of the one it is split from.
    fn split(&mut self) {
        let new = self.heads.len();
        if new >= self.entries.len() {
            return;
        }
        let old = new & !(1 << new.ilog2());
        let mask = (2 << new.ilog2()) - 1;
        self.heads.push(NONE);
        let mut at = core::mem::replace(&mut self.heads[old], NONE);
        while at != NONE {
            let entry = &mut self.entries[at as usize];
            let to = if entry.hash.0 as usize & mask == new { new } else { old };
            let next = core::mem::replace(&mut entry.next, self.heads[to]);
            self.heads[to] = at;
            at = next;
        }
    }

    /// One bucket less.
    fn merge(&mut self) {
        let Some(mut at) = self.heads.pop() else { return };
        if self.heads.len() == 0 {
            return;
        }
        let old = self.heads.len() & !(1 << self.heads.len().ilog2());
        while at != NONE {
            let next = core::mem::replace(&mut self.entries[at as usize].next, self.heads[old]);
            self.heads[old] = at;
            at = next;
        }
    }

    /// All entries, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry<V>> {
        self.entries.iter()
    }

    /// The entries of one piece.
    pub(crate) fn piece(&self, piece: usize) -> &[Entry<V>] {
        self.entries.piece(piece).unwrap_or_default()
    }

    /// The entries by pieces, to free a large table with pauses.
    pub(crate) fn into_pieces(self) -> impl Iterator<Item = alloc::vec::Vec<Entry<V>>> {
        self.entries.into_pieces()
    }

    /// Another of the same, made with pauses; entries keep their numbers.
    pub(crate) fn copy(&self, poll: fn()) -> Table<V>
    where
        V: Clone,
    {
        let mut copy = Table::default();
        for (number, entry) in self.iter().enumerate() {
            copy.insert_new(entry.hash, entry.key.clone(), entry.value.clone());
            if number % 64 == 0 {
                poll();
            }
        }
        copy
    }

    /// Bytes of heap, without those of keys and values.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.entries.heap_bytes() + self.heads.heap_bytes()
    }
}
