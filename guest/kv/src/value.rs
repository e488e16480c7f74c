//! What a key can hold.

use alloc::boxed::Box;

use crate::bytes::{self, Bytes};
use crate::list::List;
use crate::table::Table;
use crate::zset::ZSet;

/// A hash: fields and values.
pub(crate) type Fields = Table<Bytes>;

/// A set: members.
pub(crate) type Members = Table<()>;

/// A key's value. Collections are boxed, so that a slot of the keyspace is no larger than a string needs.
#[derive(Debug)]
pub(crate) enum Value {
    Str(Bytes),
    List(Box<List>),
    Hash(Box<Fields>),
    Set(Box<Members>),
    ZSet(Box<ZSet>),
}

/// One of the kinds of value.
pub(crate) trait Kind: Sized {
    fn of(value: &Value) -> Option<&Self>;
    fn of_mut(value: &mut Value) -> Option<&mut Self>;
    fn empty() -> Value;
}

macro_rules! kind {
    ($type:ty, $variant:ident, $empty:expr) => {
        impl Kind for $type {
            #[inline]
            fn of(value: &Value) -> Option<&Self> {
                if let Value::$variant(inner) = value { Some(inner) } else { None }
            }
            #[inline]
            fn of_mut(value: &mut Value) -> Option<&mut Self> {
                if let Value::$variant(inner) = value { Some(inner) } else { None }
            }
            fn empty() -> Value {
                Value::$variant($empty)
            }
        }
    };
}

kind!(Bytes, Str, Bytes::new());
kind!(List, List, Box::default());
kind!(Fields, Hash, Box::default());
kind!(Members, Set, Box::default());
kind!(ZSet, ZSet, Box::default());

impl Value {
    /// `TYPE`'s answer.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Value::Str(_) => "string",
            Value::List(_) => "list",
            Value::Hash(_) => "hash",
            Value::Set(_) => "set",
            Value::ZSet(_) => "zset",
        }
    }

    /// `OBJECT ENCODING`'s answer: the name of what Redis has in the place of ours.
    pub(crate) fn encoding(&self) -> &'static str {
        match self {
            Value::Str(text) if bytes::parse_i64(text).is_some() => "int",
            Value::Str(text) if text.len() <= 44 => "embstr",
            Value::Str(_) => "raw",
            Value::List(_) => "quicklist",
            Value::Hash(_) | Value::Set(_) => "hashtable",
            Value::ZSet(_) => "skiplist",
        }
    }

    /// Whether it is a collection without elements, which no key may hold.
    pub(crate) fn is_void(&self) -> bool {
        match self {
            Value::Str(_) => false,
            Value::List(list) => list.len() == 0,
            Value::Hash(fields) => fields.is_empty(),
            Value::Set(members) => members.is_empty(),
            Value::ZSet(zset) => zset.len() == 0,
        }
    }

    /// Bytes of heap.
    pub(crate) fn heap_bytes(&self, poll: fn()) -> usize {
        match self {
            Value::Str(text) => bytes::heap_bytes(text),
            Value::List(list) => size_of::<List>() + list.heap_bytes(poll),
            Value::Hash(fields) => {
                let strings = |entry: &crate::table::Entry<Bytes>| {
                    bytes::heap_bytes(&entry.key) + bytes::heap_bytes(&entry.value)
                };
                size_of::<Fields>() + table_bytes(fields, strings, poll)
            }
            Value::Set(members) => {
                size_of::<Members>() + table_bytes(members, |entry| bytes::heap_bytes(&entry.key), poll)
            }
            Value::ZSet(zset) => size_of::<ZSet>() + zset.heap_bytes(poll),
        }
    }

    /// Another of the same, made with pauses.
    pub(crate) fn copy(&self, poll: fn()) -> Value {
        match self {
            Value::Str(text) => Value::Str(text.clone()),
            Value::List(list) => Value::List(Box::new(list.copy(poll))),
            Value::Hash(fields) => Value::Hash(Box::new(fields.copy(poll))),
            Value::Set(members) => Value::Set(Box::new(members.copy(poll))),
            Value::ZSet(zset) => Value::ZSet(Box::new(zset.copy(poll))),
        }
    }

    /// Frees it with pauses, for it may be large.
    pub(crate) fn free(self, poll: fn()) {
        match self {
            Value::Str(_) => {}
            Value::List(list) => list.free(poll),
            Value::Hash(fields) => free_table(*fields, poll),
            Value::Set(members) => free_table(*members, poll),
            Value::ZSet(zset) => zset.free(poll),
        }
    }
}

/// Bytes of heap of a table and of what `strings` finds in each entry.
pub(crate) fn table_bytes<V>(
    table: &Table<V>,
    strings: impl Fn(&crate::table::Entry<V>) -> usize,
    poll: fn(),
) -> usize {
    let mut bytes = table.heap_bytes();
    for piece in 0..table.len().div_ceil(Table::<V>::PIECE) {
        poll();
        bytes += table.piece(piece).iter().map(&strings).sum::<usize>();
    }
    bytes
}

/// Frees a table a piece at a time.
pub(crate) fn free_table<V>(table: Table<V>, poll: fn()) {
    for piece in table.into_pieces() {
        drop(piece);
        poll();
    }
}
