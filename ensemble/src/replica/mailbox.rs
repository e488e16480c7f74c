//! What the state machine has for a connection: put in while an entry is applied, taken out by the connection's task.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::tree::acl::{self, Id};
use crate::tree::batch::Applied;
use crate::watch::{EventKind, Watcher};

/// Something for a connection, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The oldest proposal of this connection that has not been answered was carried out.
    Applied {
        /// The zxid at which it was.
        zxid: i64,
        /// What came of it.
        applied: Applied,
    },
    /// Something happened to a node that it watches.
    Event(EventKind, Arc<str>),
    /// The connection is to be closed, when what came before has been said.
    Close(CloseReason),
}

/// Why this member closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Its session is over.
    SessionOver,
    /// Its session goes on over another connection.
    SessionMoved,
    /// This member has lost the majority, or what the connection's requests led to.
    NotServing,
    /// The client does not take what is said to it.
    TooSlow,
}

/// Items that may wait for a connection. Its requests are fewer; what it watches may change as often as it likes.
const MAX_ITEMS: usize = 100_000;

/// A connection's mailbox.
#[derive(Debug)]
pub struct Mailbox {
    watcher: Watcher,
    items: Mutex<Vec<Item>>,
    wake: Notify,
    /// Something was heard of the client since the last look.
    heard: AtomicBool,
    ids: Mutex<(Vec<Id>, Arc<[u8]>)>,
}

impl Mailbox {
    /// That of the connection `watcher`, whose client has shown to be `ids`.
    pub fn new(watcher: Watcher, ids: Vec<Id>) -> Arc<Self> {
        let encoded = acl::encode(&ids).into();
        Arc::new(Mailbox {
            watcher,
            items: Mutex::default(),
            wake: Notify::new(),
            heard: AtomicBool::new(true),
            ids: Mutex::new((ids, encoded)),
        })
    }

    /// The connection.
    pub fn watcher(&self) -> Watcher {
        self.watcher
    }

    /// Puts something in. The connection looks when it is [woken](Self::wake).
    pub fn put(&self, item: Item) {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if items.len() < MAX_ITEMS {
            items.push(item);
        } else if items.len() == MAX_ITEMS {
            items.push(Item::Close(CloseReason::TooSlow));
        }
    }

    /// Has the connection look.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Puts something in, and has the connection look.
    pub fn send(&self, item: Item) {
        self.put(item);
        self.wake();
    }

    /// Takes everything out.
    pub fn take(&self) -> Vec<Item> {
        std::mem::take(&mut *self.items.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there may be something. Cancelling the wait loses nothing.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The client has been heard.
    pub fn note_heard(&self) {
        self.heard.store(true, Relaxed);
    }

    /// Whether the client has been heard since this was asked last.
    pub fn was_heard(&self) -> bool {
        self.heard.swap(false, Relaxed)
    }

    /// The client has shown to be somebody else as well.
    pub fn add_id(&self, id: Id) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.0.contains(&id) {
            ids.0.push(id);
            ids.1 = acl::encode(&ids.0).into();
        }
    }

    /// Who the client has shown to be.
    pub fn ids(&self) -> Vec<Id> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The same, as changes carry it.
    pub fn encoded_ids(&self) -> Arc<[u8]> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}
