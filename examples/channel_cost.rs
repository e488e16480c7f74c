//! What a message of the hot path costs: encoded into a frame, the frame read, the message decoded, for each kind.
//!
//! `cargo run --release --example channel_cost`
#![allow(clippy::disallowed_methods, reason = "measures time")]

use lockstep::log::frame::{self, FrameKind};
use lockstep::machine::instant::Instant as At;
use lockstep::replication::message::{Envelope, Head, Message};
use std::hint::black_box;
use std::time::Instant;

fn main() {
    let entries = |bytes| Message::Entries { first: 3, count: 2, bytes, stamp: 2, released: 3 };
    let horizon = Message::Horizon { entries: 7, at: At::new(3, 4), stamp: 9, released: 2 };
    let ack = Message::Ack { received: 7, executed: 6, executed_stamp: 5, received_stamp: 9 };
    let cases = [
        ("ack", FrameKind::Ack, ack, vec![]),
        ("horizon", FrameKind::Horizon, horizon, vec![]),
        ("entries, 40 B", FrameKind::Entries, entries(40), vec![7; 40]),
        ("entries, 4 KiB", FrameKind::Entries, entries(4096), vec![7; 4096]),
    ];
    for (name, frame_kind, message, bulk) in cases {
        let (mut payload, mut out, rounds) = (Vec::new(), Vec::new(), 2_000_000);
        let began = Instant::now();
        for _ in 0..rounds {
            payload.clear();
            out.clear();
            let envelope = Envelope { generation: 3, message: message.clone() };
            let head = black_box(&envelope).encode(&mut payload);
            payload.extend_from_slice(&bulk);
            frame::encode(frame_kind, head.number, head.count, &payload, &mut out).expect("a frame");
            let (frame, _) = frame::parse(black_box(&out)).expect("a frame").expect("a whole one");
            let head = Head { kind: head.kind, number: frame.number, count: frame.count };
            black_box(Envelope::decode(head, frame.payload).expect("a message"));
        }
        println!("{name:<16} {:>6.1} ns", began.elapsed().as_nanos() as f64 / f64::from(rounds));
    }
}
