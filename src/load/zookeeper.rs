//! Clients of a ZooKeeper ensemble that ask as fast as they are answered: raw connections, each with a window of requests under way.
//!
//! They do as little as can be, so that what is measured is the ensemble and not its clients. Every reply is held against its
//! request's number and must be without an error.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use lockstep_ensemble::tree::acl;
use lockstep_ensemble::wire::jute::{Reader, Write};
use lockstep_ensemble::wire::request::op;
use lockstep_ensemble::wire::stat::write_acl;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What the clients ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To set a node's data.
    Set,
    /// What a node's data are.
    Get,
}

/// A load.
#[derive(Clone, Debug)]
pub struct Load {
    /// `HOST:PORT` of the members; connections are spread over them.
    pub members: Vec<String>,
    /// Connections, each on a node of its own.
    pub connections: usize,
    /// Requests of a connection that are under way at one time.
    pub window: usize,
    /// Bytes of data.
    pub bytes: usize,
}

/// Why a load came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A connection failed.
    #[error("a connection failed")]
    Io(#[from] std::io::Error),
    /// A reply is no reply.
    #[error("a reply cannot be read")]
    Reply(#[from] lockstep_ensemble::wire::jute::JuteError),
    /// A reply is that to another request, or an error.
    #[error("request {asked}: reply to {answered}, code {code}")]
    Wrong {
        /// The request.
        asked: i32,
        /// The request that the reply is for.
        answered: i32,
        /// Its error.
        code: i32,
    },
    /// There is no session.
    #[error("no session was given")]
    Session,
    /// A client's task ended.
    #[error("a client has panicked")]
    Client(#[from] tokio::task::JoinError),
}

/// What the clients found.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// Replies within the time.
    pub count: u64,
    /// How long each took.
    pub latencies: Vec<Duration>,
    /// The time.
    pub time: Duration,
}

impl Answers {
    /// Replies per second.
    pub fn per_s(&self) -> f64 {
        self.count as f64 / self.time.as_secs_f64()
    }
}

impl Load {
    /// Makes the nodes, then asks for `time`; what is answered in its first fifth does not count.
    pub async fn run(&self, ask: Ask, time: Duration) -> Result<Answers, LoadError> {
        let mut clients = JoinSet::new();
        for index in 0..self.connections {
            let (member, load) = (self.members[index % self.members.len()].clone(), self.clone());
            clients.spawn(async move {
                let mut client = Client::connect(&member).await?;
                client.make_node(index, load.bytes).await?;
                Ok::<_, LoadError>((index, client))
            });
        }
        let mut ready = Vec::new();
        while let Some(client) = clients.join_next().await {
            ready.push(client??);
        }
        let from = Instant::now() + time / 5;
        let until = from + time;
        let mut asking = JoinSet::new();
        for (index, client) in ready {
            let (window, bytes) = (self.window, self.bytes);
            asking.spawn(async move { client.ask(ask, index, window, bytes, from, until).await });
        }
        let mut answers = Answers { time, ..Answers::default() };
        while let Some(client) = asking.join_next().await {
            let latencies = client??;
            answers.count += latencies.len() as u64;
            answers.latencies.extend(latencies);
        }
        Ok(answers)
    }
}

struct Client {
    stream: TcpStream,
    buffer: BytesMut,
    out: BytesMut,
    xid: i32,
}

/// A session's time-out, milliseconds.
const SESSION_MS: i32 = 10_000;

impl Client {
    async fn connect(member: &str) -> Result<Self, LoadError> {
        let stream = TcpStream::connect(member).await?;
        stream.set_nodelay(true)?;
        let mut client = Client { stream, buffer: BytesMut::new(), out: BytesMut::new(), xid: 0 };
        client.frame(|out| {
            out.int(0);
            out.long(0);
            out.int(SESSION_MS);
            out.long(0);
            out.buffer(&[0; 16]);
            out.bool(false);
        });
        client.stream.write_all(&client.out).await?;
        client.out.clear();
        let answer = client.read_frame().await?;
        let mut reader = Reader::new(&answer);
        reader.int()?;
        reader.int()?;
        if reader.long()? == 0 { Err(LoadError::Session) } else { Ok(client) }
    }

    fn frame(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let at = self.out.len();
        self.out.int(0);
        write(&mut self.out);
        let length = (self.out.len() - at - 4) as u32;
        self.out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    fn request(&mut self, kind: i32, write: impl FnOnce(&mut BytesMut)) -> i32 {
        self.xid = self.xid.wrapping_add(1).max(1);
        let xid = self.xid;
        self.frame(|out| {
            out.int(xid);
            out.int(kind);
            write(out);
        });
        xid
    }

    fn next_frame(&mut self) -> Option<BytesMut> {
        let length = u32::from_be_bytes(*self.buffer.first_chunk()?) as usize;
        if self.buffer.len() < 4 + length {
            return None;
        }
        self.buffer.advance(4);
        Some(self.buffer.split_to(length))
    }

    async fn read_frame(&mut self) -> Result<BytesMut, LoadError> {
        loop {
            if let Some(frame) = self.next_frame() {
                return Ok(frame);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    async fn make_node(&mut self, index: usize, bytes: usize) -> Result<(), LoadError> {
        let xid = self.request(op::CREATE, |out| {
            out.string(&path(index));
            out.buffer(&vec![b'x'; bytes]);
            write_acl(&acl::OPEN, out);
            out.int(0);
        });
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        let reply = self.read_frame().await?;
        const NODE_EXISTS: i32 = -110;
        match check(&reply, xid) {
            // From the load before.
            Err(LoadError::Wrong { code: NODE_EXISTS, .. }) => Ok(()),
            other => other,
        }
    }

    async fn ask(
        mut self,
        ask: Ask,
        index: usize,
        window: usize,
        bytes: usize,
        from: Instant,
        until: Instant,
    ) -> Result<Vec<Duration>, LoadError> {
        let (path, data) = (path(index), vec![b'y'; bytes]);
        let mut under_way: VecDeque<(i32, Instant)> = VecDeque::new();
        let mut latencies = Vec::new();
        loop {
            let now = Instant::now();
            while now < until && under_way.len() < window {
                let xid = match ask {
                    Ask::Get => self.request(op::GET_DATA, |out| {
                        out.string(&path);
                        out.bool(false);
                    }),
                    Ask::Set => self.request(op::SET_DATA, |out| {
                        out.string(&path);
                        out.buffer(&data);
                        out.int(-1);
                    }),
                };
                under_way.push_back((xid, now));
            }
            if !self.out.is_empty() {
                self.stream.write_all(&self.out).await?;
                self.out.clear();
            }
            if under_way.is_empty() {
                return Ok(latencies);
            }
            let mut reply = Some(self.read_frame().await?);
            let now = Instant::now();
            while let Some(frame) = reply {
                let Some((xid, asked)) = under_way.pop_front() else { break };
                check(&frame, xid)?;
                if (from..until).contains(&now) {
                    latencies.push(now - asked);
                }
                reply = self.next_frame();
            }
        }
    }
}

fn path(index: usize) -> String {
    format!("/lockstep-load-{index}")
}

/// Whether this is the reply to request `asked`, and no error.
fn check(reply: &[u8], asked: i32) -> Result<(), LoadError> {
    let mut reader = Reader::new(reply);
    let (answered, _, code) = (reader.int()?, reader.long()?, reader.int()?);
    if (answered, code) == (asked, 0) { Ok(()) } else { Err(LoadError::Wrong { asked, answered, code }) }
}
