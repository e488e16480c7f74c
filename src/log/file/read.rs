//! Reading a log file, entry by entry, and the states of the machine that it may have between them.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use super::{BATCH_BYTES, LogError};
use crate::log::boot::decode_boot;
use crate::log::codec::Encoder;
use crate::log::entry::Entry;
use crate::log::frame::{self, FrameKind, HEADER_BYTES, Header};
use crate::log::stream::{EntryStream, StreamError};
use crate::machine::snapshot::Boot;

/// A part of a machine's state, as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateFrame<'a> {
    /// Pages.
    Chunk(&'a [u8]),
    /// The rest; the last.
    State(&'a [u8]),
}

/// A state that comes before anything else does.
#[derive(Clone, Copy, Debug)]
struct Coming {
    /// The number of its chunks.
    snapshot: u32,
    /// It is not the start of the file: entries, and chunks of other states, may come in between.
    on_the_way: bool,
    /// The entry that it belongs before, once its last frame was read.
    before: Option<u64>,
}

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its close frame: the recording is complete.
    Closed,
    /// Without one: whoever recorded it did not finish.
    Incomplete {
        /// Bytes of a last frame that is cut and cannot be used.
        cut_bytes: u64,
    },
}

/// Reads a log, entry by entry.
#[derive(Debug)]
pub struct LogReader<R: Read> {
    input: BufReader<R>,
    boot: Boot,
    /// Bytes of what the log starts from.
    boot_bytes: u64,
    /// The state of a machine that is to be read before the entries.
    coming: Option<Coming>,
    from_snapshot: bool,
    /// Number of the first entry.
    start: u64,
    /// States met among the entries, and the bytes of their frames.
    snapshots: u64,
    snapshot_bytes: u64,
    stream: EntryStream,
    /// Bytes read up to and with the last whole frame.
    offset: u64,
    payload: Vec<u8>,
    /// How much of `payload` has been decoded.
    decoded: usize,
    entry_bytes: u64,
    ending: Option<Ending>,
    failed: bool,
}

impl LogReader<File> {
    /// Opens the file and reads what the log starts from.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let file = File::open(path).map_err(|source| LogError::Open { path: path.to_owned(), source })?;
        Self::new(file)
    }

    /// The same, from the last state of the machine at or before entry number `entry`; from the log's start if there is none. The log's
    /// frames are looked at up to there, not their contents.
    pub fn open_near(path: &Path, entry: u64) -> Result<Self, LogError> {
        let mut reader = Self::open(path)?;
        let start = reader.offset;
        let (mut offset, mut first_chunk, mut best) = (start, None, None);
        loop {
            let mut header = [0; HEADER_BYTES];
            match reader.input.read_exact(&mut header) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(LogError::Read(error)),
            }
            // What is no frame is for whoever reads on to there.
            let Ok(header) = Header::parse(&header) else { break };
            match header.kind {
                FrameKind::Chunk => {
                    first_chunk =
                        first_chunk.filter(|&(number, _)| number == header.number).or(Some((header.number, offset)));
                }
                FrameKind::State if header.number > entry => break,
                FrameKind::State => {
                    let of_this = first_chunk.take().filter(|&(number, _)| number == u64::from(header.count));
                    best = Some((header.count, of_this.map_or(offset, |(_, at)| at)));
                }
                FrameKind::Entries => {}
                _ => break,
            }
            offset += (HEADER_BYTES + header.length) as u64;
            reader.input.seek_relative(header.length as i64).map_err(LogError::Read)?;
        }
        // The state at the very start of the file is read as such.
        if let Some((snapshot, at)) = best.filter(|&(_, at)| at != start) {
            reader.coming = Some(Coming { snapshot, on_the_way: true, before: None });
            reader.offset = at;
        }
        let at = reader.offset;
        reader.input.seek(io::SeekFrom::Start(at)).map_err(LogError::Read)?;
        Ok(reader)
    }
}

impl<R: Read> LogReader<R> {
    /// Reads what the log starts from. `input` is read in large pieces, and ahead.
    pub fn new(input: R) -> Result<Self, LogError> {
        let mut input = BufReader::with_capacity(BATCH_BYTES, input);
        let mut payload = Vec::new();
        let from_snapshot = match read_frame(&mut input, 0, &mut payload)? {
            Next::Frame(Header { kind: FrameKind::Boot, .. }) => false,
            Next::Frame(Header { kind: FrameKind::Transfer, .. }) => true,
            Next::Frame(Header { kind, .. }) => return Err(LogError::Unexpected { offset: 0, kind }),
            Next::Cut(bytes) => return Err(LogError::CutBoot(bytes)),
        };
        let (boot, boot_bytes) = (decode_boot(&payload)?, (HEADER_BYTES + payload.len()) as u64);
        Ok(LogReader {
            input,
            boot,
            boot_bytes,
            coming: from_snapshot.then_some(Coming { snapshot: 0, on_the_way: false, before: None }),
            from_snapshot,
            start: 0,
            snapshots: 0,
            snapshot_bytes: 0,
            stream: EntryStream::new(),
            offset: boot_bytes,
            payload: Vec::new(),
            decoded: 0,
            entry_bytes: 0,
            ending: None,
            failed: false,
        })
    }

    /// What the log starts from.
    pub fn boot(&self) -> &Boot {
        &self.boot
    }

    /// The next entry; its number was [`entries`](Self::entries) before the call. `None` at the end of
    /// the log (see [`ending`](Self::ending)), and after an error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LogError> {
        if self.failed {
            return Ok(None);
        }
        let entry = self.advance();
        self.failed = entry.is_err();
        entry
    }

    /// Whether the state of a machine comes first, to be read by [`next_state_frame`](Self::next_state_frame).
    pub fn state_comes(&self) -> bool {
        self.coming.is_some()
    }

    /// Whether the file starts from the state of a machine that has run, rather than from its boot.
    pub fn from_snapshot(&self) -> bool {
        self.from_snapshot
    }

    /// How many states of the machine were met among the entries so far.
    pub fn snapshots(&self) -> u64 {
        self.snapshots
    }

    /// Bytes of these, frames included, and of those that did not become whole.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }

    /// Number of the first entry: 0, unless the state of a machine comes first. Known once that was read.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The next part of the state that comes first.
    pub fn next_state_frame(&mut self) -> Result<StateFrame<'_>, LogError> {
        let Some(coming) = self.coming.filter(|coming| coming.before.is_none()) else {
            return Err(LogError::StateFirst);
        };
        loop {
            let offset = self.offset;
            let Next::Frame(header) = read_frame(&mut self.input, offset, &mut self.payload)? else {
                return Err(LogError::CutState);
            };
            self.offset += (HEADER_BYTES + header.length) as u64;
            let own = match header.kind {
                FrameKind::Chunk => header.number == u64::from(coming.snapshot),
                FrameKind::State => header.count == coming.snapshot,
                FrameKind::Entries if coming.on_the_way => false,
                kind => return Err(LogError::Unexpected { offset, kind }),
            };
            if !own && !coming.on_the_way {
                return Err(LogError::Unexpected { offset, kind: header.kind });
            }
            if own {
                self.decoded = self.payload.len();
                if header.kind == FrameKind::Chunk {
                    return Ok(StateFrame::Chunk(&self.payload));
                }
                self.coming = Some(Coming { before: Some(header.number), ..coming });
                return Ok(StateFrame::State(&self.payload));
            }
        }
    }

    /// The state has been read, and its position is this: the entries behind it come next.
    pub fn go_on_from(&mut self, position: &Encoder) -> Result<(), LogError> {
        let Some(Coming { before: Some(claimed), on_the_way, .. }) = self.coming else {
            return Err(LogError::StateFirst);
        };
        if claimed != position.entries() {
            return Err(LogError::StatePlace { offset: self.offset, claimed, found: position.entries() });
        }
        (self.coming, self.stream, self.start) = (None, EntryStream::continuing(position), claimed);
        if !on_the_way {
            self.boot_bytes = self.offset;
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Entry>, LogError> {
        if self.coming.is_some() {
            return Err(LogError::StateFirst);
        }
        loop {
            let mut rest = &self.payload[self.decoded..];
            let before = rest.len();
            let entry = self.stream.next(&mut rest)?;
            self.decoded += before - rest.len();
            self.entry_bytes += (before - rest.len()) as u64;
            if entry.is_some() || self.ending.is_some() {
                return Ok(entry);
            }
            self.begin_frame()?;
        }
    }

    /// Reads the next frame of entries, or the end of the log.
    fn begin_frame(&mut self) -> Result<(), LogError> {
        let offset = self.offset;
        let header = match read_frame(&mut self.input, offset, &mut self.payload)? {
            Next::Frame(header) => header,
            Next::Cut(cut_bytes) => {
                self.payload.clear();
                self.decoded = 0;
                self.ending = Some(Ending::Incomplete { cut_bytes });
                return Ok(());
            }
        };
        self.decoded = 0;
        self.offset += (HEADER_BYTES + header.length) as u64;
        if matches!(header.kind, FrameKind::Chunk | FrameKind::State) {
            self.snapshot_bytes += (HEADER_BYTES + header.length) as u64;
        }
        match header.kind {
            FrameKind::Entries => self.stream.begin(header.number, header.count)?,
            FrameKind::Close => self.close(header)?,
            // States on the way are for those who start from them.
            FrameKind::Chunk => self.payload.clear(),
            FrameKind::State => {
                let (claimed, found) = (header.number, self.entries());
                if claimed != found {
                    return Err(LogError::StatePlace { offset, claimed, found });
                }
                self.snapshots += 1;
                self.payload.clear();
            }
            kind => return Err(LogError::Unexpected { offset, kind }),
        }
        Ok(())
    }

    fn close(&mut self, header: Header) -> Result<(), LogError> {
        let (claimed, found) = (header.number, self.entries());
        if claimed != found {
            return Err(LogError::WrongTotal { claimed, found });
        }
        if header.length != 0 {
            return Err(StreamError::Leftover { number: found, bytes: header.length }.into());
        }
        match read_frame(&mut self.input, self.offset, &mut self.payload)? {
            Next::Cut(0) => {}
            Next::Cut(bytes) => {
                return Err(StreamError::Leftover { number: found, bytes: bytes as usize }.into());
            }
            Next::Frame(Header { kind, .. }) => return Err(LogError::Unexpected { offset: self.offset, kind }),
        }
        self.ending = Some(Ending::Closed);
        Ok(())
    }

    /// Entries read so far: the number of the next one.
    pub fn entries(&self) -> u64 {
        self.stream.decoder().entries()
    }

    /// Bytes that the file spends on [`boot`](Self::boot), its frame included.
    pub fn boot_bytes(&self) -> u64 {
        self.boot_bytes
    }

    /// Bytes of the entries read so far, without frames.
    pub fn entry_bytes(&self) -> u64 {
        self.entry_bytes
    }

    /// Bytes read so far, boot and frames included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How the log ends; `None` until all entries have been read.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Whether the log's end was reached, and is that of a complete recording.
    pub fn complete(&self) -> bool {
        self.ending == Some(Ending::Closed)
    }
}

impl<R: Read> Iterator for LogReader<R> {
    type Item = Result<Entry, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry().transpose()
    }
}

/// What comes next in a file.
enum Next {
    Frame(Header),
    /// Its end, after this many bytes of a frame.
    Cut(u64),
}

/// Reads a frame, its payload into `payload`. That grows as bytes arrive, not by what the header claims.
fn read_frame(input: &mut impl Read, offset: u64, payload: &mut Vec<u8>) -> Result<Next, LogError> {
    let named = |source| LogError::Frame { offset, source };
    payload.clear();
    let read = input.take(HEADER_BYTES as u64).read_to_end(payload).map_err(LogError::Read)?;
    let Some(header) = payload.first_chunk::<HEADER_BYTES>() else {
        return match frame::parse(payload) {
            Ok(_) => Ok(Next::Cut(read as u64)),
            Err(source) => Err(named(source)),
        };
    };
    let header = Header::parse(header).map_err(named)?;
    payload.clear();
    let length = input.take(header.length as u64).read_to_end(payload).map_err(LogError::Read)?;
    if length < header.length {
        return Ok(Next::Cut((HEADER_BYTES + length) as u64));
    }
    header.check(payload).map_err(named)?;
    Ok(Next::Frame(header))
}
