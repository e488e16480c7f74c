//! A panic prints its message and ends the machine with code 101, as a native Rust program would.

use crate::{console, gate};
use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    console::emergency(format_args!("guest {info}\n"));
    gate::exit(101)
}
