//! The port on a TAP device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use lockstep::backends::clock::boot_clock_ns;
use lockstep::console::hub::Protection;
use lockstep::doors::Network;
use lockstep::net::NetError;
use lockstep::net::cable::CableError;
use lockstep::net::port::Port;
use lockstep::net::received;
use lockstep::net::spec::Backend;
use lockstep::net::tap::TapError;

use crate::common::eventually;
use crate::outside::{GUEST_IP, Outside, arp, batch, number_of};

/// A lease that has run out long ago.
const OVER: u64 = 1;

#[test]
fn frames_from_outside_reach_the_guest_in_order() {
    let outside = Outside::new();
    let carried = outside.port();
    outside.send(1);
    outside.send(2);
    carried.port.go_live(Protection::Unprotected);
    for number in 3..200 {
        outside.send(number);
    }
    assert_eq!(carried.numbers_until(199, 7), (3..200).collect::<Vec<_>>(), "what came before was not for this host");
    let counters = carried.port.counters();
    assert_eq!((counters.rx_packets, counters.rx_bytes, counters.rx_dropped), (197, 197 * 60, 0));
}

#[test]
fn a_full_queue_drops_the_newest() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.go_live(Protection::Unprotected);
    let full = received::MAX_PACKETS as u32;
    (0..full + 30).for_each(|number| outside.send(number));
    eventually("what finds no room is counted", || (carried.port.counters().rx_dropped == 30).then_some(()));
    assert_eq!(carried.numbers_until(full - 1, 256), (0..full).collect::<Vec<_>>());
    outside.send(1000);
    assert_eq!(carried.numbers_until(1000, 256), [1000], "there is room again");
}

#[test]
fn what_is_held_stays_and_what_is_released_leaves_at_once() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.go_live(Protection::HeldFrom(0));
    for entry in 0..10 {
        carried.port.sent(entry, batch([2 * entry as u32, 2 * entry as u32 + 1], 100));
    }
    assert_eq!(carried.port.counters().tx_held, 20);
    carried.port.release(4);
    let on_this_thread = carried.port.counters();
    assert_eq!((on_this_thread.tx_packets, on_this_thread.tx_held), (8, 12), "sent when the call is back");
    assert_eq!(outside.numbers_until(7), (0..8).collect::<Vec<_>>());
    carried.port.hold();
    carried.port.sent(10, batch([20], 100));
    carried.port.set_protection(Protection::Unprotected);
    assert_eq!(outside.numbers_until(20), (8..21).collect::<Vec<_>>());
    carried.port.sent(11, batch([21], 100));
    assert_eq!(outside.numbers_until(21), [21], "nobody calls, and it leaves");
}

#[test]
fn an_output_whose_entry_is_safe_before_it_is_handed_over_leaves_as_well() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.go_live(Protection::HeldFrom(0));
    carried.port.release(5);
    carried.port.sent(4, batch([4], 100));
    carried.port.sent(5, batch([5], 100));
    assert_eq!(outside.numbers_until(4), [4]);
    assert_eq!(carried.port.counters().tx_held, 1);
}

#[test]
fn without_a_log_outputs_have_one_number_and_leave() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.go_live(Protection::Unprotected);
    (0..500).for_each(|number| carried.port.sent(0, batch([number], 1514)));
    assert_eq!(outside.numbers_until(499), (0..500).collect::<Vec<_>>());
}

#[test]
fn nothing_leaves_when_the_lease_is_over_and_all_when_it_is_prolonged() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.go_live(Protection::HeldFrom(0));
    (0..20).for_each(|entry| carried.port.sent(entry, batch([entry as u32], 100)));
    carried.port.set_lease(boot_clock_ns() + 3_600_000_000_000);
    carried.port.release(5);
    assert_eq!(outside.numbers_until(4), (0..5).collect::<Vec<_>>());
    carried.port.set_lease(OVER);
    carried.port.release(10);
    carried.port.set_protection(Protection::Unprotected);
    carried.port.sent(20, batch([20], 100));
    assert_eq!((carried.port.counters().tx_packets, carried.port.counters().tx_held), (5, 16));
    assert_eq!(outside.next(), None);
    carried.port.set_lease(u64::MAX);
    assert_eq!(outside.numbers_until(20), (5..21).collect::<Vec<_>>(), "nobody calls release, and they leave");
}

#[test]
fn what_was_released_and_not_sent_in_time_does_not_leave_after_the_machine_is_lost() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.go_live(Protection::Unprotected);
    carried.port.set_lease(OVER);
    (0..20).for_each(|entry| carried.port.sent(entry, batch([entry as u32], 100)));
    carried.port.not_live();
    carried.port.set_lease(u64::MAX);
    carried.port.release(u64::MAX);
    carried.port.sent(20, batch([20], 100));
    outside.send(7);
    // A second life of this port, so that there is something to wait for.
    carried.port.go_live(Protection::Unprotected);
    carried.port.sent(21, batch([21], 100));
    assert_eq!(outside.numbers_until(21), [20, 21], "of the lost ones none");
    outside.send(8);
    assert_eq!(carried.numbers_until(8, 256), [8]);
}

#[test]
fn going_live_sends_what_the_primary_may_not_have_sent_and_then_what_comes() {
    let outside = Outside::new();
    let carried = outside.port();
    (0..50).for_each(|entry| carried.port.replayed_sent(entry, &batch([entry as u32], 100)));
    carried.port.left(30);
    // The vCPU thread may be ahead of the word that this host is live.
    carried.port.sent(50, batch([50], 100));
    assert_eq!(carried.port.counters().tx_packets, 0);
    carried.port.go_live(Protection::Unprotected);
    carried.port.sent(51, batch([51], 100));
    assert_eq!(outside.numbers_until(51), (30..52).collect::<Vec<_>>());
}

#[test]
fn a_survivor_with_a_backup_holds_what_is_new() {
    let outside = Outside::new();
    let carried = outside.port();
    (0..5).for_each(|entry| carried.port.replayed_sent(entry, &batch([entry as u32], 100)));
    carried.port.sent(5, batch([5], 100));
    carried.port.go_live(Protection::HeldFrom(5));
    assert_eq!(outside.numbers_until(4), (0..5).collect::<Vec<_>>());
    assert_eq!(carried.port.counters().tx_held, 1);
}

#[test]
fn everybody_learns_where_the_guest_is_when_it_goes_live() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.replayed_sent(0, &arp());
    carried.port.left(1);
    assert_eq!(outside.next(), None, "while it is live elsewhere, nothing is said here");
    carried.port.go_live(Protection::Unprotected);
    let kind = |frame: &[u8]| (u16::from_be_bytes([frame[12], frame[13]]), frame[21], frame[28..32] == GUEST_IP);
    let mut seen = Vec::new();
    eventually("five announcements of three frames", || {
        seen.extend(std::iter::from_fn(|| outside.next()).map(|frame| kind(&frame)));
        (seen.len() >= 15).then_some(())
    });
    let one = [(0x806, 1, true), (0x806, 2, true), (0x8035, 3, false)];
    assert_eq!(seen, one.repeat(5));
    assert_eq!(carried.port.counters().tx_packets, 0, "they are not the guest's");
}

#[test]
fn announcements_end_with_the_life_and_need_the_lease() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.replayed_sent(0, &arp());
    carried.port.left(1);
    carried.port.set_lease(OVER);
    carried.port.go_live(Protection::Unprotected);
    assert_eq!(outside.next(), None);
    carried.port.set_lease(u64::MAX);
    eventually("the next one", || outside.next());
    carried.port.not_live();
    while outside.next().is_some() {}
    carried.port.go_live(Protection::Unprotected);
    let seen = std::iter::from_fn(|| outside.next()).count();
    assert_eq!(seen % 3, 0, "whole announcements only");
}

#[test]
fn a_guest_that_computes_is_reminded_and_one_that_waits_is_woken() {
    let outside = Outside::new();
    let carried = outside.port();
    let computes = Arc::new(AtomicBool::new(false));
    let (woken, reminded) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let waker = {
        let (computes, woken) = (computes.clone(), woken.clone());
        move || {
            woken.fetch_add(1, SeqCst);
            !computes.load(SeqCst)
        }
    };
    let count = reminded.clone();
    let reminder = move || {
        count.fetch_add(1, SeqCst);
    };
    carried.port.set_waker(Box::new(waker), Box::new(reminder));
    carried.port.go_live(Protection::Unprotected);
    outside.send(1);
    assert_eq!(carried.numbers_until(1, 256), [1]);
    assert_eq!((woken.load(SeqCst), reminded.load(SeqCst)), (1, 0));
    computes.store(true, SeqCst);
    for round in 1..=3 {
        outside.send(1 + round);
        eventually("it is reminded", || (reminded.load(SeqCst) == round).then_some(()));
        assert_eq!(carried.numbers_until(1 + round, 256), [1 + round]);
    }
}

#[test]
fn packets_that_come_before_the_guest_can_be_woken_are_not_forgotten() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.go_live(Protection::Unprotected);
    outside.send(1);
    assert_eq!(carried.numbers_until(1, 256), [1]);
    outside.send(2);
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    let waker = move || {
        count.fetch_add(1, SeqCst);
        true
    };
    carried.port.set_waker(Box::new(waker), Box::new(|| {}));
    eventually("the guest is woken", || (woken.load(SeqCst) > 0).then_some(()));
    assert_eq!(carried.numbers_until(2, 256), [2]);
}

#[test]
fn a_capture_has_what_was_on_the_wire_while_live() {
    let outside = Outside::new();
    let carried = outside.port();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wire.pcap");
    carried.port.capture(&path).unwrap();
    carried.port.replayed_sent(0, &arp());
    carried.port.left(1);
    outside.send(1);
    carried.port.go_live(Protection::HeldFrom(0));
    outside.send(2);
    assert_eq!(carried.numbers_until(2, 256), [2]);
    carried.port.sent(0, batch([3, 4], 1514));
    carried.port.sent(1, batch([5], 100));
    carried.port.release(1);
    carried.port.not_live();
    let file = std::fs::read(&path).unwrap();
    let (mut rest, mut frames) = (&file[24..], Vec::new());
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        frames.push((number_of(&rest[16..16 + length]), length));
        rest = &rest[16 + length..];
    }
    assert_eq!(frames[..3], [(None, 60); 3], "the announcement");
    frames.retain(|(number, _)| number.is_some());
    let expected = [(Some(2), 60), (Some(3), 1514), (Some(4), 1514)];
    assert_eq!(frames, expected, "not what was dropped, not what is held");
}

#[test]
fn a_device_that_is_down_loses_packets_and_nothing_else() {
    let outside = Outside::new();
    let carried = outside.port();
    carried.port.go_live(Protection::Unprotected);
    outside.ip(&["link", "set", "tap0", "down"]);
    carried.port.sent(0, batch([0], 100));
    eventually("it is dropped", || (carried.port.counters().tx_dropped == 1).then_some(()));
    outside.ip(&["link", "set", "tap0", "up"]);
    let outside = outside.again();
    outside.wait_for_carrier();
    carried.port.sent(1, batch([1], 100));
    outside.numbers_until(1);
    outside.send(2);
    carried.numbers_until(2, 256);
}

#[test]
fn a_device_that_is_removed_and_made_again_is_used_again() {
    let outside = Outside::new();
    let backend = outside.backend();
    // It has to come back in the same namespace: the thread that carries the packets must be in it.
    let port = outside.within(move || Port::open(&backend)).unwrap();
    let carried = outside.within(|| crate::outside::Carried::new(port));
    carried.port.go_live(Protection::Unprotected);
    outside.ip(&["link", "delete", "tap0"]);
    // Whatever is sent meanwhile goes nowhere.
    carried.port.sent(0, batch([0], 100));
    eventually("it is dropped", || (carried.port.counters().tx_dropped > 0).then_some(()));
    outside.ip(&["tuntap", "add", "tap0", "mode", "tap"]);
    outside.ip(&["link", "set", "tap0", "up"]);
    let outside = outside.again();
    outside.wait_for_carrier();
    carried.port.sent(1, batch([1], 100));
    assert_eq!(outside.numbers_until(1), [1]);
}

#[test]
fn what_cannot_be_opened_says_why() {
    let outside = Outside::new();
    let open = |name: &str| {
        let backend = Backend::Tap(name.into());
        match outside.within(move || Port::open(&backend)) {
            Err(NetError::Cable(CableError::Tap(error))) => error,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("{name} was opened"),
        }
    };
    assert!(matches!(open("nosuch"), TapError::Absent(_)));
    assert!(open("nosuch").to_string().contains("ip tuntap add nosuch mode tap"));
    assert!(matches!(open("a-name-that-is-too-long"), TapError::Name(_)));
    assert!(matches!(open(""), TapError::Name(_)));
    assert!(matches!(open("lo"), TapError::NotTap(_)));
    outside.ip(&["tuntap", "add", "wide", "mode", "tap", "multi_queue"]);
    assert!(matches!(open("wide"), TapError::NotTap(_)));
    outside.ip(&["tuntap", "add", "tun0", "mode", "tun"]);
    assert!(matches!(open("tun0"), TapError::NotTap(_)));
    let _taken = outside.port();
    assert!(matches!(open("tap0"), TapError::Busy(_)));
}
