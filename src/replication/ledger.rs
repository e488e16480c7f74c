//! How much of the log is under way: bytes sent and not yet settled, in bounded memory.
//!
//! Frames are noted with a mark that only grows (an entry number, a stamp) and settled up to a mark. A full ledger
//! folds new frames into its last one: their bytes are then settled a little late, which errs on the safe side,
//! and nothing is ever allocated after the start.

use std::collections::VecDeque;

/// Frames under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    frames: VecDeque<Frame>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Frame {
    /// Settled when everything up to here is.
    mark: u64,
    bytes: u64,
}

impl Ledger {
    /// The most frames told apart.
    pub const MAX_FRAMES: usize = 1024;

    /// Makes room for [`Ledger::MAX_FRAMES`], so that noting a frame never allocates.
    pub fn reserve(&mut self) {
        self.frames.reserve(Self::MAX_FRAMES);
    }

    /// Notes a frame of `bytes` that is settled at `mark`, which is not below the mark before.
    pub fn note(&mut self, mark: u64, bytes: u64) {
        self.bytes += bytes;
        let full = self.frames.len() >= Self::MAX_FRAMES;
        match self.frames.back_mut().filter(|_| full) {
            Some(last) => {
                last.mark = mark;
                last.bytes += bytes;
            }
            None => self.frames.push_back(Frame { mark, bytes }),
        }
    }

    /// Settles every frame whose mark is at or below `mark`.
    pub fn settle(&mut self, mark: u64) {
        while let Some(frame) = self.frames.front().filter(|frame| frame.mark <= mark) {
            self.bytes -= frame.bytes;
            self.frames.pop_front();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
    }

    /// Bytes not settled.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Mark of the oldest frame that is not settled.
    pub fn oldest(&self) -> Option<u64> {
        self.frames.front().map(|frame| frame.mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_unsettled_frames() {
        let mut ledger = Ledger::default();
        for (mark, bytes) in [(2, 10), (5, 20), (6, 30)] {
            ledger.note(mark, bytes);
        }
        ledger.settle(4);
        assert_eq!((ledger.bytes(), ledger.oldest()), (50, Some(5)));
        ledger.settle(6);
        assert_eq!((ledger.bytes(), ledger.oldest()), (0, None));
    }

    #[test]
    fn a_full_ledger_settles_late_and_never_early() {
        let mut ledger = Ledger::default();
        ledger.reserve();
        let capacity = ledger.frames.capacity();
        for mark in 1..=3 * Ledger::MAX_FRAMES as u64 {
            ledger.note(mark, 1);
        }
        assert_eq!(ledger.frames.capacity(), capacity, "it allocated");
        ledger.settle(Ledger::MAX_FRAMES as u64 + 5);
        assert_eq!(ledger.bytes(), 2 * Ledger::MAX_FRAMES as u64 + 1, "the folded frames wait for the last of them");
        ledger.settle(3 * Ledger::MAX_FRAMES as u64);
        assert_eq!(ledger.bytes(), 0);
    }
}
