//! Entries out of entries frames, wherever the frames come from: a file, or the channel by way of a
//! backup's memory. Sees to it that no entry is missing, doubled or undecodable.

use super::codec::{CodecError, Decoder, Encoder};
use super::entry::Entry;

/// Why a frame's entries are not the next ones of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The frame starts at another entry than the one that follows.
    #[error("a frame starts at entry {found}, but entry {expected} is the next")]
    Gap {
        /// Number of the entry that follows.
        expected: u64,
        /// Number of the frame's first entry.
        found: u64,
    },
    /// A frame without entries, at this entry number.
    #[error("an empty frame at entry {0}")]
    Empty(u64),
    /// An entry cannot be decoded. In a whole frame, that includes [`CodecError::CutShort`].
    #[error("entry {number} is damaged")]
    Entry {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// The frame has more bytes than its entries.
    #[error("{bytes} bytes left over before entry {number}")]
    Leftover {
        /// Number of the entry after the frame.
        number: u64,
        /// How many bytes.
        bytes: usize,
    },
}

/// Decodes one frame's payload after the other, from entry 0 on.
#[derive(Clone, Debug, Default)]
pub struct EntryStream {
    decoder: Decoder,
    left_in_frame: u32,
}

impl EntryStream {
    /// A stream at the start of a log.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stream that goes on where `encoder` stands.
    pub fn continuing(encoder: &Encoder) -> Self {
        EntryStream { decoder: Decoder::continuing(encoder), left_in_frame: 0 }
    }

    /// The decoder, as far as it has come: the number of the next entry, last instant, last clock.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Starts a frame of `count` entries from number `first` on; the frame before must be used up.
    pub fn begin(&mut self, first: u64, count: u32) -> Result<(), StreamError> {
        let expected = self.decoder.entries() + u64::from(self.left_in_frame);
        if first != expected || self.left_in_frame != 0 {
            return Err(StreamError::Gap { expected, found: first });
        }
        if count == 0 {
            return Err(StreamError::Empty(first));
        }
        self.left_in_frame = count;
        Ok(())
    }

    /// Takes the frame's next entry off the front of what is left of its payload; `None` at its end.
    #[inline]
    pub fn next(&mut self, payload: &mut &[u8]) -> Result<Option<Entry>, StreamError> {
        let number = self.decoder.entries();
        if self.left_in_frame == 0 {
            return if payload.is_empty() {
                Ok(None)
            } else {
                Err(StreamError::Leftover { number, bytes: payload.len() })
            };
        }
        let entry = self.decoder.decode(payload).map_err(|source| StreamError::Entry { number, source })?;
        self.left_in_frame -= 1;
        Ok(Some(entry))
    }
}
