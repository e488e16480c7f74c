//! What the tests of real agents consist of.

pub mod cluster;
