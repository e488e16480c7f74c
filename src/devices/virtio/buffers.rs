//! The pieces of guest memory that a chain of descriptors names, and bytes on their way from and to them.

use bincode::{Decode, Encode};
use vm_memory::{Bytes, GuestAddress};

use super::misuse::Misuse;
use super::reach::Reach;

/// A piece of guest memory, which was known to be there when its chain was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes; at least one.
    pub length: usize,
}

/// Bytes of all `buffers` together.
pub fn length(buffers: &[Buffer]) -> usize {
    buffers.iter().map(|buffer| buffer.length).sum()
}

/// Takes the first `count` bytes off the front of `buffers`, which have as many.
pub fn skip(mut buffers: &[Buffer], mut count: usize) -> Vec<Buffer> {
    while let Some((first, rest)) = buffers.split_first() {
        if count < first.length {
            let first = Buffer { address: first.address + count as u64, length: first.length - count };
            return std::iter::once(first).chain(rest.iter().copied()).collect();
        }
        count -= first.length;
        buffers = rest;
    }
    Vec::new()
}

/// Appends the contents of `buffers` to `bytes`.
pub fn gather(memory: &Reach, buffers: &[Buffer], bytes: &mut Vec<u8>) -> Result<(), Misuse> {
    for buffer in buffers {
        memory.write_all_volatile_to(GuestAddress(buffer.address), bytes, buffer.length).map_err(|_| Misuse::Buffer)?;
    }
    Ok(())
}

/// Fills `bytes` from the front of `buffers`, which have as many.
pub fn peek(memory: &Reach, buffers: &[Buffer], bytes: &mut [u8]) -> Result<(), Misuse> {
    let mut rest = bytes;
    for buffer in buffers {
        let (now, later) = rest.split_at_mut(rest.len().min(buffer.length));
        memory.read_slice(now, GuestAddress(buffer.address)).map_err(|_| Misuse::Buffer)?;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Writes `parts`, one after the other, to `buffers`, which are long enough.
pub fn scatter(memory: &Reach, buffers: &[Buffer], parts: &[&[u8]]) -> Result<(), Misuse> {
    let mut buffers = buffers.iter();
    let mut at = *buffers.next().ok_or(Misuse::Chain)?;
    for &part in parts {
        let mut part = part;
        while !part.is_empty() {
            if at.length == 0 {
                at = *buffers.next().ok_or(Misuse::Chain)?;
            }
            let (now, later) = part.split_at(part.len().min(at.length));
            memory.write_slice(now, GuestAddress(at.address)).map_err(|_| Misuse::Buffer)?;
            at = Buffer { address: at.address + now.len() as u64, length: at.length - now.len() };
            part = later;
        }
    }
    Ok(())
}
