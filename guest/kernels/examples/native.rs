//! `compute` as a process of the host: the same rounds, the same hashes.
#![allow(clippy::disallowed_methods, reason = "measures how long it takes")]

use lockstep_kernels::work::{Kind, Work};
use std::time::Instant;

fn main() {
    let rounds = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(10);
    let (mut work, mut polls) = (Work::new(1), 0_u64);
    let began = Instant::now();
    for round in 1..=rounds {
        let hash = work.round(&Kind::ALL, &mut || polls += 1);
        println!("compute {round} {:016x}", u64::from_be_bytes(hash[..8].try_into().expect("eight bytes")));
    }
    println!("compute done: {rounds} rounds in {} us, {polls} polls", began.elapsed().as_micros());
}
