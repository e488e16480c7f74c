//! The meeting point of the vCPU thread and the network. Received packets wait in a bounded queue, as in the ring of a card;
//! sent ones wait until the entry that stands for them is released.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::NetError;
use super::spec::Backend;
use crate::console::hub::Protection;
use crate::console::status::NetStatus;
use crate::doors::Network;
use crate::machine::packets::Packets;
use crate::replication::held::HeldOutputs;

/// Says that packets wait. False: the guest computes, and the port has to remind it after a while.
pub type Waker = Box<dyn Fn() -> bool + Send>;
/// Stops a computing guest for the packets that still wait.
pub type Reminder = Box<dyn Fn() + Send>;

struct State {
    received: VecDeque<Vec<u8>>,
    held: HeldOutputs<Packets>,
    live: bool,
    waker: Option<(Waker, Reminder)>,
    counters: NetStatus,
}

/// The meeting point.
pub struct Port {
    state: Mutex<State>,
    lease_until_ns: AtomicU64,
}

impl Port {
    /// Opens the other end of the cable. Nothing is received or sent before [`go_live`](Self::go_live).
    pub fn open(_backend: &Backend) -> Result<Arc<Self>, NetError> {
        let state = State {
            received: VecDeque::new(),
            held: HeldOutputs::default(),
            live: false,
            waker: None,
            counters: NetStatus::default(),
        };
        Ok(Arc::new(Port { state: Mutex::new(state), lease_until_ns: AtomicU64::new(u64::MAX) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to tell that packets wait for the guest.
    pub fn set_waker(&self, waker: Waker, reminder: Reminder) {
        self.state().waker = Some((waker, reminder));
    }

    /// Carries packets until the port is [closed](Self::not_live). To be run on the thread that calls `release`.
    pub async fn run(self: Arc<Self>) {
        std::future::pending().await
    }

    /// This host runs the machine now: announces its address and receives. What came before was not for it.
    pub fn go_live(&self, protection: Protection) {
        self.state().live = true;
        self.set_protection(protection);
    }

    /// Whether packets wait for a backup.
    pub fn set_protection(&self, protection: Protection) {
        match protection {
            Protection::HeldFrom(entry) => self.release(entry),
            Protection::Unprotected => self.release(u64::MAX),
        }
    }

    /// Packets of entries below `below` leave, now, on this thread; those that the other end does not take at once a little later.
    pub fn release(&self, below: u64) {
        self.state().held.release(below);
    }

    /// What is released may leave before `until_ns` on the clock of `boot_clock_ns`, and not later.
    pub fn set_lease(&self, until_ns: u64) {
        self.lease_until_ns.store(until_ns, SeqCst);
    }

    /// Packets of entries below this number have been handed to the other end or were dropped, as far as they were queued by now.
    pub fn left_below(&self) -> u64 {
        self.state().held.left_below()
    }

    /// Nothing leaves until the next release.
    pub fn hold(&self) {
        self.state().held.hold();
    }

    /// This host does not run the machine (any more). Nothing leaves, nothing comes in.
    pub fn not_live(&self) {
        let mut state = self.state();
        state.held.hold();
        state.live = false;
    }

    /// Outputs below `below` have left the live side as far as it is known; a backup need not repeat them.
    pub fn left(&self, _below: u64) {}

    /// The counts so far.
    pub fn counters(&self) -> NetStatus {
        self.state().counters
    }
}

impl Network for Port {
    fn take(&self, room: usize) -> Option<Packets> {
        let mut state = self.state();
        let mut packets = Packets::new();
        while packets.len() < room {
            match state.received.pop_front() {
                Some(packet) => packets.push(&packet),
                None => break,
            };
        }
        (!packets.is_empty()).then_some(packets)
    }

    fn sent(&self, entry: u64, packets: Packets) {
        self.state().held.push(entry, packets);
    }

    fn replayed_sent(&self, _: u64, _: &Packets) {}
}
