//! Random numbers: each from the machine's entropy register, an exit and an entry in the log. On a machine without
//! one, the SplitMix64 sequence from the fixed seed 0; the boot message says so.

use crate::pv;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lockstep_abi::pv::ENTROPY;

static FIXED: AtomicU64 = AtomicU64::new(0);

/// Eight random bytes.
pub fn random() -> u64 {
    if pv::present() { pv::read(ENTROPY) } else { split_mix(&FIXED) }
}

/// The next number of the SplitMix64 sequence (Steele, Lea, Flood 2014).
fn split_mix(state: &AtomicU64) -> u64 {
    let next = state.load(Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
    state.store(next, Relaxed);
    let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
