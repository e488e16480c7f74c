//! What `compute` computes in one round, in the guest and natively: each kind on a working set of its own, 300 KiB
//! together, that is allocated once and used again.

use crate::matrix::multiply_add;
use crate::random::SplitMix64;
use crate::sha256::Sha256;
use crate::sort::sort;
use alloc::boxed::Box;
use alloc::vec;

/// Bytes hashed over and over.
const HASHED: usize = 64 << 10;
/// Numbers sorted.
const SORTED: usize = 16 << 10;
/// Rows and columns of the matrices.
const ORDER: usize = 64;

/// A kind of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SHA-256 of a buffer.
    Sha256,
    /// Sorting random numbers.
    Sort,
    /// Matrix products.
    Matrix,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Sha256, Kind::Sort, Kind::Matrix];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Sha256 => "sha256",
            Kind::Sort => "sort",
            Kind::Matrix => "matrix",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The working sets, and the hash over all rounds so far, which every round starts from.
#[derive(Debug)]
pub struct Work {
    bytes: Box<[u8]>,
    numbers: Box<[u64]>,
    matrices: [Box<[f64]>; 3],
    hash: [u8; 32],
}

impl Work {
    /// The work that belongs to this seed.
    pub fn new(seed: u64) -> Self {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&seed.to_le_bytes());
        Work {
            bytes: vec![0; HASHED].into(),
            numbers: vec![0; SORTED].into(),
            matrices: core::array::from_fn(|_| vec![0.0; ORDER * ORDER].into()),
            hash,
        }
    }

    /// Computes one round of `kinds`; the hash over all results so far.
    pub fn round(&mut self, kinds: &[Kind], poll: &mut impl FnMut()) -> [u8; 32] {
        for kind in kinds {
            match kind {
                Kind::Sha256 => self.sha256(poll),
                Kind::Sort => self.sort(poll),
                Kind::Matrix => self.matrix(poll),
            }
        }
        self.hash
    }

    fn random(&self) -> SplitMix64 {
        SplitMix64::new(u64::from_le_bytes(self.hash[..8].try_into().expect("eight bytes")))
    }

    fn sha256(&mut self, poll: &mut impl FnMut()) {
        for _ in 0..32 {
            let at = usize::from(u16::from_le_bytes([self.hash[0], self.hash[1]]) & !31);
            self.bytes[at..at + 32].copy_from_slice(&self.hash);
            let mut hash = Sha256::new();
            hash.update(&self.bytes, poll);
            self.hash = hash.finish();
        }
    }

    fn sort(&mut self, poll: &mut impl FnMut()) {
        let mut random = self.random();
        let mut hash = Sha256::new();
        for _ in 0..10 {
            for part in self.numbers.chunks_mut(4096) {
                part.fill_with(|| random.next_u64());
                poll();
            }
            sort(&mut self.numbers, poll);
            let place = (random.next_u64() % SORTED as u64) as usize;
            hash.update(&self.numbers[place].to_le_bytes(), poll);
        }
        self.fold(hash);
    }

    fn matrix(&mut self, poll: &mut impl FnMut()) {
        let mut random = self.random();
        let mut hash = Sha256::new();
        let [sum, left, right] = &mut self.matrices;
        for _ in 0..100 {
            for value in left.iter_mut().chain(right.iter_mut()) {
                // 53 random bits as a number in [-1, 1).
                *value = (random.next_u64() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0;
            }
            poll();
            sum.fill(0.0);
            multiply_add(sum, left, right, ORDER, poll);
            let place = (random.next_u64() % (ORDER * ORDER) as u64) as usize;
            hash.update(&sum[place].to_bits().to_le_bytes(), poll);
        }
        self.fold(hash);
    }

    fn fold(&mut self, mut results: Sha256) {
        results.update(&self.hash, &mut || {});
        self.hash = results.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Work};

    #[test]
    fn same_seed_same_hashes() {
        let run = |seed| -> Vec<[u8; 32]> {
            let mut work = Work::new(seed);
            (0..2).map(|_| work.round(&Kind::ALL, &mut || {})).collect()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1)[0], run(2)[0]);
        assert_ne!(run(1)[0], run(1)[1]);
    }

    #[test]
    fn every_kind_counts() {
        let all = Work::new(1).round(&Kind::ALL, &mut || {});
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
            let others: Vec<_> = Kind::ALL.into_iter().filter(|&other| other != kind).collect();
            assert_ne!(Work::new(1).round(&others, &mut || {}), all, "{}", kind.name());
        }
    }
}
