//! Frames: the one envelope of everything that lockstep writes to a log file, the logging channel or
//! the control port. A fixed header with two checksums, then the payload.
//!
//! ```text
//!  0      4        6     7   8          12       16       24           28          32
//!  +------+--------+-----+---+----------+--------+--------+------------+-----------+-- - -
//!  | magic| version| kind| 0 | length   | count  | number | payload CRC| header CRC| payload
//!  +------+--------+-----+---+----------+--------+--------+------------+-----------+-- - -
//! ```
//!
//! The header is judged as soon as its 32 bytes are there, by a checksum of its own: a flipped bit in
//! the length must not make a reader wait for bytes that nobody will send.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the frame header, of the entry format, and of all payloads.
pub const VERSION: u16 = 3;

/// The first four bytes of every frame, and so of every log file.
pub const MAGIC: [u8; 4] = *b"lkst";

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = size_of::<Raw>();

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// What the log starts from (see [`super::boot`]): the first frame of a file.
    Boot = 1,
    /// `count` entries, the first of which has this `number`.
    Entries = 2,
    /// The end of a complete file; `number` is how many entries it has.
    Close = 3,

    /// Channel: the backup presents itself.
    Hello = 16,
    /// Channel: the peer is taken on.
    Welcome = 17,
    /// Channel and control port: the peer is not taken on, and why.
    Refuse = 18,
    /// Channel: the backup holds all entries below `number`.
    Ack = 19,
    /// Channel: no entry comes before some instant.
    Horizon = 20,
    /// Channel and control port: a sign of life.
    Heartbeat = 21,
    /// Channel: the backup's execution is not the primary's.
    Diverged = 22,
    /// Channel: the sender leaves, and why.
    Goodbye = 23,
    /// Channel and snapshots: the machine whose state follows (its boot).
    Transfer = 24,
    /// Channel and snapshots: pages of memory and pieces of the disk (see [`crate::transfer::chunk`]).
    Chunk = 25,
    /// Channel and snapshots: the rest of the state, as it is before entry `number`.
    State = 26,
    /// Channel: the log ends at `number`, and the other side shall go on.
    Handover = 27,
    /// Channel: the other side goes on, in generation `number`.
    Took = 28,
    /// Channel: packets for the guest that came to the host that handed it over (see [`crate::net::strays`]).
    Strays = 29,

    /// Control port: a console client asks for the guest's console.
    Attach = 32,
    /// Control port: here it is.
    Attached = 33,
    /// Control port: typed bytes; `number` is the position of the first.
    Input = 34,
    /// Control port: typed bytes below `number` are safe.
    InputAck = 35,
    /// Control port: console output; `number` is the position of the first byte.
    Output = 36,
    /// Control port: output that is no longer kept.
    Gap = 37,
    /// Control port: how are you?
    StatusRequest = 38,
    /// Control port: the answer to that.
    Status = 39,
    /// Control port: do something (stop, say).
    Control = 40,
    /// Control port: what became of it.
    Answer = 41,
    /// Control port: this host does not run the machine now.
    NotLive = 42,
    /// Control port: the guest has ended.
    Ended = 43,
}

impl FrameKind {
    /// All kinds.
    pub const ALL: [FrameKind; 29] = [
        FrameKind::Boot,
        FrameKind::Entries,
        FrameKind::Close,
        FrameKind::Hello,
        FrameKind::Welcome,
        FrameKind::Refuse,
        FrameKind::Ack,
        FrameKind::Horizon,
        FrameKind::Heartbeat,
        FrameKind::Diverged,
        FrameKind::Goodbye,
        FrameKind::Transfer,
        FrameKind::Chunk,
        FrameKind::State,
        FrameKind::Handover,
        FrameKind::Took,
        FrameKind::Strays,
        FrameKind::Attach,
        FrameKind::Attached,
        FrameKind::Input,
        FrameKind::InputAck,
        FrameKind::Output,
        FrameKind::Gap,
        FrameKind::StatusRequest,
        FrameKind::Status,
        FrameKind::Control,
        FrameKind::Answer,
        FrameKind::NotLive,
        FrameKind::Ended,
    ];

    /// The most bytes of payload that a frame of this kind may have.
    pub const fn max_payload(self) -> usize {
        match self {
            FrameKind::Boot | FrameKind::Transfer => 64 << 20,
            FrameKind::State => 16 << 20,
            FrameKind::Entries | FrameKind::Chunk | FrameKind::Strays => 1 << 20,
            _ => 64 << 10,
        }
    }

    /// The kind with this number in the header.
    pub fn from_byte(byte: u8) -> Option<FrameKind> {
        FrameKind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Why bytes are no frame. There is no way to go on behind it: a file ends here, a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame of lockstep's at all; the four bytes found.
    #[error("not a lockstep frame (it starts with \"{}\")", .0.escape_ascii())]
    Magic([u8; 4]),
    /// Written by another version, which is named.
    #[error("format version {0}; this program reads and writes version {VERSION}")]
    Version(u16),
    /// The header was damaged.
    #[error("the frame header's checksum is wrong")]
    HeaderChecksum,
    /// No kind of frame has this number.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The byte that must be 0 is this.
    #[error("the reserved byte of the frame header is {0}")]
    Reserved(u8),
    /// More payload than a frame of this kind may have.
    #[error("{kind:?} frame of {length} bytes (at most {max})", max = .kind.max_payload())]
    TooLong {
        /// The frame's kind.
        kind: FrameKind,
        /// Bytes of payload that the frame has, or claims to have.
        length: usize,
    },
    /// The payload was damaged.
    #[error("the checksum of a {0:?} frame's payload is wrong")]
    PayloadChecksum(FrameKind),
}

/// The header as it stands in the bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: U16,
    kind: u8,
    reserved: u8,
    length: U32,
    count: U32,
    number: U64,
    payload_crc: U32,
    header_crc: U32,
}

/// Where the header's own checksum stands; it covers everything before.
const HEADER_CRC_AT: usize = HEADER_BYTES - size_of::<U32>();

/// A header that is in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is about.
    pub kind: FrameKind,
    /// Number of the first entry for [`FrameKind::Entries`]; otherwise as the kind says.
    pub number: u64,
    /// How many entries for [`FrameKind::Entries`]; otherwise as the kind says, mostly 0.
    pub count: u32,
    /// Bytes of payload, not more than [`FrameKind::max_payload`].
    pub length: usize,
    payload_crc: u32,
}

impl Header {
    /// Judges the first [`HEADER_BYTES`] of a frame.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(FrameError::Magic(raw.magic));
        }
        // Before the checksum: another version may have put that elsewhere.
        if raw.version != VERSION {
            return Err(FrameError::Version(raw.version.get()));
        }
        if raw.header_crc != crc32fast::hash(&bytes[..HEADER_CRC_AT]) {
            return Err(FrameError::HeaderChecksum);
        }
        let kind = FrameKind::from_byte(raw.kind).ok_or(FrameError::Kind(raw.kind))?;
        if raw.reserved != 0 {
            return Err(FrameError::Reserved(raw.reserved));
        }
        let length = raw.length.get() as usize;
        if length > kind.max_payload() {
            return Err(FrameError::TooLong { kind, length });
        }
        let (number, count, payload_crc) = (raw.number.get(), raw.count.get(), raw.payload_crc.get());
        Ok(Header { kind, number, count, length, payload_crc })
    }

    /// Judges the frame's payload, all [`Header::length`] bytes of it.
    pub fn check(&self, payload: &[u8]) -> Result<(), FrameError> {
        if payload.len() == self.length && crc32fast::hash(payload) == self.payload_crc {
            Ok(())
        } else {
            Err(FrameError::PayloadChecksum(self.kind))
        }
    }
}

/// A frame in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is about.
    pub kind: FrameKind,
    /// Number of the first entry for [`FrameKind::Entries`]; otherwise as the kind says.
    pub number: u64,
    /// How many entries for [`FrameKind::Entries`]; otherwise as the kind says, mostly 0.
    pub count: u32,
    /// The payload.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Appends this frame to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        encode(self.kind, self.number, self.count, self.payload, out)
    }
}

/// Appends a frame to `out`; refuses ([`FrameError::TooLong`]) what [`parse`] would, and then writes nothing.
pub fn encode(kind: FrameKind, number: u64, count: u32, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    out.extend_from_slice(&header(kind, number, count, [payload, &[]])?);
    out.extend_from_slice(payload);
    Ok(())
}

/// What goes before a payload, given in two parts, in its frame.
pub fn header(kind: FrameKind, number: u64, count: u32, payload: [&[u8]; 2]) -> Result<[u8; HEADER_BYTES], FrameError> {
    let length = payload[0].len() + payload[1].len();
    if length > kind.max_payload() {
        return Err(FrameError::TooLong { kind, length });
    }
    let mut crc = crc32fast::Hasher::new();
    payload.iter().for_each(|part| crc.update(part));
    let mut raw = Raw {
        magic: MAGIC,
        version: U16::new(VERSION),
        kind: kind as u8,
        reserved: 0,
        length: U32::new(length as u32),
        count: U32::new(count),
        number: U64::new(number),
        payload_crc: U32::new(crc.finalize()),
        header_crc: U32::ZERO,
    };
    raw.header_crc = U32::new(crc32fast::hash(&raw.as_bytes()[..HEADER_CRC_AT]));
    Ok(zerocopy::transmute!(raw))
}

/// The first frame in a buffer that grows as bytes arrive, and how many bytes it takes up.
///
/// `None` means that the frame is cut: more bytes must come. The cost while they come is that of looking
/// at the header; nothing is allocated.
pub fn parse(buffer: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((header, rest)) = buffer.split_first_chunk::<HEADER_BYTES>() else {
        // A peer that speaks something else is told from a cut frame by its first bytes.
        let shown = buffer.len().min(MAGIC.len());
        if buffer[..shown] != MAGIC[..shown] {
            let mut found = [0; 4];
            found[..shown].copy_from_slice(&buffer[..shown]);
            return Err(FrameError::Magic(found));
        }
        return Ok(None);
    };
    let header = Header::parse(header)?;
    let Some(payload) = rest.get(..header.length) else {
        return Ok(None);
    };
    header.check(payload)?;
    let frame = Frame { kind: header.kind, number: header.number, count: header.count, payload };
    Ok(Some((frame, HEADER_BYTES + header.length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(FrameKind::Entries, 7, 3, b"payload", &mut bytes).unwrap();
        bytes
    }

    /// Changes the header and makes its checksum right again.
    fn forged(change: impl Fn(&mut [u8])) -> Result<Option<(Frame<'static>, usize)>, FrameError> {
        let mut bytes = frame();
        change(&mut bytes);
        let crc = crc32fast::hash(&bytes[..HEADER_CRC_AT]);
        bytes[HEADER_CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        parse(bytes.leak())
    }

    #[test]
    fn frames_of_every_kind_come_back_one_after_the_other() {
        let mut bytes = Vec::new();
        for kind in FrameKind::ALL {
            Frame { kind, number: u64::MAX, count: u32::MAX, payload: &[kind as u8; 9] }
                .encode_into(&mut bytes)
                .unwrap();
        }
        let mut rest = &bytes[..];
        for kind in FrameKind::ALL {
            let (frame, consumed) = parse(rest).unwrap().unwrap();
            assert_eq!(frame, Frame { kind, number: u64::MAX, count: u32::MAX, payload: &[kind as u8; 9] });
            rest = &rest[consumed..];
        }
        assert_eq!(parse(rest), Ok(None));
    }

    #[test]
    fn a_byte_is_at_most_one_kind() {
        let known: Vec<u8> = (0..=255).filter(|byte| FrameKind::from_byte(*byte).is_some()).collect();
        assert_eq!(known, FrameKind::ALL.map(|kind| kind as u8), "in ascending order, none twice, no others");
    }

    #[test]
    fn a_cut_frame_is_none_at_every_length() {
        let bytes = frame();
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), Ok(None), "{length}");
        }
    }

    #[test]
    fn every_invalid_header_has_its_reason() {
        let kind = FrameKind::Entries;
        assert_eq!(parse(b"GET / HT"), Err(FrameError::Magic(*b"GET ")));
        assert_eq!(parse(b"lk?"), Err(FrameError::Magic(*b"lk?\0")));
        assert_eq!(forged(|bytes| bytes[0] = b'L'), Err(FrameError::Magic(*b"Lkst")));
        assert_eq!(forged(|bytes| bytes[4] = 9), Err(FrameError::Version(9)));
        assert_eq!(forged(|bytes| bytes[6] = 200), Err(FrameError::Kind(200)));
        assert_eq!(forged(|bytes| bytes[7] = 1), Err(FrameError::Reserved(1)));
        assert_eq!(forged(|bytes| bytes[11] = 1), Err(FrameError::TooLong { kind, length: 7 + (1 << 24) }));
        assert_eq!(forged(|bytes| bytes[HEADER_BYTES] ^= 1), Err(FrameError::PayloadChecksum(kind)));
        let mut bytes = frame();
        bytes[8] ^= 1;
        assert_eq!(parse(&bytes), Err(FrameError::HeaderChecksum), "a damaged length is not waited for");
    }

    #[test]
    fn payloads_are_capped_by_kind_on_the_way_out_as_well() {
        for kind in FrameKind::ALL {
            let mut out = Vec::new();
            let payload = vec![0; kind.max_payload() + 1];
            let length = payload.len();
            assert_eq!(encode(kind, 0, 0, &payload, &mut out), Err(FrameError::TooLong { kind, length }));
            assert!(out.is_empty());
            encode(kind, 0, 0, &payload[1..], &mut out).unwrap();
            assert_eq!(parse(&out).unwrap().unwrap().1, out.len());
        }
    }
}
