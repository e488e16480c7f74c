//! Messages: what is encoded is decoded, and any bytes are a message or a named error.

use crate::machine::instant::Instant;
use crate::replication::message::*;
use crate::replication::{Identity, Settings};
use proptest::prelude::*;

fn names() -> impl Strategy<Value = Wanted> {
    ("[a-zß]{1,40}", "[a-z]{1,40}").prop_map(|(ours, theirs)| Wanted { ours, theirs })
}

fn hello() -> impl Strategy<Value = Hello> {
    (any::<bool>(), names(), names(), any::<[u64; 3]>()).prop_map(|(primary, vm, names, numbers)| Hello {
        role: if primary { Role::Primary } else { Role::Backup },
        vm: vm.ours,
        host: numbers[0],
        host_name: names.ours,
        cpu: names.theirs,
        heartbeat_ns: numbers[1],
        timeout_ns: numbers[2],
    })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        any::<[u32; 2]>().prop_map(|[ours, theirs]| Refusal::Version { ours, theirs }),
        Just(Refusal::Role(Role::Primary)),
        Just(Refusal::Role(Role::Backup)),
        names().prop_map(Refusal::Vm),
        names().prop_map(Refusal::Cpu),
        any::<[u64; 2]>().prop_map(|[heartbeat_ns, timeout_ns]| Refusal::Times { heartbeat_ns, timeout_ns }),
        Just(Refusal::Busy),
        (100..u32::MAX).prop_map(|code| Refusal::Other { code }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        hello().prop_map(|hello| Message::Hello(Box::new(hello))),
        (VERSION + 1..u32::MAX).prop_map(|version| Message::OtherVersion { version }),
        Just(Message::Welcome),
        refusal().prop_map(|refusal| Message::Refuse(Box::new(refusal))),
        Just(Message::Boot),
        Just(Message::Transfer),
        Just(Message::Chunk),
        any::<u64>().prop_map(|entries| Message::State { entries }),
        any::<[u64; 2]>().prop_map(|[entries, released]| Message::Handover { entries, released }),
        any::<u64>().prop_map(|stamp| Message::Took { stamp }),
        Just(Message::Strays),
        (any::<u32>(), 1..u32::MAX, any::<[u64; 2]>()).prop_map(|(first, count, [stamp, released])| {
            Message::Entries { first: first.into(), count, bytes: 4, stamp, released }
        }),
        any::<[u64; 5]>().prop_map(|[entries, exits, polls, stamp, released]| Message::Horizon {
            entries,
            at: Instant { exits, polls },
            stamp,
            released
        }),
        any::<[u64; 4]>().prop_map(|[received, executed, executed_stamp, received_stamp]| Message::Ack {
            received,
            executed,
            executed_stamp,
            received_stamp
        }),
        any::<[u64; 3]>().prop_map(|[stamp, guest_clock_ns, released]| Message::Heartbeat {
            stamp,
            guest_clock_ns,
            released
        }),
        (any::<u64>(), ".{0,200}").prop_map(|(entry, text)| Message::Diverged { entry, text: text.into() }),
        any::<u64>().prop_map(|entries| Message::Goodbye(Goodbye::Ended { entries })),
        Just(Message::Goodbye(Goodbye::Operator)),
    ]
}

fn has_bulk(kind: Kind) -> bool {
    matches!(kind, Kind::Boot | Kind::Transfer | Kind::Chunk | Kind::State | Kind::Entries | Kind::Strays)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_may_follow(message in message(), generation in any::<u64>()) {
        let mut payload = Vec::new();
        // What another version says, and a refusal, which all versions understand, have no token.
        let foreign = matches!(message, Message::OtherVersion { .. } | Message::Refuse(_));
        let envelope = Envelope { generation: if foreign { 0 } else { generation }, message };
        let message = &envelope.message;
        let head = envelope.encode(&mut payload);
        let bulk: &[u8] = if has_bulk(head.kind) { b"bulk" } else { b"" };
        payload.extend_from_slice(bulk);
        let (decoded, rest) = Envelope::decode(head, &payload).unwrap();
        prop_assert_eq!((&decoded, rest), (&envelope, bulk));
        // Of the future only this much can be known, so there something may follow.
        let unknown = matches!(message, Message::OtherVersion { .. })
            || matches!(message, Message::Refuse(refusal) if matches!(**refusal, Refusal::Other { .. }))
            || head.kind == Kind::Diverged;
        if !has_bulk(head.kind) && !unknown {
            payload.push(0);
            prop_assert!(Envelope::decode(head, &payload).is_err(), "a byte too many was accepted");
        }
    }

    #[test]
    fn a_frame_of_any_bytes_is_a_message_or_a_named_error(
        kind in prop::sample::select(&Kind::ALL[..]),
        number in prop_oneof![0..3u64, any::<u64>()],
        count in prop_oneof![0..10u32, any::<u32>()],
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Ok((envelope, bulk)) = Envelope::decode(Head { kind, number, count }, &payload) {
            let mut again = Vec::new();
            let head = envelope.encode(&mut again);
            prop_assert_eq!((head.kind, head.number), (kind, number));
            prop_assert!(bulk.len() <= payload.len());
        }
    }
}

#[test]
fn a_hello_with_a_name_that_is_none_is_refused() {
    let mut payload = Vec::new();
    let me = Identity::new("vm", 1, "a", "cpu").unwrap();
    let mut hello = Hello::new(Role::Backup, &me, &Settings::default());
    hello.host_name = "a\nb".into();
    let head = Envelope { generation: 0, message: Message::Hello(Box::new(hello)) }.encode(&mut payload);
    assert!(matches!(Envelope::decode(head, &payload), Err(MessageError::Name(_))));
    let claims_a_gigabyte = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfc, 0xff, 0xff, 0xff, 0x3f];
    let decoded = Envelope::decode(Head { kind: Kind::Hello, number: VERSION.into(), count: 0 }, &claims_a_gigabyte);
    let Err(MessageError::Payload { source, .. }) = decoded else { panic!("{decoded:?}") };
    assert!(matches!(source, bincode::error::DecodeError::LimitExceeded), "{source:?}");
}

#[test]
fn a_message_too_short_for_its_token_is_none_and_other_versions_need_none() {
    for kind in Kind::ALL {
        let number = if kind == Kind::Hello { VERSION.into() } else { 0 };
        let decoded = Envelope::decode(Head { kind, number, count: 0 }, &[0; TOKEN_BYTES - 1]);
        let short = matches!(decoded, Err(MessageError::Length { length: 7, .. }));
        assert!(short || kind == Kind::Refuse, "{kind:?}: {decoded:?}");
    }
    for version in [1, 2, 3, 5] {
        let decoded = Envelope::decode(Head { kind: Kind::Hello, number: version, count: 0 }, b"x").unwrap();
        let message = Message::OtherVersion { version: version as u32 };
        assert_eq!(decoded, (Envelope { generation: 0, message }, &b""[..]));
    }
    let busy = Envelope::decode(Head { kind: Kind::Refuse, number: 0, count: 7 }, b"").unwrap();
    assert_eq!(busy.0, Envelope::refuse(Refusal::Busy));
}
