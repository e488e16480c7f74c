//! The log file: a boot frame (or the state of a machine that has run), entries frames, and a close frame when the recording ended as it
//! should. Between the entries there may be more states, to start a replay from.
//! A file without the last is called incomplete and can be read up to its last whole frame: that is what
//! a killed recorder leaves behind.

use std::io;
use std::path::PathBuf;

use super::boot::BootError;
use super::codec::CodecError;
use super::frame::{FrameError, FrameKind};
use super::stream::StreamError;

mod read;
mod write;

pub use read::{Ending, LogReader, StateFrame};
pub use write::{EncodedWriter, LogWriter, OwnStateFrame};

/// Entries are gathered into frames of up to this many bytes.
const BATCH_BYTES: usize = 64 << 10;

/// Why a log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened for reading.
    #[error("cannot open the log {}", .path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be created.
    #[error("cannot create the log {}", .path.display())]
    Create {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading failed.
    #[error("cannot read the log")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("cannot write the log")]
    Write(#[source] io::Error),
    /// An earlier write failed; the file ends with what was written before that.
    #[error("the log ends with an earlier write that failed")]
    Broken,
    /// An entry cannot follow the ones before.
    #[error("entry {number} cannot be logged")]
    Encode {
        /// The number it would have had.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// Bytes that are no frame of this version, this many bytes into the log.
    #[error("at byte {offset} of the log")]
    Frame {
        /// Where the frame begins.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// The log ends inside its boot frame, after this many bytes.
    #[error("the log ends after {0} bytes, before its guest is described")]
    CutBoot(u64),
    /// The boot record cannot be read or written.
    #[error("what the log starts from")]
    Boot(#[from] BootError),
    /// A frame of a kind that has no place there.
    #[error("a {kind:?} frame at byte {offset} of the log, where none belongs")]
    Unexpected {
        /// Where the frame begins.
        offset: u64,
        /// Its kind.
        kind: FrameKind,
    },
    /// The entries are not what the frames say.
    #[error("in the log's entries")]
    Stream(#[from] StreamError),
    /// The log starts from the state of a machine, which nobody has asked for.
    #[error("the log starts from a snapshot, which is to be read first")]
    StateFirst,
    /// The log ends, and nothing like the state that it should start from has come.
    #[error("the log ends inside the snapshot that it starts from")]
    CutState,
    /// A state that belongs before another entry.
    #[error("a snapshot of before entry {claimed} at byte {offset} of the log, before entry {found}")]
    StatePlace {
        /// Where the frame begins.
        offset: u64,
        /// What its frame says.
        claimed: u64,
        /// The entry that comes next.
        found: u64,
    },
    /// The close frame speaks of another number of entries.
    #[error("the log was closed after {claimed} entries, but has {found}")]
    WrongTotal {
        /// What the close frame says.
        claimed: u64,
        /// How many there are.
        found: u64,
    },
}
