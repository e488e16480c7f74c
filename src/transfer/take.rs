//! A snapshot of a machine that runs: its pages are copied while it goes on, those that it writes meanwhile once more, and once more, and
//! when few are left it stands still for these and for the rest of its state.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::chunk::{PAGE, Packer, is_zero, page_numbers};
use super::state::GuestState;
use crate::backends::world::World;
use crate::console::hub::Hub;
use crate::machine::pages::Pages;
use crate::machine::vcpu::KvmError;

/// What a snapshot is taken of.
#[derive(Clone)]
pub struct Subject {
    /// The machine's world.
    pub world: Arc<World>,
    /// Its memory.
    pub pages: Pages,
    /// Its console.
    pub hub: Arc<Hub>,
}

/// Why there is no snapshot. The machine is unharmed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// KVM, or somebody else copies the memory.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Whoever wanted it does not any more.
    #[error("nobody takes the snapshot any more")]
    Unwanted,
    /// The guest has ended.
    #[error("the guest has ended")]
    Ended,
    /// Somebody else has asked for the state at the same time.
    #[error("the machine's state was asked for by somebody else at the same time")]
    Superseded,
}

/// The machine stops for this many pages, or fewer.
const FEW_PAGES: u32 = 256;
/// It stops after this often copying what it wrote meanwhile, however much is left.
const MOST_ROUNDS: u32 = 8;

/// The end of the copying, however it comes.
struct Copying<'a>(&'a Pages);

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.end_copy() {
            tracing::warn!(%error, "KVM goes on logging what the guest writes");
        }
    }
}

/// Takes a snapshot of `subject`. `send` gets chunks while the machine runs, and says whether they are still wanted. `finish` gets the last
/// ones and the state on the vCPU thread, while the machine stands still: it must not wait for anything.
pub fn take(
    subject: &Subject,
    compress: bool,
    mut send: impl FnMut(Vec<u8>) -> bool,
    finish: impl FnOnce(Vec<Vec<u8>>, GuestState) + Send + 'static,
) -> Result<(), SnapshotError> {
    let pages = &subject.pages;
    pages.begin_copy()?;
    let _copying = Copying(pages);
    let mut left = pages.take_written()?;
    for round in 0..MOST_ROUNDS {
        copy(pages, &left, round == 0, compress, &mut send)?;
        left = pages.take_written()?;
        if left.iter().map(|word| word.count_ones()).sum::<u32>() <= FEW_PAGES {
            break;
        }
    }
    let (say, said) = channel();
    let (pages, hub) = (pages.clone(), subject.hub.clone());
    subject.world.request_capture(Box::new(move |captured| {
        let result = pages.take_written().map(|written| {
            left.iter_mut().zip(written).for_each(|(word, new)| *word |= new);
            if let Some(page) = pages.safepoint_page() {
                left[page as usize / 64] |= 1 << (page % 64);
            }
            let mut chunks = Vec::new();
            // Not compressed: the guest waits.
            let kept = copy(&pages, &left, false, false, &mut |chunk| {
                chunks.push(chunk);
                true
            });
            debug_assert!(kept.is_ok());
            let state = GuestState {
                machine: *captured.state,
                position: captured.position,
                guest_clock_ns: captured.guest_clock_ns,
                console: hub.state(),
            };
            finish(chunks, state);
        });
        // Whoever has given up does not listen.
        let _ = say.send(result);
    }));
    loop {
        match said.recv_timeout(Duration::from_millis(50)) {
            Ok(result) => return Ok(result?),
            Err(RecvTimeoutError::Disconnected) => return Err(SnapshotError::Superseded),
            Err(RecvTimeoutError::Timeout) if subject.world.ended() => return Err(SnapshotError::Ended),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Copies the pages in `which`, one bit each. `first`: whoever gets them knows all pages to be zeros.
fn copy(
    pages: &Pages,
    which: &[u64],
    first: bool,
    compress: bool,
    send: &mut impl FnMut(Vec<u8>) -> bool,
) -> Result<(), SnapshotError> {
    let mut packer = Packer::default();
    let mut bytes = [0; PAGE];
    for page in page_numbers(which) {
        pages.read(page, &mut bytes);
        let zero = is_zero(&bytes);
        if !(zero && first) {
            packer.page(page, (!zero).then_some(&bytes));
        }
        if packer.is_full() && !send(packer.take(compress).0) {
            return Err(SnapshotError::Unwanted);
        }
    }
    if !packer.is_empty() && !send(packer.take(compress).0) {
        return Err(SnapshotError::Unwanted);
    }
    Ok(())
}
