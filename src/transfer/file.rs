//! Snapshots in files: a log may start from the state of a machine instead of its boot, and may have more states on its way.

use std::io::Read;

use super::chunk::{ChunkError, Part, Unpacker};
use super::state::{GuestState, StateBytesError};
use crate::log::file::{LogError, LogReader, StateFrame};
use crate::machine::{Blank, Machine, MachineError, Tracking};

/// Why no machine can be made of a log.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Pages that cannot be unpacked.
    #[error("in the snapshot's memory")]
    Chunk(#[from] ChunkError),
    /// A page that the machine does not have.
    #[error("the snapshot has page {0:#x}, which its machine has not")]
    Page(u32),
    /// A piece of a disk, which no snapshot has.
    #[error("the snapshot has a piece of a disk")]
    Piece,
    /// The state.
    #[error("in the snapshot's state")]
    State(#[from] StateBytesError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// The machine that the log in `reader` starts from, and the rest of the guest's state where that is a snapshot. The log goes on with the first
/// entry behind it.
pub fn machine<R: Read>(
    reader: &mut LogReader<R>,
    tracking: Tracking,
) -> Result<(Machine, Option<GuestState>), RestoreError> {
    if !reader.state_comes() {
        return Ok((Machine::new(reader.boot(), tracking)?, None));
    }
    let mut blank = Blank::new(reader.boot(), tracking)?;
    let pages = blank.pages().count();
    let state = read_state(reader, |part| match part {
        Part::Page { number, .. } if number as usize >= pages => Err(RestoreError::Page(number)),
        Part::Page { number, bytes } => {
            blank.put_page(number, bytes);
            Ok(())
        }
        Part::Piece { .. } => Err(RestoreError::Piece),
    })?;
    Ok((blank.finish(&state.machine)?, Some(state)))
}

/// Reads past the state that the log in `reader` starts from, if there is one.
pub fn skip_state<R: Read>(reader: &mut LogReader<R>) -> Result<Option<GuestState>, RestoreError> {
    if reader.state_comes() { read_state(reader, |_| Ok(())).map(Some) } else { Ok(None) }
}

fn read_state<R: Read>(
    reader: &mut LogReader<R>,
    mut each: impl FnMut(Part<'_>) -> Result<(), RestoreError>,
) -> Result<GuestState, RestoreError> {
    let mut unpacker = Unpacker::default();
    let state = loop {
        match reader.next_state_frame()? {
            StateFrame::Chunk(bytes) => unpacker.unpack(bytes, &mut each)?,
            StateFrame::State(bytes) => break GuestState::from_bytes(bytes)?,
        }
    };
    reader.go_on_from(&state.position)?;
    Ok(state)
}
