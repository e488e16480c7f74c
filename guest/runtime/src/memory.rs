//! Heap: the RAM from the end of the image to the end of its range in the memory map.

use crate::boot::MemoryRange;
use crate::single::Single;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};
use linked_list_allocator::Heap;

unsafe extern "C" {
    /// The end of the image; only its address means something.
    static image_end: u8;
}

struct Allocator(Single<Heap>);

#[global_allocator]
static HEAP: Allocator = Allocator(Single::new(Heap::empty()));

/// The most RAM that is used: what the nucleus maps, below the device pages.
const TOP: u64 = lockstep_abi::pv::BASE;

pub(crate) fn init(ranges: &[MemoryRange]) {
    let start = &raw const image_end as u64;
    let end = ranges
        .iter()
        .filter(|range| range.kind == 1 && range.start <= start && range.start.saturating_add(range.bytes) > start)
        .map(|range| range.start.saturating_add(range.bytes).min(TOP))
        .next()
        .expect("no RAM behind the image");
    // SAFETY: RAM that nothing else uses: the image ends before it, and what the loader left has been read.
    unsafe { HEAP.0.borrow_mut().init(start as *mut u8, (end - start) as usize) };
}

/// Bytes of the heap that are in use, and bytes that are free.
pub fn usage() -> (usize, usize) {
    let heap = HEAP.0.borrow_mut();
    (heap.used(), heap.free())
}

// SAFETY: hands on to an allocator that keeps the promises of `GlobalAlloc`; nobody allocates inside of it.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.borrow_mut().allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller promises that `alloc` gave `at` out, so it is not null.
        unsafe { self.0.borrow_mut().deallocate(NonNull::new_unchecked(at), layout) }
    }
}
