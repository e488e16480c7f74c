//! The machine's paravirtual registers. Where the machine has none (QEMU), [`present`] says so and the
//! services fall back: time counts ticks, entropy is a fixed sequence.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use lockstep_abi::pv::{BASE, IDENTITY, MAGIC, SIZE};

static PRESENT: AtomicBool = AtomicBool::new(false);

/// Whether this machine has the paravirtual page.
pub fn present() -> bool {
    PRESENT.load(Relaxed)
}

/// Looks for the page, once at boot. Without it nothing lies at its address, which PC hardware reads as
/// all zeros or all ones.
pub(crate) fn detect() {
    PRESENT.store(read(IDENTITY) == MAGIC, Relaxed);
}

/// Reads the 64-bit register at this offset.
pub fn read(offset: u64) -> u64 {
    assert!(offset.is_multiple_of(8) && offset < SIZE);
    let value;
    // SAFETY: reads a device page that is no memory of Rust's. A plain `mov`, whatever the optimiser
    // thinks of it: hypervisors decode this instruction.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) BASE + offset, options(nostack)) };
    value
}

/// Writes the 64-bit register at this offset.
pub fn write(offset: u64, value: u64) {
    assert!(offset.is_multiple_of(8) && offset < SIZE);
    // SAFETY: as in `read`; no register of this page makes the machine write guest memory but the
    // safepoint page's limit.
    unsafe { asm!("mov [{}], {}", in(reg) BASE + offset, in(reg) value, options(nostack)) };
}
