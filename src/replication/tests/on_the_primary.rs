//! The primary's main paths, as whole lists of actions.

use super::*;
use primary::Action::*;
use primary::{Input, State};

fn on(primary: &mut Primary, now_ms: u64, input: Input) -> Vec<primary::Action> {
    let mut out = Vec::new();
    primary.on(now_ms * MS, input, &mut out);
    out
}

/// The lease of a primary that has no backup to fear.
const FOREVER: primary::Action = Lease { until_ns: u64::MAX };

/// The lease that ends then.
fn lease(until_ms: u64) -> primary::Action {
    Lease { until_ns: until_ms * MS }
}

fn heartbeat(generation: u64, now_ms: u64) -> primary::Action {
    Send(of(generation, Message::Heartbeat { stamp: now_ms * MS, guest_clock_ns: 0, released: 0 }))
}

fn entries(first: u64, count: u32, bytes: u32, stamp: u64) -> primary::Action {
    Send(of(1, Message::Entries { first, count, bytes, stamp, released: 0 }))
}

/// Up to the guest's start, at 0 ms.
fn protected_with(settings: Settings) -> Primary {
    let mut primary = Primary::new(identity(1, "alpha"), settings);
    assert_eq!(on(&mut primary, 0, Input::Start), []);
    assert_eq!(on(&mut primary, 0, Input::Connected), []);
    let asked = on(&mut primary, 0, Input::Received(message_hello(Role::Backup, 0)));
    assert_eq!(asked, [Ask(Question::Read), heartbeat(0, 0)]);
    let claimed = on(&mut primary, 0, Input::Arbiter(Answer::Holds(None)));
    assert_eq!(claimed, [Ask(Question::Claim { expected: None, generation: 1, shared_with: None })]);
    let prepared = on(&mut primary, 0, Input::Arbiter(Answer::Won));
    assert_eq!(prepared, [Send(message_hello(Role::Primary, 1)), Send(of(1, Message::Boot))]);
    let started = on(&mut primary, 0, Input::Received(of(1, Message::Welcome)));
    assert_eq!(started, [lease(180), Send(of(1, Message::Welcome)), StartGuest]);
    primary
}

fn protected() -> Primary {
    protected_with(Settings::default())
}

/// An acknowledgement of entries, all executed, that says what was the newest thing received.
fn heard(received: u64, received_stamp: u64) -> Input {
    let executed_stamp = received * MS;
    Input::Received(of(1, Message::Ack { received, executed: received, executed_stamp, received_stamp }))
}

fn append(primary: &mut Primary, now_ms: u64, entries: u32, bytes: u32) -> Vec<primary::Action> {
    on(primary, now_ms, Input::Appended { entries, bytes })
}

#[test]
fn an_output_leaves_when_the_backup_has_acknowledged_its_entry() {
    let mut primary = protected();
    assert_eq!(append(&mut primary, 1, 3, 30), [entries(0, 3, 30, MS)]);
    assert_eq!(append(&mut primary, 1, 1, 10), [entries(3, 1, 10, MS + 1)], "stamps differ");
    assert_eq!(on(&mut primary, 2, ack(3, 0, 0)), [Release { below: 3 }]);
    assert_eq!(on(&mut primary, 2, ack(3, 2, 0)), [], "nothing new");
    assert_eq!(on(&mut primary, 2, ack(4, 4, MS + 1)), [Release { below: 4 }]);
    assert_eq!((primary.acked(), primary.executed(), primary.lag_ns(), primary.unacked_bytes()), (4, 4, 0, 0));
}

#[test]
fn a_horizon_goes_out_unless_entries_have_overtaken_it() {
    let mut primary = protected();
    append(&mut primary, 1, 2, 20);
    let at = Instant::new(5, 70);
    let sent = on(&mut primary, 2, Input::Horizon { entries: 2, at });
    assert_eq!(sent, [Send(of(1, Message::Horizon { entries: 2, at, stamp: 2 * MS, released: 0 }))]);
    assert_eq!(on(&mut primary, 2, Input::Horizon { entries: 1, at }), []);
}

#[test]
fn a_closed_connection_asks_the_arbiter_and_releases_when_it_is_won() {
    let mut primary = protected();
    append(&mut primary, 1, 2, 20);
    let suspected = on(&mut primary, 2, Input::Disconnected);
    assert_eq!(suspected, [Hold, Suspect(Suspicion::Closed), Ask(CLAIM_2)]);
    assert_eq!(on(&mut primary, 2, ack(2, 0, 0)), [], "too late");
    assert_eq!(append(&mut primary, 3, 1, 10), [], "nobody to send to");
    assert_eq!(on(&mut primary, 4, Input::Arbiter(Answer::Won)), [FOREVER, Release { below: u64::MAX }]);
    assert_eq!((primary.state(), primary.generation()), (&State::Unprotected, 2));
    assert_eq!(append(&mut primary, 5, 1, 10), []);
    assert_eq!((primary.appended(), primary.next_deadline()), (4, None));
}

#[test]
fn an_unreachable_arbiter_is_asked_again_and_nothing_leaves_meanwhile() {
    let mut primary = protected();
    on(&mut primary, 10, Input::Disconnected);
    assert_eq!(on(&mut primary, 11, Input::Arbiter(Answer::Unreachable)), []);
    assert_eq!(primary.next_deadline(), Some(111 * MS));
    assert_eq!(on(&mut primary, 110, Input::Tick { guest_clock_ns: 0 }), []);
    assert_eq!(on(&mut primary, 111, Input::Tick { guest_clock_ns: 0 }), [Ask(CLAIM_2)]);
}

#[test]
fn the_loser_stops_and_names_the_winner() {
    let mut primary = protected();
    on(&mut primary, 2, Input::Disconnected);
    let reason = StopReason::Lost { generation: 2, holder: Some(beta_holds_2()) };
    let text = "lost generation 2 at the arbiter: host beta (0000000000000002) holds generation 2";
    assert_eq!(reason.to_string(), text);
    let lost = on(&mut primary, 3, Input::Arbiter(Answer::Lost(Some(beta_holds_2()))));
    assert_eq!(lost, [Stop(reason)]);
    assert_eq!(on(&mut primary, 4, Input::Connected), [], "it stays stopped");
}

#[test]
fn a_primary_that_slept_gives_up_before_it_looks_at_what_waited_for_it() {
    let mut primary = protected();
    append(&mut primary, 1, 2, 20);
    let silence = Suspicion::Silence { silence_ns: 200 * MS };
    assert_eq!(on(&mut primary, 200, ack(2, 0, 0)), [Hold, Disconnect, Suspect(silence), Ask(CLAIM_2)]);
    let mut primary = protected();
    append(&mut primary, 1, 2, 20);
    assert_eq!(on(&mut primary, 199, ack(2, 0, 0))[0], Release { below: 2 }, "a nap");
}

#[test]
fn heartbeats_go_out_and_count_and_set_the_deadlines() {
    let mut primary = protected();
    assert_eq!(primary.next_deadline(), Some(20 * MS));
    let beat = on(&mut primary, 20, Input::Tick { guest_clock_ns: 7 });
    assert_eq!(beat, [Send(of(1, Message::Heartbeat { stamp: 20 * MS, guest_clock_ns: 7, released: 0 }))]);
    let heard = Input::Received(of(1, Message::Heartbeat { stamp: 1, guest_clock_ns: 0, released: 0 }));
    assert_eq!(on(&mut primary, 30, heard), []);
    assert_eq!((primary.heartbeats(), primary.heard_at()), (1, Some(30 * MS)));
    on(&mut primary, 229, Input::Heard);
    assert_eq!(primary.heard_at(), Some(229 * MS), "part of a message is a sign of life");
}

#[test]
fn a_full_window_stalls_the_vcpu_and_half_a_window_lets_it_go_on() {
    let mut primary = protected_with(Settings { window_bytes: 100, ..Settings::default() });
    assert_eq!(append(&mut primary, 1, 1, 60), [entries(0, 1, 60, MS)]);
    assert_eq!(append(&mut primary, 1, 1, 60), [entries(1, 1, 60, MS + 1), Stall]);
    assert!(!primary.may_append());
    assert_eq!(on(&mut primary, 2, ack(1, 0, 0)), [Release { below: 1 }]);
    assert_eq!(on(&mut primary, 2, ack(2, 0, 0)), [Release { below: 2 }, Resume]);
    let mut primary = protected_with(Settings { backlog_bytes: 100, ..Settings::default() });
    assert_eq!(append(&mut primary, 1, 1, 100), [entries(0, 1, 100, MS), Stall]);
    assert_eq!(on(&mut primary, 2, ack(1, 0, 0)), [Release { below: 1 }], "held, and not executed");
    assert_eq!(on(&mut primary, 2, ack(1, 1, MS)), [Resume]);
}

#[test]
fn a_backup_that_falls_behind_slows_the_guest_and_its_death_ends_that() {
    let mut primary = protected();
    append(&mut primary, 1, 1, 10);
    let mut actions = Vec::new();
    for now_ms in (20..1000).step_by(20) {
        let (received_stamp, executed_stamp) = ((now_ms - 1) * MS, 0);
        let ack = Message::Ack { received: 1, executed: 0, executed_stamp, received_stamp };
        primary.on(now_ms * MS, Input::Received(of(1, ack)), &mut actions);
    }
    assert_eq!(primary.lag_ns(), 979 * MS);
    assert!(actions.contains(&SlowDown { per_mille: primary.slow_down_per_mille() }));
    assert!(primary.slow_down_per_mille() > 0);
    on(&mut primary, 1000, Input::Disconnected);
    let alone = on(&mut primary, 1001, Input::Arbiter(Answer::Won));
    assert_eq!(alone, [FOREVER, Release { below: u64::MAX }, SlowDown { per_mille: 0 }]);
}

#[test]
fn the_goodbye_comes_after_the_last_output_has_left() {
    let mut primary = protected();
    append(&mut primary, 1, 2, 20);
    assert_eq!(on(&mut primary, 2, Input::GuestEnded), []);
    let goodbye = Send(of(1, Message::Goodbye(Goodbye::Ended { entries: 2 })));
    assert_eq!(on(&mut primary, 3, ack(2, 0, 0)), [Release { below: 2 }]);
    assert_eq!(on(&mut primary, 3, Input::Left { below: 1 }), [], "one waits yet");
    let ended = on(&mut primary, 3, Input::Left { below: 2 });
    assert_eq!(ended, [FOREVER, goodbye, Disconnect, Stop(StopReason::Ended)]);
}

#[test]
fn a_network_that_takes_nothing_keeps_no_guest_from_ending() {
    let mut primary = protected();
    append(&mut primary, 1, 2, 20);
    on(&mut primary, 2, Input::GuestEnded);
    let heard = |received_stamp| {
        Input::Received(of(1, Message::Ack { received: 2, executed: 0, executed_stamp: 0, received_stamp }))
    };
    on(&mut primary, 3, heard(MS));
    on(&mut primary, 150, heard(140 * MS));
    assert_eq!(primary.state(), &State::Protected);
    on(&mut primary, 203, heard(190 * MS));
    assert_eq!(primary.state(), &State::Stopped(StopReason::Ended));
}

#[test]
fn what_has_left_is_told_but_for_the_newest_entry_whose_output_may_not_be_queued() {
    let told = |actions: &[primary::Action]| match actions {
        [Send(Envelope { message: Message::Entries { released, .. } | Message::Horizon { released, .. }, .. }), ..] => {
            *released
        }
        other => panic!("{other:?}"),
    };
    let mut primary = protected();
    append(&mut primary, 1, 3, 30);
    on(&mut primary, 2, ack(2, 0, 0));
    on(&mut primary, 2, Input::Left { below: 2 });
    assert_eq!(told(&append(&mut primary, 2, 1, 10)), 2);
    on(&mut primary, 3, ack(4, 0, 0));
    on(&mut primary, 3, Input::Left { below: 4 });
    let at = Instant::new(1, 1);
    assert_eq!(told(&on(&mut primary, 3, Input::Horizon { entries: 4, at })), 3, "the vCPU may not have queued it yet");
    assert_eq!(told(&append(&mut primary, 4, 1, 10)), 3, "it may have queued it since, and it need not have left");
    on(&mut primary, 4, Input::Left { below: 4 });
    assert_eq!(told(&append(&mut primary, 4, 1, 10)), 4);
    let mut primary = protected();
    append(&mut primary, 1, 3, 30);
    on(&mut primary, 2, ack(3, 0, 0));
    on(&mut primary, 2, Input::Left { below: 1 });
    assert_eq!(told(&append(&mut primary, 3, 1, 10)), 1, "released is not left");
}

#[test]
fn the_lease_runs_from_the_sending_of_what_the_backup_has_received() {
    let mut primary = protected();
    append(&mut primary, 1, 1, 10);
    append(&mut primary, 2, 1, 10);
    assert_eq!(on(&mut primary, 3, heard(1, MS)), [lease(181), Release { below: 1 }]);
    assert_eq!(on(&mut primary, 4, heard(2, 2 * MS)), [lease(182), Release { below: 2 }]);
    assert_eq!(on(&mut primary, 5, heard(2, 2 * MS)), [], "an acknowledgement of nothing new says nothing new");
    on(&mut primary, 30, Input::Tick { guest_clock_ns: 0 });
    assert_eq!(on(&mut primary, 33, heard(2, 30 * MS)), [lease(210)], "a heartbeat was received");
}

#[test]
fn a_lapsed_lease_stalls_the_vcpu_and_the_next_one_releases_again() {
    let mut primary = protected();
    append(&mut primary, 1, 1, 10);
    on(&mut primary, 20, heard(1, MS));
    on(&mut primary, 40, Input::Tick { guest_clock_ns: 0 });
    on(&mut primary, 180, heard(1, MS));
    assert_eq!(on(&mut primary, 181, heard(1, MS)), [Release { below: 1 }, Stall], "nothing new, and it has run out");
    let renewed = on(&mut primary, 190, heard(1, 40 * MS));
    assert_eq!(renewed, [Lease { until_ns: 220 * MS }, Release { below: 1 }, Resume]);
}

#[test]
fn a_guest_that_ends_without_its_backup_ends_by_the_arbiter() {
    let mut primary = protected();
    append(&mut primary, 1, 2, 20);
    on(&mut primary, 2, Input::GuestEnded);
    assert_eq!(on(&mut primary, 3, Input::Disconnected), [Hold, Suspect(Suspicion::Closed), Ask(CLAIM_2)]);
    let ended = on(&mut primary, 4, Input::Arbiter(Answer::Won));
    assert_eq!(ended, [FOREVER, Release { below: u64::MAX }, Stop(StopReason::Ended)]);
}

#[test]
fn a_diverged_backup_is_given_up() {
    let mut primary = protected();
    let text: Box<str> = "rax".into();
    let diverged = on(&mut primary, 1, Input::Received(of(1, Message::Diverged { entry: 4, text: text.clone() })));
    assert_eq!(diverged, [Hold, Disconnect, Suspect(Suspicion::Diverged { entry: 4, text }), Ask(CLAIM_2)]);
}

#[test]
fn acknowledgements_that_cannot_be_are_not_believed() {
    let never = u64::MAX;
    for (received, executed, executed_stamp, received_stamp) in
        [(3, 0, 0, MS), (2, 3, 0, MS), (0, 0, 0, MS), (2, 1, never, MS), (2, 1, 0, 0), (2, 1, MS, 2 * MS + 1)]
    {
        let mut primary = protected();
        append(&mut primary, 1, 1, 10);
        append(&mut primary, 2, 1, 10);
        on(&mut primary, 1, heard(1, MS));
        let violation = Suspicion::Violation(Violation::Acknowledged { received, appended: 2 });
        let given_up = [Hold, Disconnect, Suspect(violation), Ask(CLAIM_2)];
        let ack = Message::Ack { received, executed, executed_stamp, received_stamp };
        assert_eq!(on(&mut primary, 2, Input::Received(of(1, ack))), given_up);
    }
}

#[test]
fn before_the_guest_starts_a_lost_backup_is_just_waited_for_again() {
    let mut primary = Primary::new(identity(1, "alpha"), Settings::default());
    on(&mut primary, 0, Input::Start);
    on(&mut primary, 0, Input::Connected);
    on(&mut primary, 0, Input::Received(message_hello(Role::Backup, 0)));
    assert_eq!(on(&mut primary, 1, Input::Disconnected), [], "while claiming");
    on(&mut primary, 1, Input::Arbiter(Answer::Holds(Some(8))));
    assert_eq!(on(&mut primary, 1, Input::Arbiter(Answer::Won)), [], "nobody to prepare");
    assert_eq!((primary.state(), primary.generation()), (&State::Waiting, 9));
    on(&mut primary, 2, Input::Connected);
    let prepared = on(&mut primary, 2, Input::Received(message_hello(Role::Backup, 0)));
    assert_eq!(prepared, [Send(message_hello(Role::Primary, 9)), Send(of(9, Message::Boot)), heartbeat(9, 2)]);
    assert_eq!(on(&mut primary, 3, Input::Disconnected), [Suspect(Suspicion::Closed)], "while preparing");
    assert_eq!(primary.state(), &State::Waiting);
}

#[test]
fn started_alone_it_claims_and_runs_and_a_backup_that_is_early_comes_again() {
    let mut primary = Primary::new(identity(1, "alpha"), Settings { start_alone: true, ..Settings::default() });
    assert_eq!(on(&mut primary, 0, Input::Start), [Ask(Question::Read)]);
    on(&mut primary, 0, Input::Arbiter(Answer::Holds(None)));
    on(&mut primary, 0, Input::Connected);
    let refused = on(&mut primary, 0, Input::Received(message_hello(Role::Backup, 0)));
    assert_eq!(refused, [Send(Envelope::refuse(Refusal::Busy)), Disconnect]);
    let won = on(&mut primary, 0, Input::Arbiter(Answer::Won));
    assert_eq!(won, [StartGuest, FOREVER, Release { below: u64::MAX }]);
    assert_eq!(on(&mut primary, 2, Input::StopRequested), [StopGuest]);
    assert_eq!(on(&mut primary, 3, Input::GuestEnded), [Stop(StopReason::Ended)]);
}

#[test]
fn a_backup_that_does_not_fit_is_told_why() {
    let other = |change: fn(&mut Hello)| {
        let mut hello = hello(Role::Backup);
        change(&mut hello);
        Message::Hello(Box::new(hello))
    };
    let wanted = |ours: &str, theirs: &str| Wanted { ours: ours.into(), theirs: theirs.into() };
    let cases = [
        (Message::OtherVersion { version: 9 }, Refusal::Version { ours: 4, theirs: 9 }),
        (other(|hello| hello.role = Role::Primary), Refusal::Role(Role::Primary)),
        (other(|hello| hello.vm = "wm".into()), Refusal::Vm(wanted("vm", "wm"))),
        (other(|hello| hello.cpu = "pcu".into()), Refusal::Cpu(wanted("cpu", "pcu"))),
        (other(|hello| hello.timeout_ns = 1), Refusal::Times { heartbeat_ns: 20 * MS, timeout_ns: 1 }),
    ];
    for (message, refusal) in cases {
        let mut primary = Primary::new(identity(1, "alpha"), Settings::default());
        on(&mut primary, 0, Input::Connected);
        let refused = on(&mut primary, 0, Input::Received(of(0, message)));
        assert_eq!(refused, [Send(Envelope::refuse(refusal)), Disconnect]);
        assert_eq!(primary.state(), &State::Waiting);
    }
}

#[test]
fn a_primary_whose_storage_was_taken_over_holds_everything_and_stops() {
    let mut primary = protected();
    append(&mut primary, 1, 2, 20);
    let reason = StopReason::Fenced { generation: 1, newer: 2 };
    let stopped = on(&mut primary, 2, Input::Fenced { newer: 2 });
    assert_eq!(stopped, [Hold, Disconnect, Stop(reason.clone())]);
    assert!(reason.to_string().starts_with("lost the disk: "), "{reason}");
    assert_eq!(on(&mut primary, 3, ack(2, 0, 0)), [], "nothing leaves any more");
}
