//! Sorted sets: members with their scores in a table, and all of them in order, in runs of up to 256.
//!
//! The order holds scores and the members' numbers in the table; members are compared only between equal scores. A
//! rank is a sum over the runs' lengths, so both ways between rank and member are short.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cmp::Ordering;

use crate::bytes::{self, Bytes};
use crate::table::{Hash, Table};
use crate::value::{free_table, table_bytes};

/// Members in a run; a full run is split.
const RUN: usize = 256;

/// A member's place in the order.
#[derive(Clone, Copy, Debug)]
struct Place {
    score: f64,
    number: u32,
}

/// A sorted set.
#[derive(Debug, Default)]
pub(crate) struct ZSet {
    members: Table<f64>,
    /// No run is empty.
    runs: Vec<VecDeque<Place>>,
}

fn order(a: (f64, &[u8]), b: (f64, &[u8])) -> Ordering {
    // Scores are never NaN; the two zeros are equal.
    a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal).then_with(|| a.1.cmp(b.1))
}

impl ZSet {
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn score(&self, hash: Hash, member: &[u8]) -> Option<f64> {
        self.members.get(hash, member).copied()
    }

    /// The members in the order of the table, for scans and draws.
    pub(crate) fn members(&self) -> &Table<f64> {
        &self.members
    }

    fn key(&self, place: Place) -> (f64, &[u8]) {
        (place.score, self.members.at(place.number as usize).key.as_slice())
    }

    /// How many members satisfy `before`, which holds for a beginning of the order: run and place of the first other.
    fn partition(&self, before: impl Fn((f64, &[u8])) -> bool) -> (usize, usize) {
        let run = self.runs.partition_point(|run| run.back().is_some_and(|&last| before(self.key(last))));
        let at = self.runs.get(run).map_or(0, |run| run.partition_point(|&place| before(self.key(place))));
        (run, at)
    }

    /// The number of members in the order's beginning that satisfies `before`.
    pub(crate) fn count(&self, before: impl Fn((f64, &[u8])) -> bool) -> usize {
        let (run, at) = self.partition(before);
        self.runs[..run].iter().map(VecDeque::len).sum::<usize>() + at
    }

    /// A member's rank from the lowest.
    pub(crate) fn rank(&self, score: f64, member: &[u8]) -> usize {
        self.count(|other| order(other, (score, member)) == Ordering::Less)
    }

    /// Puts a member in or changes its score.
    pub(crate) fn set(&mut self, hash: Hash, member: &[u8], score: f64) {
        let number = match self.members.find(hash, member) {
            Some(number) => {
                let old = self.members.at(number).value;
                if old == score {
                    return;
                }
                self.take_place(old, member);
                *self.members.value_mut(number) = score;
                number
            }
            None => self.members.insert_new(hash, Bytes::from_slice(member), score),
        };
        let (run, at) = self.partition(|other| order(other, (score, member)) == Ordering::Less);
        let place = Place { score, number: number as u32 };
        if run == self.runs.len() {
            match self.runs.last_mut() {
                Some(last) if last.len() < RUN => last.push_back(place),
                _ => self.runs.push(VecDeque::from([place])),
            }
            return;
        }
        self.runs[run].insert(at, place);
        if self.runs[run].len() > RUN {
            let half = self.runs[run].split_off(RUN / 2);
            self.runs.insert(run + 1, half);
        }
    }

    fn take_place(&mut self, score: f64, member: &[u8]) {
        let (run, at) = self.partition(|other| order(other, (score, member)) == Ordering::Less);
        self.runs[run].remove(at);
        if self.runs[run].is_empty() {
            self.runs.remove(run);
        }
    }

    pub(crate) fn remove(&mut self, hash: Hash, member: &[u8]) -> Option<f64> {
        let number = self.members.find(hash, member)?;
        let score = self.members.at(number).value;
        self.take_place(score, member);
        self.take_member(number);
        Some(score)
    }

    /// Takes the member with the highest or the lowest score out.
    pub(crate) fn pop(&mut self, highest: bool) -> Option<(f64, Bytes)> {
        let run = if highest { self.runs.len().checked_sub(1)? } else { 0 };
        let places = self.runs.get_mut(run)?;
        let place = if highest { places.pop_back() } else { places.pop_front() }?;
        if places.is_empty() {
            self.runs.remove(run);
        }
        self.take_member(place.number as usize).map(|member| (place.score, member))
    }

    /// Takes a member that has no place any more out of the table; the last one gets its number.
    fn take_member(&mut self, number: usize) -> Option<Bytes> {
        let last = self.members.len() - 1;
        if last != number {
            let moved = self.members.at(last);
            let (run, at) = self.partition(|other| order(other, (moved.value, &moved.key)) == Ordering::Less);
            self.runs[run][at].number = number as u32;
        }
        self.members.remove_at(number).map(|entry| entry.key)
    }

    /// The member with this rank.
    pub(crate) fn at_rank(&self, mut rank: usize) -> Option<(f64, &Bytes)> {
        if rank >= self.len() {
            return None;
        }
        for run in &self.runs {
            match rank.checked_sub(run.len()) {
                Some(rest) => rank = rest,
                None => {
                    let place = run[rank];
                    return Some((place.score, &self.members.at(place.number as usize).key));
                }
            }
        }
        None
    }

    /// The members with ranks from `first` to `last` (both included), from the lowest or from the highest on.
    pub(crate) fn range(&self, first: usize, last: usize, reverse: bool) -> impl Iterator<Item = (f64, &Bytes)> {
        let length = (last + 1).min(self.len()).saturating_sub(first);
        let start = if reverse { first + length.max(1) - 1 } else { first };
        let (mut run, mut at) = (0, start);
        while self.runs.get(run).is_some_and(|run| at >= run.len()) {
            at -= self.runs[run].len();
            run += 1;
        }
        (0..length).map(move |_| {
            let place = self.runs[run][at];
            if !reverse {
                at += 1;
                if at == self.runs[run].len() {
                    (run, at) = (run + 1, 0);
                }
            } else if at > 0 {
                at -= 1;
            } else if run > 0 {
                run -= 1;
                at = self.runs[run].len() - 1;
            }
            (place.score, &self.members.at(place.number as usize).key)
        })
    }

    /// Another of the same, made with pauses.
    pub(crate) fn copy(&self, poll: fn()) -> ZSet {
        // Members keep their numbers, so the order can be taken over.
        ZSet { members: self.members.copy(poll), runs: self.runs.iter().inspect(|_| poll()).cloned().collect() }
    }

    /// Bytes of heap.
    pub(crate) fn heap_bytes(&self, poll: fn()) -> usize {
        let runs: usize = self.runs.iter().map(|run| run.capacity() * size_of::<Place>()).sum();
        let members = table_bytes(&self.members, |entry| bytes::heap_bytes(&entry.key), poll);
        members + runs + self.runs.capacity() * size_of::<VecDeque<Place>>()
    }

    /// Frees a large set with pauses.
    pub(crate) fn free(self, poll: fn()) {
        free_table(self.members, poll);
    }
}
