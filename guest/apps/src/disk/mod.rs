//! `disk`: the torture of the disk (in [`torture`]), the check after a restart, and a benchmark:
//!
//! - `disk [seed=1] [operations=10000] [size=BYTES] [depth=16] [report=1000] [faults=1] [overlap=1]`
//! - `disk verify [seed=1] [size=BYTES] …`, with the settings of the run before
//! - `disk bench read|write [size=4096] [depth=1] [operations=10000] [span=BYTES] [sequential=1]`

mod bench;
mod plan;
mod torture;
mod verify;

use crate::USAGE;
use lockstep_disk::{Disk, DiskError, SECTOR};
use lockstep_runtime::{Args, nucleus, println, safepoint};

/// Exit code for a machine without a disk.
const NO_DISK: u8 = 1;
/// Exit code: the disk does not hold what it should.
const WRONG: u8 = 3;
/// Exit code: an I/O error that was not to be expected.
const FAILED: u8 = 4;

/// Why a run ends early.
enum Trouble {
    /// The disk is wrong; what is, has been said.
    Wrong,
    /// A request failed, and no faults were announced.
    Failed(&'static str, DiskError),
    /// The command line asks for what cannot be.
    Usage(&'static str),
}

/// Waits until the disk (or anything) has something to say.
fn wait(disk: &mut Disk) {
    safepoint();
    let seen = nucleus::interrupts();
    if !disk.has_done() {
        disk.idle(seen);
    }
}

/// A setting that is a number; `None` if it is something else.
fn number(args: &Args, name: &str, otherwise: u64) -> Option<u64> {
    match args.setting(name) {
        None => Some(otherwise),
        Some(text) => text.parse().ok(),
    }
}

pub fn main(args: &Args) -> u8 {
    let Some(mut disk) = Disk::find() else {
        println!("disk: this machine has no disk");
        return NO_DISK;
    };
    let shape = disk.shape();
    println!(
        "disk: {} sectors of {SECTOR} bytes{}{}, at most {} bytes a request, discard {}, zeroes {}",
        shape.sectors,
        if shape.read_only { ", read-only" } else { "" },
        if shape.flush { ", with a cache" } else { "" },
        shape.most_bytes,
        shape.most_discard,
        shape.most_zeroes,
    );
    let result = match args.word(1) {
        None => torture::run(&mut disk, args),
        Some("verify") => verify::run(&mut disk, args),
        Some("bench") => bench::run(&mut disk, args),
        Some(_) => Err(Trouble::Usage("disk [verify | bench read|write]")),
    };
    match result {
        Ok(()) => 0,
        Err(Trouble::Wrong) => WRONG,
        Err(Trouble::Failed(what, error)) => {
            println!("disk: cannot {what}: {error}");
            FAILED
        }
        Err(Trouble::Usage(usage)) => {
            println!("disk: {usage}");
            USAGE
        }
    }
}
