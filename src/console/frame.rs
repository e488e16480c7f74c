//! The frame of the console port: a fixed header with length and checksum around every message.
//!
//! ```text
//!  0      4         5      6          8        12        20      24
//!  | magic | version | kind | reserved | length | number  | CRC32 | payload …
//! ```
//! Little endian; the checksum covers the header before it and the payload.

/// The version of the console protocol.
pub const VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 24;
/// The longest payload.
pub const PAYLOAD_MAX: usize = 64 << 10;

const MAGIC: [u8; 4] = *b"LSCP";

/// One frame, its payload still in the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is; see [`super::wire`].
    pub kind: u8,
    /// Position, offset, or 0.
    pub number: u64,
    /// The payload.
    pub payload: &'a [u8],
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// These bytes come from something else.
    #[error("this is not the lockstep console protocol")]
    Magic,
    /// The other side is of another version.
    #[error("the other side speaks console protocol version {0}, this one {VERSION}")]
    Version(u8),
    /// A reserved field is in use.
    #[error("the header's reserved field is {0:#06x}")]
    Reserved(u16),
    /// The payload is longer than any may be.
    #[error("a payload of {0} bytes, at most {PAYLOAD_MAX} are allowed")]
    TooLong(u32),
    /// The bytes were damaged on the way.
    #[error("the checksum is {found:#010x}, not {expected:#010x}")]
    Checksum {
        /// The checksum of what came.
        expected: u32,
        /// The checksum that came with it.
        found: u32,
    },
}

/// Appends a frame to `out`.
///
/// # Panics
/// When the payload is longer than [`PAYLOAD_MAX`].
pub fn encode(kind: u8, number: u64, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= PAYLOAD_MAX, "payloads are split before they are framed");
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind, 0, 0]);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    let checksum = checksum(&out[start..], payload);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(payload);
}

/// The first frame in `bytes` and its length, or `None` while it is incomplete. What is wrong is
/// told as early as the bytes show it.
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Err(FrameError::Magic);
    }
    if let Some(&version) = bytes.get(4).filter(|&&version| version != VERSION) {
        return Err(FrameError::Version(version));
    }
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(None) };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let reserved = u16::from_le_bytes([header[6], header[7]]);
    if reserved != 0 {
        return Err(FrameError::Reserved(reserved));
    }
    let length = word(8) as usize;
    if length > PAYLOAD_MAX {
        return Err(FrameError::TooLong(word(8)));
    }
    let Some(payload) = rest.get(..length) else { return Ok(None) };
    let (expected, found) = (checksum(&header[..20], payload), word(20));
    if expected != found {
        return Err(FrameError::Checksum { expected, found });
    }
    let number = u64::from(word(12)) | u64::from(word(16)) << 32;
    Ok(Some((Frame { kind: header[5], number, payload }, HEADER_BYTES + length)))
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(7, 0x1122_3344_5566_7788, b"payload", &mut bytes);
        bytes
    }

    #[test]
    fn a_frame_comes_back_and_a_cut_one_is_awaited() {
        let bytes = frame();
        let expected = Frame { kind: 7, number: 0x1122_3344_5566_7788, payload: b"payload" };
        assert_eq!(parse(&bytes), Ok(Some((expected, bytes.len()))));
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn every_damaged_byte_is_noticed_and_named() {
        for at in 0..frame().len() {
            let mut bytes = frame();
            bytes[at] ^= 0x40;
            bytes.resize(PAYLOAD_MAX * 2, 0);
            let error = parse(&bytes).expect_err("damaged");
            let named = match at {
                0..4 => error == FrameError::Magic,
                4 => error == FrameError::Version(VERSION ^ 0x40),
                6..8 => matches!(error, FrameError::Reserved(_)),
                10..12 => matches!(error, FrameError::TooLong(_)),
                _ => matches!(error, FrameError::Checksum { .. }),
            };
            assert!(named, "byte {at}: {error}");
        }
    }
}
