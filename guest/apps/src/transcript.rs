//! `transcript [tick]`: keeps an account of its input, for a checker that holds what was typed, what the console
//! showed and the guest's own account together. No echo, so that the transcript consists of whole lines:
//!
//! - for every line typed, `N: LINE sum=HASH`, where N counts from 1 and HASH is the FNV-1a (64 bits, hexadecimal) of
//!   all bytes of all lines so far, each line followed by one line feed;
//! - with `tick`, every 100 ms in between, `tick N ms=CLOCK lines=N sum=HASH`;
//! - at Ctrl-D, `end lines=N sum=HASH`, and the machine ends with code 0.
//!
//! A line ends with a carriage return or a line feed; a line of [`MAX`] bytes ends there.

use alloc::string::String;
use alloc::vec::Vec;
use lockstep_kernels::fnv::Fnv1a;
use lockstep_runtime::{Args, console, println, time, wait};

/// The longest line in bytes.
const MAX: usize = 1000;
/// Time between two tick lines.
const TICK_NS: u64 = 100_000_000;

/// What the wait was for.
enum Next {
    Byte(u8),
    Tick,
}

#[derive(Default)]
struct Account {
    line: Vec<u8>,
    lines: u64,
    sum: Fnv1a,
}

impl Account {
    fn end_line(&mut self) {
        self.line.iter().for_each(|&byte| self.sum.push(byte));
        self.sum.push(b'\n');
        self.lines += 1;
        println!("{}: {} sum={:016x}", self.lines, String::from_utf8_lossy(&self.line), self.sum.value());
        self.line.clear();
    }
}

pub fn main(args: &Args) -> u8 {
    // A machine without a timer has no tick lines.
    let every = match (args.word(1), time::tick_ns()) {
        (Some("tick"), period @ 1..) => ((TICK_NS + period / 2) / period).max(1),
        _ => u64::MAX,
    };
    let mut account = Account::default();
    let mut next_tick = time::ticks().saturating_add(every);
    let mut ticks = 0;
    println!("transcript");
    loop {
        let next = wait::until(|| match console::read_byte() {
            Some(byte) => Some(Next::Byte(byte)),
            None => (time::ticks() >= next_tick).then_some(Next::Tick),
        });
        match next {
            Next::Byte(4) => {
                println!("end lines={} sum={:016x}", account.lines, account.sum.value());
                return 0;
            }
            Next::Byte(b'\r' | b'\n') => account.end_line(),
            Next::Byte(byte) => {
                account.line.push(byte);
                if account.line.len() == MAX {
                    account.end_line();
                }
            }
            Next::Tick => {
                next_tick += every;
                ticks += 1;
                let ms = time::clock_ns() / 1_000_000;
                println!("tick {ticks} ms={ms} lines={} sum={:016x}", account.lines, account.sum.value());
            }
        }
    }
}
