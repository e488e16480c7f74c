//! The messages of the console port, and reading them off a stream.
//!
//! A client sends [`ClientMessage`]s, a server [`ServerMessage`]s, each in one [`frame`]. Console bytes
//! travel raw, with their position or offset in the frame's number; the rest is bincode, bounded and
//! without trailing bytes.

use super::status::Role;
use crate::log::frame::{self, Frame, FrameError, FrameKind, HEADER_BYTES, Header};
use bincode::{Decode, Encode};
use std::io;
use std::ops::Range;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest payload on the control port.
pub const PAYLOAD_MAX: usize = FrameKind::Output.max_payload();
/// Console bytes that we send in one frame: little enough that a slow link, too, brings a whole frame
/// before the other side takes it for dead.
pub const DATA_MAX: usize = 8 << 10;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<{ PAYLOAD_MAX }>,
> = bincode::config::standard().with_limit();

/// Where a client wants its output to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Start {
    /// At this position.
    At(u64),
    /// At the newest so many bytes.
    Tail(u64),
}

/// A client attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attach {
    /// A random number that the client keeps over its connections.
    pub session: u64,
    /// Where output begins.
    pub start: Start,
    /// The lowest input offset that was not acknowledged.
    pub unacknowledged: u64,
    /// Nothing from this input offset on was ever sent.
    pub sent: u64,
    /// [`Attached::entries`] of the session's first attach; `u64::MAX` at that first attach.
    pub born: u64,
    /// Counts the client's searches for a host. A later search takes the session over from an earlier
    /// one; two calls of the same search (a host of two names) do not take it from each other.
    pub search: u64,
    /// The highest generation the client was attached to: a host of a lower one has lost the machine.
    pub generation: u64,
}

/// A server has attached a client.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attached {
    /// The VM's name.
    pub vm: String,
    /// The host's name.
    pub host: String,
    /// The generation in which the host is live.
    pub generation: u64,
    /// Position of the first output byte that follows.
    pub output_position: u64,
    /// Offset of the first input byte the server has not got.
    pub input_offset: u64,
    /// Log entries that no failover can take back any more: a session that begins now is in none of them.
    pub entries: u64,
    /// Console port of the other host, for when this one dies.
    pub peer: Option<String>,
}

/// A server does not run the machine now. The connection stays: [`Attached`] follows when it does.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NotLive {
    /// What the host is to the machine.
    pub role: Role,
    /// Console port of the other host.
    pub peer: Option<String>,
}

/// What a client can ask the machine's owner to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Command {
    /// Stop the machine.
    Stop,
    /// Have the guest stand still.
    Pause,
    /// Have it go on.
    Resume,
    /// Boot it anew.
    Reset,
    /// Have the other host of the pair run it from now on.
    Switch,
    /// Send a snapshot: behind the answer come the frames of a log that starts from it, up to the close frame, and nothing else.
    Snapshot,
    /// Have a side that does not run the machine end: a backup, or a primary that still waits for its first one. Refused by one that runs the machine, or may
    /// have to.
    Leave,
}

/// The answer to a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Answer {
    /// Whether it is being done.
    pub accepted: bool,
    /// What is being done, or why not.
    pub text: String,
}

/// The guest has ended, and everything it wrote was sent before.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ended {
    /// Why, in words.
    pub reason: String,
    /// An exit code.
    pub code: u8,
}

/// Why a server closes a connection.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// A frame or message was wrong.
    #[error("it cannot read what this program sends: {0}")]
    BadMessage(String),
    /// Too many connections.
    #[error("it has its {0} connections already; close one")]
    Busy(u32),
    /// The client was attached to another machine.
    #[error("it runs another machine than the one this console was attached to")]
    OtherMachine,
    /// The session was forgotten.
    #[error("it no longer knows this session, and cannot tell whether the last input reached the guest; attach anew")]
    Forgotten,
    /// The same session has attached on another connection.
    #[error("the same session has attached again")]
    Superseded,
}

/// From client to server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// Attach to the console.
    Attach(Attach),
    /// Typed bytes, and the offset of the first.
    Input {
        /// Offset in the session's stream.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Ask for a [`super::status::Status`].
    StatusRequest,
    /// Ask for something to be done.
    Control(Command),
    /// I am here.
    KeepAlive,
}

/// From server to client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage<'a> {
    /// Attached.
    Attached(Attached),
    /// Not the live host (yet).
    NotLive(NotLive),
    /// Output, and the position of the first byte.
    Output {
        /// Position in the machine's output.
        position: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Output below this position is no longer kept; what follows begins there.
    Gap(u64),
    /// Input below this offset is safe.
    InputAck(u64),
    /// A [`super::status::Status`] as JSON.
    Status(&'a [u8]),
    /// The answer to a command.
    Answer(Answer),
    /// The guest has ended.
    Ended(Ended),
    /// The server closes the connection.
    Refused(Refusal),
    /// I am here.
    KeepAlive,
}

/// What can go wrong between two ends of a console connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The bytes are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// No message of the control port is of this kind, or not in this direction.
    #[error("a {0:?} frame is not expected here")]
    Kind(FrameKind),
    /// The frame's payload is no such message.
    #[error("a {kind:?} message cannot be decoded")]
    Payload {
        /// The message's kind.
        kind: FrameKind,
        /// Why.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// There is more in the payload than the message.
    #[error("a {kind:?} message has {bytes} trailing bytes")]
    Trailing {
        /// The message's kind.
        kind: FrameKind,
        /// How many.
        bytes: usize,
    },
    /// The stream ended within a frame.
    #[error("the connection was cut within a message")]
    Cut,
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<'a> ClientMessage<'a> {
    /// Appends the message to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            ClientMessage::Attach(attach) => encode(FrameKind::Attach, attach, out),
            ClientMessage::Input { offset, bytes } => put(FrameKind::Input, *offset, bytes, out),
            ClientMessage::StatusRequest => put(FrameKind::StatusRequest, 0, &[], out),
            ClientMessage::Control(command) => encode(FrameKind::Control, command, out),
            ClientMessage::KeepAlive => put(FrameKind::Heartbeat, 0, &[], out),
        }
    }

    fn decode(kind: FrameKind, number: u64, payload: &'a [u8]) -> Result<Self, WireError> {
        Ok(match kind {
            FrameKind::Attach => ClientMessage::Attach(decode(kind, payload)?),
            FrameKind::Input => ClientMessage::Input { offset: number, bytes: payload },
            FrameKind::StatusRequest => ClientMessage::StatusRequest,
            FrameKind::Control => ClientMessage::Control(decode(kind, payload)?),
            FrameKind::Heartbeat => ClientMessage::KeepAlive,
            other => return Err(WireError::Kind(other)),
        })
    }
}

impl<'a> ServerMessage<'a> {
    /// Appends the message to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            ServerMessage::Attached(attached) => encode(FrameKind::Attached, attached, out),
            ServerMessage::NotLive(not_live) => encode(FrameKind::NotLive, not_live, out),
            ServerMessage::Output { position, bytes } => put(FrameKind::Output, *position, bytes, out),
            ServerMessage::Gap(to) => put(FrameKind::Gap, *to, &[], out),
            ServerMessage::InputAck(offset) => put(FrameKind::InputAck, *offset, &[], out),
            ServerMessage::Status(json) => put(FrameKind::Status, 0, json, out),
            ServerMessage::Answer(answer) => encode(FrameKind::Answer, answer, out),
            ServerMessage::Ended(ended) => encode(FrameKind::Ended, ended, out),
            ServerMessage::Refused(refusal) => encode(FrameKind::Refuse, refusal, out),
            ServerMessage::KeepAlive => put(FrameKind::Heartbeat, 0, &[], out),
        }
    }

    fn decode(kind: FrameKind, number: u64, payload: &'a [u8]) -> Result<Self, WireError> {
        Ok(match kind {
            FrameKind::Attached => ServerMessage::Attached(decode(kind, payload)?),
            FrameKind::NotLive => ServerMessage::NotLive(decode(kind, payload)?),
            FrameKind::Output => ServerMessage::Output { position: number, bytes: payload },
            FrameKind::Gap => ServerMessage::Gap(number),
            FrameKind::InputAck => ServerMessage::InputAck(number),
            FrameKind::Status => ServerMessage::Status(payload),
            FrameKind::Answer => ServerMessage::Answer(decode(kind, payload)?),
            FrameKind::Ended => ServerMessage::Ended(decode(kind, payload)?),
            FrameKind::Refuse => ServerMessage::Refused(decode(kind, payload)?),
            FrameKind::Heartbeat => ServerMessage::KeepAlive,
            other => return Err(WireError::Kind(other)),
        })
    }
}

fn encode(kind: FrameKind, message: impl Encode, out: &mut Vec<u8>) {
    // Our own messages are names and numbers, far below the limit.
    let payload = bincode::encode_to_vec(message, CONFIG).expect("a message of ours is encodable");
    put(kind, 0, &payload, out);
}

fn put(kind: FrameKind, number: u64, payload: &[u8], out: &mut Vec<u8>) {
    frame::encode(kind, number, 0, payload, out).expect("payloads are split before they are framed");
}

fn decode<T: Decode<()>>(kind: FrameKind, payload: &[u8]) -> Result<T, WireError> {
    let (message, used) =
        bincode::decode_from_slice(payload, CONFIG).map_err(|source| WireError::Payload { kind, source })?;
    if used < payload.len() {
        return Err(WireError::Trailing { kind, bytes: payload.len() - used });
    }
    Ok(message)
}

/// Reads messages off a stream. Buffers one frame and one read at most.
#[derive(Debug)]
pub struct Reader<R> {
    stream: R,
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that belong to the message handed out last.
    consumed: usize,
}

struct Raw {
    kind: FrameKind,
    number: u64,
    payload: Range<usize>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    const READ_BYTES: usize = 16 << 10;

    /// A reader of `stream`.
    pub fn new(stream: R) -> Self {
        Reader { stream, buffer: Vec::new(), consumed: 0 }
    }

    /// The next message of a client; `None` when the stream ends between two. Cancellation safe.
    pub async fn client_message(&mut self) -> Result<Option<ClientMessage<'_>>, WireError> {
        let Some(raw) = self.raw().await? else { return Ok(None) };
        ClientMessage::decode(raw.kind, raw.number, &self.buffer[raw.payload]).map(Some)
    }

    /// The next message of a server; `None` when the stream ends between two. Cancellation safe.
    pub async fn server_message(&mut self) -> Result<Option<ServerMessage<'_>>, WireError> {
        let Some(raw) = self.raw().await? else { return Ok(None) };
        ServerMessage::decode(raw.kind, raw.number, &self.buffer[raw.payload]).map(Some)
    }

    /// The next frame, of whatever kind, with all its bytes; `None` when the stream ends between two. Cancellation safe.
    pub async fn frame(&mut self) -> Result<Option<(Frame<'_>, &[u8])>, WireError> {
        let Some(raw) = self.raw_up_to(usize::MAX).await? else { return Ok(None) };
        let whole = &self.buffer[..raw.payload.end];
        let frame = frame::parse(whole)?.map(|(frame, _)| (frame, whole));
        frame.ok_or(WireError::Cut).map(Some)
    }

    /// Reads and forgets until the stream ends.
    pub async fn discard(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            self.consumed = 0;
            self.buffer.reserve(Self::READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn raw(&mut self) -> Result<Option<Raw>, WireError> {
        self.raw_up_to(PAYLOAD_MAX).await
    }

    async fn raw_up_to(&mut self, payload_max: usize) -> Result<Option<Raw>, WireError> {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        loop {
            // Frames of files and of the logging channel may be large: they are not even waited for.
            if let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() {
                let kind = Header::parse(header)?.kind;
                if kind.max_payload() > payload_max {
                    return Err(WireError::Kind(kind));
                }
            }
            if let Some((frame, consumed)) = frame::parse(&self.buffer)? {
                let payload = consumed - frame.payload.len()..consumed;
                let raw = Raw { kind: frame.kind, number: frame.number, payload };
                self.consumed = consumed;
                return Ok(Some(raw));
            }
            self.buffer.reserve(Self::READ_BYTES.max(payload_max.min(256 << 10)));
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(WireError::Cut) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_live() -> NotLive {
        NotLive { role: Role::Backup, peer: Some("a:1".into()) }
    }

    #[tokio::test]
    async fn messages_come_back_however_the_stream_is_cut_up() {
        let attach =
            Attach { session: 1, start: Start::Tail(9), unacknowledged: 2, sent: 3, born: 5, search: 6, generation: 4 };
        let sent = [
            ClientMessage::Attach(attach),
            ClientMessage::Input { offset: 77, bytes: b"typed" },
            ClientMessage::StatusRequest,
            ClientMessage::Control(Command::Stop),
            ClientMessage::KeepAlive,
        ];
        let mut bytes = Vec::new();
        sent.iter().for_each(|message| message.encode(&mut bytes));
        for cut in 0..bytes.len() {
            let mut reader = Reader::new(bytes[..cut].chain(&bytes[cut..]));
            for message in &sent {
                assert_eq!(reader.client_message().await.unwrap().as_ref(), Some(message));
            }
            assert_eq!(reader.client_message().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn server_messages_come_back() {
        let sent = [
            ServerMessage::Attached(Attached {
                vm: "v".into(),
                host: "h".into(),
                generation: 1,
                output_position: 2,
                input_offset: 3,
                entries: 4,
                peer: None,
            }),
            ServerMessage::NotLive(not_live()),
            ServerMessage::Output { position: u64::MAX, bytes: b"out" },
            ServerMessage::Gap(5),
            ServerMessage::InputAck(6),
            ServerMessage::Status(b"{}"),
            ServerMessage::Answer(Answer { accepted: true, text: "stopping".into() }),
            ServerMessage::Ended(Ended { reason: "done".into(), code: 3 }),
            ServerMessage::Refused(Refusal::Busy(64)),
            ServerMessage::KeepAlive,
        ];
        let mut bytes = Vec::new();
        sent.iter().for_each(|message| message.encode(&mut bytes));
        let mut reader = Reader::new(&bytes[..]);
        for message in &sent {
            assert_eq!(reader.server_message().await.unwrap().as_ref(), Some(message));
        }
    }

    #[tokio::test]
    async fn wrong_messages_are_named() {
        let mut wrong_way = Vec::new();
        ServerMessage::NotLive(not_live()).encode(&mut wrong_way);
        assert!(matches!(Reader::new(&wrong_way[..]).client_message().await, Err(WireError::Kind(FrameKind::NotLive))));

        let mut cut = Vec::new();
        ClientMessage::Input { offset: 0, bytes: b"abc" }.encode(&mut cut);
        cut.pop();
        assert!(matches!(Reader::new(&cut[..]).client_message().await, Err(WireError::Cut)));

        let mut trailing = Vec::new();
        let mut payload = bincode::encode_to_vec(Command::Stop, CONFIG).unwrap();
        payload.push(0);
        put(FrameKind::Control, 0, &payload, &mut trailing);
        let mut reader = Reader::new(&trailing[..]);
        assert!(matches!(
            reader.client_message().await,
            Err(WireError::Trailing { kind: FrameKind::Control, bytes: 1 })
        ));

        // A frame that may be 64 MiB long elsewhere is refused by its header.
        let mut boot = Vec::new();
        frame::encode(FrameKind::Boot, 0, 0, &[0; 1 << 20], &mut boot).unwrap();
        let mut reader = Reader::new(&boot[..HEADER_BYTES]);
        assert!(matches!(reader.client_message().await, Err(WireError::Kind(FrameKind::Boot))));

        // A string that claims to be 4 GiB long is refused before anything is allocated for it.
        let mut huge = Vec::new();
        put(FrameKind::Answer, 0, &[1, 252, 255, 255, 255, 255], &mut huge);
        assert!(matches!(
            Reader::new(&huge[..]).server_message().await,
            Err(WireError::Payload { kind: FrameKind::Answer, .. })
        ));
    }
}
