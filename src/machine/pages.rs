//! The pages of a guest's memory as others than the vCPU thread see them: which of them were written, and what is in them.
//!
//! Who writes a page is either the guest, of which KVM's dirty log tells, or the host (devices above all), of which the bitmap of
//! `vm-memory` tells. Both forget what they have told. So there is one collector, behind a lock, that asks both and feeds two
//! accumulators: that of the digests, and that of whoever copies the memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::memory::{self, Memory};
use super::safepoint::{PAGE, Safepoints};
use super::vcpu::{KvmError, Vm};

/// Handle to a guest's pages. All threads may use it while the guest runs.
#[derive(Clone)]
pub struct Pages {
    inner: Arc<Inner>,
}

struct Inner {
    memory: Memory,
    vm: Arc<Vm>,
    safepoints: Safepoints,
    count: usize,
    collector: Mutex<Collector>,
}

/// One bit for each page.
type Bitmap = Vec<u64>;

struct Collector {
    /// KVM logs which pages the guest writes.
    logging: bool,
    /// Pages written since the last digest, for a machine that takes digests.
    digest: Option<Bitmap>,
    /// Pages written since the copier asked last, while somebody copies.
    copier: Option<Bitmap>,
}

impl Pages {
    /// The pages of `memory`, which is that of `vm`. With `digests`, KVM logs already what the guest writes, and it is remembered for them.
    pub(super) fn new(memory: Memory, vm: Arc<Vm>, safepoints: Safepoints, digests: bool) -> Self {
        let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        let count = (bytes / PAGE) as usize;
        let digest = digests.then(|| vec![0; count.div_ceil(64)]);
        let collector = Mutex::new(Collector { logging: digests, digest, copier: None });
        Pages { inner: Arc::new(Inner { memory, vm, safepoints, count, collector }) }
    }

    /// How many pages there are.
    pub fn count(&self) -> usize {
        self.inner.count
    }

    /// Number of the guest's safepoint page, if it has named one. The host writes its limit there without telling anybody, so
    /// a copier takes this page along with the machine's state, whether it is said to be written or not.
    pub fn safepoint_page(&self) -> Option<u32> {
        self.inner.safepoints.page().map(|address| (address / PAGE) as u32)
    }

    /// From now on, what is written is remembered for the copier. The first [`take_written`](Self::take_written) names all pages. There is one
    /// copier at a time: [`KvmError::Copied`] until the one before has said [`end_copy`](Self::end_copy).
    pub fn begin_copy(&self) -> Result<(), KvmError> {
        let mut collector = self.collector();
        if collector.copier.is_some() {
            return Err(KvmError::Copied);
        }
        if !collector.logging {
            self.inner.vm.log_written_pages(true)?;
            collector.logging = true;
        }
        let mut all = vec![u64::MAX; self.inner.count.div_ceil(64)];
        if !self.inner.count.is_multiple_of(64) {
            *all.last_mut().expect("memory is never nothing") = (1 << (self.inner.count % 64)) - 1;
        }
        collector.copier = Some(all);
        Ok(())
    }

    /// The pages written since the last call, one bit each; may name more than were written. None outside of a copy.
    ///
    /// A page that is written while this runs is named now or at the next call, and in the first case its new contents
    /// may be read only afterwards: nothing is lost either way.
    pub fn take_written(&self) -> Result<Vec<u64>, KvmError> {
        let mut collector = self.collector();
        self.inner.collect(&mut collector)?;
        let none = vec![0; self.inner.count.div_ceil(64)];
        Ok(match &mut collector.copier {
            Some(copier) => std::mem::replace(copier, none),
            None => none,
        })
    }

    /// The copier is done, or gives up. Without digests, the guest's writes are its own affair again.
    pub fn end_copy(&self) -> Result<(), KvmError> {
        let mut collector = self.collector();
        collector.copier = None;
        if collector.logging && collector.digest.is_none() {
            self.inner.vm.log_written_pages(false)?;
            collector.logging = false;
        }
        Ok(())
    }

    /// Copies page number `page` into `bytes`. While the guest runs this may be a mixture of before and after a write; the page
    /// is then named by the next [`take_written`](Self::take_written).
    ///
    /// # Panics
    /// If there is no such page.
    pub fn read(&self, page: u32, bytes: &mut [u8; PAGE as usize]) {
        let address = GuestAddress(u64::from(page) * PAGE);
        self.inner.memory.read_slice(bytes, address).expect("the page lies in the guest's memory");
    }

    /// vCPU thread: the pages written since the last digest.
    pub(super) fn take_for_digest(&self) -> Result<Vec<u64>, KvmError> {
        let mut collector = self.collector();
        self.inner.collect(&mut collector)?;
        let none = vec![0; self.inner.count.div_ceil(64)];
        Ok(collector.digest.as_mut().map_or_else(Vec::new, |digest| std::mem::replace(digest, none)))
    }

    /// The pages at these addresses count as written: what they are to digests has changed.
    pub(super) fn mark(&self, addresses: [u64; 2]) {
        let mut collector = self.collector();
        let Collector { digest, copier, .. } = &mut *collector;
        for accumulator in [digest, copier].into_iter().flatten() {
            for address in addresses {
                let page = (address / PAGE) as usize;
                if let Some(word) = accumulator.get_mut(page / 64) {
                    *word |= 1 << (page % 64);
                }
            }
        }
    }

    fn collector(&self) -> MutexGuard<'_, Collector> {
        // A panic elsewhere leaves bitmaps that name too many pages at worst.
        self.inner.collector.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Asks both sources, and tells both accumulators.
    fn collect(&self, collector: &mut Collector) -> Result<(), KvmError> {
        let mut written =
            if collector.logging { self.vm.take_written_pages()? } else { vec![0; self.count.div_ceil(64)] };
        written.iter_mut().zip(memory::take_written(&self.memory)).for_each(|(word, host)| *word |= host);
        for accumulator in [&mut collector.digest, &mut collector.copier].into_iter().flatten() {
            accumulator.iter_mut().zip(&written).for_each(|(word, new)| *word |= new);
        }
        Ok(())
    }
}
