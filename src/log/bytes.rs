//! The two primitives of the entry format: little-endian numbers of a known width, and the prefix
//! varint. Both move eight bytes at a time and mask, because that is what makes the codec fast.
//!
//! The prefix varint says its length in its first byte: as many bytes follow as that has trailing zero
//! bits. Its bytes, read little endian and shifted right over zeros and marker, are the value:
//!
//! | first byte | bytes | value below |
//! | --- | --- | --- |
//! | `.......1` | 1 | 2^7 |
//! | `......10` | 2 | 2^14 |
//! | … | n | 2^(7n) |
//! | `10000000` | 8 | 2^56 |
//! | `00000000` | 9 | 2^64: the eight bytes after the first |

/// The bytes end before the number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut;

/// How many bytes `value` fills: 0 for 0, 8 at most.
#[inline]
pub(super) const fn width(value: u64) -> u32 {
    (71 - value.leading_zeros()) / 8
}

/// The low `width` bytes of a number set; `width` is 8 at most.
#[inline]
const fn mask(width: u32) -> u64 {
    if width == 0 { 0 } else { u64::MAX >> (64 - 8 * width) }
}

/// A few numbers on the stack, to be appended to a `Vec` in one piece.
pub(super) struct Short {
    bytes: [u8; Short::ROOM],
    length: usize,
}

impl Short {
    /// The longest run of numbers (tag, exits, polls, input form, session, offset: 36 bytes), and the
    /// eight bytes that every store touches.
    const ROOM: usize = 48;

    #[inline]
    pub(super) fn new() -> Self {
        Short { bytes: [0; Short::ROOM], length: 0 }
    }

    /// Adds the low `width` bytes of `value`; the others must be 0.
    #[inline]
    pub(super) fn put(&mut self, value: u64, width: u32) {
        debug_assert_eq!(value & !mask(width), 0);
        self.bytes[self.length..self.length + 8].copy_from_slice(&value.to_le_bytes());
        self.length += width as usize;
    }

    #[inline]
    pub(super) fn varint(&mut self, value: u64) {
        let following = (63 - (value | 1).leading_zeros()) / 7;
        if following < 8 {
            self.put((value << 1 | 1) << following, following + 1);
        } else {
            self.put(0, 1);
            self.put(value, 8);
        }
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A cursor over bytes from outside.
pub(super) struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    #[inline]
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Bytes { rest: bytes }
    }

    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `width` bytes (8 at most) as a number.
    #[inline]
    pub(super) fn take(&mut self, width: u32) -> Result<u64, Cut> {
        let value = self.peek(width)?;
        self.rest = &self.rest[width as usize..];
        Ok(value)
    }

    /// The next varint; `None` if a shorter one has the same value.
    #[inline]
    pub(super) fn varint(&mut self) -> Result<Option<u64>, Cut> {
        let following = (self.peek(1)? as u8).trailing_zeros();
        if following < 8 {
            let value = self.take(following + 1)? >> (following + 1);
            Ok((following == 0 || value >> (7 * following) != 0).then_some(value))
        } else {
            if self.rest.len() < 9 {
                return Err(Cut);
            }
            self.rest = &self.rest[1..];
            let value = self.take(8)?;
            Ok((value >> 56 != 0).then_some(value))
        }
    }

    /// The next `length` bytes themselves.
    pub(super) fn slice(&mut self, length: usize) -> Result<&'a [u8], Cut> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Cut)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn peek(&self, width: u32) -> Result<u64, Cut> {
        if let Some(eight) = self.rest.first_chunk::<8>() {
            return Ok(u64::from_le_bytes(*eight) & mask(width));
        }
        let near_end = self.rest.get(..width as usize).ok_or(Cut)?;
        Ok(near_end.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: u64) -> Vec<u8> {
        let mut short = Short::new();
        short.varint(value);
        short.bytes().to_vec()
    }

    /// Values around every change of length, of either primitive.
    fn edges() -> impl Iterator<Item = u64> {
        (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1]).chain([u64::MAX - 1, u64::MAX])
    }

    #[test]
    fn varints_come_back_and_are_as_short_as_the_table_says() {
        for value in edges() {
            let bytes = written(value);
            let bits = 64 - value.leading_zeros();
            assert_eq!(bytes.len(), if bits > 56 { 9 } else { bits.max(1).div_ceil(7) as usize }, "{value:#x}");
            for padding in [0, 1, 20] {
                let mut padded = bytes.clone();
                padded.resize(bytes.len() + padding, 0xa5);
                let mut cursor = Bytes::new(&padded);
                assert_eq!(cursor.varint(), Ok(Some(value)), "{value:#x}");
                assert_eq!(cursor.rest().len(), padding);
            }
            for cut in 0..bytes.len() {
                assert_eq!(Bytes::new(&bytes[..cut]).varint(), Err(Cut), "{value:#x} cut to {cut}");
            }
        }
    }

    #[test]
    fn a_varint_longer_than_needed_is_none() {
        for following in 1..8 {
            let longest_that_fits_before = (1u64 << (7 * following)) - 1;
            let long = (longest_that_fits_before << 1 | 1) << following;
            assert_eq!(Bytes::new(&long.to_le_bytes()[..following + 1]).varint(), Ok(None));
        }
        assert_eq!(Bytes::new(&[0, 255, 255, 255, 255, 255, 255, 255, 0]).varint(), Ok(None));
    }

    #[test]
    fn numbers_of_every_width_come_back() {
        for value in edges() {
            let bytes = value.to_le_bytes();
            for padding in [0, 1, 20] {
                let mut padded = bytes[..width(value) as usize].to_vec();
                assert_eq!(bytes[padded.len()..].iter().max().unwrap_or(&0), &0, "{value:#x} is wider");
                padded.resize(padded.len() + padding, 0xa5);
                assert_eq!(Bytes::new(&padded).take(width(value)), Ok(value));
            }
        }
    }
}
