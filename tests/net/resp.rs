//! The Redis protocol as a client speaks it, over one plain connection that is never opened again.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};

use super::site::within;
use crate::common::PATIENCE;

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+`
    Simple(String),
    /// `-`
    Error(String),
    /// `:`
    Integer(i64),
    /// `$`; `None`: nil.
    Bulk(Option<Vec<u8>>),
    /// `*`
    Array(Vec<Reply>),
}

/// The largest bulk string or array that a test asks for.
const LIMIT: usize = 64 << 20;

/// A connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects from within a namespace.
    pub fn open(address: SocketAddr, namespace: &str) -> Result<Connection> {
        let stream = within(namespace, || TcpStream::connect_timeout(&address, PATIENCE))?;
        stream.set_nodelay(true)?;
        // Whoever waits that long has waited in vain: an error, as a reset is one. (The tests lose their patience before.)
        stream.set_read_timeout(Some(2 * PATIENCE))?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// The same connection once more, to close it from outside.
    pub fn socket(&self) -> Result<TcpStream> {
        self.stream.get_ref().try_clone()
    }

    /// One request and its answer.
    pub fn ask(&mut self, words: &[&str]) -> Result<Reply> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.receive()
    }

    fn receive(&mut self) -> Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| nonsense("an empty line"))?;
        let length = || rest.parse::<usize>().ok().filter(|&length| length <= LIMIT).ok_or_else(|| nonsense(&line));
        Ok(match kind {
            "+" => Reply::Simple(rest.into()),
            "-" => Reply::Error(rest.into()),
            ":" => Reply::Integer(rest.parse().map_err(|_| nonsense(&line))?),
            "$" if rest == "-1" => Reply::Bulk(None),
            "$" => {
                let mut bytes = vec![0; length()? + 2];
                self.stream.read_exact(&mut bytes)?;
                if !bytes.ends_with(b"\r\n") {
                    return Err(nonsense("a bulk string of another length"));
                }
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(Some(bytes))
            }
            "*" => Reply::Array((0..length()?).map(|_| self.receive()).collect::<Result<_>>()?),
            _ => return Err(nonsense(&line)),
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.by_ref().take(4096).read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(whole) => Ok(whole.into()),
            None if line.is_empty() => Err(ErrorKind::UnexpectedEof.into()),
            None => Err(nonsense(&line)),
        }
    }
}

fn nonsense(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("no answer of a Redis server: {what:?}"))
}
