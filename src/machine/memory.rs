//! Guest memory: one slot from guest-physical 0.

use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Guest memory. Its bitmap knows which pages the *host* has written, devices above all: KVM's dirty log knows only of the guest.
pub type Memory = GuestMemoryMmap<AtomicBitmap>;

/// Guest memory is a whole number of these, in bytes.
pub const GRANULE: u64 = 2 << 20;
/// The most memory a guest can have: what lies below the paravirtual page.
pub const MAX: u64 = 3 << 30;
/// The least.
pub const MIN: u64 = 8 << 20;

/// A size of guest memory that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Out of range or not whole.
    #[error("guest memory (--memory) must be 8 MiB to 3072 MiB and a multiple of 2 MiB, not {} MiB", .0 >> 20)]
    Size(u64),
    /// The host would not map it.
    #[error("cannot map {size} bytes for the guest's memory")]
    Map {
        /// What was asked for.
        size: u64,
        /// Why not.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
}

/// Maps zeroed guest memory of `size` bytes.
pub fn map(size: u64) -> Result<Memory, MemoryError> {
    if !(MIN..=MAX).contains(&size) || !size.is_multiple_of(GRANULE) {
        return Err(MemoryError::Size(size));
    }
    Memory::from_ranges(&[(GuestAddress(0), size as usize)]).map_err(|source| MemoryError::Map { size, source })
}

/// The bytes of page number `page` as they are now, if it lies in memory. Only while the guest does not run.
pub fn page(memory: &Memory, page: usize) -> Option<&[u8]> {
    let address = GuestAddress((page as u64) << 12);
    memory.check_range(address, 4096).then(|| {
        let host = memory.get_host_address(address).expect("checked just now");
        // SAFETY: the 4096 bytes at `host` lie in guest memory, which is mapped as long as `memory` lives. Callers
        // hold the only vCPU stopped, so nobody writes meanwhile but the `limit` of the safepoint page, which is never read here.
        unsafe { std::slice::from_raw_parts(host, 4096) }
    })
}

/// The pages that the host has written since the last call, one bit each.
pub fn take_written(memory: &Memory) -> Vec<u64> {
    memory.iter().next().map_or_else(Vec::new, |region| (**region).bitmap().get_and_reset())
}

/// Makes all of memory zero again, and gives it back to the host; all pages count as written. Only while the guest does not run.
pub fn clear(memory: &Memory) -> Result<(), nix::Error> {
    for region in memory.iter() {
        let (start, length) = (region.as_ptr(), region.len() as usize);
        let start = NonNull::new(start.cast()).ok_or(nix::Error::EFAULT)?;
        // SAFETY: the range is this region's own private anonymous mapping, all of it; what stood there is not wanted any more, and nobody holds a
        // reference into guest memory.
        unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }?;
        (**region).bitmap().set_addr_range(0, length);
    }
    Ok(())
}
