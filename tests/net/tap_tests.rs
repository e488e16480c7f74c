//! The port on a TAP device.

use lockstep::console::hub::Protection;
use lockstep::doors::Network;

use crate::outside::{Outside, batch};

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
