//! Asking a host something: its status (once, or again and again), to do something with the machine, or a snapshot of it.

use super::dial::{DialError, open};
use super::status::Status;
use super::wire::{Answer, ClientMessage, Command, Reader, ServerMessage};
use crate::log::frame::{Frame, FrameKind};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// Why a host did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {why}")]
pub struct RequestError {
    /// The host's console port.
    pub address: String,
    /// Why; part of the message.
    pub why: RequestTrouble,
}

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestTrouble {
    /// The host could not be used.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The answer is not understood.
    #[error("its status cannot be read")]
    Status(#[source] serde_json::Error),
}

/// The status of the host at `address`.
pub async fn status(address: &str, patience: Duration) -> Result<Status, RequestError> {
    parse(request(address, patience, ClientMessage::StatusRequest, status_json).await, address)
}

/// Asks the host at `address` for something to be done. (Not for a [snapshot].)
pub async fn command(address: &str, command: Command, patience: Duration) -> Result<Answer, RequestError> {
    request(address, patience, ClientMessage::Control(command), |message| match message {
        ServerMessage::Answer(answer) => Some(answer),
        _ => None,
    })
    .await
    .map_err(|why| RequestError { address: address.into(), why: why.into() })
}

/// Asks the host at `address` for a snapshot. `frame` gets its frames, one after the other, parsed and as they are; the last is a close frame.
/// `patience`: how long nothing may come.
pub async fn snapshot(
    address: &str,
    patience: Duration,
    mut frame: impl FnMut(Frame<'_>, &[u8]) -> std::io::Result<()>,
) -> Result<Answer, RequestError> {
    let all = async {
        let (mut reader, mut writer) = open(address, patience).await?;
        let answer = timeout(
            patience,
            exchange(&mut reader, &mut writer, ClientMessage::Control(Command::Snapshot), |message| match message {
                ServerMessage::Answer(answer) => Some(answer),
                _ => None,
            }),
        );
        let answer = answer.await.map_err(|_| DialError::Silent)??;
        let mut last = !answer.accepted;
        while !last {
            let next = timeout(patience, reader.frame()).await.map_err(|_| DialError::Silent)??;
            let (parsed, whole) = next.ok_or(DialError::Closed)?;
            if !matches!(parsed.kind, FrameKind::Transfer | FrameKind::Chunk | FrameKind::State | FrameKind::Close) {
                return Err(DialError::NotLockstep);
            }
            last = parsed.kind == FrameKind::Close;
            frame(parsed, whole)?;
        }
        Ok(answer)
    };
    all.await.map_err(|why: DialError| RequestError { address: address.into(), why: why.into() })
}

/// A connection on which a host is asked for its status again and again.
pub struct Watch {
    address: String,
    reader: Reader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    patience: Duration,
}

impl Watch {
    /// Connects to the host at `address`.
    pub async fn connect(address: &str, patience: Duration) -> Result<Self, RequestError> {
        let (reader, writer) =
            open(address, patience).await.map_err(|why| RequestError { address: address.into(), why: why.into() })?;
        Ok(Watch { address: address.into(), reader, writer, patience })
    }

    /// The status now.
    pub async fn status(&mut self) -> Result<Status, RequestError> {
        let exchange = exchange(&mut self.reader, &mut self.writer, ClientMessage::StatusRequest, status_json);
        let json = timeout(self.patience, exchange).await.map_err(|_| DialError::Silent).flatten();
        parse(json, &self.address)
    }
}

fn status_json(message: ServerMessage<'_>) -> Option<Vec<u8>> {
    match message {
        ServerMessage::Status(json) => Some(json.to_vec()),
        _ => None,
    }
}

fn parse(json: Result<Vec<u8>, DialError>, address: &str) -> Result<Status, RequestError> {
    json.map_err(RequestTrouble::Dial)
        .and_then(|json| serde_json::from_slice(&json).map_err(RequestTrouble::Status))
        .map_err(|why| RequestError { address: address.into(), why })
}

async fn request<T>(
    address: &str,
    patience: Duration,
    message: ClientMessage<'_>,
    answer: impl Fn(ServerMessage<'_>) -> Option<T>,
) -> Result<T, DialError> {
    let all = async {
        let (mut reader, mut writer) = open(address, patience).await?;
        exchange(&mut reader, &mut writer, message, answer).await
    };
    timeout(patience, all).await.map_err(|_| DialError::Silent)?
}

async fn exchange<T>(
    reader: &mut Reader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    message: ClientMessage<'_>,
    answer: impl Fn(ServerMessage<'_>) -> Option<T>,
) -> Result<T, DialError> {
    let mut out = Vec::new();
    message.encode(&mut out);
    writer.write_all(&out).await?;
    loop {
        match reader.server_message().await?.ok_or(DialError::Closed)? {
            ServerMessage::KeepAlive => {}
            ServerMessage::Refused(refusal) => return Err(DialError::Refused(refusal)),
            message => return answer(message).ok_or(DialError::NotLockstep),
        }
    }
}
