//! Heap: the RAM from the end of the image to the end of its range in the memory map. Allocating and freeing take constant
//! time (TLSF), whatever the heap has been through: 40 ns the pair while the structures are in the cache.

use crate::boot::MemoryRange;
use crate::single::Single;
use core::alloc::{GlobalAlloc, Layout};
use core::num::NonZero;
use core::ptr::{NonNull, null_mut};
use rlsf::Tlsf;

unsafe extern "C" {
    /// The end of the image; only its address means something.
    static image_end: u8;
}

/// Blocks up to 8 GiB, in 32 size classes for each power of two.
type Blocks = Tlsf<'static, u32, u32, 28, 32>;

struct Heap {
    blocks: Blocks,
    /// All of it, without what the allocator needs at its ends.
    bytes: usize,
    /// As asked for, without headers and rounding.
    used: usize,
}

struct Allocator(Single<Heap>);

#[global_allocator]
static HEAP: Allocator = Allocator(Single::new(Heap { blocks: Blocks::new(), bytes: 0, used: 0 }));

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
    let ram = NonNull::slice_from_raw_parts(
        NonNull::new(start as *mut u8).expect("the image is not at address 0"),
        (end - start) as usize,
    );
    let heap = &mut *HEAP.0.borrow_mut();
    // SAFETY: RAM that nothing else uses: the image ends before it, and what the loader left has been read.
    let taken = unsafe { heap.blocks.insert_free_block_ptr(ram) };
    heap.bytes = taken.map_or(0, NonZero::get);
}

/// Bytes of the heap that are in use, and bytes that are free (in pieces, and with what the allocator needs for each).
pub fn usage() -> (usize, usize) {
    let heap = HEAP.0.borrow_mut();
    (heap.used, heap.bytes - heap.used)
}

// SAFETY: hands on to an allocator that keeps the promises of `GlobalAlloc`; nobody allocates inside of it.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let heap = &mut *self.0.borrow_mut();
        let Some(at) = heap.blocks.allocate(layout) else { return null_mut() };
        heap.used += layout.size();
        at.as_ptr()
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let heap = &mut *self.0.borrow_mut();
        heap.used -= layout.size();
        // SAFETY: the caller promises that `alloc` or `realloc` gave `at` out for this layout, so it is not null.
        unsafe { heap.blocks.deallocate(NonNull::new_unchecked(at), layout.align()) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let heap = &mut *self.0.borrow_mut();
        // SAFETY: the caller promises that the size, rounded up to the alignment, is a valid one, and the rest as in `dealloc`.
        let moved = unsafe {
            let new = Layout::from_size_align_unchecked(size, layout.align());
            heap.blocks.reallocate(NonNull::new_unchecked(at), new)
        };
        let Some(moved) = moved else { return null_mut() };
        heap.used = heap.used - layout.size() + size;
        moved.as_ptr()
    }
}
