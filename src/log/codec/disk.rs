//! What concerns the disk in the log: requests as their number and a check, for the replay makes them again; completions with what was read.

use super::{Bytes, CodecError, Field, Short};
use crate::machine::blocks::{Completion, Completions, MAX_COUNT, MAX_REQUEST, Outcome};

/// How a request ended: the low bits of the word that begins its completion.
const DONE: u64 = 0;
const READ: u64 = 1;
const READ_ELSEWHERE: u64 = 2;
const FAILED: u64 = 3;

pub(super) fn check_count(count: u64) -> Result<(), CodecError> {
    if (1..=MAX_COUNT as u64).contains(&count) { Ok(()) } else { Err(CodecError::RequestCount(count)) }
}

fn check_read(length: u64, used: usize) -> Result<(), CodecError> {
    let possible = length > 0 && length <= (MAX_REQUEST - used.min(MAX_REQUEST)) as u64;
    if possible { Ok(()) } else { Err(CodecError::ReadLength(length)) }
}

/// Appends the completions behind what `short` already has.
pub(super) fn encode(completions: &Completions, mut short: Short, out: &mut Vec<u8>) -> Result<(), CodecError> {
    check_count(completions.len() as u64)?;
    let mut used = 0;
    for completion in completions {
        if let Outcome::Read(bytes) = &completion.outcome {
            check_read(bytes.len() as u64, used)?;
            used += bytes.len();
        } else if let Outcome::ReadElsewhere { bytes, .. } = &completion.outcome {
            check_read((*bytes).into(), 0)?;
        }
        if completion.id >> 61 != 0 {
            return Err(CodecError::Overflow(Field::Request));
        }
    }
    short.varint(completions.len() as u64);
    for completion in completions {
        let id = completion.id << 2;
        match &completion.outcome {
            Outcome::Done => short.varint(id | DONE),
            Outcome::Failed => short.varint(id | FAILED),
            Outcome::Read(bytes) => {
                short.varint(id | READ);
                short.varint(bytes.len() as u64);
                out.extend_from_slice(short.bytes());
                out.extend_from_slice(bytes);
                short = Short::new();
            }
            Outcome::ReadElsewhere { bytes, check } => {
                short.varint(id | READ_ELSEWHERE);
                short.varint((*bytes).into());
                short.put(*check, 8);
            }
        }
        out.extend_from_slice(short.bytes());
        short = Short::new();
    }
    Ok(())
}

/// Takes completions off the front of `bytes`. Nothing is allocated for what is not there.
pub(super) fn decode(bytes: &mut Bytes<'_>) -> Result<Completions, CodecError> {
    let count = bytes.varint()?.ok_or(CodecError::NotCanonical(Field::Request))?;
    check_count(count)?;
    let (mut completions, mut used) = (Vec::new(), 0);
    for _ in 0..count {
        let word = bytes.varint()?.ok_or(CodecError::NotCanonical(Field::Request))?;
        if word >> 63 != 0 {
            return Err(CodecError::Overflow(Field::Request));
        }
        let outcome = match word & 3 {
            READ => {
                let length = bytes.varint()?.ok_or(CodecError::NotCanonical(Field::ReadLength))?;
                check_read(length, used)?;
                used += length as usize;
                Outcome::Read(bytes.slice(length as usize)?.to_vec())
            }
            READ_ELSEWHERE => {
                let length = bytes.varint()?.ok_or(CodecError::NotCanonical(Field::ReadLength))?;
                check_read(length, 0)?;
                Outcome::ReadElsewhere { bytes: length as u32, check: bytes.take(8)? }
            }
            FAILED => Outcome::Failed,
            _ => Outcome::Done,
        };
        completions.push(Completion { id: word >> 2, outcome });
    }
    Ok(completions)
}
