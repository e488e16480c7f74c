//! The bytes of messages: what goes into a frame beside length, version and checksum.

use super::*;

/// Bytes of the fencing token that a payload begins with.
pub const TOKEN_BYTES: usize = 8;

/// Bytes before the entries in the payload of `Entries`.
pub const ENTRIES_HEAD: usize = TOKEN_BYTES + 16;

/// The most bytes a bincode payload may make the decoder allocate.
const MAX_COLD: usize = 4096;

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
    Name(#[from] crate::replication::IdentityError),
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

impl Envelope {
    /// Appends the payload, up to where the bulk (boot, state, entries) follows, to `payload`; returns the rest of the
    /// frame.
    pub fn encode(&self, payload: &mut Vec<u8>) -> Head {
        let foreign = matches!(self.message, Message::OtherVersion { .. } | Message::Refuse(_));
        if !foreign {
            words([self.generation], payload);
        }
        self.message.encode(payload)
    }

    /// Reads a frame; gives the bulk back beside the message (empty for kinds that have none).
    pub fn decode(head: Head, payload: &[u8]) -> Result<(Envelope, &[u8]), MessageError> {
        let foreign = match head.kind {
            Kind::Refuse => true,
            Kind::Hello => head.number != u64::from(VERSION),
            _ => false,
        };
        let (generation, payload) = if foreign {
            (0, payload)
        } else {
            let short = MessageError::Length { kind: head.kind, length: payload.len() };
            let (token, rest) = payload.split_first_chunk::<TOKEN_BYTES>().ok_or(short)?;
            (u64::from_le_bytes(*token), rest)
        };
        let (message, bulk) = Message::decode(head, payload)?;
        Ok((Envelope { generation, message }, bulk))
    }
}

impl Message {
    fn encode(&self, payload: &mut Vec<u8>) -> Head {
        let (number, count) = match self {
            Message::Hello(hello) => {
                cold(hello.as_ref(), payload);
                (VERSION.into(), 0)
            }
            Message::OtherVersion { version } => ((*version).into(), 0),
            Message::Refuse(refusal) => (0, encode_refusal(refusal, payload)),
            Message::Welcome | Message::Boot | Message::Transfer | Message::Chunk | Message::Strays => (0, 0),
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
            Message::Took { stamp } => {
                words([*stamp], payload);
                (0, 0)
            }
        };
        Head { kind: self.kind(), number, count }
    }

    fn decode(head: Head, payload: &[u8]) -> Result<(Message, &[u8]), MessageError> {
        let Head { kind, number, count } = head;
        let wrong_length = || MessageError::Length { kind, length: payload.len() };
        let wrong_head = || MessageError::Head { kind, number, count };
        let counted = matches!(kind, Kind::Entries | Kind::Refuse | Kind::Goodbye);
        let numbered = matches!(
            kind,
            Kind::Hello
                | Kind::State
                | Kind::Entries
                | Kind::Horizon
                | Kind::Ack
                | Kind::Heartbeat
                | Kind::Diverged
                | Kind::Goodbye
                | Kind::Handover
        );
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
            Kind::Welcome => empty(Message::Welcome),
            Kind::Refuse => Ok((Message::Refuse(Box::new(decode_refusal(count, payload)?)), &[])),
            Kind::Boot => Ok((Message::Boot, payload)),
            Kind::Transfer => Ok((Message::Transfer, payload)),
            Kind::Chunk => Ok((Message::Chunk, payload)),
            Kind::Strays => Ok((Message::Strays, payload)),
            Kind::State => Ok((Message::State { entries: number }, payload)),
            Kind::Entries => {
                let (head, bulk) =
                    payload.split_first_chunk::<{ ENTRIES_HEAD - TOKEN_BYTES }>().ok_or_else(wrong_length)?;
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
                Ok((Message::Took { stamp }, &[]))
            }
        }
    }
}

/// The longest head of `text` that has at most [`MAX_TEXT`] bytes and ends between two characters.
pub(in crate::replication) fn clip(text: &str) -> &str {
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
