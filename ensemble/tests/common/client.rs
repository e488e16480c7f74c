//! A client that asks one thing after the other, over whichever member takes it, with one session throughout if it can.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use lockstep_ensemble::net::Net;
use lockstep_ensemble::tree::acl;
use lockstep_ensemble::wire::jute::{Reader, Write};
use lockstep_ensemble::wire::request::op;
use lockstep_ensemble::wire::stat::write_acl;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::history::{Asked, History, Told};
use super::random::Random;

/// Nodes that all clients use.
pub const NODES: usize = 3;
const SESSION_MS: i32 = 3000;
const PATIENCE: Duration = Duration::from_millis(1500);

fn path(node: usize) -> String {
    format!("/n{node}")
}

/// Why an answer did not come.
#[derive(Debug)]
enum Lost {
    /// The connection is gone.
    Connection,
    /// The session is.
    Session,
}

impl From<io::Error> for Lost {
    fn from(_: io::Error) -> Self {
        Lost::Connection
    }
}

/// A client.
pub struct Client<N: Net> {
    net: N,
    pub number: usize,
    pub members: Vec<String>,
    pub random: Random,
    pub history: History,
    session: (i64, Vec<u8>),
    newest: i64,
    next_value: u64,
    stream: Option<N::Stream>,
    buffer: BytesMut,
    xid: i32,
    /// Watches that were set for nodes at these mzxids, and have not told anything yet.
    watched: [Option<i64>; NODES],
}

impl<N: Net> Client<N> {
    pub fn new(net: N, number: usize, members: Vec<String>, random: Random, history: History) -> Self {
        Client {
            net,
            number,
            members,
            random,
            history,
            session: (0, vec![0; 16]),
            newest: 0,
            next_value: 1,
            stream: None,
            buffer: BytesMut::new(),
            xid: 0,
            watched: [None; NODES],
        }
    }

    /// Asks until `stop` says so.
    pub async fn run(mut self, stop: impl Fn() -> bool) {
        while !stop() {
            let pause = Duration::from_millis(self.random.below(40));
            tokio::time::sleep(pause).await;
            if self.stream.is_none() {
                let connected = tokio::time::timeout(PATIENCE, self.connect()).await;
                if !matches!(connected, Ok(Ok(()))) {
                    if matches!(connected, Ok(Err(Lost::Session))) {
                        self.session = (0, vec![0; 16]);
                    }
                    self.stream = None;
                }
                continue;
            }
            let done = tokio::time::timeout(PATIENCE, self.call()).await;
            if !matches!(done, Ok(Ok(()))) {
                self.stream = None;
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Lost> {
        let member = self.random.pick(&self.members);
        self.buffer.clear();
        self.watched = [None; NODES];
        let mut stream = self.net.connect(&member).await?;
        let (mut out, (session, password)) = (Vec::new(), self.session.clone());
        out.int(0);
        out.long(self.newest);
        out.int(SESSION_MS);
        out.long(session);
        out.buffer(&password);
        out.bool(false);
        stream.write_all(&[&(out.len() as u32).to_be_bytes()[..], &out].concat()).await?;
        self.stream = Some(stream);
        let answer = self.frame().await?;
        let mut reader = Reader::new(&answer);
        let (_, _, session) = (reader.int().unwrap(), reader.int().unwrap(), reader.long().unwrap());
        if session == 0 {
            return Err(Lost::Session);
        }
        self.session = (session, reader.buffer().unwrap().unwrap().to_vec());
        for node in 0..NODES {
            self.request(op::CREATE, |out| {
                out.string(&path(node));
                out.buffer(&0u64.to_be_bytes());
                write_acl(&acl::OPEN, out);
                out.int(0);
            })
            .await?;
            self.reply(self.xid).await?;
        }
        Ok(())
    }

    async fn call(&mut self) -> Result<(), Lost> {
        let node = self.random.below(NODES as u64) as usize;
        match self.random.below(4) {
            0 | 1 => {
                let value = (self.number as u64) << 32 | self.next_value;
                self.next_value += 1;
                let call = self.history.ask(self.number, Asked::Set { node, value });
                self.request(op::SET_DATA, |out| {
                    out.string(&path(node));
                    out.buffer(&value.to_be_bytes());
                    out.int(-1);
                })
                .await?;
                let record = self.reply(self.xid).await?.ok_or(Lost::Session)?;
                let mut reader = Reader::new(&record);
                let (_, zxid) = (reader.long().unwrap(), reader.long().unwrap());
                self.history.tell(call, Told::Set { zxid });
            }
            asked => {
                let synced = asked == 2;
                let asked = if synced { Asked::SyncedGet { node } } else { Asked::Get { node } };
                let call = self.history.ask(self.number, asked);
                if synced {
                    self.request(op::SYNC, |out| out.string(&path(node))).await?;
                }
                let watch = self.random.one_in(2);
                self.request(op::GET_DATA, |out| {
                    out.string(&path(node));
                    out.bool(watch);
                })
                .await?;
                if synced {
                    self.reply(self.xid - 1).await?.ok_or(Lost::Session)?;
                }
                let record = self.reply(self.xid).await?.ok_or(Lost::Session)?;
                let mut reader = Reader::new(&record);
                let data = reader.buffer().unwrap().unwrap();
                let value = u64::from_be_bytes(data.try_into().unwrap());
                let (_, mzxid) = (reader.long().unwrap(), reader.long().unwrap());
                if let Some(watched) = self.watched[node] {
                    assert_eq!(watched, mzxid, "client {}: a change is shown before its event", self.number);
                }
                if watch {
                    self.watched[node] = Some(mzxid);
                }
                self.history.tell(call, Told::Value { value, mzxid });
            }
        }
        Ok(())
    }

    async fn request(&mut self, kind: i32, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Lost> {
        self.xid += 1;
        let mut out = Vec::new();
        out.int(self.xid);
        out.int(kind);
        write(&mut out);
        let stream = self.stream.as_mut().ok_or(Lost::Connection)?;
        stream.write_all(&[&(out.len() as u32).to_be_bytes()[..], &out].concat()).await?;
        Ok(())
    }

    /// The record of the reply to `xid`; `None`: an error. Events that come before it are taken note of.
    async fn reply(&mut self, xid: i32) -> Result<Option<Vec<u8>>, Lost> {
        loop {
            let frame = self.frame().await?;
            let mut reader = Reader::new(&frame);
            let (answered, zxid, code) = (reader.int().unwrap(), reader.long().unwrap(), reader.int().unwrap());
            if answered == -1 {
                let (_, _, at) = (reader.int().unwrap(), reader.int().unwrap(), reader.string().unwrap().unwrap());
                let node: usize = at.strip_prefix("/n").unwrap().parse().unwrap();
                assert!(self.watched[node].take().is_some(), "client {}: an event that nobody wanted", self.number);
                continue;
            }
            assert_eq!(answered, xid, "client {}: replies in another order than requests", self.number);
            assert!(zxid >= self.newest, "client {}: the member went back from {} to {zxid}", self.number, self.newest);
            self.newest = zxid;
            return Ok((code == 0).then(|| reader.rest().to_vec()));
        }
    }

    async fn frame(&mut self) -> Result<BytesMut, Lost> {
        let stream = self.stream.as_mut().ok_or(Lost::Connection)?;
        loop {
            if let Some(length) = self.buffer.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize)
                && self.buffer.len() >= 4 + length
            {
                let mut frame = self.buffer.split_to(4 + length);
                return Ok(frame.split_off(4));
            }
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Lost::Connection);
            }
        }
    }
}
