//! Scheduling: the threads that carry heartbeats, acknowledgements and ticks sleep nearly always, and must not wait for a
//! busy vCPU when they wake.

use nix::libc;

/// Asks for real-time round-robin scheduling of the calling thread, at the lowest such priority. A user who may not have it (no
/// `CAP_SYS_NICE`) runs without: the time-outs are generous enough. Returns whether it was granted.
pub fn prefer_this_thread() -> bool {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads one `sched_param`, which lives through it; thread 0 is the calling one.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &parameters) == 0 }
}

/// The calling thread, forked off one with a priority, goes back to ordinary scheduling.
pub fn ordinary_this_thread() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: as above. Failing leaves the thread as it is.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &parameters) };
}
