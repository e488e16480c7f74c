//! Outputs waiting for their release: the output rule as data.
//!
//! The vCPU appends the entry of an output to the log, queues the output under that entry's number, and goes
//! on. The output leaves once the machine at the protocol has said `Release { below }` with a larger number, and not while
//! `Hold` is in force. There is one such queue, and nothing leaves past it.

use std::collections::VecDeque;

/// Outputs in the order in which the guest made them, and how far they may leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeldOutputs<T> {
    /// Entry number and output; entry numbers ascend.
    queue: VecDeque<(u64, T)>,
    /// Outputs of entries below this number may leave.
    below: u64,
}

impl<T> Default for HeldOutputs<T> {
    fn default() -> Self {
        HeldOutputs { queue: VecDeque::new(), below: 0 }
    }
}

impl<T> HeldOutputs<T> {
    /// Queues the output of the entry with number `entry`.
    ///
    /// # Panics
    /// If `entry` is below that of the output before: the vCPU would have broken the log's order. (Where there is no log, all
    /// outputs have the same number.)
    pub fn push(&mut self, entry: u64, output: T) {
        assert!(self.queue.back().is_none_or(|(last, _)| *last <= entry), "outputs come in the order of the log");
        self.queue.push_back((entry, output));
    }

    /// Lets the outputs of entries below this number leave (`u64::MAX`: all, now and later).
    pub fn release(&mut self, below: u64) {
        self.below = below;
    }

    /// Lets nothing leave until the next [`release`](Self::release), not even what was released but has not
    /// been taken.
    pub fn hold(&mut self) {
        self.below = 0;
    }

    /// Whether the output of the entry with this number may leave.
    pub fn is_released(&self, entry: u64) -> bool {
        entry < self.below
    }

    /// Takes the next output that may leave.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        let (entry, _) = self.queue.front()?;
        if *entry < self.below { self.queue.pop_front() } else { None }
    }

    /// Outputs of entries below this number may leave.
    pub fn released_below(&self) -> u64 {
        self.below
    }

    /// Outputs of entries below this number have been taken, as far as they were queued.
    pub fn left_below(&self) -> u64 {
        self.queue.front().map_or(self.below, |(entry, _)| self.below.min(*entry))
    }

    /// How many outputs wait here.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no output waits here.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_leaves_when_its_entry_is_released_and_not_before() {
        let mut held = HeldOutputs::default();
        held.push(3, 'a');
        held.push(7, 'b');
        held.release(3);
        assert_eq!(held.pop(), None);
        held.release(4);
        assert_eq!((held.pop(), held.pop()), (Some((3, 'a')), None));
        assert_eq!(held.left_below(), 4);
        held.release(8);
        assert_eq!(held.left_below(), 7, "released, and not taken");
        held.hold();
        assert_eq!(held.pop(), None, "released but not taken, then held");
        held.release(u64::MAX);
        held.push(9, 'c');
        assert_eq!((held.pop(), held.pop(), held.pop()), (Some((7, 'b')), Some((9, 'c')), None));
    }
}
