//! The guest applications that come with lockstep, one image for all: the first word of the command line chooses.
#![no_std]
#![no_main]

extern crate alloc;

mod compute;
mod idle;
mod mix;
mod shell;

use lockstep_runtime::{Args, app, println};

app!(main);

/// An application: takes the command line, gives the machine's exit code.
type App = fn(&Args) -> u8;

/// The applications by name. The root crate's `src/guest.rs` describes them in the same order.
const APPS: [(&str, App); 4] =
    [("shell", shell::main), ("mix", mix::main), ("compute", compute::main), ("idle", idle::main)];

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
