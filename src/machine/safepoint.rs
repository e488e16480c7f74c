//! The safepoint page as the host sees it: the count that the guest increments, and the limit at which it
//! rings the doorbell. Shared by all threads of the host: reading the count and moving the limit cost
//! the guest nothing and need no signal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::instant::Instant;
use super::memory::Memory;
use lockstep_abi::safepoint::{COUNT, LIMIT};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend};

/// A limit that no count reaches.
pub const NO_LIMIT: u64 = u64::MAX;

/// Size of a page of guest memory, in bytes.
pub const PAGE: u64 = 4096;

/// Handle to a guest's safepoint page, which the guest names at run time.
#[derive(Clone)]
pub struct Safepoints {
    inner: Arc<Inner>,
}

struct Inner {
    memory: Memory,
    /// Guest-physical address of the page; 0: none.
    page: AtomicU64,
    /// Exits counted so far, for readers that want a whole instant.
    exits: AtomicU64,
    /// The guest is to stop at its very next safepoint, whatever anybody says about the limit.
    stop_at_next: Mutex<bool>,
}

impl Safepoints {
    /// A handle for a guest in `memory` that has not named its page yet.
    pub fn new(memory: Memory) -> Self {
        Safepoints {
            inner: Arc::new(Inner {
                memory,
                page: AtomicU64::new(0),
                exits: AtomicU64::new(0),
                stop_at_next: Mutex::new(false),
            }),
        }
    }

    /// Takes `address` for the guest's safepoint page. Refused (false) unless it is a whole page of guest memory, or 0.
    pub fn set_page(&self, address: u64) -> bool {
        let fits = address.is_multiple_of(PAGE)
            && address.checked_add(PAGE - 1).is_some_and(|last| self.inner.memory.address_in_range(GuestAddress(last)));
        if fits {
            let _fixed = self.fixed();
            self.inner.page.store(address, Ordering::SeqCst);
        }
        fits
    }

    /// The guest has no page any more. When this returns, nobody writes to the old one.
    pub(super) fn forget_page(&self) {
        let mut fixed = self.fixed();
        *fixed = false;
        self.inner.page.store(0, Ordering::SeqCst);
    }

    /// Held while a limit is written, and while the page changes: a limit must not reach a page that is the guest's again.
    fn fixed(&self) -> MutexGuard<'_, bool> {
        // A panic elsewhere leaves a flag, which is valid whatever it is.
        self.inner.stop_at_next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest whose state was brought here has passed so many safepoints.
    pub(super) fn set_count(&self, count: u64) {
        if let Some(word) = self.word(COUNT) {
            word.store(count, Ordering::SeqCst);
        }
    }

    /// Guest-physical address of the page, if the guest has named one.
    pub fn page(&self) -> Option<u64> {
        Some(self.inner.page.load(Ordering::SeqCst)).filter(|&page| page != 0)
    }

    fn word(&self, offset: u64) -> Option<&AtomicU64> {
        let address = GuestAddress(self.page()?).unchecked_add(offset);
        let host = self.inner.memory.get_host_address(address).ok()?;
        // SAFETY: `set_page` checked that the whole page lies in guest memory, which is mapped as long as
        // `inner.memory` lives and is page aligned, so the word is mapped and aligned. The guest and other
        // threads access it concurrently; all accesses of the host are atomic.
        Some(unsafe { AtomicU64::from_ptr(host.cast::<u64>()) })
    }

    /// Safepoints passed so far; 0 without a page.
    pub fn count(&self) -> u64 {
        self.word(COUNT).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// vCPU thread, before the guest runs: has it ring the doorbell at the first safepoint whose count is `limit` or more.
    pub fn set_limit(&self, limit: u64) {
        self.store_limit(limit, Some(false));
    }

    /// vCPU thread, before the guest runs: has it ring the doorbell at its next safepoint, and nobody can move that.
    pub fn stop_at_next(&self) {
        self.store_limit(0, Some(true));
    }

    /// Any thread, while the guest runs: the limit is `limit` now.
    pub fn move_limit(&self, limit: u64) {
        self.store_limit(limit, None);
    }

    fn store_limit(&self, limit: u64, stop_at_next: Option<bool>) {
        let mut fixed = self.fixed();
        let Some(word) = self.word(LIMIT) else { return };
        *fixed = stop_at_next.unwrap_or(*fixed);
        word.store(if *fixed { 0 } else { limit }, Ordering::SeqCst);
    }

    /// Has the guest ring the doorbell at its next safepoint.
    pub fn ring(&self) {
        let _fixed = self.fixed();
        if let Some(word) = self.word(LIMIT) {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// Exits counted so far.
    pub fn exits(&self) -> u64 {
        self.inner.exits.load(Ordering::SeqCst)
    }

    /// A recent instant that the guest has left behind, if it passes safepoints: every event at or before it has been delivered.
    /// (The guest may stand at its present count this very moment, and an event may be on its way to it there.)
    pub fn passed(&self) -> Option<Instant> {
        let exits = self.exits();
        let polls = self.count().checked_sub(1)?;
        (self.exits() == exits).then_some(Instant::new(exits, polls))
    }

    /// The vCPU thread counted an exit.
    pub(crate) fn set_exits(&self, exits: u64) {
        self.inner.exits.store(exits, Ordering::SeqCst);
    }
}
