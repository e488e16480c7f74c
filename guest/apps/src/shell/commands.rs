//! The shell's commands.

use crate::crash::crash;
use alloc::vec;
use lockstep_kernels::primes::primes;
use lockstep_kernels::random::SplitMix64;
use lockstep_kernels::sha256::Sha256;
use lockstep_runtime::{console, entropy, host_name, memory, print, println, safepoint, time, wait};

const HELP: &str = "\
help                 this text
time                 clock since boot, and wall clock
uptime               seconds and ticks since boot
host                 the name of the host that the machine is on
echo WORDS           prints the words
random [N]           N random numbers
count N [MS]         counts to N, a number every MS milliseconds
primes N             the Nth prime
hash WORDS           SHA-256 of the words
memory [MIB]         writes MIB MiB of memory and reads them back
crash HOW            ends badly; without HOW, lists the ways
exit [CODE]          ends the guest
Ctrl-C stops count and primes.";

/// Runs a command; `Some` exit code if the guest is to end.
pub fn run(words: &[&str]) -> Option<u8> {
    let (&command, arguments) = words.split_first()?;
    let number = |index: usize| arguments.get(index).and_then(|word| word.parse::<u64>().ok());
    match (command, number(0)) {
        ("help", _) => println!("{HELP}"),
        ("time", _) => show_time(),
        ("uptime", _) => {
            let ns = time::clock_ns();
            println!("up {}.{:03} s, {} ticks", ns / 1_000_000_000, ns / 1_000_000 % 1000, time::ticks());
        }
        ("host", _) => println!("{}", host_name()),
        ("echo", _) => {
            for (i, word) in arguments.iter().enumerate() {
                print!("{}{word}", if i == 0 { "" } else { " " });
            }
            println!();
        }
        ("random", count) => (0..count.unwrap_or(1)).for_each(|_| println!("{:016x}", entropy::random())),
        ("count", Some(to)) => count(to, number(1).unwrap_or(0)),
        ("primes", Some(n)) if n > 0 => nth_prime(n),
        ("hash", _) => hash(arguments),
        ("memory", mib) => test_memory(mib.unwrap_or(1)),
        ("crash", _) => crash(arguments.first().copied().unwrap_or("")),
        ("exit", code) => return Some(code.unwrap_or(0) as u8),
        ("count" | "primes", _) => println!("{command}: how many? (a number above 0)"),
        _ => println!("{command}: no such command; `help` lists them"),
    }
    None
}

fn show_time() {
    let ns = time::clock_ns();
    println!("clock {}.{:09} s since boot", ns / 1_000_000_000, ns % 1_000_000_000);
    match time::wall_clock_ns() {
        Some(wall) => println!("wall clock {}.{:09} s since 1970 UTC", wall / 1_000_000_000, wall % 1_000_000_000),
        None => println!("no wall clock on this machine"),
    }
}

/// Whether Ctrl-C has been typed; other keys are lost.
fn interrupted() -> bool {
    let interrupted = console::interrupted();
    if interrupted {
        println!("^C");
    }
    interrupted
}

fn count(to: u64, pause_ms: u64) {
    for i in 1..=to {
        println!("{i}");
        if pause_ms > 0 {
            wait::sleep_ns(pause_ms.saturating_mul(1_000_000));
        }
        safepoint();
        if interrupted() {
            return;
        }
    }
}

fn nth_prime(n: u64) {
    for (i, prime) in (1..).zip(primes(safepoint)) {
        if i == n {
            println!("{prime}");
            return;
        }
        if i % 1024 == 0 && interrupted() {
            return;
        }
    }
}

fn hash(words: &[&str]) {
    let mut hash = Sha256::new();
    hash.update(words.join(" ").as_bytes(), &mut safepoint);
    hash.finish().iter().for_each(|byte| print!("{byte:02x}"));
    println!();
}

fn test_memory(mib: u64) {
    let (used, free) = memory::usage();
    let bytes = usize::try_from(mib).ok().and_then(|mib| mib.checked_mul(1 << 20));
    let Some(bytes) = bytes.filter(|&bytes| bytes < free) else {
        println!("memory: {used} bytes used, {free} free; that is too much");
        return;
    };
    let mut words = vec![0_u64; bytes / 8];
    let mut random = SplitMix64::new(mib);
    for part in words.chunks_mut(512) {
        part.fill_with(|| random.next_u64());
        safepoint();
    }
    let mut random = SplitMix64::new(mib);
    let wrong = words.chunks(512).map(|part| {
        safepoint();
        part.iter().filter(|&&word| word != random.next_u64()).count()
    });
    println!(
        "memory: {mib} MiB written and read back, {} words wrong; {used} bytes used, {free} free",
        wrong.sum::<usize>()
    );
}
