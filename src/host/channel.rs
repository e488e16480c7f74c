//! One connection of the logging channel: bytes to messages and back. Never blocks: what the socket does not take at once waits in
//! the outbox, which the protocol's window bounds.

use std::io;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpCongestion;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::log::frame::{self, FrameError, FrameKind};
use crate::replication::message::{Envelope, Head, Kind, MessageError};

/// Bytes read from the socket at a time.
const READ_BYTES: usize = 256 << 10;

/// Bytes in the outbox that are much.
const MUCH: usize = 128 << 10;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side closed it, or the network broke.
    #[error("the connection was closed")]
    Closed,
    /// The network failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error("the peer sent what is no frame of the logging channel")]
    Frame(#[from] FrameError),
    /// A frame of the log file or the console port.
    #[error("the peer sent a frame of kind {0:?}, which has no place on the logging channel")]
    Kind(FrameKind),
    /// A frame that is no message.
    #[error("the peer sent a frame that is no message")]
    Message(#[from] MessageError),
}

/// A message and the bulk that travelled with it.
#[derive(Debug)]
pub struct Received {
    /// The message, with its token.
    pub envelope: Envelope,
    /// Boot or entries; empty for other kinds.
    pub bulk: Vec<u8>,
}

/// One connection.
pub struct Connection {
    stream: TcpStream,
    /// Room for what arrives. Kept at its length: clearing it anew for every read costs more than the read.
    inbox: Vec<u8>,
    /// Bytes at the front of the inbox that were dealt with, and that have arrived; `used <= filled`.
    used: usize,
    filled: usize,
    outbox: Vec<u8>,
    payload: Vec<u8>,
    traffic: Traffic,
}

/// What has happened on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stir {
    /// Bytes have arrived.
    Arrived,
    /// [Much](Connection::has_much) waited to be sent, and does no longer.
    Drained,
}

/// Bytes that a connection has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To the peer.
    pub sent: u64,
    /// From the peer.
    pub received: u64,
}

fn frame_kind(kind: Kind) -> FrameKind {
    match kind {
        Kind::Boot => FrameKind::Boot,
        Kind::Transfer => FrameKind::Transfer,
        Kind::Chunk => FrameKind::Chunk,
        Kind::State => FrameKind::State,
        Kind::Entries => FrameKind::Entries,
        Kind::Hello => FrameKind::Hello,
        Kind::Welcome => FrameKind::Welcome,
        Kind::Refuse => FrameKind::Refuse,
        Kind::Ack => FrameKind::Ack,
        Kind::Horizon => FrameKind::Horizon,
        Kind::Heartbeat => FrameKind::Heartbeat,
        Kind::Diverged => FrameKind::Diverged,
        Kind::Goodbye => FrameKind::Goodbye,
        Kind::Handover => FrameKind::Handover,
        Kind::Took => FrameKind::Took,
        Kind::Strays => FrameKind::Strays,
    }
}

impl Connection {
    /// Takes over a connected stream.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        secure(&stream)?;
        Ok(Connection {
            stream,
            inbox: Vec::new(),
            used: 0,
            filled: 0,
            outbox: Vec::new(),
            payload: Vec::new(),
            traffic: Traffic::default(),
        })
    }

    /// Sends a message with its bulk, as far as the socket takes it.
    pub fn send(&mut self, envelope: &Envelope, bulk: &[u8]) -> Result<(), ChannelError> {
        self.payload.clear();
        let Head { kind, number, count } = envelope.encode(&mut self.payload);
        self.payload.extend_from_slice(bulk);
        frame::encode(frame_kind(kind), number, count, &self.payload, &mut self.outbox)?;
        self.flush()
    }

    /// The same for a message that is nearly all bulk. What the socket takes at once is not copied.
    pub fn send_bulk(&mut self, envelope: &Envelope, bulk: &[u8]) -> Result<(), ChannelError> {
        if !self.outbox.is_empty() {
            return self.send(envelope, bulk);
        }
        self.payload.clear();
        let Head { kind, number, count } = envelope.encode(&mut self.payload);
        let header = frame::header(frame_kind(kind), number, count, [&self.payload, bulk])?;
        let parts = [&header[..], &self.payload, bulk];
        let mut sent = match self.stream.try_write_vectored(&parts.map(io::IoSlice::new)) {
            Ok(0) => return Err(ChannelError::Closed),
            Ok(sent) => sent,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(e.into()),
        };
        self.traffic.sent += sent as u64;
        for part in parts {
            let whole = sent.min(part.len());
            self.outbox.extend_from_slice(&part[whole..]);
            sent -= whole;
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), ChannelError> {
        let mut sent = 0;
        while sent < self.outbox.len() {
            match self.stream.try_write(&self.outbox[sent..]) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        self.outbox.drain(..sent);
        self.traffic.sent += sent as u64;
        Ok(())
    }

    /// Bytes that wait for the socket.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Whether so much waits for the socket that nothing should be added which can wait.
    pub fn has_much(&self) -> bool {
        self.outbox.len() > MUCH
    }

    /// What it has carried.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Waits until something has arrived and reads what there is; sends what waits meanwhile, and says so when little is left of much.
    pub async fn arrived(&mut self) -> Result<Stir, ChannelError> {
        loop {
            let interest =
                if self.outbox.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let ready = self.stream.ready(interest).await?;
            let much = self.has_much();
            if ready.is_writable() && !self.outbox.is_empty() {
                self.flush()?;
            }
            if ready.is_readable() && self.read()? {
                return Ok(Stir::Arrived);
            }
            if much && !self.has_much() {
                return Ok(Stir::Drained);
            }
        }
    }

    /// Reads what is there. False: nothing was.
    fn read(&mut self) -> Result<bool, ChannelError> {
        self.inbox.copy_within(self.used..self.filled, 0);
        self.filled -= std::mem::take(&mut self.used);
        if self.inbox.len() < self.filled + READ_BYTES {
            self.inbox.resize(self.filled + READ_BYTES, 0);
        }
        let result = self.stream.try_read(&mut self.inbox[self.filled..]);
        let read = *result.as_ref().unwrap_or(&0);
        self.filled += read;
        self.traffic.received += read as u64;
        match result {
            Ok(0) => Err(ChannelError::Closed),
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The next whole message that has arrived.
    pub fn next_message(&mut self) -> Result<Option<Received>, ChannelError> {
        let Some((frame, length)) = frame::parse(&self.inbox[self.used..self.filled])? else { return Ok(None) };
        let kind =
            Kind::ALL.into_iter().find(|kind| frame_kind(*kind) == frame.kind).ok_or(ChannelError::Kind(frame.kind))?;
        let head = Head { kind, number: frame.number, count: frame.count };
        let (envelope, bulk) = Envelope::decode(head, frame.payload)?;
        let received = Received { envelope, bulk: bulk.to_vec() };
        self.used += length;
        Ok(Some(received))
    }
}

/// Makes a raw connection one that may be trusted. Encryption and authentication have their place here.
fn secure(stream: &TcpStream) -> io::Result<()> {
    // Many small frames on a short link, each of which somebody waits for: a congestion control that paces them (BBR, a default here and
    // there) is in the way. Where a kernel offers none of these, its default does.
    let _ = ["cubic", "reno"].into_iter().find(|name| setsockopt(stream, TcpCongestion, &(*name).into()).is_ok());
    stream.set_nodelay(true)
}

/// Waits for `connection`, or for ever where there is none.
pub async fn arrived(connection: &mut Option<Connection>) -> Result<Stir, ChannelError> {
    match connection {
        Some(connection) => connection.arrived().await,
        None => std::future::pending().await,
    }
}

impl Connection {
    /// Sends what waits, then closes in an orderly way: unread input would otherwise have the kernel cut off what was sent last.
    pub async fn close(mut self) {
        let patience = std::time::Duration::from_secs(1);
        let _ = tokio::time::timeout(patience, async {
            while !self.outbox.is_empty() {
                self.stream.writable().await?;
                self.flush().map_err(io::Error::other)?;
            }
            let (reader, mut writer) = self.stream.into_split();
            tokio::io::AsyncWriteExt::shutdown(&mut writer).await?;
            let mut sink = [0; 4096];
            loop {
                reader.readable().await?;
                match reader.try_read(&mut sink) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
        })
        .await;
    }
}
