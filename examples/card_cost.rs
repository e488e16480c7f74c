//! What a packet costs in the network card: nanoseconds each way, without the guest, without the world. `cargo run --release --example card_cost`.

#[path = "../tests/virtio/mod.rs"]
mod virtio;

use std::hint::black_box;
use std::time::{Duration, Instant};

use lockstep::machine::packets::Packets;
use virtio::*;

const BUFFERS: u64 = 0x10_0000;
const ROUNDS: u32 = 2000;
const REPEATS: usize = 7;

#[allow(clippy::disallowed_methods, reason = "a measurement")]
fn timed(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

/// Nanoseconds for each packet, in batches of `count`.
fn transmit(length: u32, pieces: u32, count: u64) -> f64 {
    let mut driver = Driver::started(CONFIG, USUAL);
    driver.want_interrupt_after(TX, 0x8000);
    let mut packets = Packets::new();
    let mut spent = Duration::ZERO;
    for _ in 0..ROUNDS {
        for number in 0..count {
            let at = BUFFERS + number * 2048;
            let buffers: Vec<(u64, u32)> =
                if pieces == 1 { vec![(at, length + 12)] } else { vec![(at, 12), (at + 12, length)] };
            driver.offer(TX, &buffers);
        }
        packets.clear();
        spent += timed(|| driver.device.transmit(&driver.memory, black_box(&mut packets)));
        assert_eq!(packets.len() as u64, count);
        while driver.take_used(TX).is_some() {}
    }
    spent.as_nanos() as f64 / f64::from(ROUNDS) / count as f64
}

fn receive(length: usize, count: u64) -> f64 {
    let mut driver = Driver::started(CONFIG, USUAL);
    driver.want_interrupt_after(RX, 0x8000);
    let packets = batch(&vec![packet(1, length); count as usize]);
    let mut spent = Duration::ZERO;
    for _ in 0..ROUNDS {
        (0..count).for_each(|number| {
            driver.offer(RX, &[(BUFFERS + number * 2048, 2048)]);
        });
        spent += timed(|| driver.device.receive(&driver.memory, black_box(&packets)));
        let mut given_back = 0;
        while driver.take_used(RX).is_some() {
            given_back += 1;
        }
        assert_eq!(given_back, count);
    }
    spent.as_nanos() as f64 / f64::from(ROUNDS) / count as f64
}

fn room() -> f64 {
    let mut driver = Driver::started(CONFIG, USUAL);
    driver.offer(RX, &[(BUFFERS, 2048)]);
    let calls = ROUNDS * 100;
    let spent = timed(|| {
        for _ in 0..calls {
            black_box(black_box(&driver.device).room(&driver.memory));
        }
    });
    spent.as_nanos() as f64 / f64::from(calls)
}

fn idle() -> f64 {
    let mut driver = Driver::started(CONFIG, USUAL);
    let calls = ROUNDS * 100;
    let mut packets = Packets::new();
    let spent = timed(|| {
        for _ in 0..calls {
            driver.device.transmit(&driver.memory, black_box(&mut packets));
        }
    });
    spent.as_nanos() as f64 / f64::from(calls)
}

fn best(mut measure: impl FnMut() -> f64) -> f64 {
    (0..REPEATS).map(|_| measure()).fold(f64::INFINITY, f64::min)
}

fn main() {
    println!("nanoseconds, best of {REPEATS}");
    for count in [1, 16, 100] {
        for length in [52, 1514] {
            println!("send    {length:4} bytes, {count:3} at once: {:6.1}", best(|| transmit(length, 1, count)));
            println!("  its header apart                 : {:6.1}", best(|| transmit(length, 2, count)));
            println!("receive {length:4} bytes, {count:3} at once: {:6.1}", best(|| receive(length as usize, count)));
        }
    }
    println!("room                               : {:6.1}", best(room));
    println!("nothing to send                    : {:6.1}", best(idle));
}
