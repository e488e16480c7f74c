//! Time: the machine's clock where it has one, and the ticks of the i8254.

use crate::{gate, nucleus, pv};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lockstep_abi::{PIT_HZ, port, pv as registers};

/// Ticks per second unless the command line says `hz=N`.
pub const DEFAULT_HZ: u64 = 100;
/// The fewest ticks per second that the i8254's 16-bit divisor allows.
const MIN_HZ: u64 = 19;
/// The most ticks per second that the machine promises.
const MAX_HZ: u64 = 1000;

/// Length of a tick in nanoseconds; 0 while there are none.
static PERIOD_NS: AtomicU64 = AtomicU64::new(0);

/// Starts the ticks; `hz` = 0 leaves them off.
pub(crate) fn init(hz: u64) {
    if hz == 0 {
        if !pv::present() {
            // A PC's i8254 ticks from power-on at 18 Hz: mode 0 (once) ends that with a last tick.
            for (port, value) in [(port::PIT + 3, 0x30), (port::PIT, 1), (port::PIT, 0)] {
                gate::outb(port, value);
            }
        }
        return;
    }
    let hz = hz.clamp(MIN_HZ, MAX_HZ);
    let divisor = (PIT_HZ + hz / 2) / hz;
    gate::outb(port::PIT + 3, 0x34); // channel 0, low and high byte, mode 2 (rate generator)
    gate::outb(port::PIT, divisor as u8);
    gate::outb(port::PIT, (divisor >> 8) as u8);
    PERIOD_NS.store(divisor * 1_000_000_000 / PIT_HZ, Relaxed);
}

/// Nanoseconds since boot; never goes backwards. An exit, and an entry in the log: ask for what you need.
pub fn clock_ns() -> u64 {
    if pv::present() { pv::read(registers::CLOCK_NS) } else { ticks() * tick_ns() }
}

/// The wall clock: nanoseconds since 1970 UTC; `None` on a machine that does not know.
pub fn wall_clock_ns() -> Option<u64> {
    pv::present().then(|| pv::read(registers::BOOT_TIME_NS) + clock_ns())
}

/// Ticks since boot. Costs nothing.
pub fn ticks() -> u64 {
    nucleus::timer_interrupts()
}

/// Length of a tick in nanoseconds; 0 if there are none.
pub fn tick_ns() -> u64 {
    PERIOD_NS.load(Relaxed)
}
