//! The contents of a separate image on their way to a new backup's: at the one end noted, read and frozen, at the other put into place.

use super::{DiskPort, Piece};
use crate::disk::DiskError;
use crate::disk::copy::{BLOCK, ToCopy};
use crate::disk::image::Buffer;
use crate::disk::spec::Mode;
use crate::disk::stamp::{ImageRole, hex};
use crate::machine::blocks::{Ask, MAX_REQUEST, SECTOR};

/// The most bytes that are cleared by one request of a copy.
const CLEAR_AT_ONCE: u64 = 1 << 30;

impl DiskPort {
    /// Separate images: begins to note what changes, for a copy. The pieces that a new backup needs come from
    /// [`next_piece`](Self::next_piece).
    pub fn begin_copy(&self) {
        if self.mode == Mode::Shared {
            return;
        }
        let image = &self.shared.image;
        // First the notes, then the look at what there is: nothing falls between the two.
        self.shared.state().copying = Some(ToCopy::none_of(image.size()));
        let mut from = 0;
        while from < image.size() {
            let data = image.data_from(from).unwrap_or(Some((from, image.size())));
            let Some((begin, end)) = data else { break };
            if let Some(copying) = &mut self.shared.state().copying {
                copying.add(begin, end.saturating_sub(begin));
            }
            from = end.max(from + 1);
        }
    }

    /// The next piece of the image (at most 256 KiB) that the new backup does not have; `None`: it has all, for now. Reads on the caller's thread.
    pub fn next_piece(&self) -> Result<Option<Piece>, DiskError> {
        let next = self.shared.state().copying.as_mut().and_then(ToCopy::take);
        let Some((at, length)) = next else { return Ok(None) };
        let read = self.shared.image.read(at, length as usize, &mut Buffer::default());
        let mut bytes = match read {
            Ok(bytes) => bytes,
            Err(trouble) => {
                self.still_to_copy(at, length);
                return Err(self.failed(trouble));
            }
        };
        let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        // As long as it is of one kind; the rest is for the next call.
        let zero = is_zero(&bytes[..bytes.len().min(BLOCK as usize)]);
        let same =
            bytes.chunks(BLOCK as usize).take_while(|block| is_zero(block) == zero).map(<[u8]>::len).sum::<usize>();
        self.still_to_copy(at + same as u64, length - same as u64);
        bytes.truncate(if zero { 0 } else { same });
        Ok(Some(Piece { at, length: same as u32, bytes }))
    }

    fn still_to_copy(&self, at: u64, length: u64) {
        if length > 0
            && let Some(copying) = &mut self.shared.state().copying
        {
            copying.add(at, length);
        }
    }

    /// How many bytes the new backup does not have.
    pub fn left_to_copy(&self) -> u64 {
        self.shared.state().copying.as_ref().map_or(0, ToCopy::left_bytes)
    }

    /// Between these two nothing changes the image: the pieces taken meanwhile are those of one moment, and all that the guest has asked for is in them. So it takes as long
    /// as the changes under way, and the vCPU has to stand still.
    pub fn freeze(&self) {
        let state = self.shared.state();
        let mut state = self.shared.wait_while(state, |state| {
            self.mode == Mode::Separate && state.queue.unexecuted().0 > 0 || state.queue.running_changes() > 0
        });
        state.queue.set_frozen(true);
    }

    /// See [`freeze`](Self::freeze). Ends the copy.
    pub fn thaw(&self) {
        let mut state = self.shared.state();
        state.queue.set_frozen(false);
        state.copying = None;
        drop(state);
        self.shared.something_is_ready();
    }

    /// Backup, separate images, after [`fit`](Self::fit): the image becomes a copy, and is of no use until [`copied`](Self::copied).
    pub fn begin_receiving(&self) -> Result<(), DiskError> {
        if self.mode != Mode::Separate || self.read_only {
            return Err(DiskError::NotSeparate { path: self.path() });
        }
        let mut state = self.shared.state();
        state.queue.clear();
        state = self.shared.wait_while(state, |state| state.queue.running() > 0);
        (state.is_copy, state.flaw) = (false, None);
        self.put_stamp(&mut state, |stamp| (stamp.role, stamp.clean) = (ImageRole::Copying, false))?;
        drop(state);
        // Pieces come only of what is not zeros there.
        self.shared.image.clear_all().map_err(|trouble| self.failed(trouble))
    }

    /// A piece of the copy.
    pub fn receive(&self, piece: &Piece) -> Result<(), DiskError> {
        let Piece { at, length, bytes } = piece;
        let (at, length) = (*at, u64::from(*length));
        let end = at.checked_add(length).filter(|end| *end <= self.shared.image.size());
        let whole = at.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
        let sound = bytes.is_empty() || bytes.len() as u64 == length && bytes.len() <= MAX_REQUEST;
        if end.is_none() || !whole || !sound {
            return Err(DiskError::Piece { path: self.path(), at, length: piece.length });
        }
        let mut buffer = Buffer::default();
        let sector = at / SECTOR;
        let ask = if bytes.is_empty() {
            debug_assert!(length <= CLEAR_AT_ONCE * 4);
            Ask::WriteZeroes { sector, sectors: (length / SECTOR) as u32, may_unmap: true }
        } else {
            Ask::Write { sector, data: bytes.clone() }
        };
        let done = self.shared.image.perform(&ask, &mut buffer, &|| Ok(()));
        done.map(|_| ()).map_err(|trouble| self.failed(trouble))
    }

    /// The copy is whole, and that of `generation`.
    pub fn copied(&self, generation: u64) -> Result<(), DiskError> {
        self.flush()?;
        let mut state = self.shared.state();
        let contents = hex(state.contents);
        self.put_stamp(&mut state, |stamp| {
            (stamp.role, stamp.clean, stamp.generation) = (ImageRole::Following, false, generation);
            stamp.contents = contents;
        })?;
        state.is_copy = true;
        Ok(())
    }
}
