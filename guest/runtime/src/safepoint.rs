//! Safepoints: the points where the host may deliver an event to code that makes no exits. Each adds one to
//! a count and compares it with a limit that the host may set at any time; at or above the limit it
//! rings the doorbell, and the host delivers there.
//!
//! The limit differs between a recording and its replay, so nothing derived from it may outlive the
//! comparison: both paths end with the same flags and the same registers, and the slow one pushes nothing.

use crate::pv;
use core::arch::asm;
use core::cell::UnsafeCell;
use lockstep_abi as abi;

/// The page that the host shares: the count, and a cache line further the limit.
#[repr(C, align(4096))]
pub struct Page(UnsafeCell<[u64; 512]>);

// SAFETY: touched only by `safepoint`, `count` and the nucleus's interrupt handlers (which read the count), on one
// processor, and by the host, which writes the limit as one word.
unsafe impl Sync for Page {}

const LIMIT_INDEX: usize = (abi::safepoint::LIMIT / 8) as usize;
const _: () = assert!(abi::safepoint::COUNT == 0 && abi::safepoint::LIMIT == 64, "the assembly below says so");

/// The safepoint page. The nucleus reads the count by this name.
#[unsafe(no_mangle)]
pub static LOCKSTEP_SAFEPOINT: Page = Page(UnsafeCell::new({
    let mut words = [0; 512];
    words[LIMIT_INDEX] = u64::MAX;
    words
}));

/// A safepoint; about 2 ns unless the host wants something. Call it in every loop that may run for
/// long, often enough that no more than some 50 µs pass between two.
#[inline(always)]
pub fn safepoint() {
    // SAFETY: touches the safepoint page and, on a machine that has registered it and set the limit, the doorbell.
    // `cmp x, x` puts all flags into one state, on both paths; the scratch register ends as the count on both.
    unsafe {
        asm!(
            "mov {count}, [rip + {page}]",
            "inc {count}",
            "mov [rip + {page}], {count}",
            "cmp {count}, [rip + {page} + 64]",
            "jb 2f",
            "mov {count:e}, {doorbell}",
            "cmp {count}, {count}",
            "mov dword ptr [{count}], 1",
            "mov {count}, [rip + {page}]",
            "2: cmp {count}, {count}",
            count = out(reg) _,
            page = sym LOCKSTEP_SAFEPOINT,
            doorbell = const abi::pv::BASE + abi::pv::DOORBELL,
            options(nostack),
        );
    }
}

/// Safepoints passed so far.
pub fn count() -> u64 {
    // SAFETY: the count is written by this processor's ring 3 only.
    unsafe { LOCKSTEP_SAFEPOINT.0.get().cast::<u64>().read_volatile() }
}

/// Guest-physical address of the safepoint page.
pub fn page_address() -> u64 {
    LOCKSTEP_SAFEPOINT.0.get() as u64
}

/// Tells the machine where the page is, if it knows of safepoints.
pub(crate) fn register() {
    if pv::present() {
        pv::write(abi::pv::SAFEPOINT_PAGE, page_address());
    }
}
