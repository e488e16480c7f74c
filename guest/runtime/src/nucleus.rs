//! The nucleus and the words it shares with ring 3. Only [`crate::gate`] enters it; interrupts do the rest.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

core::arch::global_asm!(include_str!("nucleus.s"), gates = const crate::gate::COUNT);

/// Interrupts taken so far: timer, COM1. Only the nucleus writes it.
#[unsafe(no_mangle)]
static LOCKSTEP_INTERRUPTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// See [`witness`]. Only the nucleus writes it.
#[unsafe(no_mangle)]
static LOCKSTEP_WITNESS: AtomicU64 = AtomicU64::new(0);

/// Timer interrupts taken so far.
pub fn timer_interrupts() -> u64 {
    LOCKSTEP_INTERRUPTS[0].load(Relaxed)
}

/// COM1 interrupts taken so far.
pub fn com1_interrupts() -> u64 {
    LOCKSTEP_INTERRUPTS[1].load(Relaxed)
}

/// All interrupts taken so far; what [`crate::gate::idle`] compares.
pub fn interrupts() -> u64 {
    timer_interrupts() + com1_interrupts()
}

/// A running hash of the instruction and the safepoint count at which each interrupt came.
pub fn witness() -> u64 {
    LOCKSTEP_WITNESS.load(Relaxed)
}
