//! `mix [seed] [rounds]`: the torture of replay. Interrupts, clock reads, entropy, console input, memory,
//! floating point and the nucleus's witness are folded into one running hash, at every iteration; so the end
//! value depends on the exact instant of every event. Prints the hash after every round.

use alloc::boxed::Box;
use alloc::vec;
use lockstep_kernels::random::{SplitMix64, mix};
use lockstep_runtime::{Args, console, entropy, nucleus, println, safepoint, time};

/// Words of memory written at random: 512 KiB.
const WORDS: usize = 64 << 10;
/// Floating-point values kept in SSE registers and memory.
const LANES: usize = 8;
/// Iterations in a round: some 30 ms on the development machines.
const ITERATIONS: u64 = 500_000;
/// Iterations between two questions to the world, each of which is an exit.
const ASK_EVERY: u64 = 5_000;

struct Mix {
    hash: u64,
    random: SplitMix64,
    memory: Box<[u64]>,
    floats: [f64; LANES],
}

impl Mix {
    fn fold(&mut self, value: u64) {
        self.hash = mix(self.hash.rotate_left(17) ^ value);
    }

    /// The part that never leaves ring 3: some words of memory, one step of the floats, and when.
    fn iterate(&mut self) {
        for _ in 0..16 {
            let at = self.random.next_u64() as usize % WORDS;
            self.memory[at] = self.memory[at].wrapping_add(self.hash).rotate_left(9);
            self.hash ^= self.memory[at];
        }
        // A chaotic map: a single wrong bit grows to a wrong number within some fifty steps.
        for (lane, x) in self.floats.iter_mut().enumerate() {
            *x = (3.9 + 0.01 * lane as f64) * *x * (1.0 - *x);
        }
        safepoint();
        self.fold(time::ticks());
        self.fold(nucleus::com1_interrupts());
        self.fold(nucleus::witness());
    }

    /// The part that asks the world.
    fn ask(&mut self) {
        match self.random.next_u64() % 4 {
            0 => self.fold(time::clock_ns()),
            1 => self.fold(entropy::random()),
            _ => {}
        }
        while let Some(byte) = console::read_byte() {
            self.fold(byte.into());
        }
        for lane in 0..LANES {
            self.fold(self.floats[lane].to_bits());
        }
    }
}

pub fn main(args: &Args) -> u8 {
    let seed = args.number_at(1).unwrap_or(1);
    let rounds = args.number_at(2).unwrap_or(100);
    let mut state = Mix {
        hash: mix(seed),
        random: SplitMix64::new(seed),
        memory: vec![0; WORDS].into(),
        floats: core::array::from_fn(|lane| 0.1 + 0.1 * lane as f64),
    };
    for round in 1..=rounds {
        for iteration in 0..ITERATIONS {
            state.iterate();
            if iteration % ASK_EVERY == 0 {
                state.ask();
            }
        }
        println!("mix {round} {:016x}", state.hash);
    }
    println!("mix end {:016x}", state.hash);
    0
}
