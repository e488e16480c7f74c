//! `ticker [ticks] [busy]`: prints a numbered line every so many ticks (1 if not given), for ever. In between it sleeps, or with
//! `busy` computes like `compute`. For measurements: output at a pace that is known, from a guest that is idle or is not.

use crate::USAGE;
use lockstep_kernels::work::{Kind, Work};
use lockstep_runtime::{Args, println, safepoint, time, wait};

pub fn main(args: &Args) -> u8 {
    let every = args.number_at(1).unwrap_or(1).max(1);
    if time::tick_ns() == 0 {
        println!("ticker: a machine without a timer has no ticks");
        return USAGE;
    }
    let (mut next, mut number) = (time::ticks() + every, 0_u64);
    let mut look = move || {
        if time::ticks() >= next {
            next = time::ticks() + every;
            number += 1;
            println!("ticker {number}");
        }
    };
    if args.word(2) != Some("busy") {
        return wait::until(|| {
            look();
            None
        });
    }
    let mut work = Work::new(1);
    loop {
        work.round(&Kind::ALL, &mut || {
            safepoint();
            look();
        });
    }
}
