//! The nucleus and the words it shares with ring 3. Only [`crate::gate`] enters it; interrupts do the rest.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lockstep_abi::{irq, virtio};

/// The masked lines of the PIC pair, the slave's in the upper byte: all but those that the nucleus counts, and the cascade.
const MASK: u16 = !((1 << irq::TIMER) | (1 << irq::CASCADE) | (1 << irq::COM1) | (0xff << virtio::FIRST_IRQ));
const _: () = assert!(virtio::SLOTS == 8 && virtio::FIRST_IRQ as u64 + virtio::SLOTS <= 16);

core::arch::global_asm!(
    include_str!("nucleus.s"),
    gates = const crate::gate::COUNT, wait_port = const lockstep_abi::port::WAIT,
    mask = const MASK,
    virtio_first = const virtio::FIRST_IRQ,
    virtio_slots = const virtio::SLOTS,
);

/// Interrupts taken so far: timer, COM1, virtio (all slots together). Only the nucleus writes it.
#[unsafe(no_mangle)]
static LOCKSTEP_INTERRUPTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

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

/// Interrupts taken so far from virtio devices, whichever.
pub fn virtio_interrupts() -> u64 {
    LOCKSTEP_INTERRUPTS[2].load(Relaxed)
}

/// All interrupts taken so far; what [`crate::gate::idle`] compares.
pub fn interrupts() -> u64 {
    timer_interrupts() + com1_interrupts() + virtio_interrupts()
}

/// A running hash of the instruction and the safepoint count at which each interrupt came.
pub fn witness() -> u64 {
    LOCKSTEP_WITNESS.load(Relaxed)
}
