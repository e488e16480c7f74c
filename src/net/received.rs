//! Packets that have come and wait for the guest: a bounded queue of whole batches. When it is full, what comes is dropped, as by
//! a card whose ring is full.

use std::collections::VecDeque;

use crate::machine::packets::Packets;

/// Packets that wait, at most: a few times what the card's ring takes, for a guest that has to wait for its processor.
pub const MAX_PACKETS: usize = 1024;
/// Their bytes, at most.
pub const MAX_BYTES: usize = 4 << 20;

/// The queue.
#[derive(Default)]
pub struct Received {
    batches: VecDeque<Packets>,
    packets: usize,
    bytes: usize,
}

impl Received {
    /// Adds `batch`, which is empty afterwards, and shows `see` what was added; returns how many were dropped.
    pub fn append(&mut self, batch: &mut Packets, mut see: impl FnMut(&Packets)) -> usize {
        let bytes = batch.bytes().len();
        let fits = self.packets + batch.len() <= MAX_PACKETS && self.bytes + bytes <= MAX_BYTES;
        let same = |back: &&mut Packets| {
            back.len() + batch.len() <= Packets::MAX_COUNT && back.bytes().len() + bytes <= Packets::MAX_BYTES
        };
        if !fits {
            return self.append_what_fits(batch, see);
        }
        see(batch);
        (self.packets, self.bytes) = (self.packets + batch.len(), self.bytes + bytes);
        match self.batches.back_mut().filter(same) {
            Some(back) => copy(batch.iter(), back),
            None if batch.is_empty() => {}
            None => self.batches.push_back(std::mem::take(batch)),
        }
        batch.clear();
        0
    }

    fn append_what_fits(&mut self, batch: &mut Packets, see: impl FnMut(&Packets)) -> usize {
        let (mut count, mut bytes) = (self.packets, self.bytes);
        let mut fitting = Packets::new();
        for packet in batch.iter() {
            (count, bytes) = (count + 1, bytes + packet.len());
            if count > MAX_PACKETS || bytes > MAX_BYTES {
                break;
            }
            fitting.push(packet);
        }
        let dropped = batch.len() - fitting.len();
        batch.clear();
        if !fitting.is_empty() {
            self.append(&mut fitting, see);
        }
        dropped
    }

    /// Takes the oldest packets, at most `room`, in one batch.
    pub fn take(&mut self, room: usize) -> Option<Packets> {
        let front = self.batches.front()?;
        if room == 0 {
            return None;
        }
        let taken = if front.len() <= room {
            self.batches.pop_front()?
        } else {
            let (mut taken, mut rest) = (Packets::new(), Packets::new());
            copy(front.iter().take(room), &mut taken);
            copy(front.iter().skip(room), &mut rest);
            self.batches[0] = rest;
            taken
        };
        self.packets -= taken.len();
        self.bytes -= taken.bytes().len();
        Some(taken)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Copies packets to where there is room for them.
fn copy<'a>(packets: impl Iterator<Item = &'a [u8]>, to: &mut Packets) {
    for packet in packets {
        assert!(to.push(packet), "there is room: it was counted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(from: u32, count: u32, length: usize) -> Packets {
        let mut batch = Packets::new();
        for number in from..from + count {
            let mut packet = vec![0; length];
            packet[..4].copy_from_slice(&number.to_le_bytes());
            assert!(batch.push(&packet));
        }
        batch
    }

    fn numbers(batch: &Packets) -> Vec<u32> {
        batch.iter().map(|packet| u32::from_le_bytes(packet[..4].try_into().unwrap())).collect()
    }

    fn drain(queue: &mut Received, room: usize) -> Vec<u32> {
        std::iter::from_fn(|| queue.take(room)).flat_map(|batch| numbers(&batch)).collect()
    }

    #[test]
    fn packets_come_out_in_order_whatever_the_room() {
        for room in [1, 3, 7, 256] {
            let mut queue = Received::default();
            for first in (0..120).step_by(12) {
                assert_eq!(queue.append(&mut batch(first, 12, 100), |_| {}), 0);
            }
            assert_eq!(drain(&mut queue, room), (0..120).collect::<Vec<_>>());
            assert_eq!((queue.packets, queue.bytes, queue.is_empty()), (0, 0, true));
        }
    }

    #[test]
    fn a_look_takes_all_that_waits() {
        let mut queue = Received::default();
        queue.append(&mut batch(0, 1, 60), |_| {});
        queue.append(&mut batch(1, 5, 60), |_| {});
        assert_eq!(queue.take(0), None);
        assert_eq!(numbers(&queue.take(256).unwrap()), [0, 1, 2, 3, 4, 5], "one entry in the log, not two");
    }

    #[test]
    fn the_newest_are_dropped_when_it_is_full() {
        let mut queue = Received::default();
        let full = MAX_PACKETS as u32;
        for first in (0..full - 6).step_by(2) {
            assert_eq!(queue.append(&mut batch(first, 2, 60), |_| {}), 0);
        }
        let mut seen = 0;
        assert_eq!(queue.append(&mut batch(full - 6, 10, 60), |batch| seen += batch.len()), 4);
        assert_eq!(seen, 6, "what is dropped was not received");
        assert_eq!(queue.append(&mut batch(full + 4, 1, 60), |_| {}), 1);
        assert_eq!(drain(&mut queue, 100), (0..full).collect::<Vec<_>>());

        let long = MAX_BYTES / 64;
        for first in 0..64 {
            assert_eq!(queue.append(&mut batch(first, 1, long), |_| {}), 0);
        }
        assert_eq!(queue.append(&mut batch(64, 1, long), |_| {}), 1);
        assert_eq!(drain(&mut queue, 100), (0..64).collect::<Vec<_>>());
    }
}
