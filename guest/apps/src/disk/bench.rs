//! `disk bench read|write`: how many requests of a size the disk carries out in a second, by the guest's clock.

use super::{Trouble, number, wait};
use alloc::vec;
use lockstep_disk::{Ask, Disk, SECTOR, SLOTS};
use lockstep_kernels::random::SplitMix64;
use lockstep_runtime::{Args, println, safepoint, time};

const USAGE: &str =
    "disk bench read|write [size=4096] [depth=1] [operations=10000] [seconds=N] [span=BYTES] [sequential=1]";

pub(super) fn run(disk: &mut Disk, args: &Args) -> Result<(), Trouble> {
    let (name, writes) = match args.word(2) {
        Some("read") => ("read", false),
        Some("write") => ("write", true),
        _ => return Err(Trouble::Usage(USAGE)),
    };
    let get = |name, otherwise| number(args, name, otherwise).ok_or(Trouble::Usage(USAGE));
    let shape = disk.shape();
    let size = get("size", 4096)?;
    if size == 0 || size % SECTOR as u64 != 0 || size > shape.most_bytes.into() {
        return Err(Trouble::Usage("size= is no whole number of sectors, or too large"));
    }
    let depth = get("depth", 1)?.clamp(1, SLOTS as u64);
    let until_ns = get("seconds", 0)?.saturating_mul(1_000_000_000);
    let operations = if until_ns > 0 { u64::MAX } else { get("operations", 10_000)? };
    let places = get("span", u64::MAX)?.min(shape.sectors * SECTOR as u64) / size;
    if places < depth {
        return Err(Trouble::Usage("the disk or its span= is too small"));
    }
    let sequential = get("sequential", 0)? != 0;
    let mut random = SplitMix64::new(get("seed", 1)?);

    // The clock costs an exit, so it is looked at only now and then.
    let begin_ns = time::clock_ns();
    let (mut begun, mut ended) = (0, 0);
    let mut more = operations;
    while begun < more || ended < begun {
        while begun < more && begun - ended < depth {
            let place = if sequential { begun % places } else { random.next_u64() % places };
            let sector = place * size / SECTOR as u64;
            let mut buffer = vec![0; size as usize];
            let ask = if writes {
                buffer[..8].copy_from_slice(&begun.to_le_bytes());
                Ask::Write { sector, buffer }
            } else {
                Ask::Read { sector, buffer }
            };
            disk.submit(ask).map_err(|(error, _)| Trouble::Failed("submit a request", error))?;
            begun += 1;
            safepoint();
        }
        wait(disk);
        while let Some(done) = disk.poll() {
            done.result.map_err(|error| Trouble::Failed("carry out a request", error))?;
            ended += 1;
            if until_ns > 0 && ended % 64 == 0 && more > begun && time::clock_ns() - begin_ns >= until_ns {
                more = begun;
            }
        }
    }
    let took_ns = (time::clock_ns() - begin_ns).max(1);
    let per_second = u128::from(ended) * 1_000_000_000 / u128::from(took_ns);
    println!(
        "disk: bench {name} size={size} depth={depth}: {ended} operations in {} ms, {per_second} operations/s, {} KiB/s",
        took_ns / 1_000_000,
        per_second * u128::from(size) / 1024,
    );
    if writes && shape.flush {
        disk.flush().map_err(|error| Trouble::Failed("flush", error))?;
        println!("disk: flushed after {} ms", (time::clock_ns() - begin_ns) / 1_000_000);
    }
    Ok(())
}
