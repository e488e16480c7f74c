//! The guest applications that come with lockstep, one image for all: the first word of the command line chooses.
#![no_std]
#![no_main]

extern crate alloc;

mod compute;
mod crash;
mod disk;
mod echo;
mod http;
mod idle;
mod kv;
mod mix;
mod network;
mod probe;
mod shell;
mod stream;
mod ticker;
mod transcript;

use lockstep_runtime::{Args, app, println};

app!(main);

/// An application: takes the command line, gives the machine's exit code.
type App = fn(&Args) -> u8;

/// The applications by name. The root crate's `src/guest.rs` describes them in the same order, which a test checks.
const APPS: [(&str, App); 19] = [
    ("shell", shell::main),
    ("mix", mix::main),
    ("compute", compute::main),
    ("idle", idle::main),
    ("transcript", transcript::main),
    ("ticker", ticker::main),
    ("echo", echo::main),
    ("http", http::main),
    ("stream", stream::main),
    ("kv", kv::main),
    ("disk", disk::main),
    ("probe-crash", probe::crash),
    ("probe-irqoff", probe::irqoff),
    ("probe-unclaimed", probe::unclaimed),
    ("probe-pv", probe::paravirtual_page),
    ("probe-backwards", probe::backwards),
    ("probe-flags", probe::flags),
    ("probe-spin", probe::spin),
    ("probe-spin0", probe::spin_at_ring_0),
];

/// Exit code for a command line that asks for something that is not there.
const USAGE: u8 = 2;

fn main(args: Args) -> u8 {
    let name = args.word(0).unwrap_or("shell");
    let Some((_, app)) = APPS.iter().find(|(known, _)| *known == name) else {
        println!("no application `{name}`; there are:");
        APPS.iter().for_each(|(name, _)| println!("  {name}"));
        return USAGE;
    };
    app(&args)
}
