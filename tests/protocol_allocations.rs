//! Promise: once a pair runs, appending, acknowledging and beating allocate nothing on either side.

use lockstep::machine::instant::Instant;
use lockstep::replication::backup::{self, Backup};
use lockstep::replication::election::Answer;
use lockstep::replication::message::{Envelope, Message};
use lockstep::replication::primary::{self, Primary};
use lockstep::replication::{Identity, Settings};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Passes on what each side sends until nobody has anything to say.
fn settle(
    now: u64,
    (primary, to_primary): (&mut Primary, &mut Vec<primary::Action>),
    (backup, to_backup): (&mut Backup, &mut Vec<backup::Action>),
) {
    while !(to_primary.is_empty() && to_backup.is_empty()) {
        for action in to_primary.drain(..) {
            match action {
                primary::Action::Send(envelope) => backup.on(now, backup::Input::Received(envelope), to_backup),
                primary::Action::Ask(_)
                | primary::Action::StartGuest
                | primary::Action::Lease { .. }
                | primary::Action::Release { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        for action in to_backup.drain(..) {
            match action {
                backup::Action::Send(envelope) => primary.on(now, primary::Input::Received(envelope), to_primary),
                backup::Action::Connect
                | backup::Action::Load
                | backup::Action::Left { .. }
                | backup::Action::Replay { .. }
                | backup::Action::RunTo { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn the_hot_path_allocates_nothing() {
    let identity = |host| Identity::new("vm", host, "host", "cpu").unwrap();
    let mut primary = Primary::new(identity(1), Settings::default());
    let mut backup = Backup::new(identity(2), Settings::default());
    let (mut p, mut b) = (Vec::with_capacity(16), Vec::with_capacity(16));
    primary.on(0, primary::Input::Start, &mut p);
    backup.on(0, backup::Input::Start, &mut b);
    primary.on(0, primary::Input::Connected, &mut p);
    backup.on(0, backup::Input::Connected, &mut b);
    settle(0, (&mut primary, &mut p), (&mut backup, &mut b));
    for answer in [Answer::Holds(None), Answer::Won] {
        primary.on(0, primary::Input::Arbiter(answer), &mut p);
        settle(0, (&mut primary, &mut p), (&mut backup, &mut b));
    }
    backup.on(0, backup::Input::Loaded, &mut b);
    settle(0, (&mut primary, &mut p), (&mut backup, &mut b));
    assert_eq!((primary.state().name(), backup.state().name()), ("protected", "following"));

    let mut payload = Vec::with_capacity(64);
    let before = ALLOCATIONS.get();
    for now in (0..20_000_000_000).step_by(200_000) {
        primary.on(now, primary::Input::Appended { entries: 3, bytes: 20 }, &mut p);
        let horizon = primary::Input::Horizon { entries: primary.appended(), at: Instant::new(now, now) };
        primary.on(now, horizon, &mut p);
        primary.on(now, primary::Input::Left { below: primary.acked() }, &mut p);
        primary.on(now, primary::Input::Tick { guest_clock_ns: now }, &mut p);
        backup.on(now, backup::Input::Tick, &mut b);
        settle(now, (&mut primary, &mut p), (&mut backup, &mut b));
        // The newest stamp is the horizon's, unless it fell into the same nanosecond.
        backup.on(now, backup::Input::Executed { entries: primary.appended(), stamp: now }, &mut b);
    }
    for number in 0..1000 {
        let message = Message::Ack { received: number, executed: 2, executed_stamp: 3, received_stamp: 4 };
        let envelope = Envelope { generation: 7, message };
        payload.clear();
        let head = envelope.encode(&mut payload);
        assert_eq!(Envelope::decode(head, &payload).unwrap().0, envelope);
    }
    let allocated = ALLOCATIONS.get() - before;
    assert_eq!(primary.appended(), 300_000);
    assert_eq!(primary.acked(), 300_000);
    assert_eq!(allocated, 0);
}
