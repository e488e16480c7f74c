//! The planned change of roles: two real machines with a wire between them, and what becomes of it when one is lost.

use super::*;
use backup::Action as B;
use primary::Action as P;

const READ: primary::Action = P::Ask(Question::Read);
const CLAIM_3: Question = Question::Claim { expected: Some(2), generation: 3, shared_with: None };
/// The generation is won for the pair.
const CLAIM_2_SHARED: Question = Question::Claim { expected: Some(1), generation: 2, shared_with: Some(1) };

fn p(primary: &mut Primary, now_ms: u64, input: primary::Input) -> Vec<primary::Action> {
    let mut out = Vec::new();
    primary.on(now_ms * MS, input, &mut out);
    out
}

fn b(backup: &mut Backup, now_ms: u64, input: backup::Input) -> Vec<backup::Action> {
    let mut out = Vec::new();
    backup.on(now_ms * MS, input, &mut out);
    out
}

fn to_p(primary: &mut Primary, now_ms: u64, message: Envelope) -> Vec<primary::Action> {
    p(primary, now_ms, primary::Input::Received(message))
}

fn to_b(backup: &mut Backup, now_ms: u64, message: Envelope) -> Vec<backup::Action> {
    b(backup, now_ms, backup::Input::Received(message))
}

/// A pair of generation 1 at 0 ms; no entries.
fn pair() -> (Primary, Backup) {
    let mut primary = Primary::new(identity(1, "alpha"), Settings::default());
    let mut backup = Backup::new(identity(2, "beta"), Settings::default());
    p(&mut primary, 0, primary::Input::Start);
    p(&mut primary, 0, primary::Input::Connected);
    to_p(&mut primary, 0, message_hello(Role::Backup, 0));
    p(&mut primary, 0, primary::Input::Arbiter(Answer::Holds(None)));
    p(&mut primary, 0, primary::Input::Arbiter(Answer::Won));
    b(&mut backup, 0, backup::Input::Start);
    b(&mut backup, 0, backup::Input::Connected);
    to_b(&mut backup, 0, message_hello(Role::Primary, 1));
    to_b(&mut backup, 0, of(1, Message::Boot));
    b(&mut backup, 0, backup::Input::Loaded);
    to_p(&mut primary, 0, of(1, Message::Welcome));
    to_b(&mut backup, 0, of(1, Message::Welcome));
    (primary, backup)
}

fn ack(received: u64, received_stamp: u64) -> Envelope {
    of(1, Message::Ack { received, executed: 0, executed_stamp: 0, received_stamp })
}

/// Two entries, acknowledged, and the backup asked to take over, at 3 ms.
fn handing_over() -> (Primary, Backup) {
    let (mut primary, mut backup) = pair();
    assert_eq!(p(&mut primary, 1, primary::Input::SwitchRequested), [READ]);
    let again = p(&mut primary, 1, primary::Input::SwitchRequested);
    assert_eq!(again, [P::NoSwitch(primary::NoSwitch::UnderWay)]);
    let answer = primary::Input::Arbiter(Answer::Holds(Some(1)));
    assert_eq!(p(&mut primary, 1, answer), [P::SwitchGuest]);
    p(&mut primary, 2, primary::Input::Appended { entries: 2, bytes: 20 });
    to_b(&mut backup, 2, of(1, Message::Entries { first: 0, count: 2, bytes: 20, stamp: 2 * MS, released: 0 }));
    assert_eq!(p(&mut primary, 2, primary::Input::Parked), [], "not all is acknowledged");
    let handover = of(1, Message::Handover { entries: 2, released: 0 });
    let handed = to_p(&mut primary, 3, ack(2, 2 * MS));
    let lease = P::Lease { until_ns: 182 * MS };
    assert_eq!(handed, [lease, P::Release { below: 2 }, P::Hold, P::Send(handover.clone())]);
    assert_eq!(to_b(&mut backup, 3, handover), [B::Ask(CLAIM_2_SHARED)]);
    assert_eq!(backup.state().name(), "taking over");
    (primary, backup)
}

/// The backup has won and is live at 4 ms; the old primary does not know yet.
fn took() -> (Primary, Primary) {
    let (primary, mut backup) = handing_over();
    let go_live = B::GoLive { generation: 2, entries: 2, alone: false };
    assert_eq!(b(&mut backup, 4, backup::Input::Arbiter(Answer::Won)), [go_live]);
    let took = B::Send(of(2, Message::Took { stamp: 4 * MS }));
    assert_eq!(b(&mut backup, 4, backup::Input::WentLive), [took, B::BecomePrimary]);
    (primary, Primary::from_backup(backup))
}

#[test]
fn the_roles_change_and_the_new_primary_lets_nothing_out_before_the_old_one_has_spoken_as_its_backup() {
    let (mut old, mut new) = took();
    assert_eq!(p(&mut new, 4, primary::Input::Start), []);
    assert_eq!((new.state(), new.appended(), new.generation()), (&primary::State::Protected, 2, 2));
    let heartbeat = of(1, Message::Heartbeat { stamp: 1, guest_clock_ns: 0, released: 0 });
    assert_eq!(to_p(&mut new, 5, heartbeat), [], "of the old primary, sent before it knew");
    assert_eq!(to_p(&mut old, 5, ack(2, 2 * MS)), [], "of the old backup, sent before it was asked");
    assert_eq!(to_p(&mut old, 5, of(2, Message::Took { stamp: 4 * MS })), [P::BecomeBackup]);
    let mut backup = Backup::handed_over(old);
    let first = of(2, Message::Ack { received: 2, executed: 2, executed_stamp: 0, received_stamp: 4 * MS });
    assert_eq!(b(&mut backup, 5, backup::Input::Start), [B::Send(first.clone())]);
    let lease = P::Lease { until_ns: 184 * MS };
    assert_eq!(to_p(&mut new, 6, first), [lease, P::Release { below: 2 }]);
    let entries = p(&mut new, 6, primary::Input::Appended { entries: 1, bytes: 10 });
    let [P::Send(entries)] = entries.as_slice() else { panic!("{entries:?}") };
    let replay = B::Replay { first: 2, count: 1, stamp: 6 * MS };
    assert_eq!(to_b(&mut backup, 7, entries.clone())[0], replay);
    // And back again after a failure.
    let asked = b(&mut backup, 8, backup::Input::Disconnected);
    assert_eq!(asked, [B::Suspect(Suspicion::Closed), B::Ask(CLAIM_3)]);
}

#[test]
fn a_switch_that_cannot_be_leaves_the_guest_alone() {
    use primary::NoSwitch;
    let mut primary = Primary::new(identity(1, "alpha"), Settings::default());
    let refused = p(&mut primary, 0, primary::Input::SwitchRequested);
    assert_eq!(refused, [P::NoSwitch(NoSwitch::Unprotected)]);
    for (answer, why) in [
        (Answer::Unreachable, NoSwitch::Unreachable),
        (Answer::Holds(Some(2)), NoSwitch::Renamed),
        (Answer::Holds(None), NoSwitch::Renamed),
    ] {
        let (mut primary, _) = pair();
        assert_eq!(p(&mut primary, 1, primary::Input::SwitchRequested), [READ]);
        assert_eq!(p(&mut primary, 1, primary::Input::Arbiter(answer)), [P::NoSwitch(why)]);
        assert_eq!(p(&mut primary, 1, primary::Input::SwitchRequested), [READ], "and may be asked for again");
    }
}

#[test]
fn a_backup_lost_before_it_was_asked_to_take_over_takes_nothing() {
    let lost = P::NoSwitch(primary::NoSwitch::BackupLost);
    let (mut primary, _) = pair();
    p(&mut primary, 1, primary::Input::SwitchRequested);
    p(&mut primary, 1, primary::Input::Arbiter(Answer::Holds(Some(1))));
    let gone = p(&mut primary, 2, primary::Input::Disconnected);
    assert_eq!(gone, [P::Hold, P::Suspect(Suspicion::Closed), lost.clone(), P::Ask(CLAIM_2)]);
    assert_eq!(p(&mut primary, 3, primary::Input::Parked), [P::TakeBack], "it runs on as after any failure");

    let (mut primary, _) = pair();
    p(&mut primary, 1, primary::Input::SwitchRequested);
    p(&mut primary, 1, primary::Input::Arbiter(Answer::Holds(Some(1))));
    p(&mut primary, 1, primary::Input::Appended { entries: 1, bytes: 1 });
    p(&mut primary, 1, primary::Input::Parked);
    let gone = p(&mut primary, 2, primary::Input::Disconnected);
    assert_eq!(gone, [P::Hold, P::Suspect(Suspicion::Closed), lost, P::TakeBack, P::Ask(CLAIM_2)]);
}

#[test]
fn after_the_handover_only_the_arbiter_gives_the_guest_back() {
    let (mut primary, _) = handing_over();
    assert_eq!(p(&mut primary, 4, primary::Input::Disconnected), [P::Suspect(Suspicion::Closed), P::Ask(CLAIM_2)]);
    let won = p(&mut primary, 5, primary::Input::Arbiter(Answer::Won));
    let (forever, all) = (P::Lease { until_ns: u64::MAX }, P::Release { below: u64::MAX });
    assert_eq!(won, [forever, all, P::NoSwitch(primary::NoSwitch::BackupLost), P::TakeBack]);
    assert_eq!(primary.state(), &primary::State::Unprotected);
}

#[test]
fn a_backup_that_does_not_take_over_in_time_is_given_up() {
    let (mut primary, _) = handing_over();
    for ms in (100..1000).step_by(100) {
        assert!(!p(&mut primary, ms, primary::Input::Heard).contains(&P::Disconnect));
    }
    let given_up = p(&mut primary, 1003, primary::Input::Heard);
    assert_eq!(given_up, [P::Disconnect, P::Suspect(Suspicion::NotTaken), P::Ask(CLAIM_2)]);
}

#[test]
fn a_new_primary_lost_before_its_first_word_is_followed_by_the_old_one() {
    let lose = |primary: &mut Primary, generation, shared_with| {
        let holder = Claim { shared_with, ..identity(2, "beta").claim(generation) };
        p(primary, 5, primary::Input::Arbiter(Answer::Lost(Some(holder))))
    };
    let asking = || {
        let (mut old, _) = took();
        p(&mut old, 5, primary::Input::Disconnected);
        old
    };
    let mut old = asking();
    assert_eq!(lose(&mut old, 2, Some(1)), [P::Ask(CLAIM_3)]);
    let won = p(&mut old, 6, primary::Input::Arbiter(Answer::Won));
    assert_eq!((won.last(), old.generation()), (Some(&P::TakeBack), 3));
    let mut old = asking();
    lose(&mut old, 2, Some(1));
    let stopped = lose(&mut old, 3, None);
    assert!(matches!(stopped[..], [P::Stop(StopReason::Lost { generation: 3, .. })]), "the other one lives");
    for (generation, shared_with) in [(2, None), (2, Some(3)), (3, Some(1))] {
        let stopped = lose(&mut asking(), generation, shared_with);
        assert!(matches!(stopped[..], [P::Stop(StopReason::Lost { .. })]), "{generation} was won without this side");
    }
}

#[test]
fn a_new_primary_that_loses_the_old_one_asks_again_before_anything_leaves() {
    // Before it has won.
    let (_, mut backup) = handing_over();
    assert_eq!(b(&mut backup, 4, backup::Input::Disconnected), [B::Suspect(Suspicion::Closed)]);
    assert_eq!(b(&mut backup, 5, backup::Input::Arbiter(Answer::Won)), [B::Ask(CLAIM_3)]);
    let alone = b(&mut backup, 6, backup::Input::Arbiter(Answer::Won));
    assert_eq!(alone, [B::GoLive { generation: 3, entries: 2, alone: true }]);
    // While it goes live.
    let (_, mut backup) = handing_over();
    b(&mut backup, 4, backup::Input::Arbiter(Answer::Won));
    assert_eq!(b(&mut backup, 5, backup::Input::Disconnected), [B::Suspect(Suspicion::Closed)]);
    assert_eq!(b(&mut backup, 6, backup::Input::WentLive), [B::BecomePrimary]);
    let mut new = Primary::from_backup(backup);
    let asked = p(&mut new, 6, primary::Input::Start);
    assert_eq!(asked, [P::Hold, P::Suspect(Suspicion::Closed), P::Ask(CLAIM_3)]);
    // After a sleep.
    let (_, mut new) = took();
    let silence = Suspicion::Silence { silence_ns: 297 * MS };
    let asked = p(&mut new, 300, primary::Input::Start);
    assert_eq!(asked, [P::Hold, P::Disconnect, P::Suspect(silence), P::Ask(CLAIM_3)], "the sleep came along");
}

#[test]
fn an_operator_who_wants_a_stop_meanwhile_is_not_forgotten() {
    let (mut old, mut backup) = handing_over();
    assert_eq!(p(&mut old, 4, primary::Input::StopRequested), [], "it stands still");
    to_p(&mut old, 5, of(2, Message::Took { stamp: 4 * MS }));
    let stopped = b(&mut Backup::handed_over(old), 5, backup::Input::Start);
    assert_eq!(stopped.last(), Some(&B::Stop(StopReason::Operator)));
    b(&mut backup, 4, backup::Input::Arbiter(Answer::Won));
    b(&mut backup, 4, backup::Input::StopRequested);
    b(&mut backup, 4, backup::Input::WentLive);
    assert!(p(&mut Primary::from_backup(backup), 4, primary::Input::Start).contains(&P::StopGuest));
}

#[test]
fn what_the_old_primary_sends_too_much_is_no_handover() {
    for (entries, released, violation) in
        [(3, 0, Violation::Gap { expected: 2, found: 3 }), (2, 3, Violation::Released { released: 3, acknowledged: 2 })]
    {
        let (_, mut backup) = pair();
        to_b(&mut backup, 2, of(1, Message::Entries { first: 0, count: 2, bytes: 20, stamp: 2 * MS, released: 0 }));
        let given_up = to_b(&mut backup, 3, of(1, Message::Handover { entries, released }));
        assert_eq!(given_up, [B::Disconnect, B::Suspect(Suspicion::Violation(violation)), B::Ask(CLAIM_2)]);
    }
}
