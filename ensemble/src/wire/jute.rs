//! Jute, the encoding of ZooKeeper's records: big-endian integers, one byte for a boolean, and a length of four bytes before
//! whatever has one. A length of −1 is Java's `null`.
//!
//! Every length is held against the bytes that are there before anything is allocated, so a reader never takes more memory than
//! the frame that it was given.

use bytes::{BufMut, BytesMut};

/// Why bytes are not the record that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JuteError {
    /// The record goes on where the frame has ended.
    #[error("the record is cut short")]
    Short,
    /// A length that is negative, or larger than what follows.
    #[error("a length of {0} does not fit into the record")]
    Length(i32),
    /// A string that has to be there is null.
    #[error("a string is null")]
    Null,
    /// A number that stands for nothing.
    #[error("{what} cannot be {value}")]
    Value {
        /// Of what.
        what: &'static str,
        /// The number.
        value: i32,
    },
}

/// Reads a record from its first byte on.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// So many bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], JuteError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(JuteError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// That many bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], JuteError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(JuteError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// An `int`.
    pub fn int(&mut self) -> Result<i32, JuteError> {
        self.array().map(i32::from_be_bytes)
    }

    /// A `long`.
    pub fn long(&mut self) -> Result<i64, JuteError> {
        self.array().map(i64::from_be_bytes)
    }

    /// A `boolean`; whatever is not 0 is true, as in Java.
    pub fn bool(&mut self) -> Result<bool, JuteError> {
        self.array().map(|[byte]| byte != 0)
    }

    /// A `buffer`; a null one is `None`.
    pub fn buffer(&mut self) -> Result<Option<&'a [u8]>, JuteError> {
        match self.int()? {
            -1 => Ok(None),
            length => {
                let bytes = usize::try_from(length).map_err(|_| JuteError::Length(length))?;
                self.take(bytes).map(Some).map_err(|_| JuteError::Length(length))
            }
        }
    }

    /// A `ustring`; a null one is `None`. One that is not UTF-8 is read as U+FFFD, which stands in no path and names nobody.
    pub fn string(&mut self) -> Result<Option<&'a str>, JuteError> {
        Ok(self.buffer()?.map(|bytes| std::str::from_utf8(bytes).unwrap_or("\u{fffd}")))
    }

    /// A `ustring` that must not be null.
    pub fn text(&mut self) -> Result<&'a str, JuteError> {
        self.string()?.ok_or(JuteError::Null)
    }

    /// A `vector` whose elements `read` takes, each of which has at least `least` bytes; one of a negative length is empty.
    pub fn vector<T>(
        &mut self,
        least: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, JuteError>,
    ) -> Result<Vec<T>, JuteError> {
        let length = usize::try_from(self.int()?).unwrap_or(0);
        if length.saturating_mul(least.max(1)) > self.rest.len() {
            return Err(JuteError::Length(length as i32));
        }
        let mut elements = Vec::with_capacity(length);
        for _ in 0..length {
            elements.push(read(self)?);
        }
        Ok(elements)
    }
}

/// Writes records.
pub trait Write: BufMut {
    /// An `int`.
    fn int(&mut self, value: i32) {
        self.put_i32(value);
    }

    /// A `long`.
    fn long(&mut self, value: i64) {
        self.put_i64(value);
    }

    /// A `boolean`.
    fn bool(&mut self, value: bool) {
        self.put_u8(value.into());
    }

    /// A `buffer`.
    fn buffer(&mut self, bytes: &[u8]) {
        self.put_i32(bytes.len() as i32);
        self.put_slice(bytes);
    }

    /// A null `buffer`, `ustring` or `vector`.
    fn null(&mut self) {
        self.put_i32(-1);
    }

    /// A `ustring`.
    fn string(&mut self, text: &str) {
        self.buffer(text.as_bytes());
    }
}

impl Write for BytesMut {}
impl Write for Vec<u8> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_written_is_read_and_null_is_told_from_empty() {
        let mut bytes = Vec::new();
        Write::int(&mut bytes, -5);
        bytes.long(1 << 40);
        bytes.bool(true);
        bytes.string("café");
        bytes.null();
        bytes.buffer(b"");
        let mut reader = Reader::new(&bytes);
        assert_eq!((reader.int(), reader.long(), reader.bool()), (Ok(-5), Ok(1 << 40), Ok(true)));
        assert_eq!(
            (reader.string(), reader.buffer(), reader.buffer()),
            (Ok(Some("café")), Ok(None), Ok(Some(&b""[..])))
        );
        assert_eq!((reader.rest().len(), reader.int()), (0, Err(JuteError::Short)));
    }

    #[test]
    fn lengths_that_lie_are_refused_before_anything_is_allocated() {
        let long = i32::MAX.to_be_bytes();
        assert_eq!(Reader::new(&long).buffer(), Err(JuteError::Length(i32::MAX)));
        assert_eq!(Reader::new(&long).vector(1, Reader::bool), Err(JuteError::Length(i32::MAX)));
        assert_eq!(Reader::new(&(-2i32).to_be_bytes()).buffer(), Err(JuteError::Length(-2)));
        assert_eq!(Reader::new(&(-7i32).to_be_bytes()).vector(1, Reader::bool), Ok(vec![]));
        assert_eq!(Reader::new(&[0, 0, 0, 1, 0xff]).string(), Ok(Some("\u{fffd}")));
        assert_eq!(Reader::new(&(-1i32).to_be_bytes()).text(), Err(JuteError::Null));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            let _ = reader.vector(8, |reader| Ok((reader.int()?, reader.string()?.map(str::len))));
            let _ = reader.buffer();
        }
    }
}
