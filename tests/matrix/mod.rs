//! A cluster of seven machines, what may fail in it, what must become of its VM then, and the cases that hold the one against the other.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

pub mod case;
pub mod cluster;
pub mod fault;
pub mod model;
pub mod ping;
pub mod site;
pub mod table;
