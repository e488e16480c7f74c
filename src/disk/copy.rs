//! Which parts of an image a new backup lacks: a bit for each block, set at the beginning where there is data, and again when the block changes.

/// A bit stands for this many bytes.
pub const BLOCK: u64 = 64 << 10;
/// The most blocks of one piece.
const PIECE: u64 = 4;

/// The blocks that are to be copied.
#[derive(Clone, Debug)]
pub struct ToCopy {
    bits: Vec<u64>,
    size: u64,
    left: u64,
    /// Where to look next.
    cursor: u64,
}

impl ToCopy {
    /// Nothing of an image of `size` bytes.
    pub fn none_of(size: u64) -> Self {
        let blocks = size.div_ceil(BLOCK);
        ToCopy { bits: vec![0; blocks.div_ceil(64) as usize], size, left: 0, cursor: 0 }
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    fn is_set(&self, block: u64) -> bool {
        self.bits[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    /// The range has to be copied (again).
    pub fn add(&mut self, at: u64, length: u64) {
        let end = (at.saturating_add(length)).min(self.size).div_ceil(BLOCK);
        for block in at / BLOCK..end {
            if !self.is_set(block) {
                self.bits[(block / 64) as usize] |= 1 << (block % 64);
                self.left += 1;
            }
        }
    }

    /// How many bytes are to be copied, in whole blocks.
    pub fn left_bytes(&self) -> u64 {
        self.left * BLOCK
    }

    /// The next range to copy: it counts as copied from now on. (position, length)
    pub fn take(&mut self) -> Option<(u64, u64)> {
        if self.left == 0 {
            return None;
        }
        let blocks = self.blocks();
        let mut first = self.cursor % blocks;
        while !self.is_set(first) {
            // A word without bits is passed at once.
            let word = self.bits[(first / 64) as usize] >> (first % 64);
            first = if word == 0 { (first / 64 + 1) * 64 } else { first + u64::from(word.trailing_zeros()) };
            if first >= blocks {
                first = 0;
            }
        }
        let mut end = first;
        while end < blocks && end - first < PIECE && self.is_set(end) {
            self.bits[(end / 64) as usize] &= !(1 << (end % 64));
            self.left -= 1;
            end += 1;
        }
        self.cursor = end;
        let at = first * BLOCK;
        Some((at, (end * BLOCK).min(self.size) - at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_that_was_added_is_taken_once_until_it_is_added_again() {
        let size = 1000 * BLOCK + 512;
        let mut left = ToCopy::none_of(size);
        assert_eq!(left.take(), None);
        left.add(0, 1);
        left.add(5 * BLOCK - 1, 2);
        left.add(1000 * BLOCK, 512);
        assert_eq!(left.left_bytes(), 4 * BLOCK);
        assert_eq!(left.take(), Some((0, BLOCK)));
        left.add(100, 512);
        assert_eq!(left.take(), Some((4 * BLOCK, 2 * BLOCK)));
        assert_eq!(left.take(), Some((1000 * BLOCK, 512)), "the end of the image");
        assert_eq!(left.take(), Some((0, BLOCK)), "it changed meanwhile");
        assert_eq!((left.take(), left.left_bytes()), (None, 0));
        left.add(0, size);
        let mut pieces: Vec<_> = std::iter::from_fn(|| left.take()).collect();
        pieces.sort_unstable();
        let mut copied = 0;
        for (at, length) in pieces {
            assert_eq!(at, copied);
            assert!(length <= PIECE * BLOCK);
            copied += length;
        }
        assert_eq!(copied, size);
    }
}
