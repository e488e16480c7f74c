//! What a replayed guest has sent, kept until it is known to have left the primary: after a take-over, what may be missing is
//! sent (again).

use std::collections::VecDeque;

use crate::machine::packets::Packets;

/// Kept, at most, in bytes. A primary says every few milliseconds what has left; this is far more than a cable carries meanwhile.
const MAX_BYTES: usize = 4 << 20;

/// The newest of it.
#[derive(Default)]
pub struct Replayed {
    outputs: VecDeque<(u64, Packets)>,
    bytes: usize,
    /// Outputs of entries below this number have left.
    below: u64,
}

impl Replayed {
    /// The guest has sent `packets`, which are `entry` in the log.
    pub fn push(&mut self, entry: u64, packets: &Packets) {
        if entry < self.below {
            return;
        }
        self.bytes += packets.bytes().len();
        self.outputs.push_back((entry, packets.clone()));
        while self.bytes > MAX_BYTES {
            self.pop();
        }
    }

    /// Outputs of entries below `below` have left the primary.
    pub fn left(&mut self, below: u64) {
        self.below = self.below.max(below);
        while self.outputs.front().is_some_and(|&(entry, _)| entry < self.below) {
            self.pop();
        }
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<(u64, Packets)> {
        let (entry, packets) = self.outputs.pop_front()?;
        self.bytes -= packets.bytes().len();
        Some((entry, packets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(length: usize) -> Packets {
        let mut packets = Packets::new();
        assert!(packets.push(&vec![0; length]));
        packets
    }

    fn entries(replayed: &mut Replayed) -> Vec<u64> {
        std::iter::from_fn(|| replayed.pop()).map(|(entry, _)| entry).collect()
    }

    #[test]
    fn what_has_left_is_forgotten_whenever_that_is_told() {
        let mut replayed = Replayed::default();
        (0..5).for_each(|entry| replayed.push(entry, &one(60)));
        replayed.left(3);
        replayed.left(1);
        replayed.push(2, &one(60));
        assert_eq!(entries(&mut replayed), [3, 4]);
        assert_eq!(replayed.bytes, 0);
    }

    #[test]
    fn the_oldest_go_when_there_is_too_much() {
        let mut replayed = Replayed::default();
        let long = MAX_BYTES / 100;
        (0..110).for_each(|entry| replayed.push(entry, &one(long)));
        assert_eq!(entries(&mut replayed), (10..110).collect::<Vec<_>>());
    }
}
