//! The ways in which a guest can end badly.

use lockstep_runtime::gate::{self, Death};
use lockstep_runtime::println;

/// What [`crash`] knows.
pub const WAYS: &str = "triple, hlt, ud, loop, null, io, stack, panic";

/// Crashes in this way; comes back if there is no such way.
pub fn crash(how: &str) {
    match how {
        "triple" => gate::die(Death::TripleFault),
        "hlt" => gate::die(Death::Halt),
        "loop" => loop {
            core::hint::spin_loop();
        },
        "panic" => panic!("asked for"),
        // SAFETY: raises #UD; the nucleus reports it and ends the machine.
        "ud" => unsafe { core::arch::asm!("ud2", options(noreturn)) },
        // SAFETY: page 0 is not mapped: raises #PF, as above.
        "null" => unsafe { core::arch::asm!("mov al, [0]", out("al") _) },
        // SAFETY: ring 3 has no I/O permission: raises #GP, as above.
        "io" => unsafe { core::arch::asm!("in al, dx", in("dx") 0x3f8_u16, out("al") _) },
        "stack" => println!("{}", overflow(0)),
        _ => println!("a guest can crash like this: {WAYS}"),
    }
}

/// Uses up the stack.
#[expect(unconditional_recursion, reason = "that is what it is for")]
fn overflow(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 64]);
    overflow(depth + 1) + core::hint::black_box(frame)[63]
}
