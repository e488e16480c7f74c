//! What a request costs in the disk's device: nanoseconds for taking and for completing it, without the guest, without the world. `cargo run --release --example disk_cost`.

#[path = "../tests/virtio/mod.rs"]
mod virtio;

use std::hint::black_box;
use std::time::{Duration, Instant};

use lockstep::log::entry::Body;
use lockstep::machine::blocks::{Completion, Outcome, Requests};
use virtio::disk::*;
use virtio_bindings::bindings::virtio_blk::*;

const BUFFERS: u64 = 0x10_0000;
const ROUNDS: u32 = 2000;
const REPEATS: usize = 7;

#[allow(clippy::disallowed_methods, reason = "a measurement")]
fn timed<T>(act: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = act();
    (start.elapsed(), result)
}

/// Nanoseconds for each request: taken, seen in the log (the check of the entry), completed.
fn cost(kind: u32, length: u32, count: u64) -> [f64; 3] {
    let mut driver = DiskDriver::ready(DISK, ALL);
    driver.want_interrupt_after(0, 0x8000);
    let mut spent = [Duration::ZERO; 3];
    let mut requests = Requests::new();
    for _ in 0..ROUNDS {
        for number in 0..count {
            // One place after the other: as many as there are in flight at once.
            let data = [(BUFFERS + number * u64::from(length), length)];
            let (from, into) = match kind {
                VIRTIO_BLK_T_IN => (&[][..], &data[..]),
                VIRTIO_BLK_T_OUT => (&data[..], &[][..]),
                _ => (&[][..], &[][..]),
            };
            driver.ask(number, kind, number * u64::from(length) / 512, from, into);
        }
        requests.clear();
        spent[0] += timed(|| driver.device.take_requests(&driver.memory, black_box(&mut requests))).0;
        assert_eq!(requests.len() as u64, count);
        spent[1] += timed(|| black_box(Body::asked(&requests))).0;
        let end = |id| Completion {
            id,
            outcome: if kind == VIRTIO_BLK_T_IN { Outcome::Read(vec![7; length as usize]) } else { Outcome::Done },
        };
        let completions = requests.iter().map(|request| end(request.id)).collect();
        spent[2] += timed(|| driver.device.complete_requests(&driver.memory, completions)).0;
        assert_eq!((0..).take_while(|_| driver.take_used(0).is_some()).count() as u64, count);
    }
    spent.map(|spent| spent.as_nanos() as f64 / f64::from(ROUNDS) / count as f64)
}

fn idle() -> f64 {
    let mut driver = DiskDriver::ready(DISK, ALL);
    let calls = ROUNDS * 100;
    let mut requests = Requests::new();
    let spent = timed(|| {
        for _ in 0..calls {
            driver.device.take_requests(&driver.memory, black_box(&mut requests));
        }
    });
    spent.0.as_nanos() as f64 / f64::from(calls)
}

fn main() {
    println!("nanoseconds a request, best of {REPEATS}: taken, hashed for the log, completed");
    for (name, kind) in [("read", VIRTIO_BLK_T_IN), ("write", VIRTIO_BLK_T_OUT), ("flush", VIRTIO_BLK_T_FLUSH)] {
        for (length, count) in [(512, 1), (4096, 1), (4096, 16), (65536, 4), (262_144, 1)] {
            if kind == VIRTIO_BLK_T_FLUSH && length > 512 {
                continue;
            }
            let mut best = [f64::INFINITY; 3];
            for _ in 0..REPEATS {
                let once = cost(kind, length, count);
                best = std::array::from_fn(|i| best[i].min(once[i]));
            }
            let [taken, hashed, completed] = best;
            println!("{name:5} {length:6} bytes, {count:2} at once: {taken:9.1} {hashed:9.1} {completed:9.1}");
        }
    }
    let best = (0..REPEATS).map(|_| idle()).fold(f64::INFINITY, f64::min);
    println!("nothing asked for: {best:.1}");
}
