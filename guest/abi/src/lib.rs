//! What the machine and its guests agree on: port numbers, interrupt lines, and the registers of
//! the paravirtual page. Shared by the hypervisor and the guest crates, so that neither can drift.
//!
//! Everything else a guest meets is standard: PVH boot (`hvm_start_info` in `ebx`), an i8259 PIC
//! pair, an i8254 PIT, a 16550 UART, QEMU's `isa-debug-exit`. The same image therefore also boots
//! on `qemu-system-x86_64 -M microvm`; there the paravirtual page answers no [`pv::MAGIC`].
#![no_std]

/// Port numbers (I/O space).
pub mod port {
    /// Master i8259: command at +0, data at +1.
    pub const PIC_MASTER: u16 = 0x20;
    /// Slave i8259: command at +0, data at +1.
    pub const PIC_SLAVE: u16 = 0xa0;
    /// i8254: channels 0–2 at +0..+2, mode register at +3.
    pub const PIT: u16 = 0x40;
    /// 16550 UART, eight registers.
    pub const COM1: u16 = 0x3f8;
    /// Writing here stops the machine with the written value as exit code (QEMU's `isa-debug-exit`,
    /// whose process then ends with `value << 1 | 1`).
    pub const DEBUG_EXIT: u16 = 0xf4;
    /// Writing any byte here has the machine look at every virtio queue, as if each had been notified. `hlt` does the same.
    /// Where there is a paravirtual page there is this port.
    pub const VIRTIO_SYNC: u16 = 0x600;
    /// Writing any byte here is a [`VIRTIO_SYNC`], after which the machine goes on only when it has delivered an event (a tick, a packet, a
    /// key), or at once while an interrupt is pending. A `hlt` that needs no interrupt to end: less than half the price.
    pub const WAIT: u16 = 0x601;
}

/// Interrupt lines of the PIC pair.
pub mod irq {
    /// i8254 channel 0.
    pub const TIMER: u8 = 0;
    /// 16550 UART.
    pub const COM1: u8 = 4;
    /// Where the slave's lines arrive at the master.
    pub const CASCADE: u8 = 2;
}

/// Virtio devices behind the virtio-mmio transport (version 2), in slots as on QEMU's `microvm`. On this machine their interrupts are
/// edges, one for each notification: nothing has to be acknowledged for the next one to come.
pub mod virtio {
    /// Guest-physical address of slot 0.
    pub const MMIO_BASE: u64 = 0xfeb0_0000;
    /// Bytes from one slot to the next.
    pub const MMIO_STRIDE: u64 = 0x200;
    /// How many slots there are.
    pub const SLOTS: u64 = 8;
    /// Interrupt line of slot 0; those of the others follow.
    pub const FIRST_IRQ: u8 = 5;
    /// Slot of this machine's network card.
    pub const NET_SLOT: u64 = 0;
    /// Slot of this machine's disk.
    pub const DISK_SLOT: u64 = 1;
}

/// Input clock of the i8254, in Hz.
pub const PIT_HZ: u64 = 1_193_182;

/// The paravirtual page: one page of device registers, little endian, naturally aligned accesses
/// of the register's own width.
pub mod pv {
    /// Guest-physical address of the page. No memory slot lies behind it.
    pub const BASE: u64 = 0xd000_0000;
    /// Size of the register page in bytes.
    pub const SIZE: u64 = 0x1000;

    /// write u32: a safepoint found its count at or above its limit. Not counted as an exit.
    pub const DOORBELL: u64 = 0x000;
    /// write u64: guest-physical address of the [safepoint page](super::safepoint), page aligned, in
    /// RAM; 0 takes it back.
    pub const SAFEPOINT_PAGE: u64 = 0x008;
    /// read u64: nanoseconds since boot; never goes backwards.
    pub const CLOCK_NS: u64 = 0x010;
    /// read u64: the wall clock at boot, nanoseconds since 1970 UTC. Constant.
    pub const BOOT_TIME_NS: u64 = 0x018;
    /// read u64: eight random bytes.
    pub const ENTROPY: u64 = 0x020;
    /// read u64: [`MAGIC`], where this page exists.
    pub const IDENTITY: u64 = 0x028;
    /// read u64: the first of [`HOST_NAME_WORDS`] registers, one after the other, with the name of the host that the machine is on: bytes, as
    /// many as there are, and zeros behind them. It changes when the machine moves.
    pub const HOST_NAME: u64 = 0x040;
    /// How many registers the host's name has.
    pub const HOST_NAME_WORDS: u64 = 8;

    /// What [`IDENTITY`] reads as: `"lockstep"` in ASCII, little endian.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"lockstep");
}

/// The safepoint page, in guest RAM. The guest adds one to the count at every safepoint and rings
/// [`pv::DOORBELL`] if the count is then at or above the limit. The host writes the limit at any time
/// from any thread. The page is left out of digests and snapshots, and the guest reads the limit
/// for nothing else; the slow path leaves no trace of it in registers, flags or memory.
pub mod safepoint {
    /// Offset of the count (u64) in the page.
    pub const COUNT: u64 = 0;
    /// Offset of the limit (u64) in the page, on a cache line of its own.
    pub const LIMIT: u64 = 64;
}
