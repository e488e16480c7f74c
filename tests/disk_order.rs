//! Promise: whatever is in flight at the same time, what a guest reads is what was written before it asked, and nothing that was written after; overlapping requests are
//! carried out in the order in which they were asked for. Held against a model by random requests, through the host's memory and past it, with short and slow calls,
//! and with writes that stay in a volatile cache until they are flushed in any order.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

#[path = "disk/guest.rs"]
mod guest;
#[path = "disk/host.rs"]
mod host;

use guest::{Guest, SECTORS};
use host::Host;
use lockstep::console::hub::Protection;
use lockstep::doors::Disk;

/// Runs a guest on an image with these settings, and holds the image against the model at the end.
fn run(settings: &str, requests: u64, seed: u64) {
    let directory = host::directory();
    let path = host::image(directory.path(), "a.img", SECTORS);
    println!("{settings} seed {seed}");
    let disk = Host::open(&path, settings).unwrap();
    disk.port.go_live(1, Protection::Unprotected).unwrap();
    let mut guest = Guest::new(seed);
    let mut entry = 0;
    while guest.completed < requests || guest.in_flight() > 0 {
        let asks = guest.completed < requests && guest.in_flight() < 40 && guest.dice().below(3) > 0;
        if asks {
            let requests = guest.ask();
            disk.port.submit(entry, requests);
        } else if guest.in_flight() > 0 {
            guest.hear(&disk.wait());
        }
        entry += 1;
    }
    assert!(disk.port.take().is_none());
    disk.port.ended().unwrap();
    drop(disk);
    assert_eq!(std::fs::read(&path).unwrap(), guest.contents(), "the image at the end");
}

#[test]
fn through_the_hosts_memory() {
    (0..8).for_each(|seed| run(",cache=writeback", 2000, seed));
}

#[test]
fn past_the_hosts_memory() {
    (0..3).for_each(|seed| run(",cache=none", 500, seed));
}

#[test]
fn separate_images() {
    (0..4).for_each(|seed| run(",mode=separate", 2000, seed));
}

#[test]
fn with_short_and_slow_calls() {
    for seed in 0..6 {
        run(&format!(",cache=writeback,faults=seed:{seed}+short:0.5+delay:0.3@300"), 600, seed);
        run(&format!(",cache=none,faults=seed:{seed}+short:0.5+delay:0.3@300"), 200, seed);
    }
}

#[test]
fn with_a_volatile_cache() {
    for seed in 0..6 {
        run(&format!(",mode=separate,faults=seed:{seed}+volatile+delay:0.2@200"), 600, seed);
    }
}
