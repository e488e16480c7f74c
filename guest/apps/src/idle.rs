//! `idle`: sleeps for ever and answers nothing; what is left is the machine's own cost.

use lockstep_runtime::{Args, println, wait};

pub fn main(_: &Args) -> u8 {
    println!("idle");
    wait::until(|| None)
}
