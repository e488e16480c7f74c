//! The fault-tolerance protocol: who may let the guest's output out, and who lives on when a host dies.
//!
//! [`primary`] and [`backup`] are state machines without I/O: `on(now, input, &mut actions)`, where `now` is
//! the local monotonic clock in nanoseconds. They read no clock, open no socket and own no bytes of the
//! log: bulk data (the boot, log entries) travels *beside* the [`message::Message`] that announces it. So
//! the same code runs under the tokio driver, under the seeded simulator (`tests/protocol_simulator.rs`)
//! and under the model checker (`tests/protocol_model.rs`). The whole is described in `docs/protocol.md`.
//!
//! | room | its one job |
//! | --- | --- |
//! | [`message`] | what the two sides tell each other, and its bytes |
//! | [`primary`], [`backup`] | the two state machines |
//! | [`election`] | winning a generation at the arbiter, retries included |
//! | [`held`] | outputs waiting for their release |
//! | [`lease`] | until when released outputs may leave |
//! | [`flow`], [`ledger`] | how much of the log is under way, and when the vCPU has to wait for it |
//! | [`lag`] | slowing the primary when the backup falls behind |
//! | [`link`] | silence and heartbeats |
//! | [`fence`] | which generation the other side may speak for |
//! | `heritage` | what a role leaves to the other when they change |

pub mod backup;
pub mod election;
pub mod fence;
pub mod flow;
pub mod held;
mod heritage;
pub mod lag;
pub mod lease;
pub mod ledger;
pub mod link;
pub mod message;
pub mod primary;

use crate::arbiter::{Claim, MAX_NAME, is_name};
use message::{Goodbye, Refusal};
use std::fmt;

/// What one host is, as it introduces itself to the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    vm: String,
    host: u64,
    host_name: String,
    cpu: String,
}

/// A name in an [`Identity`] is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {which} must have 1 to {MAX_NAME} bytes, no control characters, and for a VM no `/`")]
pub struct IdentityError {
    /// Which of the names.
    pub which: &'static str,
}

impl Identity {
    /// The identity of the process with the random number `host`, on the machine `host_name`, for the virtual
    /// machine `vm` on processors of the kind `cpu`.
    pub fn new(vm: &str, host: u64, host_name: &str, cpu: &str) -> Result<Self, IdentityError> {
        for (which, name) in [("VM name", vm), ("host name", host_name), ("CPU kind", cpu)] {
            if !is_name(name) {
                return Err(IdentityError { which });
            }
        }
        if vm.contains('/') {
            return Err(IdentityError { which: "VM name" });
        }
        Ok(Identity { vm: vm.into(), host, host_name: host_name.into(), cpu: cpu.into() })
    }

    /// The name of the virtual machine; the register at the arbiter goes by it.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// The random number of this process: what the arbiter knows it by.
    pub fn host(&self) -> u64 {
        self.host
    }

    /// The host's name, for people.
    pub fn host_name(&self) -> &str {
        &self.host_name
    }

    /// The kind of processor. A pair must have one kind: approximating instructions differ between kinds.
    pub fn cpu(&self) -> &str {
        &self.cpu
    }

    /// This host's claim on a generation, alone.
    pub fn claim(&self, generation: u64) -> Claim {
        Claim { generation, host: self.host, host_name: self.host_name.clone(), shared_with: None }
    }
}

/// The protocol's numbers. The backup takes heartbeat and time-out from its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Time between two heartbeats, ns.
    pub heartbeat_ns: u64,
    /// Silence after which the other side is suspected, ns.
    pub timeout_ns: u64,
    /// Pause before asking the arbiter again, and before the backup connects again, ns.
    pub retry_ns: u64,
    /// Bytes of log that may be unacknowledged before the primary's vCPU is stalled.
    pub window_bytes: u64,
    /// Bytes of log that may be unexecuted at the backup before the primary's vCPU is stalled.
    pub backlog_bytes: u64,
    /// Execution lag above which the primary is slowed down, ns.
    pub lag_limit_ns: u64,
    /// Primary: start the guest without waiting for a backup.
    pub start_alone: bool,
    /// Primary: claim its first generation only if the register holds this one (0: if it is empty), and stop otherwise. `None`: after whatever it
    /// holds.
    pub only_after: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            heartbeat_ns: 20_000_000,
            timeout_ns: 200_000_000,
            retry_ns: 100_000_000,
            window_bytes: 4 << 20,
            backlog_bytes: 64 << 20,
            lag_limit_ns: 100_000_000,
            start_alone: false,
            only_after: None,
        }
    }
}

impl Settings {
    /// Whether a pair can work with these times: at least two heartbeats to a time-out, and both above zero.
    pub fn times_are_sane(heartbeat_ns: u64, timeout_ns: u64) -> bool {
        heartbeat_ns > 0 && timeout_ns / 2 >= heartbeat_ns
    }
}

/// Why one side gave up the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Suspicion {
    /// Nothing was heard for this long, ns. Either the other side is gone, or this one was.
    Silence {
        /// The silence as this host saw it, ns.
        silence_ns: u64,
    },
    /// The connection was closed.
    Closed,
    /// The backup's execution is not the one in the log.
    Diverged {
        /// The entry that was not met.
        entry: u64,
        /// The first difference, for people.
        text: Box<str>,
    },
    /// The other side refused to go on.
    Refused(Refusal),
    /// The other side said goodbye.
    Left(Goodbye),
    /// The other side was handed the guest and did not take it.
    NotTaken,
    /// The other side does not keep to the protocol.
    Violation(Violation),
}

/// What the other side did that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// A message that has no place in the state this side was in.
    Unexpected(message::Kind),
    /// An acknowledgement of entries that were never sent, or of less than before.
    Acknowledged {
        /// Entries acknowledged.
        received: u64,
        /// Entries there are.
        appended: u64,
    },
    /// Outputs that were let out before they were acknowledged.
    Released {
        /// Entries whose outputs were let out.
        released: u64,
        /// Entries acknowledged.
        acknowledged: u64,
    },
    /// Entries that do not follow those before.
    Gap {
        /// Number that the next entry must have.
        expected: u64,
        /// Number that it had.
        found: u64,
    },
    /// A message of a generation that is over, or cannot be yet.
    Generation {
        /// What the other side said.
        kind: message::Kind,
        /// The generation that it should have spoken for; 0: none.
        expected: u64,
        /// The one that it spoke for.
        found: u64,
    },
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Suspicion::Silence { silence_ns } => write!(f, "nothing heard for {} ms", silence_ns / 1_000_000),
            Suspicion::Closed => write!(f, "the connection was closed"),
            Suspicion::Diverged { entry, text } => write!(f, "the backup diverged at entry {entry}: {text}"),
            Suspicion::Refused(refusal) => write!(f, "the other side refused: {refusal}"),
            Suspicion::Left(Goodbye::Ended { entries }) => write!(f, "the guest ended after {entries} entries"),
            Suspicion::Left(Goodbye::Operator) => write!(f, "the other side was stopped by its operator"),
            Suspicion::NotTaken => write!(f, "it did not take over in time"),
            Suspicion::Violation(violation) => write!(f, "the other side broke the protocol: {violation}"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Unexpected(kind) => write!(f, "unexpected {kind:?}"),
            Violation::Acknowledged { received, appended } => {
                write!(f, "it acknowledged {received} entries of {appended}")
            }
            Violation::Released { released, acknowledged } => {
                write!(f, "it let out the outputs of {released} entries, of which {acknowledged} were acknowledged")
            }
            Violation::Gap { expected, found } => write!(f, "entry {found} came where {expected} was due"),
            Violation::Generation { kind, expected, found } if found < expected => {
                write!(f, "{kind:?} of generation {found}, which is over: this is {expected}")
            }
            Violation::Generation { kind, expected, found } => {
                write!(f, "{kind:?} of generation {found}, which cannot be: this is {expected}")
            }
        }
    }
}

/// Why a side has stopped for good.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// The guest ended, and everything it put out has left.
    Ended,
    /// Another host won the generation: this one may not go on.
    Lost {
        /// The generation this side asked for.
        generation: u64,
        /// Who holds the register; `None` if it has been removed.
        holder: Option<Claim>,
    },
    /// Storage that the hosts share has been taken over in a later generation: this side may not go on.
    Fenced {
        /// The generation that this side holds.
        generation: u64,
        /// The one that has taken it over.
        newer: u64,
    },
    /// The other side refused this one.
    Refused(Refusal),
    /// This side refused the other one.
    Mismatch(Refusal),
    /// This backup's execution is not the one in the log.
    Diverged {
        /// The entry that was not met.
        entry: u64,
        /// The first difference, for people.
        text: Box<str>,
    },
    /// The operator asked for it.
    Operator,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::Ended => write!(f, "the guest has ended"),
            StopReason::Lost { generation, holder: Some(holder) } => write!(
                f,
                "lost generation {generation} at the arbiter: host {} ({:016x}) holds generation {}",
                holder.host_name, holder.host, holder.generation
            ),
            StopReason::Lost { generation, holder: None } => {
                write!(f, "lost generation {generation} at the arbiter: the register is gone")
            }
            StopReason::Fenced { generation, newer } => write!(
                f,
                "lost the disk: the machine has gone live elsewhere in generation {newer}, and this host holds {generation}; it has changed nothing since"
            ),
            StopReason::Refused(refusal) => write!(f, "the other side refused: {refusal}"),
            StopReason::Mismatch(refusal) => write!(f, "the other side does not fit: {refusal}"),
            StopReason::Diverged { entry, text } => write!(f, "diverged at entry {entry}: {text}"),
            StopReason::Operator => write!(f, "stopped by the operator"),
        }
    }
}

#[cfg(test)]
mod tests;
