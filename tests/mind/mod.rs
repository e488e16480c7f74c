//! What the test of the agents' decisions consists of.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod checks;
mod trouble;
pub mod world;
