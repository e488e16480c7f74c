//! What the tests of the network share: a site of two hosts and a client made of network namespaces, pairs that run in it,
//! clients that record every call, the checker of their histories, and ears on the wire.
#![allow(dead_code, reason = "every test is a crate of its own and uses the part it needs")]
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

pub mod bench;
pub mod capture;
pub mod cluster;
pub mod crowd;
pub mod linear;
pub mod object;
pub mod pair;
pub mod resp;
pub mod site;
pub mod tool;

use std::time::Duration;

/// Prints how long clients had to wait.
pub fn print_pauses(what: &str, pauses: &mut [Duration]) {
    pauses.sort();
    let Some(last) = pauses.len().checked_sub(1) else { return };
    let at = |per_mille: usize| pauses[last * per_mille / 1000].as_secs_f64() * 1000.0;
    println!(
        "{what}: {} pauses, ms: min {:.1}, median {:.1}, p90 {:.1}, p99 {:.1}, max {:.1}",
        pauses.len(),
        at(0),
        at(500),
        at(900),
        at(990),
        at(1000)
    );
}
