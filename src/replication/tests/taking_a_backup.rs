//! A guest that runs without a backup gets one, on both sides, as whole lists of actions.

use super::*;
use primary::Action::*;
use primary::{Input, State};

fn on(primary: &mut Primary, now_ms: u64, input: Input) -> Vec<primary::Action> {
    let mut out = Vec::new();
    primary.on(now_ms * MS, input, &mut out);
    out
}

fn lease(until_ms: u64) -> primary::Action {
    Lease { until_ns: until_ms * MS }
}

const ALL_LEAVES: [primary::Action; 2] = [Lease { until_ns: u64::MAX }, Release { below: u64::MAX }];

fn appended(entries: u32) -> Input {
    Input::Appended { entries, bytes: 10 * entries }
}

/// A guest that has run alone for 5 entries, at 0 ms.
fn alone() -> Primary {
    let mut primary = Primary::new(identity(1, "alpha"), Settings { start_alone: true, ..Settings::default() });
    on(&mut primary, 0, Input::Start);
    on(&mut primary, 0, Input::Arbiter(Answer::Holds(None)));
    on(&mut primary, 0, Input::Arbiter(Answer::Won));
    on(&mut primary, 0, appended(5));
    primary
}

/// With a backup that gets the state from 10 ms on.
fn transferring() -> Primary {
    let mut primary = alone();
    come(&mut primary, 10, 1);
    primary
}

fn come(primary: &mut Primary, now_ms: u64, transfer: u64) {
    on(primary, now_ms, Input::Connected);
    let heartbeat = Message::Heartbeat { stamp: now_ms * MS, guest_clock_ns: 0, released: 0 };
    let hello = Send(message_hello(Role::Primary, 1));
    let begun = on(primary, now_ms, Input::Received(message_hello(Role::Backup, 0)));
    assert_eq!(begun, [hello, Send(of(1, Message::Transfer)), BeginTransfer { transfer }, Send(of(1, heartbeat))]);
    assert_eq!(primary.state(), &State::Transferring);
}

/// The state of entry 7 goes over at 20 ms, with nothing unwritten, and one entry follows.
fn joining() -> Primary {
    let mut primary = transferring();
    assert_eq!(on(&mut primary, 12, appended(2)), [], "the guest runs on unprotected");
    let sent = on(&mut primary, 20, Input::Captured { transfer: 1, entries: 7 });
    assert_eq!(sent, [Send(of(1, Message::State { entries: 7 }))]);
    assert_eq!(on(&mut primary, 20, Input::Left { below: 7 }), []);
    let follows = Message::Entries { first: 7, count: 1, bytes: 10, stamp: 21 * MS, released: 7 };
    assert_eq!(on(&mut primary, 21, appended(1))[0], Send(of(1, follows)));
    primary
}

fn welcome() -> Input {
    Input::Received(of(1, Message::Welcome))
}

#[test]
fn outputs_wait_for_acknowledgements_from_the_welcome_on_and_the_lease_comes_before_it() {
    let mut primary = joining();
    let counted = on(&mut primary, 30, welcome());
    assert_eq!(counted[..3], [Release { below: 7 }, lease(210), Send(of(1, Message::Welcome))]);
    assert_eq!((primary.state(), primary.acked(), primary.executed()), (&State::Protected, 7, 7));
    let ack = Message::Ack { received: 8, executed: 7, executed_stamp: 0, received_stamp: 21 * MS };
    assert_eq!(on(&mut primary, 31, Input::Received(of(1, ack)))[0], Release { below: 8 }, "the lease gets no shorter");
    assert_eq!(on(&mut primary, 32, Input::Disconnected)[0], Hold, "and it asks the arbiter from here on");
}

#[test]
fn the_welcome_waits_until_the_outputs_of_the_time_without_a_backup_have_left() {
    let mut primary = transferring();
    on(&mut primary, 12, Input::Left { below: u64::MAX });
    on(&mut primary, 20, Input::Captured { transfer: 1, entries: 5 });
    on(&mut primary, 21, Input::Left { below: 4 });
    assert_eq!(on(&mut primary, 22, welcome()), [], "what was said before the capture does not count");
    let left = on(&mut primary, 23, Input::Left { below: 5 });
    assert_eq!(left, [Release { below: 5 }, lease(203), Send(of(1, Message::Welcome))]);

    let mut primary = transferring();
    on(&mut primary, 20, Input::Captured { transfer: 1, entries: 5 });
    on(&mut primary, 22, welcome());
    on(&mut primary, 221, Input::Heard);
    assert_eq!((primary.state().name(), primary.next_deadline()), ("joining", Some(222 * MS)));
    on(&mut primary, 222, Input::Tick { guest_clock_ns: 0 });
    assert_eq!(primary.state(), &State::Protected, "a network that takes nothing keeps no guest unprotected");
}

#[test]
fn a_backup_lost_on_its_way_costs_nothing_and_the_next_one_may_come() {
    let mut primary = transferring();
    assert_eq!(on(&mut primary, 12, Input::Disconnected), [Suspect(Suspicion::Closed), EndTransfer]);
    assert_eq!(primary.state(), &State::Unprotected);
    come(&mut primary, 13, 2);
    assert_eq!(on(&mut primary, 14, Input::Captured { transfer: 1, entries: 5 }), ALL_LEAVES, "of the first one");
    assert_eq!(primary.state(), &State::Transferring);

    let mut primary = joining();
    let [forever, all] = ALL_LEAVES;
    let lost = on(&mut primary, 22, Input::Disconnected);
    assert_eq!(lost, [Suspect(Suspicion::Closed), EndTransfer, forever, all], "what was held leaves, unasked");
    assert_eq!((primary.state(), primary.generation()), (&State::Unprotected, 1));
    come(&mut primary, 23, 2);
    assert_eq!(
        on(&mut primary, 24, Input::Captured { transfer: 2, entries: 8 }),
        [Send(of(1, Message::State { entries: 8 }))]
    );
    on(&mut primary, 24, Input::Left { below: 8 });
    on(&mut primary, 25, welcome());
    assert_eq!(primary.state(), &State::Protected);
}

#[test]
fn another_backup_is_told_that_the_primary_is_busy() {
    for mut primary in [transferring(), joining()] {
        let again = on(&mut primary, 25, Input::Received(message_hello(Role::Backup, 0)));
        assert!(again.contains(&EndTransfer), "two hellos on one connection: {again:?}");
    }
}

#[test]
fn a_guest_that_ends_meanwhile_says_goodbye() {
    let goodbye = |entries| Send(of(1, Message::Goodbye(Goodbye::Ended { entries })));
    let mut primary = transferring();
    let ended = on(&mut primary, 12, Input::GuestEnded);
    assert_eq!(ended, [goodbye(5), EndTransfer, Disconnect, Stop(StopReason::Ended)]);
    let [forever, all] = ALL_LEAVES;
    let ended = on(&mut joining(), 22, Input::GuestEnded);
    assert_eq!(ended, [goodbye(8), EndTransfer, forever, all, Disconnect, Stop(StopReason::Ended)]);
    assert_eq!(on(&mut joining(), 22, Input::StopRequested)[0], StopGuest);
}

mod backup_side {
    use super::super::*;
    use backup::Action::*;
    use backup::{Input, State};

    fn on(backup: &mut Backup, now_ms: u64, input: Input) -> Vec<backup::Action> {
        let mut out = Vec::new();
        backup.on(now_ms * MS, input, &mut out);
        out
    }

    fn received(backup: &mut Backup, now_ms: u64, message: Message) -> Vec<backup::Action> {
        on(backup, now_ms, Input::Received(of(4, message)))
    }

    /// The state has come at 1 ms, and the machine is given it.
    fn restoring() -> Backup {
        let mut backup = Backup::new(identity(2, "beta"), Settings::default());
        on(&mut backup, 0, Input::Start);
        on(&mut backup, 0, Input::Connected);
        on(&mut backup, 0, Input::Received(message_hello(Role::Primary, 4)));
        assert_eq!(received(&mut backup, 0, Message::Transfer), [LoadBlank]);
        assert_eq!(received(&mut backup, 1, Message::Chunk), [Apply]);
        assert_eq!(received(&mut backup, 1, Message::State { entries: 7 }), [Restore { entries: 7 }]);
        backup
    }

    fn entries(first: u64, stamp: u64) -> Message {
        Message::Entries { first, count: 1, bytes: 9, stamp, released: 7 }
    }

    #[test]
    fn the_log_may_come_before_it_is_ready_and_is_acknowledged_when_it_counts() {
        let mut backup = restoring();
        assert_eq!(received(&mut backup, 2, entries(7, 70)), [Replay { first: 7, count: 1, stamp: 70 }]);
        assert_eq!(on(&mut backup, 3, Input::Loaded), [Send(of(4, Message::Welcome))]);
        assert_eq!(received(&mut backup, 4, entries(8, 80)), [Replay { first: 8, count: 1, stamp: 80 }]);
        assert_eq!(on(&mut backup, 5, Input::Executed { entries: 8, stamp: 70 }), []);
        let ack = Message::Ack { received: 9, executed: 8, executed_stamp: 70, received_stamp: 80 };
        assert_eq!(received(&mut backup, 6, Message::Welcome), [Send(of(4, ack))]);
        assert_eq!(backup.state(), &State::Following);
    }

    #[test]
    fn before_the_welcome_it_looks_for_a_primary_again_with_nothing_of_the_old_one() {
        let mut backup = restoring();
        received(&mut backup, 2, entries(7, 70));
        on(&mut backup, 3, Input::Loaded);
        assert_eq!(on(&mut backup, 4, Input::Disconnected), [Suspect(Suspicion::Closed)]);
        on(&mut backup, 4, Input::Executed { entries: 8, stamp: 70 });
        assert_eq!(on(&mut backup, 104, Input::Tick), [Connect]);
        assert_eq!((backup.received(), backup.executed(), backup.generation()), (0, 0, 0));
        let mut fresh = Backup::new(identity(2, "beta"), Settings::default());
        on(&mut fresh, 104, Input::Start);
        assert_eq!(backup, fresh);
    }

    #[test]
    fn what_does_not_follow_the_state_is_no_log() {
        let gap = Suspicion::Violation(Violation::Gap { expected: 7, found: 8 });
        assert_eq!(received(&mut restoring(), 2, entries(8, 70)), [Disconnect, Suspect(gap)]);
    }

    #[test]
    fn a_guest_that_ends_before_it_counts_has_ended() {
        let goodbye = Message::Goodbye(Goodbye::Ended { entries: 7 });
        assert_eq!(received(&mut restoring(), 2, goodbye), [Disconnect, Stop(StopReason::Ended)]);
    }
}
