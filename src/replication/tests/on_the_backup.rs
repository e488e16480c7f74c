//! The backup's main paths, as whole lists of actions.

use super::*;
use backup::Action::*;
use backup::{Input, State};

fn on(backup: &mut Backup, now_ms: u64, input: Input) -> Vec<backup::Action> {
    let mut out = Vec::new();
    backup.on(now_ms * MS, input, &mut out);
    out
}

fn entries(first: u64, count: u32, stamp: u64) -> Input {
    Input::Received(of(1, Message::Entries { first, count, bytes: 9, stamp, released: 0 }))
}

/// A heartbeat of the primary, sent at `stamp`, that says how far it has let outputs go.
fn beat(stamp: u64, released: u64) -> Input {
    Input::Received(of(1, Message::Heartbeat { stamp, guest_clock_ns: 0, released }))
}

fn heartbeat(generation: u64, now_ms: u64) -> backup::Action {
    Send(of(generation, Message::Heartbeat { stamp: now_ms * MS, guest_clock_ns: 0, released: 0 }))
}

fn acked(received: u64, executed: u64, executed_stamp: u64, received_stamp: u64) -> backup::Action {
    Send(of(1, Message::Ack { received, executed, executed_stamp, received_stamp }))
}

/// Up to where it stands at the boot, at 0 ms.
fn ready() -> Backup {
    let mut backup = Backup::new(identity(2, "beta"), Settings::default());
    assert_eq!(on(&mut backup, 0, Input::Start), [Connect]);
    assert_eq!(on(&mut backup, 0, Input::Connected), [Send(message_hello(Role::Backup, 0)), heartbeat(0, 0)]);
    assert_eq!(on(&mut backup, 0, Input::Received(message_hello(Role::Primary, 1))), []);
    assert_eq!(on(&mut backup, 0, Input::Received(of(1, Message::Boot))), [Load]);
    assert_eq!(on(&mut backup, 0, Input::Loaded), [Send(of(1, Message::Welcome))]);
    backup
}

fn following() -> Backup {
    let mut backup = ready();
    assert_eq!(on(&mut backup, 0, Input::Received(of(1, Message::Welcome))), [acked(0, 0, 0, 0)]);
    assert_eq!(backup.state(), &State::Following);
    backup
}

#[test]
fn what_is_received_is_given_to_the_vcpu_and_acknowledged_at_once() {
    let mut backup = following();
    let replay = Replay { first: 0, count: 3, stamp: 70 };
    assert_eq!(on(&mut backup, 1, entries(0, 3, 70)), [replay, acked(3, 0, 0, 70)]);
    let at = Instant::new(1, 2);
    let horizon = Input::Received(of(1, Message::Horizon { entries: 3, at, stamp: 80, released: 0 }));
    assert_eq!(on(&mut backup, 1, horizon), [RunTo { entries: 3, at, stamp: 80 }]);
    assert_eq!(on(&mut backup, 2, Input::Executed { entries: 3, stamp: 80 }), []);
    assert_eq!(on(&mut backup, 20, Input::Tick), [heartbeat(1, 20), acked(3, 3, 80, 80)], "told with the heartbeat");
    assert_eq!(on(&mut backup, 40, Input::Tick), [heartbeat(1, 40)], "and once");
}

#[test]
fn a_heartbeat_is_answered_at_once_with_what_was_received() {
    let mut backup = following();
    on(&mut backup, 1, entries(0, 3, 70));
    assert_eq!(on(&mut backup, 2, beat(90, 0)), [acked(3, 0, 0, 90)]);
    let mut backup = ready();
    assert_eq!(on(&mut backup, 2, beat(90, 0)), [], "nothing is acknowledged before the guest runs");
}

#[test]
fn what_has_left_the_primary_is_passed_on_when_it_grows_and_never_above_what_was_acknowledged() {
    let mut backup = following();
    on(&mut backup, 1, entries(0, 3, 70));
    assert_eq!(on(&mut backup, 2, beat(80, 2)), [Left { below: 2 }, acked(3, 0, 0, 80)]);
    assert_eq!(on(&mut backup, 3, beat(90, 2)), [acked(3, 0, 0, 90)]);
    let more = Message::Entries { first: 3, count: 2, bytes: 9, stamp: 95, released: 3 };
    let replayed = on(&mut backup, 3, Input::Received(of(1, more)));
    assert_eq!(replayed, [Left { below: 3 }, Replay { first: 3, count: 2, stamp: 95 }, acked(5, 0, 0, 95)]);
    let released = Violation::Released { released: 6, acknowledged: 5 };
    let given_up = [Disconnect, Suspect(Suspicion::Violation(released)), Ask(CLAIM_2)];
    assert_eq!(on(&mut backup, 4, beat(99, 6)), given_up);
}

#[test]
fn it_goes_live_when_it_has_won_and_replayed() {
    let mut backup = following();
    on(&mut backup, 1, entries(0, 3, 70));
    assert_eq!(on(&mut backup, 2, Input::Disconnected), [Suspect(Suspicion::Closed), Ask(CLAIM_2)]);
    assert_eq!(on(&mut backup, 2, entries(3, 1, 90)), [], "too late: acknowledged is what counts");
    assert_eq!(on(&mut backup, 3, Input::Arbiter(Answer::Won)), [GoLive { generation: 2, entries: 3, alone: true }]);
    assert_eq!(on(&mut backup, 4, Input::Executed { entries: 3, stamp: 70 }), []);
    assert_eq!(on(&mut backup, 4, Input::WentLive), [BecomePrimary]);
    assert_eq!((backup.state(), backup.generation(), backup.received()), (&State::Live, 2, 3));
    let (mut survivor, mut out) = (Primary::from_backup(backup), Vec::new());
    survivor.on(4 * MS, primary::Input::Start, &mut out);
    let all = [primary::Action::Lease { until_ns: u64::MAX }, primary::Action::Release { below: u64::MAX }];
    assert_eq!(out, all);
    assert_eq!((survivor.state(), survivor.generation()), (&primary::State::Unprotected, 2));
    assert_eq!((survivor.appended(), survivor.next_deadline()), (3, None));
}

#[test]
fn the_gate_is_shut_before_the_arbiter_is_asked() {
    let mut backup = following();
    let silence = Suspicion::Silence { silence_ns: 200 * MS };
    let given_up = on(&mut backup, 200, entries(0, 3, 70));
    assert_eq!(given_up, [Disconnect, Suspect(silence), Ask(CLAIM_2)], "what waited for it is not acknowledged");
    assert_eq!(backup.received(), 0);
}

#[test]
fn the_loser_stops_and_an_unreachable_arbiter_is_asked_again() {
    let mut backup = following();
    on(&mut backup, 2, Input::Disconnected);
    assert_eq!(on(&mut backup, 3, Input::Arbiter(Answer::Unreachable)), []);
    assert_eq!(backup.next_deadline(), Some(103 * MS));
    assert_eq!(on(&mut backup, 103, Input::Tick), [Ask(CLAIM_2)]);
    let holder = Some(identity(1, "alpha").claim(2));
    let lost = on(&mut backup, 104, Input::Arbiter(Answer::Lost(holder.clone())));
    assert_eq!(lost, [Stop(StopReason::Lost { generation: 2, holder })]);
}

#[test]
fn before_it_knows_that_the_guest_runs_it_connects_again_and_never_asks() {
    let mut backup = ready();
    assert_eq!(on(&mut backup, 5, Input::Disconnected), [Suspect(Suspicion::Closed)]);
    assert_eq!(backup.next_deadline(), Some(105 * MS));
    assert_eq!(on(&mut backup, 105, Input::Tick), [Connect]);
    assert_eq!(on(&mut backup, 106, Input::Disconnected), [Suspect(Suspicion::Closed)], "nobody there");
    assert_eq!(on(&mut backup, 206, Input::Tick), [Connect]);
}

#[test]
fn a_divergence_is_reported_and_stops_it_without_the_arbiter() {
    let mut backup = following();
    let text: Box<str> = "é".repeat(4000).into();
    let cut: Box<str> = "é".repeat(2048).into();
    let diverged = on(&mut backup, 1, Input::Diverged { entry: 1, text });
    let report = Send(of(1, Message::Diverged { entry: 1, text: cut.clone() }));
    assert_eq!(diverged, [report, Disconnect, Stop(StopReason::Diverged { entry: 1, text: cut })]);
}

#[test]
fn a_goodbye_ends_it_after_the_replay_and_without_the_arbiter() {
    let mut backup = following();
    on(&mut backup, 1, entries(0, 3, 70));
    let goodbye = Input::Received(of(1, Message::Goodbye(Goodbye::Ended { entries: 3 })));
    assert_eq!(on(&mut backup, 2, goodbye), [Disconnect]);
    assert_eq!(backup.state(), &State::Finishing);
    assert_eq!(on(&mut backup, 3, Input::GuestEnded), [Stop(StopReason::Ended)]);
}

#[test]
fn a_goodbye_that_counts_other_entries_is_no_orderly_end() {
    for entries_there in [2, 4] {
        let mut backup = following();
        on(&mut backup, 1, entries(0, 3, 70));
        let goodbye = Goodbye::Ended { entries: entries_there };
        let given_up = on(&mut backup, 2, Input::Received(of(1, Message::Goodbye(goodbye))));
        assert_eq!(given_up, [Disconnect, Suspect(Suspicion::Left(goodbye)), Ask(CLAIM_2)]);
    }
}

#[test]
fn a_guest_that_ended_in_replay_waits_for_the_goodbye_or_takes_over() {
    let mut backup = following();
    on(&mut backup, 1, entries(0, 3, 70));
    assert_eq!(on(&mut backup, 2, Input::GuestEnded), []);
    on(&mut backup, 3, Input::Disconnected);
    on(&mut backup, 3, Input::Arbiter(Answer::Won));
    assert_eq!(on(&mut backup, 4, Input::WentLive), [BecomePrimary]);
    let (mut survivor, mut out) = (Primary::from_backup(backup), Vec::new());
    survivor.on(4 * MS, primary::Input::Start, &mut out);
    assert_eq!(out.last(), Some(&primary::Action::Stop(StopReason::Ended)));
}

#[test]
fn entries_with_a_gap_are_neither_replayed_nor_acknowledged() {
    let mut backup = following();
    on(&mut backup, 1, entries(0, 3, 70));
    let gap = Suspicion::Violation(Violation::Gap { expected: 3, found: 4 });
    assert_eq!(on(&mut backup, 2, entries(4, 1, 80)), [Disconnect, Suspect(gap), Ask(CLAIM_2)]);
}

#[test]
fn refusals_stop_it_except_that_it_comes_back_to_a_busy_primary() {
    let connected = || {
        let mut backup = Backup::new(identity(2, "beta"), Settings::default());
        on(&mut backup, 0, Input::Start);
        on(&mut backup, 0, Input::Connected);
        backup
    };
    let refuse = |refusal: Refusal| Input::Received(Envelope::refuse(refusal));
    let other = Refusal::Other { code: 8 };
    let stopped = on(&mut connected(), 1, refuse(other.clone()));
    assert_eq!(stopped, [Disconnect, Stop(StopReason::Refused(other))]);
    let mut backup = connected();
    assert_eq!(on(&mut backup, 1, refuse(Refusal::Busy)), [Disconnect, Suspect(Suspicion::Refused(Refusal::Busy))]);
    assert_eq!(on(&mut backup, 101, Input::Tick), [Connect]);
    let two = Refusal::Role(Role::Backup);
    let refused = on(&mut connected(), 1, Input::Received(message_hello(Role::Backup, 0)));
    assert_eq!(refused, [Send(Envelope::refuse(two.clone())), Disconnect, Stop(StopReason::Mismatch(two))]);
}

#[test]
fn the_operator_may_stop_it() {
    let mut backup = following();
    let goodbye = Send(of(1, Message::Goodbye(Goodbye::Operator)));
    assert_eq!(on(&mut backup, 1, Input::StopRequested), [goodbye, Disconnect, Stop(StopReason::Operator)]);
}
