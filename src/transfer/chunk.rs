//! Chunks: pages of memory and pieces of a disk, packed for the way. What is all zeros is a few bytes; the rest goes as it is or, where the
//! link is slower than the processor and the bytes allow it, compressed (LZ4, block format).
//!
//! ```text
//! chunk  = 0, records                         as they are
//!        | 1, length of the records (u32), LZ4 block of them
//! record = 1, first page (u32), count (u16), count * 4096 bytes      pages
//!        | 2, first page (u32), count (u32)                          pages of zeros
//!        | 3, position (u64), length (u32), length bytes             a piece of the disk
//!        | 4, position (u64), length (u32)                           a piece of zeros
//! ```
//!
//! All numbers are little endian. A chunk has at most [`MAX_RECORDS`] bytes of records, so a reader allocates no more than that.

use std::mem::replace;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The most bytes of records in one chunk.
pub const MAX_RECORDS: usize = 512 << 10;

/// The most bytes of one piece of a disk.
pub const MAX_PIECE: usize = 256 << 10;

/// Bytes of records from which on a chunk is worth sending.
const WORTH_SENDING: usize = 248 << 10;

const PLAIN: u8 = 0;
const LZ4: u8 = 1;
const PAGES: u8 = 1;
const ZERO_PAGES: u8 = 2;
const PIECE: u8 = 3;
const ZERO_PIECE: u8 = 4;

/// The numbers of the pages that `written` names, one bit each.
pub fn page_numbers(written: &[u64]) -> impl Iterator<Item = u32> + '_ {
    written.iter().enumerate().flat_map(|(index, &word)| {
        let mut bits = word;
        std::iter::from_fn(move || {
            let bit = (bits != 0).then(|| bits.trailing_zeros())?;
            bits &= bits - 1;
            Some(index as u32 * 64 + bit)
        })
    })
}

/// Whether a page is all zeros.
pub fn is_zero(page: &[u8; PAGE]) -> bool {
    page.as_chunks::<16>().0.iter().all(|words| u128::from_ne_bytes(*words) == 0)
}

/// Why bytes are no chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// They end inside a record, or before the first.
    #[error("a chunk of state ends too early")]
    CutShort,
    /// No way of packing has this number.
    #[error("a chunk of state is packed in the unknown way {0}")]
    UnknownPacking(u8),
    /// No record has this number.
    #[error("a chunk of state has the unknown record {0}")]
    UnknownRecord(u8),
    /// It unpacks to this many bytes.
    #[error("a chunk of state with {0} bytes (at most {MAX_RECORDS})")]
    TooLarge(u64),
    /// The compressed bytes are none.
    #[error("a chunk of state cannot be unpacked")]
    Compressed,
    /// A record about nothing, or about more than there can be.
    #[error("a chunk of state has a record of no or of impossible length")]
    Length,
}

/// What a chunk brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A page of memory.
    Page {
        /// Its number.
        number: u32,
        /// What is in it; `None`: zeros.
        bytes: Option<&'a [u8; PAGE]>,
    },
    /// A piece of a disk.
    Piece {
        /// Where it begins, in bytes.
        at: u64,
        /// How long it is, in bytes.
        length: u32,
        /// What is in it; `None`: zeros.
        bytes: Option<&'a [u8]>,
    },
}

/// A plain chunk without records.
fn empty() -> Vec<u8> {
    let mut chunk = Vec::with_capacity(WORTH_SENDING + PAGE + 64);
    chunk.push(PLAIN);
    chunk
}

/// Packs chunks.
#[derive(Debug)]
pub struct Packer {
    /// A plain chunk.
    chunk: Vec<u8>,
    /// The record of pages that is being made: where it begins, the page that would continue it, and how many it has.
    run: Option<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    start: usize,
    zero: bool,
    next: u32,
    count: u32,
}

impl Default for Packer {
    fn default() -> Self {
        Packer { chunk: empty(), run: None }
    }
}

impl Packer {
    /// Adds a page; `None`: zeros. Pages that follow each other make one record.
    pub fn page(&mut self, number: u32, bytes: Option<&[u8; PAGE]>) {
        let zero = bytes.is_none();
        let goes_on = self.run.filter(|run| {
            run.zero == zero && run.next == number && run.count < if zero { u32::MAX } else { u16::MAX.into() }
        });
        let mut run = goes_on.unwrap_or_else(|| {
            self.end_run();
            let start = self.chunk.len();
            self.chunk.push(if zero { ZERO_PAGES } else { PAGES });
            self.chunk.extend_from_slice(&number.to_le_bytes());
            self.chunk.extend_from_slice(if zero { &[0; 4] } else { &[0; 2] });
            Run { start, zero, next: number, count: 0 }
        });
        if let Some(bytes) = bytes {
            self.chunk.extend_from_slice(bytes);
        }
        run.next = number.wrapping_add(1);
        run.count += 1;
        self.run = Some(run);
    }

    /// Adds a piece of a disk; no bytes: zeros. At most [`MAX_PIECE`] bytes.
    pub fn piece(&mut self, at: u64, length: u32, bytes: &[u8]) {
        self.end_run();
        self.chunk.push(if bytes.is_empty() { ZERO_PIECE } else { PIECE });
        self.chunk.extend_from_slice(&at.to_le_bytes());
        self.chunk.extend_from_slice(&length.to_le_bytes());
        self.chunk.extend_from_slice(bytes);
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let at = run.start + 5;
        if run.zero {
            self.chunk[at..at + 4].copy_from_slice(&run.count.to_le_bytes());
        } else {
            self.chunk[at..at + 2].copy_from_slice(&(run.count as u16).to_le_bytes());
        }
    }

    /// Whether there is enough for a chunk.
    pub fn is_full(&self) -> bool {
        self.chunk.len() >= WORTH_SENDING
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.chunk.len() == 1
    }

    /// Takes what there is as a chunk, compressed if asked for and if that saves at least an eighth. The second value is what it saved, in
    /// bytes.
    pub fn take(&mut self, compress: bool) -> (Vec<u8>, usize) {
        self.end_run();
        // What a chunk that is not compressed begins with is there already.
        let chunk = replace(&mut self.chunk, empty());
        let records = &chunk[1..];
        if compress {
            let mut packed = vec![0; 5 + lz4_flex::block::get_maximum_output_size(records.len())];
            packed[0] = LZ4;
            packed[1..5].copy_from_slice(&(records.len() as u32).to_le_bytes());
            if let Ok(length) = lz4_flex::block::compress_into(records, &mut packed[5..])
                && length <= records.len() - records.len() / 8
            {
                packed.truncate(5 + length);
                return (packed, records.len() - length);
            }
        }
        (chunk, 0)
    }
}

/// Unpacks chunks; keeps its memory from one to the next.
#[derive(Debug, Default)]
pub struct Unpacker {
    records: Vec<u8>,
}

impl Unpacker {
    /// Tells `each` what is in `chunk`, in order. Everything before a flaw has been told by the time that is found.
    pub fn unpack<E: From<ChunkError>>(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(Part<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let records = match chunk.split_first().ok_or(ChunkError::CutShort)? {
            (&PLAIN, records) if records.len() > MAX_RECORDS => {
                return Err(ChunkError::TooLarge(records.len() as u64).into());
            }
            (&PLAIN, records) => records,
            (&LZ4, rest) => {
                let (length, block) = rest.split_first_chunk().ok_or(ChunkError::CutShort)?;
                let length = u32::from_le_bytes(*length) as usize;
                if length > MAX_RECORDS {
                    return Err(ChunkError::TooLarge(length as u64).into());
                }
                self.records.resize(length, 0);
                match lz4_flex::block::decompress_into(block, &mut self.records) {
                    Ok(found) if found == length => &self.records,
                    _ => return Err(ChunkError::Compressed.into()),
                }
            }
            (&other, _) => return Err(ChunkError::UnknownPacking(other).into()),
        };
        let mut rest = Rest(records);
        while !rest.0.is_empty() {
            rest.record(&mut each)?;
        }
        Ok(())
    }
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], ChunkError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(ChunkError::CutShort)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, ChunkError> {
        self.take().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn record<E: From<ChunkError>>(&mut self, each: &mut impl FnMut(Part<'_>) -> Result<(), E>) -> Result<(), E> {
        let [kind] = *self.take()?;
        match kind {
            PAGES | ZERO_PAGES => {
                let first = self.u32()?;
                let zero = kind == ZERO_PAGES;
                let count = if zero { self.u32()? } else { u16::from_le_bytes(*self.take()?).into() };
                // A page more than the machine can have is found by whoever is told; here only the numbers must not wrap.
                if count == 0 || first.checked_add(count).is_none() || zero && count > 1 << 20 {
                    return Err(ChunkError::Length.into());
                }
                for number in first..first + count {
                    let bytes = if zero { None } else { Some(self.take()?) };
                    each(Part::Page { number, bytes })?;
                }
                Ok(())
            }
            PIECE | ZERO_PIECE => {
                let at = u64::from_le_bytes(*self.take()?);
                let length = self.u32()?;
                if length == 0 || length as usize > MAX_PIECE || at.checked_add(length.into()).is_none() {
                    return Err(ChunkError::Length.into());
                }
                if kind == ZERO_PIECE {
                    return each(Part::Piece { at, length, bytes: None });
                }
                let (bytes, rest) = self.0.split_at_checked(length as usize).ok_or(ChunkError::CutShort)?;
                self.0 = rest;
                each(Part::Piece { at, length, bytes: Some(bytes) })
            }
            other => Err(ChunkError::UnknownRecord(other).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Owned {
        Page(u32, Option<Vec<u8>>),
        Piece(u64, u32, Option<Vec<u8>>),
    }

    fn unpack(chunk: &[u8]) -> Result<Vec<Owned>, ChunkError> {
        let mut parts = Vec::new();
        Unpacker::default().unpack(chunk, |part| {
            parts.push(match part {
                Part::Page { number, bytes } => Owned::Page(number, bytes.map(|bytes| bytes.to_vec())),
                Part::Piece { at, length, bytes } => Owned::Piece(at, length, bytes.map(<[u8]>::to_vec)),
            });
            Ok::<(), ChunkError>(())
        })?;
        Ok(parts)
    }

    fn pack(parts: &[Owned], compress: bool) -> Vec<u8> {
        let mut packer = Packer::default();
        for part in parts {
            match part {
                Owned::Page(number, bytes) => {
                    packer.page(*number, bytes.as_ref().map(|bytes| bytes.first_chunk().unwrap()));
                }
                Owned::Piece(at, length, bytes) => packer.piece(*at, *length, bytes.as_deref().unwrap_or_default()),
            }
        }
        packer.take(compress).0
    }

    fn part() -> impl Strategy<Value = Owned> {
        let page = prop_oneof![Just(None), any::<u8>().prop_map(|byte| Some(vec![byte; PAGE]))];
        let piece = prop_oneof![
            (1..5000u32).prop_map(|length| (length, None)),
            vec(any::<u8>(), 1..5000).prop_map(|bytes| (bytes.len() as u32, Some(bytes)))
        ];
        prop_oneof![
            3 => (0..12u32, page).prop_map(|(number, bytes)| Owned::Page(number, bytes)),
            1 => (any::<u32>(), piece).prop_map(|(at, (length, bytes))| Owned::Piece(at.into(), length, bytes)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn parts_come_back_in_order(parts in vec(part(), 0..40), compress: bool) {
            prop_assert_eq!(unpack(&pack(&parts, compress)).unwrap(), parts);
        }

        #[test]
        fn damage_is_named_and_allocates_no_more_than_a_chunk_has(
            parts in vec(part(), 0..10), compress: bool, at: prop::sample::Index, byte: u8, cut: bool,
        ) {
            let mut chunk = pack(&parts, compress);
            let at = at.index(chunk.len());
            if cut { chunk.truncate(at) } else { chunk[at] = byte }
            // Whatever it says, it says it: no panic. (What is changed without being broken, the frame's checksum finds.)
            let _ = unpack(&chunk);
        }
    }

    #[test]
    fn pages_in_a_row_are_one_record_and_zeros_are_small() {
        let mut packer = Packer::default();
        for number in 0..40 {
            packer.page(number, None);
        }
        assert_eq!(packer.take(false).0.len(), 1 + 9);
        let page = [7; PAGE];
        (5..10).for_each(|number| packer.page(number, Some(&page)));
        assert_eq!(packer.take(false).0.len(), 1 + 7 + 5 * PAGE);
    }

    #[test]
    fn what_does_not_shrink_is_sent_as_it_is() {
        let mut packer = Packer::default();
        let mut state = 1u64;
        let noise: [u8; PAGE] = std::array::from_fn(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        });
        packer.page(0, Some(&noise));
        let (chunk, saved) = packer.take(true);
        assert_eq!((chunk[0], saved), (PLAIN, 0));
        packer.page(0, Some(&[1; PAGE]));
        let (chunk, saved) = packer.take(true);
        assert_eq!(chunk[0], LZ4);
        assert!(saved > PAGE / 2);
    }

    #[test]
    fn bad_chunks_have_names() {
        assert_eq!(unpack(&[]), Err(ChunkError::CutShort));
        assert_eq!(unpack(&[9]), Err(ChunkError::UnknownPacking(9)));
        assert_eq!(unpack(&[0, 77]), Err(ChunkError::UnknownRecord(77)));
        assert_eq!(unpack(&[0, 1, 0, 0, 0, 0, 1, 0, 5]), Err(ChunkError::CutShort));
        assert_eq!(unpack(&[0, 2, 1, 0, 0, 0, 0, 0, 0, 0]), Err(ChunkError::Length));
        assert_eq!(unpack(&[0, 2, 255, 255, 255, 255, 1, 0, 0, 0]), Err(ChunkError::Length));
        assert_eq!(unpack(&[1, 255, 255, 255, 255]), Err(ChunkError::TooLarge(u64::from(u32::MAX))));
        assert_eq!(unpack(&[1, 4, 0, 0, 0, 255, 255]), Err(ChunkError::Compressed));
    }
}
