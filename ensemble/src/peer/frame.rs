//! Frames between members.
//!
//! ```text
//! frame = length u32 (of what follows the check) · CRC-32 of that, u32 · kind u8 · number u64 · payload
//! ```

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The most bytes of a frame: a batch, with what the log has beside it, and room.
pub const MAX_BYTES: usize = 32 << 20;

const HEAD: usize = 8;
const PREFIX: usize = 9;

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// The caller presents itself.
    Hello = 1,
    /// It is welcome.
    Welcome = 2,
    /// It is not, and why.
    Refuse = 3,
    /// Entries of the log, or a sign of life; to be answered.
    Append = 10,
    /// A vote is asked for; to be answered.
    Vote = 11,
    /// Would there be a vote? To be answered.
    Canvass = 12,
    /// Proposals for the leader.
    Propose = 13,
    /// Sessions that were heard.
    Heard = 14,
    /// A snapshot follows, in pieces.
    Snapshot = 15,
    /// A piece of it.
    Chunk = 16,
    /// The last piece of it; to be answered.
    SnapshotEnd = 17,
    /// Are you there? To be answered.
    Ping = 18,
    /// The answer to the frame of that number.
    Reply = 20,
    /// There is none; why.
    Failure = 21,
    /// Who are you, and who are the others? To be answered.
    Who = 30,
    /// Take me in. To be answered.
    Join = 31,
    /// Do without a member. To be answered.
    Remove = 32,
}

impl Kind {
    const ALL: [Kind; 17] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Refuse,
        Kind::Append,
        Kind::Vote,
        Kind::Canvass,
        Kind::Propose,
        Kind::Heard,
        Kind::Snapshot,
        Kind::Chunk,
        Kind::SnapshotEnd,
        Kind::Ping,
        Kind::Reply,
        Kind::Failure,
        Kind::Who,
        Kind::Join,
        Kind::Remove,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection ended between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The connection failed, or ended inside of a frame.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// A length that no frame has.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// The checksum is wrong.
    #[error("a frame's checksum is wrong")]
    Check,
    /// A kind that this version does not know.
    #[error("a frame of kind {0}, which this version does not know")]
    Kind(u8),
}

/// A frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What it is about.
    pub kind: Kind,
    /// Its number; an answer has that of its question.
    pub number: u64,
    /// The rest.
    pub payload: Bytes,
}

/// Appends a frame.
pub fn write(out: &mut BytesMut, kind: Kind, number: u64, payload: &[u8]) {
    let mut prefix = [0; PREFIX];
    prefix[0] = kind as u8;
    prefix[1..].copy_from_slice(&number.to_be_bytes());
    let mut check = crc32fast::Hasher::new();
    check.update(&prefix);
    check.update(payload);
    out.reserve(HEAD + PREFIX + payload.len());
    out.put_u32((PREFIX + payload.len()) as u32);
    out.put_u32(check.finalize());
    out.put_slice(&prefix);
    out.put_slice(payload);
}

/// Takes the next frame out of `buffer`, if it is whole.
pub fn parse(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(head) = buffer.first_chunk::<HEAD>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let check = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    if !(PREFIX..=MAX_BYTES).contains(&length) {
        return Err(FrameError::Length(length));
    }
    if buffer.len() < HEAD + length {
        return Ok(None);
    }
    let mut body = buffer.split_to(HEAD + length).freeze().slice(HEAD..);
    if crc32fast::hash(&body) != check {
        return Err(FrameError::Check);
    }
    let prefix = body.split_to(PREFIX);
    let kind = Kind::from_byte(prefix[0]).ok_or(FrameError::Kind(prefix[0]))?;
    let number = u64::from_be_bytes(prefix[1..].try_into().expect("eight bytes"));
    Ok(Some(Frame { kind, number, payload: body }))
}

/// The bytes that a buffer grows by when it is full: what is claimed by a length is not allocated before it is there.
const READ_BYTES: usize = 64 << 10;

/// Reads the next frame. Cancelling it loses nothing: what was read is in `buffer`.
pub async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Result<Frame, FrameError> {
    loop {
        if let Some(frame) = parse(buffer)? {
            return Ok(frame);
        }
        buffer.reserve(READ_BYTES);
        if stream.read_buf(buffer).await? == 0 {
            return Err(match buffer.is_empty() {
                true => FrameError::Closed,
                false => FrameError::Io(io::ErrorKind::UnexpectedEof.into()),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_when_they_are_whole_and_damaged_ones_refused() {
        let mut bytes = BytesMut::new();
        write(&mut bytes, Kind::Append, 7, b"payload");
        let good = bytes.clone();
        for cut in 0..good.len() {
            assert!(parse(&mut BytesMut::from(&good[..cut])).unwrap().is_none());
        }
        let frame = parse(&mut bytes).unwrap().unwrap();
        assert_eq!((frame.kind, frame.number, &frame.payload[..], bytes.len()), (Kind::Append, 7, &b"payload"[..], 0));
        for at in 4..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(matches!(parse(&mut bad), Err(FrameError::Check)), "byte {at}");
        }
        assert!(matches!(parse(&mut BytesMut::from(&[0xff; 8][..])), Err(FrameError::Length(_))));
        assert!(matches!(parse(&mut BytesMut::from(&[0; 8][..])), Err(FrameError::Length(0))));
    }
}
