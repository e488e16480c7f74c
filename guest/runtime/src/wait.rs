//! Sleeping: the processor halts until an interrupt changes something. Nothing is missed: the counters are
//! read before the condition, and the nucleus does not sleep if they have moved since.

use crate::{console, gate, nucleus, safepoint, time};

/// Waits until `ready` has an answer, asking again after every interrupt.
pub fn until<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    loop {
        safepoint();
        let seen = nucleus::interrupts();
        if let Some(answer) = ready() {
            return answer;
        }
        console::flush();
        gate::idle(seen);
    }
}

/// Sleeps for at least this long, in whole ticks. Without ticks, it polls the clock.
pub fn sleep_ns(duration_ns: u64) {
    if time::tick_ns() == 0 {
        let end = time::clock_ns().saturating_add(duration_ns);
        while time::clock_ns() < end {
            safepoint();
        }
        return;
    }
    let end = time::ticks() + duration_ns.div_ceil(time::tick_ns());
    until(|| (time::ticks() >= end).then_some(()));
}
