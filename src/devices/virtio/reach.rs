//! Guest memory as a device reaches it. `vm-memory` looks for regions and can go on from one to the next, which at a dozen accesses
//! a packet costs as much as all else that a card does; this machine's memory is one region from 0, so a bounds check is
//! enough. Writing still marks pages in the memory's bitmap: that is done by the slices.

use std::iter::FusedIterator;

use vm_memory::bitmap::{AtomicBitmap, BS};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryResult,
    GuestRegionMmap, MemoryRegionAddress, Permissions, VolatileSlice,
};

use crate::machine::memory::Memory;

type Slice<'a> = VolatileSlice<'a, BS<'a, AtomicBitmap>>;

/// Guest memory. Copies of it are cheap.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    region: &'a GuestRegionMmap<AtomicBitmap>,
}

impl<'a> Reach<'a> {
    /// All of `memory`.
    pub fn new(memory: &'a Memory) -> Self {
        let region = memory.iter().next().expect("memory is never nothing");
        debug_assert_eq!((memory.num_regions(), region.start_addr()), (1, GuestAddress(0)));
        Reach { region }
    }

    /// `length` bytes at `address`, if they are all there.
    pub fn slice(&self, address: GuestAddress, length: usize) -> GuestMemoryResult<Slice<'a>> {
        self.region.get_slice(MemoryRegionAddress(address.0), length)
    }
}

impl GuestMemory for Reach<'_> {
    type PhysicalMemory = Memory;
    type Bitmap = AtomicBitmap;

    fn check_range(&self, address: GuestAddress, length: usize, _access: Permissions) -> bool {
        self.slice(address, length).is_ok()
    }

    fn get_slices<'b>(
        &'b self,
        address: GuestAddress,
        length: usize,
        _access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'b, BS<'b, AtomicBitmap>>> {
        Ok(One((length > 0).then(|| self.slice(address, length))))
    }
}

/// One slice, or why there is none.
struct One<'a>(Option<GuestMemoryResult<Slice<'a>>>);

impl<'a> Iterator for One<'a> {
    type Item = GuestMemoryResult<Slice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take()
    }
}

impl FusedIterator for One<'_> {}

impl<'a> GuestMemorySliceIterator<'a, BS<'a, AtomicBitmap>> for One<'a> {
    fn stop_on_error(self) -> Result<impl Iterator<Item = Slice<'a>>, GuestMemoryError> {
        Ok(self.0.transpose()?.into_iter())
    }
}
