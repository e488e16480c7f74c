//! Finding the host that runs the machine: all addresses are called at the same time, and the first
//! that attaches the session wins. A host that is not live keeps the call open and attaches it the
//! moment it goes live, so nobody polls during a failover.

use super::client::Timing;
use super::server::secure;
use super::status::Role;
use super::wire::{Attach, Attached, ClientMessage, Reader, Refusal, ServerMessage, WireError};
use crate::log::frame::FrameError;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Why a host could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection.
    #[error("cannot connect ({0}): is lockstep running there, and is this its console port?")]
    Connect(io::Error),
    /// A connection, but no word.
    #[error("the connection is accepted, but nothing answers: is this lockstep's console port?")]
    Silent,
    /// What answers is not the console port.
    #[error("what answers there is not lockstep's console port")]
    NotLockstep,
    /// What answers is of another version.
    #[error("{0}: use the same version of lockstep on both sides")]
    Version(FrameError),
    /// The host says no.
    #[error("the host refuses: {0}")]
    Refused(Refusal),
    /// The connection was closed or failed, or what came cannot be.
    #[error(transparent)]
    Wire(WireError),
    /// The host closed the connection.
    #[error("the host closed the connection")]
    Closed,
}

impl DialError {
    /// Whether trying again is of no use.
    pub fn is_final(&self) -> bool {
        match self {
            DialError::NotLockstep | DialError::Version(_) => true,
            DialError::Refused(refusal) => !matches!(refusal, Refusal::Busy(_) | Refusal::Superseded),
            DialError::Connect(_) | DialError::Silent | DialError::Wire(_) | DialError::Closed => false,
        }
    }
}

impl From<WireError> for DialError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Frame(FrameError::Magic(_)) => DialError::NotLockstep,
            WireError::Frame(version @ FrameError::Version(_)) => DialError::Version(version),
            other => DialError::Wire(other),
        }
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        DialError::Wire(WireError::Io(error))
    }
}

/// A connection to the live host, attached.
pub(super) struct Link {
    pub address: String,
    pub reader: Reader<OwnedReadHalf>,
    pub writer: OwnedWriteHalf,
    pub attached: Attached,
}

/// What a call has found out.
pub(super) enum Note {
    /// It failed, and will be tried again.
    Failed { address: String, error: DialError },
    /// The host is there and waits to go live.
    Waiting { address: String, role: Role, peer: Option<String> },
}

/// What happens while calling.
pub(super) enum News {
    /// A host has attached the session.
    Attached(Box<Link>),
    /// Something was found out.
    Note(Note),
}

/// Calls to several hosts. Dropping them hangs up.
pub(super) struct Dials {
    calls: JoinSet<Link>,
    notes: mpsc::UnboundedReceiver<Note>,
    note: mpsc::UnboundedSender<Note>,
    attach: Attach,
    timing: Timing,
}

impl Dials {
    /// Calls `addresses`, to attach with `attach`, which must stay true while they last.
    pub fn start<'a>(addresses: impl Iterator<Item = &'a String>, attach: Attach, timing: Timing) -> Self {
        let (note, notes) = mpsc::unbounded_channel();
        let mut dials = Dials { calls: JoinSet::new(), notes, note, attach, timing };
        addresses.for_each(|address| dials.call(address.clone()));
        dials
    }

    /// Calls another address.
    pub fn call(&mut self, address: String) {
        self.calls.spawn(call(address, self.attach, self.timing, self.note.clone()));
    }

    /// What happens next. Never completes without calls. Cancellation safe.
    pub async fn next(&mut self) -> News {
        loop {
            tokio::select! {
                biased;
                link = self.calls.join_next() => match link {
                    Some(Ok(link)) => return News::Attached(Box::new(link)),
                    // A call ends only with a link; one that panicked has been reported by the runtime.
                    Some(Err(_)) => {}
                    None => std::future::pending().await,
                },
                Some(note) = self.notes.recv() => return News::Note(note),
            }
        }
    }
}

/// Calls one address until it attaches.
async fn call(address: String, attach: Attach, timing: Timing, notes: mpsc::UnboundedSender<Note>) -> Link {
    let mut pause = timing.retry_min;
    loop {
        let mut parked = false;
        match attempt(&address, &attach, timing, &notes, &mut parked).await {
            Ok(link) => return link,
            Err(error) => {
                let is_final = error.is_final();
                let _ = notes.send(Note::Failed { address: address.clone(), error });
                pause = match (parked, is_final) {
                    (_, true) => timing.retry_max,
                    (true, false) => timing.retry_min,
                    (false, false) => pause,
                };
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(timing.retry_max);
    }
}

async fn attempt(
    address: &str,
    attach: &Attach,
    timing: Timing,
    notes: &mpsc::UnboundedSender<Note>,
    parked: &mut bool,
) -> Result<Link, DialError> {
    let (mut reader, mut writer) = open(address, timing.hello).await?;
    let mut out = Vec::new();
    ClientMessage::Attach(*attach).encode(&mut out);
    let mut patience = timing.hello;
    loop {
        writer.write_all(&out).await?;
        out.clear();
        let message = timeout(patience, reader.server_message()).await.map_err(|_| DialError::Silent)??;
        match message.ok_or(DialError::Closed)? {
            ServerMessage::Attached(attached) => {
                return Ok(Link { address: address.to_owned(), reader, writer, attached });
            }
            ServerMessage::NotLive(not_live) => {
                let _ =
                    notes.send(Note::Waiting { address: address.to_owned(), role: not_live.role, peer: not_live.peer });
            }
            ServerMessage::KeepAlive => ClientMessage::KeepAlive.encode(&mut out),
            ServerMessage::Refused(refusal) => return Err(DialError::Refused(refusal)),
            _ => return Err(DialError::NotLockstep),
        }
        *parked = true;
        patience = timing.silence;
    }
}

/// Connects to a console port.
pub(super) async fn open(
    address: &str,
    patience: Duration,
) -> Result<(Reader<OwnedReadHalf>, OwnedWriteHalf), DialError> {
    let connected = timeout(patience, TcpStream::connect(address)).await;
    let stream =
        connected.map_err(|_| DialError::Connect(io::ErrorKind::TimedOut.into()))?.map_err(DialError::Connect)?;
    let (reader, writer) = secure(stream).await?;
    Ok((Reader::new(reader), writer))
}
