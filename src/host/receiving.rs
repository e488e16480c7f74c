//! A backup that gets the state of a running guest: pieces of it go where they belong as they come.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::HostError;
use super::keeper::Keeper;
use super::outlets::Outlets;
use super::progress::Bar;
use crate::console::status::TransferStatus;
use crate::disk::DiskError;
use crate::disk::port::Piece;
use crate::log::boot::encode_boot;
use crate::log::file::{EncodedWriter, LogError};
use crate::log::frame::{self, FrameKind};
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
    kept: Option<Kept>,
}

/// The beginning of a log file: the state that it starts from.
struct Kept {
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
    frame: Vec<u8>,
}

impl Kept {
    fn create(path: &Path, boot: &Boot) -> Result<Self, HostError> {
        let source = |source| LogError::Create { path: path.to_owned(), source };
        let file =
            File::create(path).map_err(source).map_err(|source| HostError::Keep { path: path.into(), source })?;
        let mut kept = Kept { path: path.into(), file: BufWriter::new(file), written: 0, frame: Vec::new() };
        let bytes = encode_boot(boot)?;
        kept.put(FrameKind::Transfer, 0, &bytes).map_err(|source| HostError::Keep { path: path.into(), source })?;
        Ok(kept)
    }

    fn put(&mut self, kind: FrameKind, number: u64, payload: &[u8]) -> Result<(), LogError> {
        self.frame.clear();
        let offset = self.written;
        frame::encode(kind, number, 0, payload, &mut self.frame)
            .map_err(|source| LogError::Frame { offset, source })?;
        self.file.write_all(&self.frame).map_err(LogError::Write)?;
        self.written += self.frame.len() as u64;
        Ok(())
    }

    /// The log goes on with entry `next`.
    fn keeper(mut self, state: &[u8], next: u64, limit_bytes: u64) -> Result<Keeper, HostError> {
        let path = self.path.clone();
        let kept = self.put(FrameKind::State, next, state).and_then(|()| {
            let file = self.file.into_inner().map_err(|error| LogError::Write(error.into_error()))?;
            Keeper::continuing(&self.path, EncodedWriter::continuing(file, self.written, next), limit_bytes)
        });
        kept.map_err(|source| HostError::Keep { path, source })
    }
}

impl Receiving {
    /// Makes room for the state of the guest that came from `boot`. `keep`: the file that shall have a log from this state on.
    pub fn begin(boot: Boot, outlets: &Outlets, keep: Option<&Path>) -> Result<Self, HostError> {
        let blank = Blank::new(&boot, Tracking::On)?;
        if let Some(disk) = outlets.disk.as_ref().filter(|disk| disk.takes_a_copy()) {
            disk.begin_receiving()?;
        }
        let kept = keep.map(|path| Kept::create(path, &boot)).transpose()?;
        let pages = blank.pages().count();
        let status = TransferStatus { total_bytes: boot.memory_bytes, ..TransferStatus::default() };
        Ok(Receiving { blank, unpacker: Unpacker::default(), pages, status, bar: Bar::new("state of the guest"), kept })
    }

    /// Puts a chunk where it belongs.
    pub fn apply(&mut self, chunk: &[u8], outlets: &Outlets) -> Result<(), ReceivingError> {
        let Receiving { blank, unpacker, pages, status, kept, .. } = self;
        status.sent_bytes += chunk.len() as u64;
        if let Some(file) = kept
            && let Err(error) = file.put(FrameKind::Chunk, 0, chunk)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, file = %file.path.display(), "no log is kept");
            *kept = None;
        }
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
        limit_bytes: u64,
    ) -> Result<(Machine, Arc<Boot>, GuestState, Option<Keeper>), HostError> {
        self.bar.finish();
        let bytes = state;
        let state = GuestState::from_bytes(bytes)?;
        let next = state.position.entries();
        let keeper = self.kept.map(|kept| kept.keeper(bytes, next, limit_bytes)).transpose()?;
        let boot = self.blank.description().clone();
        let machine = self.blank.finish(&state.machine)?;
        if let Some(disk) = outlets.disk.as_ref().filter(|disk| disk.takes_a_copy()) {
            disk.copied(generation)?;
        }
        Ok((machine, boot, state, keeper))
    }

    /// How it gets on.
    pub fn status(&mut self) -> TransferStatus {
        self.bar.show(self.status.copied_bytes, self.status.total_bytes);
        self.status
    }
}
