//! A backup that gets the state of a running guest: pieces of it go where they belong as they come.

use std::sync::Arc;

use super::HostError;
use super::outlets::Outlets;
use super::progress::Bar;
use crate::console::status::TransferStatus;
use crate::disk::DiskError;
use crate::disk::port::Piece;
use crate::machine::snapshot::Boot;
use crate::machine::{Blank, Machine, Tracking};
use crate::transfer::chunk::{ChunkError, Part, Unpacker};
use crate::transfer::state::GuestState;

/// Why a piece of state is none.
#[derive(Debug, thiserror::Error)]
pub enum ReceivingError {
    /// It cannot be unpacked.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// A page that the guest does not have.
    #[error("page {page:#x} of a guest that has {pages:#x} of them")]
    Page {
        /// Its number.
        page: u32,
        /// How many there are.
        pages: usize,
    },
    /// A piece of a disk for a guest without one.
    #[error("a piece of a disk, and there is none here")]
    NoDisk,
    /// The image takes no more.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The state, as far as it has come.
pub(super) struct Receiving {
    blank: Blank,
    unpacker: Unpacker,
    pages: usize,
    status: TransferStatus,
    bar: Bar,
}

impl Receiving {
    /// Makes room for the state of the guest that came from `boot`.
    pub fn begin(boot: Boot, outlets: &Outlets) -> Result<Self, HostError> {
        let blank = Blank::new(&boot, Tracking::On)?;
        if let Some(disk) = outlets.disk.as_ref().filter(|disk| disk.takes_a_copy()) {
            disk.begin_receiving()?;
        }
        let pages = blank.pages().count();
        let status = TransferStatus { total_bytes: boot.memory_bytes, ..TransferStatus::default() };
        Ok(Receiving { blank, unpacker: Unpacker::default(), pages, status, bar: Bar::new("state of the guest") })
    }

    /// Puts a chunk where it belongs.
    pub fn apply(&mut self, chunk: &[u8], outlets: &Outlets) -> Result<(), ReceivingError> {
        let Receiving { blank, unpacker, pages, status, .. } = self;
        status.sent_bytes += chunk.len() as u64;
        unpacker.unpack(chunk, |part| match part {
            Part::Page { number, bytes } => {
                if number as usize >= *pages {
                    return Err(ReceivingError::Page { page: number, pages: *pages });
                }
                blank.put_page(number, bytes);
                status.copied_bytes += crate::transfer::chunk::PAGE as u64;
                Ok(())
            }
            Part::Piece { at, length, bytes } => {
                let disk = outlets.disk.as_ref().ok_or(ReceivingError::NoDisk)?;
                status.copied_bytes += u64::from(length);
                Ok(disk.receive(&Piece { at, length, bytes: bytes.unwrap_or_default().to_vec() })?)
            }
        })
    }

    /// The rest of the state, and with it the machine.
    pub fn finish(
        self,
        state: &[u8],
        generation: u64,
        outlets: &Outlets,
    ) -> Result<(Machine, Arc<Boot>, GuestState), HostError> {
        self.bar.finish();
        let state = GuestState::from_bytes(state)?;
        let boot = self.blank.description().clone();
        let machine = self.blank.finish(&state.machine)?;
        if let Some(disk) = outlets.disk.as_ref().filter(|disk| disk.takes_a_copy()) {
            disk.copied(generation)?;
        }
        Ok((machine, boot, state))
    }

    /// How it gets on.
    pub fn status(&mut self) -> TransferStatus {
        self.bar.show(self.status.copied_bytes, self.status.total_bytes);
        self.status
    }
}
