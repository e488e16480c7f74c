//! `compute [rounds] [sha256|sort|matrix]…`: pure computation with safepoints, about 25 ms a round on the
//! development machines. Prints a hash per round; the seed is fixed, so every run prints the same ones, and so
//! does the native program of the benchmark.

use crate::USAGE;
use alloc::vec::Vec;
use lockstep_kernels::work::{Kind, Work};
use lockstep_runtime::{Args, println, safepoint, time};

pub fn main(args: &Args) -> u8 {
    let rounds = args.number_at(1).unwrap_or(10);
    let mut kinds = Vec::new();
    for name in args.words().skip(2) {
        let Some(kind) = Kind::from_name(name) else {
            println!("compute: no kind `{name}`; there are sha256, sort, matrix");
            return USAGE;
        };
        kinds.push(kind);
    }
    if kinds.is_empty() {
        kinds.extend(Kind::ALL);
    }

    let mut work = Work::new(args.number("seed").unwrap_or(1));
    let began = time::clock_ns();
    for round in 1..=rounds {
        let hash = work.round(&kinds, &mut safepoint);
        println!("compute {round} {:016x}", u64::from_be_bytes(hash[..8].try_into().expect("eight bytes")));
    }
    let elapsed_us = (time::clock_ns() - began) / 1000;
    println!("compute done: {rounds} rounds in {elapsed_us} us");
    0
}
