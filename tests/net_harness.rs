//! Promise: the tests of the network can be believed. With a `redis-server` in the place of the guest the recording clients see no
//! error and their history is accepted; a server that forgets, a connection that is reset, and two hosts that speak at once
//! are noticed.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Random, eventually, seed};
use net::capture::Capture;
use net::crowd::Crowd;
use net::resp::Connection;
use net::site::{Cable, GUEST, MAC, SERVER, Site, within};
use net::tool::Tool;

/// What a test would have said.
#[track_caller]
fn refused(what: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(what)).expect_err("it was not noticed");
    panic.downcast_ref::<String>().expect("a message with figures in it").clone()
}

/// A site where a host has the guest's addresses itself.
fn stand_in(side: usize) -> Site {
    let site = Site::up();
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    for command in [format!("link set bridge address {mac}"), format!("address add {GUEST}/24 dev bridge")] {
        let words: Vec<&str> = command.split(' ').collect();
        let host = site.host(side);
        Tool::start(&host, &[&["ip"], &words[..]].concat()).succeeds();
    }
    site
}

fn server(site: &Site, side: usize) -> Tool {
    let words = ["redis-server", "--bind", GUEST, "--save", "", "--daemonize", "no", "--protected-mode", "no"];
    Tool::start(&site.host(side), &words)
}

#[test]
fn a_right_server_is_accepted_and_the_cables_are_cables() {
    let mut random = Random::new(seed());
    let site = stand_in(0);
    let _server = server(&site, 0);
    let crowd = Crowd::gather(SERVER, &site.client(), 8, &mut random);
    let capture = Capture::on(&site);
    crowd.goes_on(100);
    // Through a pulled cable comes nothing, and afterwards everything.
    site.cut(Cable::Guest(0));
    let before = crowd.answers();
    crowd.work_for(std::time::Duration::from_millis(300));
    assert!(crowd.answers() <= before + 8, "answers through a pulled cable");
    let mended = std::time::Instant::now();
    site.mend(Cable::Guest(0));
    crowd.goes_on(30);
    let seen = crowd.finish();
    seen.is_linearizable();
    println!("{} calls, at most {} on a key", seen.calls, seen.longest());
    assert_eq!(seen.pauses(mended).len(), 8);
    let heard = capture.one_after_the_other();
    assert!(heard.len() >= seen.calls / 8 && heard.iter().all(|heard| heard.side == 0), "{} frames", heard.len());
}

#[test]
fn a_server_that_forgets_is_noticed() {
    let mut random = Random::new(seed());
    let site = stand_in(0);
    let _server = server(&site, 0);
    let crowd = Crowd::gather(SERVER, &site.client(), 8, &mut random);
    crowd.goes_on(100);
    let mut other = Connection::open(SERVER, &site.client()).expect("a connection");
    other.ask(&["FLUSHALL"]).expect("an answer");
    crowd.goes_on(100);
    let seen = crowd.finish();
    let said = refused(|| seen.is_linearizable());
    assert!(said.contains("no order explains"), "{said}");
}

#[test]
fn a_reset_is_noticed() {
    let mut random = Random::new(seed());
    let site = stand_in(0);
    let _server = server(&site, 0);
    let crowd = Crowd::gather(SERVER, &site.client(), 8, &mut random);
    crowd.goes_on(10);
    let mut other = Connection::open(SERVER, &site.client()).expect("a connection");
    other.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).expect("an answer");
    let said = refused(|| crowd.goes_on(10));
    assert!(said.contains("clients saw what they may not see"), "{said}");
}

#[test]
fn two_hosts_that_speak_are_noticed() {
    // b has the guest's addresses as well, and is heard first; then a speaks.
    let site = stand_in(0);
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    Tool::start(&site.host(1), &["ip", "link", "set", "bridge", "address", &mac]).succeeds();
    Tool::start(&site.host(1), &["ip", "address", "add", "10.9.0.3/24", "dev", "bridge"]).succeeds();
    let capture = Capture::on(&site);
    let speak = |side: usize| {
        // To an address that nobody has: an ARP request is all there is.
        within(&site.host(side), || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.send_to(b"hello", "10.9.0.99:9").expect("it is sent, or waits for an answer");
        });
        eventually("it is heard", || (capture.count(side) > 0).then_some(()));
    };
    speak(1);
    speak(0);
    let said = refused(|| drop(capture.one_after_the_other()));
    assert!(said.contains("frames from a after the first one from b"), "{said}");
}
