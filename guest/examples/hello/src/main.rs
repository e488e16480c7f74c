//! The smallest guest worth running: greets, and counts seconds until a key is pressed.
#![no_std]
#![no_main]

use lockstep_runtime::{Args, app, console, println, time, wait};

app!(main);

fn main(args: Args) -> u8 {
    println!("hello from {:?}", args.word(0).unwrap_or("a guest without a command line"));
    for second in 1.. {
        println!("{second} s, clock {} ns; any key ends", time::clock_ns());
        wait::sleep_ns(1_000_000_000);
        if console::read_byte().is_some() {
            break;
        }
    }
    0
}
