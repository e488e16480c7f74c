//! Packets in the log: their number, then for each a word with the frame's length and whether its header says anything, that header,
//! the frame. Made for speed: the bytes of a frame are copied once each way and looked at never.

use super::{Bytes, CodecError, Field, Short};
use crate::machine::packets::{HEADER, Packets};

/// The shortest and the longest frame, bytes.
const SHORTEST: u64 = (Packets::MIN_PACKET - HEADER) as u64;
const LONGEST: u64 = (Packets::MAX_PACKET - HEADER) as u64;

pub(super) fn check_count(count: u64) -> Result<(), CodecError> {
    if (1..=Packets::MAX_COUNT as u64).contains(&count) { Ok(()) } else { Err(CodecError::PacketCount(count)) }
}

/// Whether that many packets can have had that many bytes, headers included.
pub(super) fn check_sent(packets: u32, bytes: u32) -> Result<(), CodecError> {
    check_count(packets.into())?;
    let (least, most) =
        (u64::from(packets) * Packets::MIN_PACKET as u64, u64::from(packets) * Packets::MAX_PACKET as u64);
    let possible = least..=most.min(Packets::MAX_BYTES as u64);
    if possible.contains(&u64::from(bytes)) { Ok(()) } else { Err(CodecError::SentBytes(bytes)) }
}

/// Whether a header says nothing: all zero, as long as no offload is used.
#[inline]
fn is_plain(header: &[u8; HEADER]) -> bool {
    let [a, b, c] = header.as_chunks::<4>().0 else { return false };
    u32::from_ne_bytes(*a) | u32::from_ne_bytes(*b) | u32::from_ne_bytes(*c) == 0
}

/// Appends the packets behind what `short` already has. A batch keeps the bounds of [`Packets`] by itself, but for being empty.
#[inline]
pub(super) fn encode(packets: &Packets, mut short: Short, out: &mut Vec<u8>) -> Result<(), CodecError> {
    check_count(packets.len() as u64)?;
    short.varint(packets.len() as u64);
    out.reserve(packets.bytes().len());
    for packet in packets.iter() {
        let (header, frame) = packet.split_first_chunk::<HEADER>().expect("a batch holds whole packets");
        let plain = is_plain(header);
        short.varint((frame.len() as u64) << 1 | u64::from(!plain));
        out.extend_from_slice(short.bytes());
        out.extend_from_slice(if plain { frame } else { packet });
        short = Short::new();
    }
    Ok(())
}

/// Takes packets off the front of `bytes`. Looks over all of them first, and allocates once, when it has seen that they are there.
#[inline]
pub(super) fn decode(bytes: &mut Bytes<'_>) -> Result<Packets, CodecError> {
    let count = bytes.varint()?.ok_or(CodecError::NotCanonical(Field::PacketCount))?;
    check_count(count)?;
    let (mut ahead, mut total) = (Bytes::new(bytes.rest()), 0);
    for _ in 0..count {
        let (header, frame) = next(&mut ahead, total)?;
        total += header.len() + frame.len();
    }
    let mut packets = Packets::with_capacity(count as usize, total);
    for _ in 0..count {
        let (header, frame) = next(bytes, packets.bytes().len())?;
        packets.push_frame(header, frame);
    }
    Ok(packets)
}

/// The next packet, header and frame, for a batch that has `used` bytes.
#[inline]
fn next<'a>(bytes: &mut Bytes<'a>, used: usize) -> Result<(&'a [u8; HEADER], &'a [u8]), CodecError> {
    let word = bytes.varint()?.ok_or(CodecError::NotCanonical(Field::PacketLength))?;
    let (length, plain) = (word >> 1, word & 1 == 0);
    // In this order: what is too long is not waited for.
    if !(SHORTEST..=LONGEST).contains(&length) || used as u64 + HEADER as u64 + length > Packets::MAX_BYTES as u64 {
        return Err(CodecError::PacketLength(length));
    }
    let header = if plain {
        &[0; HEADER]
    } else {
        match bytes.slice(HEADER)?.first_chunk() {
            Some(header) if !is_plain(header) => header,
            _ => return Err(CodecError::NotCanonical(Field::PacketHeader)),
        }
    };
    Ok((header, bytes.slice(length as usize)?))
}
