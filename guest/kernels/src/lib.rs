//! The guest's computations. No I/O, no operating system, no allocation behind the caller's back: the same code,
//! built with the same flags, runs in the guest and in a native process, so that a benchmark can hold one
//! against the other.
//!
//! Long loops call `poll` at least every 50 µs or so: in the guest a safepoint, natively nothing (or a counter).
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod fnv;
pub mod matrix;
pub mod primes;
pub mod random;
pub mod sha256;
pub mod sort;
pub mod work;
