//! An image: whole requests, made of the single calls of a [`Medium`]. What a call leaves undone is gone on with; what the medium cannot do is
//! done in another way; and where it takes whole blocks only, the rest of a block is read first.

use std::io;

use super::medium::Medium;
use crate::machine::blocks::{Ask, MAX_REQUEST, Outcome};

/// The largest block that a medium may insist on, bytes.
pub const MAX_ALIGN: u64 = 4096;

/// Why a request did not come to its end.
#[derive(Debug)]
pub enum Trouble {
    /// The medium's error, and what was tried.
    Io(&'static str, io::Error),
    /// This host may not change the image now. Nothing is known of how much was done.
    NotAllowed,
    /// This host has lost the image: it went live elsewhere, in this generation. Nothing is known of how much was done.
    Fenced(u64),
}

/// Memory for one request at a time, aligned as media may want it.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        let bytes = vec![0; MAX_REQUEST + 3 * MAX_ALIGN as usize];
        let start = bytes.as_ptr().align_offset(MAX_ALIGN as usize);
        Buffer { bytes, start }
    }
}

impl Buffer {
    fn of(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + length]
    }
}

/// An image of `size` bytes.
pub struct Image {
    medium: Box<dyn Medium>,
    size: u64,
    /// The medium takes whole blocks of this size only; 1: any range.
    align: u64,
    /// Whether a discarded range must read as zeros, since another image must read the same.
    discards_are_zeros: bool,
}

/// Why this host may not change the image at this very moment, if it may not.
pub type MayChange<'a> = &'a dyn Fn() -> Result<(), Trouble>;

impl Image {
    /// An image on `medium`.
    pub fn new(medium: Box<dyn Medium>, size: u64, align: u64, discards_are_zeros: bool) -> Self {
        assert!(
            align.is_power_of_two() && align <= MAX_ALIGN && size.is_multiple_of(align),
            "checked by whoever opens it"
        );
        Image { medium, size, align, discards_are_zeros }
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The medium takes whole blocks of this size only.
    pub fn align(&self) -> u64 {
        self.align
    }

    /// Carries out a request.
    pub fn perform(&self, ask: &Ask, buffer: &mut Buffer, may: MayChange) -> Result<Outcome, Trouble> {
        match ask {
            Ask::Read { bytes, .. } => {
                let (at, _) = ask.extent().unwrap_or_default();
                self.read(at, *bytes as usize, buffer).map(Outcome::Read)
            }
            Ask::Write { data, .. } => {
                let (at, _) = ask.extent().unwrap_or_default();
                self.write(at, data, buffer, may).map(|()| Outcome::Done)
            }
            Ask::Flush => {
                self.medium.sync().map_err(|error| Trouble::Io("flush", error))?;
                Ok(Outcome::Done)
            }
            Ask::Discard { .. } => {
                let (at, length) = ask.extent().unwrap_or_default();
                match self.clear(at, length, true, buffer, may) {
                    // It is a hint.
                    Err(Trouble::Io(_, error))
                        if error.kind() == io::ErrorKind::Unsupported && !self.discards_are_zeros => {}
                    Err(Trouble::Io(_, error)) if error.kind() == io::ErrorKind::Unsupported => {
                        self.write_zeros(at, length, buffer, may)?;
                    }
                    result => result?,
                }
                Ok(Outcome::Done)
            }
            Ask::WriteZeroes { may_unmap, .. } => {
                let (at, length) = ask.extent().unwrap_or_default();
                match self.clear(at, length, *may_unmap, buffer, may) {
                    Err(Trouble::Io(_, error)) if error.kind() == io::ErrorKind::Unsupported => {
                        self.write_zeros(at, length, buffer, may)?;
                    }
                    result => result?,
                }
                Ok(Outcome::Done)
            }
        }
    }

    /// Reads if that needs no waiting.
    pub fn try_read(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        if self.align > 1 {
            return None;
        }
        let mut bytes = vec![0; length];
        let read = self.medium.try_read_at(&mut bytes, at).ok()?;
        (read == length).then_some(bytes)
    }

    /// Reads `length` bytes (at most [`MAX_REQUEST`]) at `at`.
    pub fn read(&self, at: u64, length: usize, buffer: &mut Buffer) -> Result<Vec<u8>, Trouble> {
        if self.align == 1 {
            let mut bytes = vec![0; length];
            self.fill(&mut bytes, at)?;
            return Ok(bytes);
        }
        let (from, to) = self.blocks(at, length as u64);
        let whole = buffer.of((to - from) as usize);
        self.fill(whole, from)?;
        Ok(whole[(at - from) as usize..][..length].to_vec())
    }

    /// The blocks that this range lies in: beginning and end.
    fn blocks(&self, at: u64, length: u64) -> (u64, u64) {
        (at & !(self.align - 1), (at + length).next_multiple_of(self.align))
    }

    fn fill(&self, mut bytes: &mut [u8], mut at: u64) -> Result<(), Trouble> {
        while !bytes.is_empty() {
            match self.medium.read_at(bytes, at) {
                Ok(0) => return Err(Trouble::Io("read", io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => {
                    bytes = &mut bytes[read..];
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Trouble::Io("read", error)),
            }
        }
        Ok(())
    }

    fn write(&self, at: u64, data: &[u8], buffer: &mut Buffer, may: MayChange) -> Result<(), Trouble> {
        if self.align == 1 {
            return self.put(data, at, may);
        }
        let (from, to) = self.blocks(at, data.len() as u64);
        let whole = buffer.of((to - from) as usize);
        let block = self.align as usize;
        let (head, tail) = ((at - from) as usize, (to - at) as usize - data.len());
        // Nobody else changes the rest of these blocks meanwhile: requests overlap by whole blocks.
        if head > 0 {
            self.fill(&mut whole[..block], from)?;
        }
        if tail > 0 && (whole.len() > block || head == 0) {
            let last = whole.len() - block;
            self.fill(&mut whole[last..], to - self.align)?;
        }
        whole[head..][..data.len()].copy_from_slice(data);
        self.put(whole, from, may)
    }

    fn put(&self, mut bytes: &[u8], mut at: u64, may: MayChange) -> Result<(), Trouble> {
        while !bytes.is_empty() {
            may()?;
            match self.medium.write_at(bytes, at) {
                Ok(0) => return Err(Trouble::Io("write", io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    bytes = &bytes[written..];
                    at += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Trouble::Io("write", error)),
            }
        }
        Ok(())
    }

    fn write_zeros(&self, at: u64, length: u64, buffer: &mut Buffer, may: MayChange) -> Result<(), Trouble> {
        let zeros = vec![0; length.min(MAX_REQUEST as u64) as usize];
        let mut done = 0;
        while done < length {
            let now = (length - done).min(zeros.len() as u64);
            self.write(at + done, &zeros[..now as usize], buffer, may)?;
            done += now;
        }
        Ok(())
    }

    /// Makes the range read as zeros, with its room given back or kept. Where this host's memory is passed by, only whole pages may
    /// be left to the file system: it clears the rest of a page in this host's memory.
    fn clear(&self, at: u64, length: u64, unmap: bool, buffer: &mut Buffer, may: MayChange) -> Result<(), Trouble> {
        let (mut from, mut to) = (at, at + length);
        if self.align > 1 {
            from = at.next_multiple_of(MAX_ALIGN);
            to = (at + length) & !(MAX_ALIGN - 1);
            if from >= to {
                return self.write_zeros(at, length, buffer, may);
            }
        }
        may()?;
        let cleared = if unmap { self.medium.punch(from, to - from) } else { self.medium.zero(from, to - from) };
        cleared.map_err(|error| Trouble::Io("clear", error))?;
        self.write_zeros(at, from - at, buffer, may)?;
        self.write_zeros(to, at + length - to, buffer, may)
    }

    /// The first range at or after `from` that may hold something else than zeros.
    pub fn data_from(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        self.medium.data_from(from)
    }

    /// Makes the whole image read as zeros.
    pub fn clear_all(&self) -> Result<(), Trouble> {
        let may = || Ok(());
        let mut buffer = Buffer::default();
        match self.clear(0, self.size, true, &mut buffer, &may) {
            Err(Trouble::Io(_, error)) if error.kind() == io::ErrorKind::Unsupported => {
                self.write_zeros(0, self.size, &mut buffer, &may)
            }
            result => result,
        }
    }
}
