//! What the two sides tell each other, and its bytes.
//!
//! A message travels in one frame: kind, a number, a count, a payload (`log::frame` adds length, version and
//! checksum). Bulk data, that is the boot and the log entries, stands at the end of the payload and never
//! enters the state machines: [`Message::encode`] writes what goes before it, [`Message::decode`] gives it back as a
//! slice. Of the state of a machine on its way to a new backup the protocol knows the beginning ([`Message::Transfer`]) and
//! the end ([`Message::State`]); what lies between is the driver's. The messages of the hot path (entries, ack, horizon, heartbeat) are fixed little-endian words; the
//! rest is bincode with a limit. Trailing bytes are refused everywhere.
//!
//! `Hello`'s version stands in the frame's number and `Refuse` has a layout that never changes, so that two
//! versions that understand nothing else of each other can still say so.

use super::{Identity, Settings};
use crate::machine::instant::Instant;
use std::fmt;

/// The version of this protocol.
pub const VERSION: u32 = 3;

/// The most bytes of a divergence report.
pub const MAX_TEXT: usize = 4096;

/// Bytes before the entries in the payload of `Entries`.
pub const ENTRIES_HEAD: usize = 16;

/// The most bytes a bincode payload may make the decoder allocate.
const MAX_COLD: usize = 4096;

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

/// A message of the logging channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// Both ways, first: who speaks. The backup begins.
    Hello(Box<Hello>),
    /// A hello of another version, of which nothing but the version can be read.
    OtherVersion {
        /// The speaker's version.
        version: u32,
    },
    /// Backup to primary: the machine stands where the log begins. Primary to backup, in answer: the guest runs, and from
    /// here on this backup may be the survivor.
    Welcome {
        /// The pair's generation.
        generation: u64,
    },
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
    /// Backup to primary, in answer: the guest goes on here, be the backup. Everything that follows comes from a primary.
    Took {
        /// The generation that was won.
        generation: u64,
        /// When it was sent, ns of the new primary's clock: its first stamp.
        stamp: u64,
    },
    /// From a primary that has become the backup: packets for the guest that came to it all the same. Bulk; the driver's alone: the protocol is not
    /// told.
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
    /// The pair's generation; a backup, which does not know it yet, says 0.
    pub generation: u64,
    /// Time between heartbeats, ns. The primary's holds.
    pub heartbeat_ns: u64,
    /// Time-out, ns. The primary's holds.
    pub timeout_ns: u64,
}

impl Hello {
    /// The hello of a host.
    pub fn new(role: Role, me: &Identity, settings: &Settings, generation: u64) -> Self {
        Hello {
            role,
            vm: me.vm().into(),
            host: me.host(),
            host_name: me.host_name().into(),
            cpu: me.cpu().into(),
            generation,
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

/// What a frame says beside its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The frame's kind.
    pub kind: Kind,
    /// The frame's number.
    pub number: u64,
    /// The frame's count.
    pub count: u32,
}

/// Why a frame is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The payload's length is wrong for its kind.
    #[error("{kind:?}: a payload of {length} bytes")]
    Length {
        /// The frame's kind.
        kind: Kind,
        /// The payload's length.
        length: usize,
    },
    /// The frame's number or count is wrong for its kind.
    #[error("{kind:?}: number {number}, count {count}")]
    Head {
        /// The frame's kind.
        kind: Kind,
        /// The frame's number.
        number: u64,
        /// The frame's count.
        count: u32,
    },
    /// The payload is no bincode of its kind.
    #[error("{kind:?}: unreadable payload")]
    Payload {
        /// The frame's kind.
        kind: Kind,
        /// What bincode says.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// A name in a hello is empty or too long.
    #[error("hello: {0}")]
    Name(#[from] super::IdentityError),
    /// A text is not UTF-8.
    #[error("{kind:?}: the text is not UTF-8")]
    Text {
        /// The frame's kind.
        kind: Kind,
        /// What is wrong.
        #[source]
        source: std::str::Utf8Error,
    },
}

impl Message {
    /// The message's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Hello(_) | Message::OtherVersion { .. } => Kind::Hello,
            Message::Welcome { .. } => Kind::Welcome,
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

    /// Appends the payload, up to where the bulk (boot, state, entries) follows, to `payload`; returns the rest of the
    /// frame.
    pub fn encode(&self, payload: &mut Vec<u8>) -> Head {
        let (number, count) = match self {
            Message::Hello(hello) => {
                cold(hello.as_ref(), payload);
                (VERSION.into(), 0)
            }
            Message::OtherVersion { version } => ((*version).into(), 0),
            Message::Welcome { generation } => (*generation, 0),
            Message::Refuse(refusal) => (0, encode_refusal(refusal, payload)),
            Message::Boot | Message::Transfer | Message::Chunk | Message::Strays => (0, 0),
            Message::State { entries } => (*entries, 0),
            Message::Entries { first, count, stamp, released, .. } => {
                words([*stamp, *released], payload);
                (*first, *count)
            }
            Message::Horizon { entries, at, stamp, released } => {
                words([at.exits, at.polls, *stamp, *released], payload);
                (*entries, 0)
            }
            Message::Ack { received, executed, executed_stamp, received_stamp } => {
                words([*executed, *executed_stamp, *received_stamp], payload);
                (*received, 0)
            }
            Message::Heartbeat { stamp, guest_clock_ns, released } => {
                words([*guest_clock_ns, *released], payload);
                (*stamp, 0)
            }
            Message::Diverged { entry, text } => {
                payload.extend_from_slice(clip(text).as_bytes());
                (*entry, 0)
            }
            Message::Goodbye(Goodbye::Ended { entries }) => (*entries, 0),
            Message::Goodbye(Goodbye::Operator) => (0, 1),
            Message::Handover { entries, released } => {
                words([*released], payload);
                (*entries, 0)
            }
            Message::Took { generation, stamp } => {
                words([*stamp], payload);
                (*generation, 0)
            }
        };
        Head { kind: self.kind(), number, count }
    }

    /// Reads a frame; gives the bulk back beside the message (empty for kinds that have none).
    pub fn decode(head: Head, payload: &[u8]) -> Result<(Message, &[u8]), MessageError> {
        let Head { kind, number, count } = head;
        let wrong_length = || MessageError::Length { kind, length: payload.len() };
        let wrong_head = || MessageError::Head { kind, number, count };
        let counted = matches!(kind, Kind::Entries | Kind::Refuse | Kind::Goodbye);
        let numbered = !matches!(kind, Kind::Boot | Kind::Transfer | Kind::Chunk | Kind::Strays | Kind::Refuse);
        if (count != 0 && !counted) || (number != 0 && !numbered) {
            return Err(wrong_head());
        }
        let empty = |message| if payload.is_empty() { Ok((message, payload)) } else { Err(wrong_length()) };
        match kind {
            Kind::Hello => match u32::try_from(number).map_err(|_| wrong_head())? {
                VERSION => {
                    let hello: Hello = cold_back(kind, payload)?;
                    Identity::new(&hello.vm, hello.host, &hello.host_name, &hello.cpu)?;
                    Ok((Message::Hello(Box::new(hello)), &[]))
                }
                version => Ok((Message::OtherVersion { version }, &[])),
            },
            Kind::Welcome => empty(Message::Welcome { generation: number }),
            Kind::Refuse => Ok((Message::Refuse(Box::new(decode_refusal(count, payload)?)), &[])),
            Kind::Boot => Ok((Message::Boot, payload)),
            Kind::Transfer => Ok((Message::Transfer, payload)),
            Kind::Chunk => Ok((Message::Chunk, payload)),
            Kind::Strays => Ok((Message::Strays, payload)),
            Kind::State => Ok((Message::State { entries: number }, payload)),
            Kind::Entries => {
                let (head, bulk) = payload.split_first_chunk::<ENTRIES_HEAD>().ok_or_else(wrong_length)?;
                let [stamp, released] = words_back(head).ok_or_else(wrong_length)?;
                let bytes = u32::try_from(bulk.len()).map_err(|_| wrong_length())?;
                if count == 0 || number.checked_add(count.into()).is_none() {
                    return Err(wrong_head());
                }
                Ok((Message::Entries { first: number, count, bytes, stamp, released }, bulk))
            }
            Kind::Horizon => {
                let [exits, polls, stamp, released] = words_back(payload).ok_or_else(wrong_length)?;
                Ok((Message::Horizon { entries: number, at: Instant { exits, polls }, stamp, released }, &[]))
            }
            Kind::Ack => {
                let [executed, executed_stamp, received_stamp] = words_back(payload).ok_or_else(wrong_length)?;
                Ok((Message::Ack { received: number, executed, executed_stamp, received_stamp }, &[]))
            }
            Kind::Heartbeat => {
                let [guest_clock_ns, released] = words_back(payload).ok_or_else(wrong_length)?;
                Ok((Message::Heartbeat { stamp: number, guest_clock_ns, released }, &[]))
            }
            Kind::Diverged => {
                if payload.len() > MAX_TEXT {
                    return Err(wrong_length());
                }
                let text = std::str::from_utf8(payload).map_err(|source| MessageError::Text { kind, source })?;
                Ok((Message::Diverged { entry: number, text: text.into() }, &[]))
            }
            Kind::Goodbye => match (number, count) {
                (entries, 0) => empty(Message::Goodbye(Goodbye::Ended { entries })),
                (0, 1) => empty(Message::Goodbye(Goodbye::Operator)),
                (_, _) => Err(wrong_head()),
            },
            Kind::Handover => {
                let [released] = words_back(payload).ok_or_else(wrong_length)?;
                Ok((Message::Handover { entries: number, released }, &[]))
            }
            Kind::Took => {
                let [stamp] = words_back(payload).ok_or_else(wrong_length)?;
                Ok((Message::Took { generation: number, stamp }, &[]))
            }
        }
    }
}

/// The longest head of `text` that has at most [`MAX_TEXT`] bytes and ends between two characters.
pub(super) fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

fn words<const N: usize>(values: [u64; N], payload: &mut Vec<u8>) {
    for value in values {
        payload.extend_from_slice(&value.to_le_bytes());
    }
}

fn words_back<const N: usize>(payload: &[u8]) -> Option<[u64; N]> {
    let (words, rest) = payload.as_chunks::<8>();
    let words: &[[u8; 8]; N] = words.try_into().ok()?;
    rest.is_empty().then(|| words.map(u64::from_le_bytes))
}

fn cold(value: &impl bincode::Encode, payload: &mut Vec<u8>) {
    // Writing to memory cannot fail, and no field of ours has a lock or a map in it.
    bincode::encode_into_std_write(value, payload, bincode::config::standard()).expect("a Vec takes everything");
}

fn cold_back<T: bincode::Decode<()>>(kind: Kind, payload: &[u8]) -> Result<T, MessageError> {
    let config = bincode::config::standard().with_limit::<MAX_COLD>();
    let (value, used) =
        bincode::decode_from_slice(payload, config).map_err(|source| MessageError::Payload { kind, source })?;
    if used == payload.len() { Ok(value) } else { Err(MessageError::Length { kind, length: payload.len() }) }
}

/// The codes of refusals never change their meaning, and versions to come only add to them.
fn encode_refusal(refusal: &Refusal, payload: &mut Vec<u8>) -> u32 {
    match refusal {
        Refusal::Version { ours, theirs } => {
            words([(*ours).into(), (*theirs).into()], payload);
            1
        }
        Refusal::Role(Role::Primary) => 2,
        Refusal::Role(Role::Backup) => 3,
        Refusal::Vm(names) => {
            cold(names, payload);
            4
        }
        Refusal::Cpu(names) => {
            cold(names, payload);
            5
        }
        Refusal::Times { heartbeat_ns, timeout_ns } => {
            words([*heartbeat_ns, *timeout_ns], payload);
            6
        }
        Refusal::Busy => 7,
        Refusal::Other { code } => *code,
    }
}

fn decode_refusal(code: u32, payload: &[u8]) -> Result<Refusal, MessageError> {
    let kind = Kind::Refuse;
    let wrong_length = || MessageError::Length { kind, length: payload.len() };
    let empty = |refusal| if payload.is_empty() { Ok(refusal) } else { Err(wrong_length()) };
    match code {
        1 => {
            let [ours, theirs] = words_back(payload).ok_or_else(wrong_length)?.map(|v| u32::try_from(v).ok());
            let wrong = || MessageError::Head { kind, number: 0, count: code };
            Ok(Refusal::Version { ours: ours.ok_or_else(wrong)?, theirs: theirs.ok_or_else(wrong)? })
        }
        2 => empty(Refusal::Role(Role::Primary)),
        3 => empty(Refusal::Role(Role::Backup)),
        4 => Ok(Refusal::Vm(cold_back(kind, payload)?)),
        5 => Ok(Refusal::Cpu(cold_back(kind, payload)?)),
        6 => {
            let [heartbeat_ns, timeout_ns] = words_back(payload).ok_or_else(wrong_length)?;
            Ok(Refusal::Times { heartbeat_ns, timeout_ns })
        }
        7 => empty(Refusal::Busy),
        // 8 was, up to version 2: the guest runs and takes no new backup.
        code => Ok(Refusal::Other { code }),
    }
}
