//! Promise: the port between the guest's card and the network outside carries every packet that it may, and none that it may not.
//! What the outside sends reaches `take`; what the guest sends leaves when it is released, within the lease, while this host is
//! live, and not otherwise; after a take-over nothing is missing, and everybody learns where the guest is. With real TAP devices in
//! network namespaces of this test's own, and with sockets.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
#[path = "net/outside.rs"]
mod outside;
#[path = "net/socket_tests.rs"]
mod socket_tests;
#[path = "net/tap_tests.rs"]
mod tap_tests;
