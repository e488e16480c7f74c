//! Promise: whatever is said for an older generation has no effect, whenever and however it arrives. On a running pair's own connection, behind what is
//! on the way, comes a message of a pair that was there before: whoever gets it gives the connection up, names it, and the arbiter decides who goes on.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use common::load::{Job, Load};
use common::pair::Pair;
use common::relay::To;
use common::{Random, eventually, seed};

use lockstep::log::frame::{Frame, FrameKind};
use lockstep::machine::instant::Instant;
use lockstep::replication::message::{Envelope, Message};

/// Everything there is acknowledged; the guest may run for ever; all of its output has left.
fn of_the_old_pair(to: To) -> Vec<(FrameKind, Message)> {
    let (all, at) = (u64::MAX, Instant::new(u64::MAX, 0));
    match to {
        To::Primary => vec![
            (FrameKind::Ack, Message::Ack { received: all, executed: all, executed_stamp: all, received_stamp: all }),
            (FrameKind::Heartbeat, Message::Heartbeat { stamp: all, guest_clock_ns: all, released: 0 }),
            (FrameKind::Strays, Message::Strays),
        ],
        To::Backup => vec![
            (FrameKind::Horizon, Message::Horizon { entries: 0, at, stamp: all, released: 0 }),
            (FrameKind::Heartbeat, Message::Heartbeat { stamp: all, guest_clock_ns: all, released: 0 }),
            (FrameKind::Handover, Message::Handover { entries: 0, released: 0 }),
        ],
    }
}

#[test]
fn what_is_said_for_an_older_generation_is_named_and_has_no_effect() {
    let mut random = Random::new(seed());
    for (side, to) in [(0, To::Primary), (1, To::Backup)] {
        for (kind, message) in of_the_old_pair(to) {
            let mut pair = Pair::start(&Job::Typing.setup());
            let mut load = Load::begin(Job::Typing, pair.console(), &mut random);
            load.work_for(std::time::Duration::from_millis(30), &mut random);
            let mut payload = Vec::new();
            let head = Envelope { generation: 0, message }.encode(&mut payload);
            pair.relay.inject(to, &Frame { kind, number: head.number, count: head.count, payload: &payload });
            let named = format!("{kind:?} of generation 0, which is over: this is 1");
            eventually("it is refused by name", || {
                let said = [&pair.primary, &pair.backup][side].said();
                said.iter().any(|line| line.contains(&named)).then_some(())
            });
            // The arbiter decides; the guest goes on as if nothing had happened.
            let survivor = eventually("one lives and the other has stopped", || {
                let gone = [pair.primary.status().is_some(), pair.backup.status().is_some()];
                assert!(gone != [true, true], "nobody lives");
                (0..2).find(|&lives| {
                    gone[1 - lives] && pair.status(lives).is_some_and(|status| status.state == "unprotected")
                })
            });
            if survivor == side {
                let fenced = pair.status(side).expect("it lives").messages_fenced;
                assert_eq!(fenced, 1, "{kind:?}");
            }
            load.finish(&mut random);
            println!("{kind:?} to host {side}: host {survivor} lives");
        }
    }
}
