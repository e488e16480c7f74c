//! The world outside: clock, timer, console, storage. Here, and only here, the host's clocks are read.
#![allow(clippy::disallowed_methods, reason = "this is the outside world")]

pub mod clock;
pub mod entropy;
pub mod priority;
pub mod world;
