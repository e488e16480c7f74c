//! What a disk request costs outside of the machine, by its way: read on the vCPU thread out of the host's memory, by a thread of the disk, or past the host's memory; written and
//! flushed. `cargo run --release --example image_cost [DIRECTORY]`.
#![allow(clippy::disallowed_methods, reason = "measures time")]

use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use lockstep::console::hub::Protection;
use lockstep::disk::fence::{Fence, Fences};
use lockstep::disk::port::DiskPort;
use lockstep::doors::Disk;
use lockstep::machine::blocks::{Ask, Request};

const SECTORS: u64 = 64 << 11;

fn measure(name: &str, file: &str, settings: &str, depth: u64, count: u64, ask: impl Fn(u64) -> Ask) {
    let port = DiskPort::open(&format!("{file}{settings}").parse().expect("a disk")).expect("opens");
    let signs: Arc<(Mutex<u64>, Condvar)> = Arc::default();
    let sign = signs.clone();
    port.set_waker(Box::new(move || {
        *sign.0.lock().expect("alive") += 1;
        sign.1.notify_all();
    }));
    port.go_live(1, Protection::Unprotected).expect("goes live");
    let began = Instant::now();
    let (mut asked, mut done) = (0, 0);
    while done < count {
        while asked < count && asked - done < depth {
            port.submit(asked, vec![Request { id: asked, ask: ask(asked) }]);
            asked += 1;
        }
        let seen = *signs.0.lock().expect("alive");
        match port.take() {
            Some(completions) => done += completions.len() as u64,
            None => {
                let signs_now = signs.0.lock().expect("alive");
                drop(signs.1.wait_while(signs_now, |now| *now == seen).expect("alive"));
            }
        }
    }
    let each = began.elapsed().as_nanos() as f64 / count as f64 / 1000.0;
    println!("{name:<48} {each:>9.2} µs each, {:>9.0} a second", 1e6 / each);
}

fn main() {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "target".into());
    let file = format!("{directory}/image_cost.img");
    std::fs::write(&file, vec![7u8; (SECTORS * 512) as usize]).expect("an image");
    let place = |index: u64| index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SECTORS / 8 - 64) * 8;
    let read = |bytes: u32| move |index| Ask::Read { sector: place(index), bytes };
    let write = |index| Ask::Write { sector: place(index), data: vec![index as u8; 4096] };
    for depth in [1, 8] {
        println!("depth {depth}");
        measure("  4 KiB read, in the host's memory", &file, ",cache=writeback", depth, 200_000, read(4096));
        measure(
            "  68 KiB read, in the host's memory, by a thread",
            &file,
            ",cache=writeback",
            depth,
            20_000,
            read(68 << 10),
        );
        measure("  4 KiB read, by a thread", &file, ",cache=writeback,faults=seed:1", depth, 50_000, read(4096));
        measure("  4 KiB read, past the host's memory", &file, ",cache=none", depth, 5_000, read(4096));
        measure("  4 KiB write, into the host's memory", &file, ",cache=writeback", depth, 50_000, write);
        measure("  4 KiB write, past the host's memory", &file, ",cache=none", depth, 2_000, write);
        measure("  flush, nothing written", &file, ",cache=writeback", depth, 200, |_| Ask::Flush);
    }
    let newest = Fences::of(format!("{file}.lockstep").as_ref()).path(1);
    let fence = Fence::open(&newest).expect("opens").expect("a shared image that was live has a stamp");
    let (began, looks) = (Instant::now(), 200_000);
    for _ in 0..looks {
        assert!(fence.holds().expect("its file can be looked at"));
    }
    let each = began.elapsed().as_nanos() as f64 / f64::from(looks) / 1000.0;
    println!("a look at the stamp, before each change of a shared image: {each:.2} µs");
    for file in [&file, &format!("{file}.lockstep"), &newest.display().to_string()] {
        let _ = std::fs::remove_file(file);
    }
}
