//! What a guest application stands on. The [`nucleus`] boots the processor and keeps ring 0 to a
//! few dozen instructions; everything else is Rust at ring 3, one room per service. An application is a
//! `fn main(Args) -> u8` named in [`app!`]; it is the only thing that runs, with interrupts always on.
//!
//! | room | serves |
//! | --- | --- |
//! | [`mod@safepoint`] | the points where the host may deliver an event |
//! | [`gate`] | the calls into ring 0 |
//! | [`pv`] | the machine's paravirtual registers, or their absence |
//! | [`memory`] | heap |
//! | [`time`] | clock, wall clock, ticks |
//! | [`entropy`] | random numbers |
//! | [`mod@host_name`] | the name of the host |
//! | [`console`] | printing, keys, lines |
//! | [`wait`] | sleeping without missing anything |
//! | [`args`] | the command line |
#![no_std]

extern crate alloc;

pub mod args;
pub mod console;
pub mod entropy;
pub mod gate;
pub mod host_name;
pub mod memory;
pub mod nucleus;
pub mod pv;
pub mod safepoint;
pub mod time;
pub mod wait;

mod boot;
mod memory_functions;
mod panic;
mod single;

pub use args::Args;
pub use host_name::host_name;
pub use safepoint::safepoint;

/// Names the application's main function, a `fn(Args) -> u8` whose result is the machine's exit code.
#[macro_export]
macro_rules! app {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn lockstep_main(args: $crate::Args) -> u8 {
            let main: fn($crate::Args) -> u8 = $main;
            main(args)
        }
    };
}
