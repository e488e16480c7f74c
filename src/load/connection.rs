//! One client's connection, which is never made anew: what ends it is what a client of the guest must not see.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::resp::{self, Reply, RespError};
use crate::cli::loopback::PATIENCE;

/// What a client of the guest must not see.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where to.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke: a reset, for example.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// The server closed it.
    #[error("the server closed the connection")]
    Closed,
    /// A reply that is none.
    #[error("the server does not speak RESP")]
    Resp(#[from] RespError),
    /// Another reply than this command can have.
    #[error("`{command}` was answered by {reply}")]
    Unexpected {
        /// The command.
        command: String,
        /// The reply.
        reply: String,
    },
    /// Nothing for very long.
    #[error("no answer for {} s", PATIENCE.as_secs())]
    Silence,
}

/// Of a long text, the beginning: a value may be as long as it likes.
fn clipped(mut text: String) -> String {
    const MOST: usize = 200;
    if text.len() > MOST {
        text.truncate(text.floor_char_boundary(MOST));
        text += "…";
    }
    text
}

/// A connection.
pub struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    out: Vec<u8>,
}

impl Connection {
    /// Connects to `host:port`.
    pub async fn open(address: &str) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { address: address.to_owned(), source };
        let stream = soon(TcpStream::connect(address)).await?.map_err(failed)?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, received: Vec::new(), out: Vec::new() })
    }

    /// Sends one command and hands its reply to `read`, which says `None` if this command cannot have that reply.
    pub async fn call<T>(
        &mut self,
        words: &[&str],
        read: impl FnOnce(Reply<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        self.out.clear();
        resp::command(words, &mut self.out);
        soon(self.stream.write_all(&self.out)).await??;
        loop {
            if let Some((reply, length)) = resp::reply(&self.received)? {
                let answer = read(reply).ok_or_else(|| ClientError::Unexpected {
                    command: clipped(words.join(" ")),
                    reply: clipped(format!("{reply:?}")),
                });
                self.received.drain(..length);
                return answer;
            }
            self.receive().await?;
        }
    }

    /// Sends `commands`, which have `replies` replies, and reads those; an error among them is an error here.
    pub async fn pipeline(&mut self, commands: &[u8], replies: usize) -> Result<(), ClientError> {
        soon(self.stream.write_all(commands)).await??;
        for _ in 0..replies {
            let mut at = 0;
            while at == 0 {
                match resp::reply(&self.received)? {
                    Some((Reply::Error(error), _)) => {
                        let reply = clipped(String::from_utf8_lossy(error).into_owned());
                        return Err(ClientError::Unexpected { command: "a pipeline".into(), reply });
                    }
                    Some((_, length)) => at = length,
                    None => self.receive().await?,
                }
            }
            self.received.drain(..at);
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), ClientError> {
        match soon(self.stream.read_buf(&mut self.received)).await?? {
            0 => Err(ClientError::Closed),
            _ => Ok(()),
        }
    }
}

/// Lets `future` take as long as anything here may, and no longer.
async fn soon<T>(future: impl Future<Output = T>) -> Result<T, ClientError> {
    tokio::time::timeout(PATIENCE, future).await.map_err(|_| ClientError::Silence)
}
