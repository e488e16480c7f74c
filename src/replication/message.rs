//! What the two sides tell each other, and its bytes.
//!
//! A message travels in an [`Envelope`] with the generation that its sender holds, its *fencing token* (see [`super::fence`]), and that in one frame: kind,
//! a number, a count, a payload (`log::frame` adds length, version and checksum). Bulk data, that is the boot and the log entries, stands at the end of
//! the payload and never enters the state machines: [`Envelope::encode`] writes what goes before it, [`Envelope::decode`] gives it back as a slice.
//! Of the state of a machine on its way to a new backup the protocol knows the beginning ([`Message::Transfer`]) and
//! the end ([`Message::State`]); what lies between is the driver's. The messages of the hot path (entries, ack, horizon, heartbeat) are fixed little-endian words; the
//! rest is bincode with a limit. Trailing bytes are refused everywhere.
//!
//! `Hello`'s version stands in the frame's number and `Refuse` has a layout that never changes, so that two
//! versions that understand nothing else of each other can still say so: it is the one message without a token.

use super::{Identity, Settings};
use crate::machine::instant::Instant;
use std::fmt;

mod codec;

pub(super) use codec::clip;
pub use codec::{ENTRIES_HEAD, Head, MessageError, TOKEN_BYTES};

/// The version of this protocol.
pub const VERSION: u32 = 4;

/// The most bytes of a divergence report.
pub const MAX_TEXT: usize = 4096;

/// The kinds of messages, each with a frame kind of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "documented at the variants of Message")]
pub enum Kind {
    Hello,
    Welcome,
    Refuse,
    Boot,
    Transfer,
    Chunk,
    State,
    Entries,
    Horizon,
    Ack,
    Heartbeat,
    Diverged,
    Goodbye,
    Handover,
    Took,
    Strays,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 16] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Refuse,
        Kind::Boot,
        Kind::Transfer,
        Kind::Chunk,
        Kind::State,
        Kind::Entries,
        Kind::Horizon,
        Kind::Ack,
        Kind::Heartbeat,
        Kind::Diverged,
        Kind::Goodbye,
        Kind::Handover,
        Kind::Took,
        Kind::Strays,
    ];
}

/// Which side a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum Role {
    /// It runs the guest and writes the log.
    Primary,
    /// It replays the log.
    Backup,
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// The fencing token: the generation that the sender holds, or shares. 0: it knows of none yet.
    pub generation: u64,
    /// What it says.
    pub message: Message,
}

impl Envelope {
    /// A refusal, which has no token.
    pub fn refuse(refusal: Refusal) -> Self {
        Envelope { generation: 0, message: Message::Refuse(Box::new(refusal)) }
    }
}

/// A message of the logging channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Both ways, first: who speaks. The backup begins; it knows of no generation, and takes the one that the primary's hello carries.
    Hello(Box<Hello>),
    /// A hello of another version, of which nothing but the version can be read.
    OtherVersion {
        /// The speaker's version.
        version: u32,
    },
    /// Backup to primary: the machine stands where the log begins. Primary to backup, in answer: the guest runs, and from
    /// here on this backup may be the survivor.
    Welcome,
    /// Both ways: no, and why. The connection ends here.
    Refuse(Box<Refusal>),
    /// Primary to backup: what the log starts from. Bulk.
    Boot,
    /// Primary to backup: the guest runs already; here is what it started from, and its state will follow. Bulk.
    Transfer,
    /// Primary to backup: a piece of the state. Bulk. The driver sends it between `BeginTransfer` and `State`, without asking the protocol.
    Chunk,
    /// Primary to backup: the last piece; with it the state is that before entry `entries`, and the log follows from there. Bulk.
    State {
        /// Entries that led to the state.
        entries: u64,
    },
    /// Primary to backup: entries of the log. Bulk.
    Entries {
        /// Number of the first one.
        first: u64,
        /// How many; never 0.
        count: u32,
        /// Length of the bulk.
        bytes: u32,
        /// When they were sent, ns of the primary's clock; strictly increasing over entries and horizons.
        stamp: u64,
        /// Outputs of entries below this number were let out and handed to what carries them away.
        released: u64,
    },
    /// Primary to backup: after the first `entries` entries none follows up to and including `at`.
    Horizon {
        /// Entries there are.
        entries: u64,
        /// The guest may run to here.
        at: Instant,
        /// As in `Entries`.
        stamp: u64,
        /// As in `Entries`.
        released: u64,
    },
    /// Backup to primary: what it holds and what it has executed.
    Ack {
        /// Entries the backup holds in memory: it will have replayed them before it goes live.
        received: u64,
        /// Entries its vCPU has passed.
        executed: u64,
        /// Stamp of the newest frame whose entries or horizon its vCPU has passed; 0 before the first.
        executed_stamp: u64,
        /// Stamp of the newest entries, horizon or heartbeat received: the backup has not given up the primary for its silence,
        /// and will not for a time-out from when it got that.
        received_stamp: u64,
    },
    /// Both ways: a sign of life. The backup answers the primary's with an `Ack`.
    Heartbeat {
        /// When, ns of the sender's clock.
        stamp: u64,
        /// The guest's clock as the sender has it, ns.
        guest_clock_ns: u64,
        /// As in `Entries`; a backup repeats what it was told.
        released: u64,
    },
    /// Backup to primary: its execution is not the one in the log, and it stops.
    Diverged {
        /// The entry that was not met.
        entry: u64,
        /// The first difference, at most [`MAX_TEXT`] bytes.
        text: Box<str>,
    },
    /// Both ways: the end of an orderly session.
    Goodbye(Goodbye),
    /// Primary to backup: the log ends here, nothing leaves this side any more, take over.
    Handover {
        /// Entries of the log; the backup has acknowledged all of them.
        entries: u64,
        /// As in `Entries`.
        released: u64,
    },
    /// Backup to primary, in answer: the guest goes on here, in the generation that the token says; be the backup. Everything that follows comes
    /// from a primary.
    Took {
        /// When it was sent, ns of the new primary's clock: its first stamp.
        stamp: u64,
    },
    /// From a primary that has become the backup: packets for the guest that came to it all the same. Bulk. The driver sends it, without asking the
    /// protocol.
    Strays,
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct Hello {
    /// Which side.
    pub role: Role,
    /// Name of the virtual machine.
    pub vm: String,
    /// Random number of the process.
    pub host: u64,
    /// Name of the host, for people.
    pub host_name: String,
    /// Kind of processor.
    pub cpu: String,
    /// Time between heartbeats, ns. The primary's holds.
    pub heartbeat_ns: u64,
    /// Time-out, ns. The primary's holds.
    pub timeout_ns: u64,
}

impl Hello {
    /// The hello of a host.
    pub fn new(role: Role, me: &Identity, settings: &Settings) -> Self {
        Hello {
            role,
            vm: me.vm().into(),
            host: me.host(),
            host_name: me.host_name().into(),
            cpu: me.cpu().into(),
            heartbeat_ns: settings.heartbeat_ns,
            timeout_ns: settings.timeout_ns,
        }
    }

    /// Why `me`, which wants a peer in `role`, cannot work with the speaker.
    pub fn mismatch(&self, me: &Identity, role: Role) -> Option<Refusal> {
        let pair = |ours: &str, theirs: &str| Wanted { ours: ours.into(), theirs: theirs.into() };
        if self.role != role {
            Some(Refusal::Role(self.role))
        } else if self.vm != me.vm() {
            Some(Refusal::Vm(pair(me.vm(), &self.vm)))
        } else if self.cpu != me.cpu() {
            Some(Refusal::Cpu(pair(me.cpu(), &self.cpu)))
        } else if !Settings::times_are_sane(self.heartbeat_ns, self.timeout_ns) {
            Some(Refusal::Times { heartbeat_ns: self.heartbeat_ns, timeout_ns: self.timeout_ns })
        } else {
            None
        }
    }
}

/// Two names that should be one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct Wanted {
    /// The refusing side's.
    pub ours: String,
    /// The refused side's.
    pub theirs: String,
}

/// Why one side does not work with the other. "Ours" is the refusing side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Another version of the protocol.
    Version {
        /// The refusing side's.
        ours: u32,
        /// The refused side's.
        theirs: u32,
    },
    /// Both sides are this.
    Role(Role),
    /// Another virtual machine.
    Vm(Wanted),
    /// Another kind of processor.
    Cpu(Wanted),
    /// A heartbeat and a time-out that cannot work.
    Times {
        /// The refused side's, ns.
        heartbeat_ns: u64,
        /// The refused side's, ns.
        timeout_ns: u64,
    },
    /// The primary is just now parting from another backup, or has one.
    Busy,
    /// A reason that this version does not know.
    Other {
        /// Its number.
        code: u32,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Version { ours, theirs } => {
                write!(f, "protocol version {theirs} meets version {ours}; run the same lockstep on both hosts")
            }
            Refusal::Role(Role::Primary) => write!(f, "both sides are primaries; start one as `lockstep backup`"),
            Refusal::Role(Role::Backup) => write!(f, "both sides are backups; start one as `lockstep primary`"),
            Refusal::Vm(Wanted { ours, theirs }) => write!(f, "VM `{theirs}` meets VM `{ours}`"),
            Refusal::Cpu(Wanted { ours, theirs }) => {
                write!(f, "CPU kind `{theirs}` meets `{ours}`; a pair must have one kind")
            }
            Refusal::Times { heartbeat_ns, timeout_ns } => {
                write!(f, "a time-out of {timeout_ns} ns does not hold two heartbeats of {heartbeat_ns} ns")
            }
            Refusal::Busy => write!(f, "the primary is busy with another backup"),
            Refusal::Other { code } => write!(f, "reason {code}, which this version does not know"),
        }
    }
}

/// Why an orderly session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Goodbye {
    /// The guest has ended and everything it put out has left; the log has this many entries.
    Ended {
        /// Entries of the whole log.
        entries: u64,
    },
    /// The operator stops this side.
    Operator,
}

impl Kind {
    /// Whether a host may say this that knows of no generation yet.
    pub fn needs_no_generation(self) -> bool {
        matches!(self, Kind::Hello | Kind::Refuse | Kind::Heartbeat | Kind::Goodbye)
    }
}

impl Message {
    /// The message's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Hello(_) | Message::OtherVersion { .. } => Kind::Hello,
            Message::Welcome => Kind::Welcome,
            Message::Refuse(_) => Kind::Refuse,
            Message::Boot => Kind::Boot,
            Message::Transfer => Kind::Transfer,
            Message::Chunk => Kind::Chunk,
            Message::State { .. } => Kind::State,
            Message::Entries { .. } => Kind::Entries,
            Message::Horizon { .. } => Kind::Horizon,
            Message::Ack { .. } => Kind::Ack,
            Message::Heartbeat { .. } => Kind::Heartbeat,
            Message::Diverged { .. } => Kind::Diverged,
            Message::Goodbye(_) => Kind::Goodbye,
            Message::Handover { .. } => Kind::Handover,
            Message::Took { .. } => Kind::Took,
            Message::Strays => Kind::Strays,
        }
    }
}
