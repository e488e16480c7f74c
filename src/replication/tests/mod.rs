//! The protocol's own tests: the main paths of both state machines, and the messages.

mod fencing;
mod on_the_backup;
mod on_the_primary;
mod on_the_wire;
mod switching;
mod taking_a_backup;

use super::backup::{self, Backup};
use super::election::{Answer, Question};
use super::message::{Envelope, Goodbye, Hello, Kind, Message, Refusal, Role, Wanted};
use super::primary::{self, Primary};
use super::{Identity, Settings, StopReason, Suspicion, Violation};
use crate::arbiter::Claim;
use crate::machine::instant::Instant;

const MS: u64 = 1_000_000;
const CLAIM_2: Question = Question::Claim { expected: Some(1), generation: 2, shared_with: None };

fn identity(host: u64, name: &str) -> Identity {
    Identity::new("vm", host, name, "cpu").unwrap()
}

/// The message of a side that holds, or shares, this generation.
fn of(generation: u64, message: Message) -> Envelope {
    Envelope { generation, message }
}

fn hello(role: Role) -> Hello {
    let me = if role == Role::Primary { identity(1, "alpha") } else { identity(2, "beta") };
    Hello::new(role, &me, &Settings::default())
}

fn message_hello(role: Role, generation: u64) -> Envelope {
    of(generation, Message::Hello(Box::new(hello(role))))
}

fn ack(received: u64, executed: u64, executed_stamp: u64) -> primary::Input {
    primary::Input::Received(of(1, Message::Ack { received, executed, executed_stamp, received_stamp: 0 }))
}

fn beta_holds_2() -> Claim {
    identity(2, "beta").claim(2)
}
