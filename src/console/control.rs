//! Asking a host something, once: its status, or to stop the machine.

use super::dial::{DialError, open};
use super::status::Status;
use super::wire::{Answer, ClientMessage, Command, ServerMessage};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
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
    let json = request(address, patience, ClientMessage::StatusRequest, |message| match message {
        ServerMessage::Status(json) => Some(json.to_vec()),
        _ => None,
    })
    .await;
    let parse = |json: Vec<u8>| serde_json::from_slice(&json).map_err(RequestTrouble::Status);
    json.map_err(RequestTrouble::Dial).and_then(parse).map_err(|why| RequestError { address: address.into(), why })
}

/// Asks the host at `address` to stop the machine.
pub async fn stop(address: &str, patience: Duration) -> Result<Answer, RequestError> {
    request(address, patience, ClientMessage::Control(Command::Stop), |message| match message {
        ServerMessage::Answer(answer) => Some(answer),
        _ => None,
    })
    .await
    .map_err(|why| RequestError { address: address.into(), why: why.into() })
}

async fn request<T>(
    address: &str,
    patience: Duration,
    message: ClientMessage<'_>,
    answer: impl Fn(ServerMessage<'_>) -> Option<T>,
) -> Result<T, DialError> {
    let exchange = async {
        let (mut reader, mut writer) = open(address, patience).await?;
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
    };
    timeout(patience, exchange).await.map_err(|_| DialError::Silent)?
}
