//! Whatever a side says that holds an older generation, or one that cannot be yet, has no effect but that it is given up: on both sides, in every state
//! in which there is a connection, for every kind of message.

use super::*;

/// What each kind looks like when it would do something.
fn every_message() -> Vec<Message> {
    let text = "difference".into();
    vec![
        Message::Hello(Box::new(hello(Role::Primary))),
        Message::Welcome,
        Message::Boot,
        Message::Transfer,
        Message::Chunk,
        Message::State { entries: 3 },
        Message::Entries { first: 3, count: 1, bytes: 9, stamp: 90, released: 3 },
        Message::Horizon { entries: 3, at: Instant::new(1, 1), stamp: 90, released: 3 },
        Message::Ack { received: 3, executed: 3, executed_stamp: 0, received_stamp: 2 * MS },
        Message::Heartbeat { stamp: 90, guest_clock_ns: 70, released: 3 },
        Message::Diverged { entry: 3, text },
        Message::Goodbye(Goodbye::Ended { entries: 3 }),
        Message::Handover { entries: 3, released: 3 },
        Message::Took { stamp: 3 * MS },
        Message::Strays,
    ]
}

fn violation(message: &Message, expected: u64, found: u64) -> Suspicion {
    Suspicion::Violation(Violation::Generation { kind: message.kind(), expected, found })
}

/// A pair of generation 7, with three entries that nobody has acknowledged, at 2 ms.
fn pair() -> (Primary, Backup) {
    let mut primary = Primary::new(identity(1, "alpha"), Settings::default());
    let mut backup = Backup::new(identity(2, "beta"), Settings::default());
    let (mut p, mut b) = (Vec::new(), Vec::new());
    for input in [
        primary::Input::Start,
        primary::Input::Connected,
        primary::Input::Received(message_hello(Role::Backup, 0)),
        primary::Input::Arbiter(Answer::Holds(Some(6))),
        primary::Input::Arbiter(Answer::Won),
        primary::Input::Received(of(7, Message::Welcome)),
    ] {
        primary.on(0, input, &mut p);
    }
    primary.on(2 * MS, primary::Input::Appended { entries: 3, bytes: 30 }, &mut p);
    for input in [
        backup::Input::Start,
        backup::Input::Connected,
        backup::Input::Received(message_hello(Role::Primary, 7)),
        backup::Input::Received(of(7, Message::Boot)),
        backup::Input::Loaded,
        backup::Input::Received(of(7, Message::Welcome)),
        backup::Input::Received(of(7, Message::Entries { first: 0, count: 3, bytes: 30, stamp: 80, released: 0 })),
    ] {
        backup.on(0, input, &mut b);
    }
    assert_eq!((primary.state().name(), backup.state().name()), ("protected", "following"));
    (primary, backup)
}

#[test]
fn a_primary_hears_nothing_of_another_generation() {
    for message in every_message() {
        for found in [0, 6, 8] {
            if found == 0 && message.kind().needs_no_generation() {
                continue;
            }
            let (mut primary, _) = pair();
            let mut out = Vec::new();
            primary.on(3 * MS, primary::Input::Received(of(found, message.clone())), &mut out);
            let claim = Question::Claim { expected: Some(7), generation: 8, shared_with: None };
            use primary::Action::*;
            assert_eq!(out, [Hold, Disconnect, Suspect(violation(&message, 7, found)), Ask(claim)], "{message:?}");
            assert_eq!((primary.acked(), primary.left(), primary.fenced()), (0, 0, 1));
        }
    }
}

#[test]
fn a_backup_hears_nothing_of_another_generation() {
    for message in every_message() {
        for found in [0, 6, 8] {
            if found == 0 && message.kind().needs_no_generation() {
                continue;
            }
            let (_, mut backup) = pair();
            assert!(!backup.admits(message.kind(), found));
            let mut out = Vec::new();
            backup.on(3 * MS, backup::Input::Received(of(found, message.clone())), &mut out);
            let claim = Question::Claim { expected: Some(7), generation: 8, shared_with: None };
            use backup::Action::*;
            assert_eq!(out, [Disconnect, Suspect(violation(&message, 7, found)), Ask(claim)], "{message:?}");
            assert_eq!((backup.received(), backup.guest_clock_ns(), backup.fenced()), (3, 0, 1));
        }
    }
}

#[test]
fn who_has_spoken_for_a_generation_never_speaks_without_one_again() {
    for message in every_message().into_iter().filter(|message| message.kind().needs_no_generation()) {
        let (mut primary, mut backup) = pair();
        let (mut p, mut b) = (Vec::new(), Vec::new());
        primary.on(3 * MS, primary::Input::Received(of(0, message.clone())), &mut p);
        backup.on(3 * MS, backup::Input::Received(of(0, message.clone())), &mut b);
        let suspicion = violation(&message, 7, 0);
        assert!(p.contains(&primary::Action::Suspect(suspicion.clone())), "{p:?}");
        assert!(b.contains(&backup::Action::Suspect(suspicion)), "{b:?}");
    }
}

#[test]
fn the_survivor_and_its_new_backup_hear_nothing_of_the_old_pair() {
    let (_, mut backup) = pair();
    let mut out = Vec::new();
    backup.on(3 * MS, backup::Input::Disconnected, &mut out);
    backup.on(3 * MS, backup::Input::Arbiter(Answer::Won), &mut out);
    backup.on(3 * MS, backup::Input::WentLive, &mut out);
    let mut survivor = Primary::from_backup(backup);
    let mut out = Vec::new();
    survivor.on(3 * MS, primary::Input::Start, &mut out);
    survivor.on(4 * MS, primary::Input::Connected, &mut out);
    // Not even before the new backup has heard of the generation.
    for hello_first in [false, true] {
        for message in every_message() {
            let mut survivor = survivor.clone();
            let mut out = Vec::new();
            if hello_first {
                survivor.on(4 * MS, primary::Input::Received(message_hello(Role::Backup, 0)), &mut out);
            }
            out.clear();
            survivor.on(4 * MS, primary::Input::Received(of(7, message.clone())), &mut out);
            assert!(out.contains(&primary::Action::Disconnect), "{message:?}: {out:?}");
            assert_eq!((survivor.state().name(), survivor.fenced()), ("unprotected", 1), "{message:?}");
        }
    }
    // And a backup that takes its first hello for what it is gives the one of an older generation up with the next word of the newer.
    let mut fresh = Backup::new(identity(3, "gamma"), Settings::default());
    let mut out = Vec::new();
    fresh.on(4 * MS, backup::Input::Start, &mut out);
    fresh.on(4 * MS, backup::Input::Connected, &mut out);
    fresh.on(4 * MS, backup::Input::Received(message_hello(Role::Primary, 7)), &mut out);
    out.clear();
    fresh.on(4 * MS, backup::Input::Received(of(8, Message::Transfer)), &mut out);
    let gone = backup::Action::Suspect(violation(&Message::Transfer, 7, 8));
    assert_eq!(out, [backup::Action::Disconnect, gone]);
    assert_eq!(fresh.generation(), 0);
}

#[test]
fn a_hello_of_a_primary_that_has_won_nothing_is_refused() {
    let mut backup = Backup::new(identity(2, "beta"), Settings::default());
    let mut out = Vec::new();
    backup.on(0, backup::Input::Start, &mut out);
    backup.on(0, backup::Input::Connected, &mut out);
    out.clear();
    backup.on(0, backup::Input::Received(message_hello(Role::Primary, 0)), &mut out);
    let violation = Violation::Generation { kind: Kind::Hello, expected: 1, found: 0 };
    assert_eq!(out, [backup::Action::Disconnect, backup::Action::Suspect(Suspicion::Violation(violation))]);
}
