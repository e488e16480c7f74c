//! What the guest has written to its console: one byte stream with absolute positions, the newest
//! part of it kept, and a watermark below which it may leave the host.
//!
//! ```text
//!   0 ........ start ............... released ............... produced
//!     forgotten      kept, may leave          held (output rule)
//! ```
//!
//! The positions are part of the guest's execution: a backup that replays the log has the same
//! bytes at the same positions, so a client goes on elsewhere from the position it has reached.

use crate::replication::held::HeldOutputs;
use std::collections::VecDeque;

/// The console output stream of one machine.
#[derive(Debug)]
pub struct History {
    /// The kept bytes; the first one has position `start`.
    ring: VecDeque<u8>,
    start: u64,
    capacity: usize,
    /// Invariant: `start <= released <= produced`.
    released: u64,
    /// The output rule: outputs not yet released, each as the position behind it.
    held: HeldOutputs<u64>,
    /// Outputs of entries below this number may leave.
    below_entry: u64,
}

/// What [`History::read`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// This many bytes (more than 0) were appended to the buffer.
    Bytes(usize),
    /// Nothing beyond this position may leave yet.
    Nothing,
    /// The bytes up to (not including) this position are no longer kept.
    Gap(u64),
    /// The position lies beyond what this machine has released: it was reached on another one.
    Ahead,
}

impl History {
    /// What a machine keeps unless told otherwise: 4 MiB.
    pub const DEFAULT_CAPACITY: usize = 4 << 20;

    /// An empty stream that keeps the newest `capacity` bytes (and all that is held, if that is more).
    pub fn new(capacity: usize) -> Self {
        History { ring: VecDeque::new(), start: 0, capacity, released: 0, held: HeldOutputs::default(), below_entry: 0 }
    }

    /// Position behind the last byte the machine has made.
    pub fn produced(&self) -> u64 {
        self.start + self.ring.len() as u64
    }

    /// Position below which bytes may leave.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// Bytes made but not released. They are never dropped, so whoever makes them stalls before
    /// this grows without bound.
    pub fn held_bytes(&self) -> u64 {
        self.produced() - self.released
    }

    /// Outputs made but not released.
    pub fn held_outputs(&self) -> usize {
        self.held.len()
    }

    /// Adds the output that log entry `entry` stands for.
    ///
    /// # Panics
    /// When `entry` is not above the last held one: outputs come in log order.
    pub fn append(&mut self, entry: u64, bytes: &[u8]) {
        self.ring.extend(bytes);
        self.held.push(entry, self.produced());
        self.let_go();
    }

    /// Outputs of entries below `below_entry` may leave; never takes anything back. True if that
    /// let anything go.
    pub fn release(&mut self, below_entry: u64) -> bool {
        self.below_entry = self.below_entry.max(below_entry);
        self.held.release(self.below_entry);
        self.let_go()
    }

    /// Everything made so far may leave; what comes later is held as before.
    pub fn release_all(&mut self) -> bool {
        self.held.release(u64::MAX);
        let moved = self.let_go();
        self.held.release(self.below_entry);
        moved
    }

    /// From now on, outputs of entries from `entry` on are held again. Says nothing about outputs
    /// that have been released.
    pub fn hold_from(&mut self, entry: u64) {
        self.below_entry = entry;
        self.held.release(entry);
    }

    /// Moves the watermark to the end of the last output that may leave. True if it moved.
    fn let_go(&mut self) -> bool {
        let before = self.released;
        while let Some((_, end)) = self.held.pop() {
            self.released = end;
        }
        self.forget_old();
        self.released > before
    }

    /// Appends up to `max` released bytes from position `from` on to `buffer`.
    pub fn read(&self, from: u64, max: usize, buffer: &mut Vec<u8>) -> Read {
        if from > self.released {
            return Read::Ahead;
        }
        if from < self.start {
            return Read::Gap(self.start);
        }
        let length = (self.released - from).min(max as u64) as usize;
        if length == 0 {
            return Read::Nothing;
        }
        let first = (from - self.start) as usize;
        let (front, back) = self.ring.as_slices();
        if first < front.len() {
            let part = &front[first..(first + length).min(front.len())];
            buffer.extend_from_slice(part);
            buffer.extend_from_slice(&back[..length - part.len()]);
        } else {
            buffer.extend_from_slice(&back[first - front.len()..first - front.len() + length]);
        }
        Read::Bytes(length)
    }

    /// The position at which the newest `bytes` released bytes begin, as far as they are kept.
    pub fn tail(&self, bytes: u64) -> u64 {
        self.released.saturating_sub(bytes).max(self.start)
    }

    /// The newest bytes made, at most `max` of them, and the position of the first.
    pub fn newest(&self, max: usize) -> (u64, Vec<u8>) {
        let skipped = self.ring.len().saturating_sub(max);
        (self.start + skipped as u64, self.ring.iter().skip(skipped).copied().collect())
    }

    /// Forgets all, and goes on behind `bytes`, which begin at position `start` and may leave.
    pub fn restore(&mut self, start: u64, bytes: &[u8]) {
        *self = History { start, ..History::new(self.capacity) };
        self.ring.extend(bytes);
        self.released = self.produced();
        self.forget_old();
    }

    fn forget_old(&mut self) {
        let excess = self.ring.len().saturating_sub(self.capacity) as u64;
        let drop = excess.min(self.released - self.start);
        self.ring.drain(..drop as usize);
        self.start += drop;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(history: &History, from: u64, max: usize) -> (Read, Vec<u8>) {
        let mut buffer = Vec::new();
        let read = history.read(from, max, &mut buffer);
        (read, buffer)
    }

    #[test]
    fn nothing_leaves_before_its_entry_is_released() {
        let mut history = History::new(100);
        history.append(3, b"abc");
        history.append(7, b"de");
        assert_eq!(read(&history, 0, 10), (Read::Nothing, vec![]));
        assert!(!history.release(3), "entry 3 itself is not below 3");
        assert_eq!(history.held_bytes(), 5);
        assert!(history.release(4));
        assert_eq!(read(&history, 0, 10), (Read::Bytes(3), b"abc".to_vec()));
        assert_eq!((history.released(), history.produced(), history.held_outputs()), (3, 5, 1));
        assert!(!history.release(2), "a release is never taken back");
        assert_eq!(history.released(), 3);
    }

    #[test]
    fn outputs_of_released_entries_leave_at_once_until_held_again() {
        let mut history = History::new(100);
        history.release(u64::MAX);
        history.append(0, b"a");
        assert_eq!(history.released(), 1);
        history.hold_from(5);
        history.append(5, b"b");
        assert_eq!(history.released(), 1);
    }

    #[test]
    fn an_output_never_overtakes_a_held_one() {
        let mut history = History::new(100);
        history.append(5, b"a");
        history.below_entry = 9;
        history.append(6, b"b");
        assert_eq!(history.released(), 0);
    }

    #[test]
    fn the_ring_forgets_the_oldest_but_never_what_is_held() {
        let mut history = History::new(4);
        history.append(0, b"abcdef");
        assert_eq!(history.held_bytes(), 6);
        history.release(1);
        assert_eq!(read(&history, 0, 10), (Read::Gap(2), vec![]));
        assert_eq!(read(&history, 2, 10), (Read::Bytes(4), b"cdef".to_vec()));
        assert_eq!(history.tail(2), 4);
        assert_eq!(history.tail(200), 2);
    }

    #[test]
    fn a_position_reached_elsewhere_is_told_apart_from_silence() {
        let mut history = History::new(4);
        history.append(0, b"ab");
        assert_eq!(read(&history, 1, 10).0, Read::Ahead);
        history.release_all();
        assert_eq!(read(&history, 2, 10).0, Read::Nothing);
        assert_eq!(read(&history, 3, 10).0, Read::Ahead);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// A client reads across failovers from two hosts that make the same bytes from the same
        /// log; it gets exactly the guest's stream, and nothing that the survivor will not have.
        #[test]
        fn every_byte_exactly_once_across_failovers(
            steps in prop::collection::vec((0u8..6, 1usize..9), 1..80),
            capacity in 1usize..64,
        ) {
            let byte = |position: u64| (position % 251) as u8;
            let mut live = History::new(capacity);
            // The log holds outputs by length; `acknowledged` of its entries survive the live host.
            let (mut log, mut acknowledged) = (Vec::<usize>::new(), 0usize);
            let mut seen = 0u64;
            for (step, n) in steps {
                match step {
                    0 | 1 => {
                        let at = live.produced();
                        let bytes: Vec<u8> = (at..at + n as u64).map(byte).collect();
                        live.append(log.len() as u64, &bytes);
                        log.push(n);
                    }
                    2 => {
                        acknowledged = (acknowledged + n).min(log.len());
                        live.release(acknowledged as u64);
                    }
                    3 | 4 => {
                        let mut buffer = Vec::new();
                        match live.read(seen, n, &mut buffer) {
                            Read::Bytes(count) => {
                                prop_assert_eq!(count, buffer.len());
                                for got in buffer {
                                    prop_assert_eq!(got, byte(seen));
                                    seen += 1;
                                }
                            }
                            Read::Gap(to) => {
                                prop_assert!(to > seen && live.produced() - to >= capacity as u64, "a gap without need");
                                seen = to;
                            }
                            Read::Nothing => prop_assert_eq!(seen, live.released()),
                            Read::Ahead => prop_assert!(false, "the survivor lacks what the client has seen"),
                        }
                    }
                    _ => {
                        log.truncate((acknowledged + n / 4).min(log.len()));
                        live = History::new(capacity);
                        live.release(u64::MAX);
                        for (entry, &length) in log.iter().enumerate() {
                            let at = live.produced();
                            let bytes: Vec<u8> = (at..at + length as u64).map(byte).collect();
                            live.append(entry as u64, &bytes);
                        }
                        acknowledged = log.len();
                        live.hold_from(acknowledged as u64);
                    }
                }
                prop_assert!(live.released() <= log[..acknowledged].iter().sum::<usize>() as u64, "output rule");
                prop_assert!(live.ring.len() <= capacity.max(live.held_bytes() as usize), "bounded");
            }
        }
    }
}
