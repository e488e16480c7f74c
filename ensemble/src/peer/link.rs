//! The way to another member: one connection, made again whenever it is lost, over which questions are asked and answered in any
//! order.
//!
//! What was on the way when a connection is lost is lost. Questions then have no answer at once; whoever sends without an answer (the
//! forwarder of proposals) watches how often the connection was made, and says it again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::frame::{self, FrameError, Kind};
use super::message::{Hello, Refusal, VERSION};
use crate::log::entry;
use crate::member::{Address, MemberId};
use crate::net::Net;

/// Frames that may wait to be sent.
const QUEUE: usize = 1024;
/// Time that connecting and greeting may take.
const CONNECT_TIME: Duration = Duration::from_millis(1000);
/// How often the other side is asked whether it is there, and silence after which the connection is given up. A cable that was cut and
/// mended is used again so soon: TCP by itself would wait longer and longer.
const PING: Duration = Duration::from_millis(250);
const SILENCE: Duration = Duration::from_millis(1000);
/// Pause between two attempts: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no connection, or it was lost.
    #[error("not connected")]
    Down,
    /// Too much waits to be sent already.
    #[error("the way is full")]
    Full,
    /// The other member could not carry it out.
    #[error("refused: {0}")]
    Failure(String),
}

struct Outgoing {
    kind: Kind,
    payload: Bytes,
    answer: Option<oneshot::Sender<Result<Bytes, LinkError>>>,
}

/// The way to a member.
pub struct Link {
    outgoing: mpsc::Sender<Outgoing>,
    /// How many times it was connected; even numbers: it is not now.
    connections: watch::Receiver<u64>,
    address: String,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    fn new<N: Net>(net: N, me: MemberId, to: MemberId, address: String) -> Self {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let (count, connections) = watch::channel(0);
        let hello = Hello { version: VERSION, from: Some(me), to: Some(to) };
        let task = tokio::spawn(keep_connected(net, hello, address.clone(), queue, count)).abort_handle();
        Link { outgoing, connections, address, task }
    }

    /// Asks, and waits for the answer.
    pub async fn call(&self, kind: Kind, payload: Bytes) -> Result<Bytes, LinkError> {
        let (answer, answered) = oneshot::channel();
        self.put(kind, payload, Some(answer))?;
        answered.await.unwrap_or(Err(LinkError::Down))
    }

    /// Says something to which there is no answer.
    pub fn send(&self, kind: Kind, payload: Bytes) -> Result<(), LinkError> {
        self.put(kind, payload, None)
    }

    fn put(
        &self,
        kind: Kind,
        payload: Bytes,
        answer: Option<oneshot::Sender<Result<Bytes, LinkError>>>,
    ) -> Result<(), LinkError> {
        if !self.is_up() {
            return Err(LinkError::Down);
        }
        self.outgoing.try_send(Outgoing { kind, payload, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => LinkError::Full,
            mpsc::error::TrySendError::Closed(_) => LinkError::Down,
        })
    }

    /// Whether it is connected.
    pub fn is_up(&self) -> bool {
        *self.connections.borrow() % 2 == 1
    }

    /// Changes whenever it is connected or not connected any more.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connections.clone()
    }
}

async fn keep_connected<N: Net>(
    net: N,
    hello: Hello,
    address: String,
    mut queue: mpsc::Receiver<Outgoing>,
    count: watch::Sender<u64>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let connected = tokio::time::timeout(CONNECT_TIME, greet(&net, &hello, &address)).await;
        match connected {
            Ok(Ok((stream, buffer))) => {
                pause = FIRST_PAUSE;
                count.send_modify(|count| *count += 1);
                let end = talk(stream, buffer, &mut queue).await;
                count.send_modify(|count| *count += 1);
                tracing::debug!(%address, reason = &end as &dyn std::error::Error, "connection to a member lost");
                // What waited for this connection is not for the next one.
                while queue.try_recv().is_ok() {}
            }
            Ok(Err(error)) => tracing::trace!(%address, error = &error as &dyn std::error::Error, "not reached"),
            Err(_) => tracing::trace!(%address, "no answer"),
        }
        if queue.is_closed() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// Nobody is there, or whoever is there says nothing that can be understood.
    #[error("no connection")]
    Frame(#[from] FrameError),
    /// The other side does not want to.
    #[error("refused")]
    Refused(#[from] Refusal),
}

/// Connects and presents itself: the connection, and what was read beyond the welcome.
pub async fn greet<N: Net>(net: &N, hello: &Hello, address: &str) -> Result<(N::Stream, BytesMut), GreetError> {
    let mut stream = net.connect(address).await.map_err(FrameError::Io)?;
    let (mut out, mut buffer) = (BytesMut::new(), BytesMut::new());
    frame::write(&mut out, Kind::Hello, 0, &entry::cold(hello));
    stream.write_all(&out).await.map_err(FrameError::Io)?;
    let answer = frame::read(&mut stream, &mut buffer).await?;
    match answer.kind {
        Kind::Welcome => Ok((stream, buffer)),
        Kind::Refuse => Err(entry::read_cold::<Refusal>(&answer.payload).unwrap_or(Refusal::Greeting).into()),
        other => Err(FrameError::Kind(other as u8).into()),
    }
}

/// Sends what is asked, and hands on the answers, until the connection is lost.
async fn talk<S>(stream: S, mut buffer: BytesMut, queue: &mut mpsc::Receiver<Outgoing>) -> FrameError
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut reading, mut writing) = tokio::io::split(stream);
    let mut asked: BTreeMap<u64, oneshot::Sender<Result<Bytes, LinkError>>> = BTreeMap::new();
    let mut number = 0;
    let mut out = BytesMut::new();
    let mut pings = tokio::time::interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            biased;
            now = pings.tick() => {
                if now.duration_since(heard) > SILENCE {
                    return FrameError::Io(std::io::ErrorKind::TimedOut.into());
                }
                if out.is_empty() {
                    number += 1;
                    frame::write(&mut out, Kind::Ping, number, &[]);
                }
            }
            written = writing.write_buf(&mut out), if !out.is_empty() => match written {
                Ok(0) => return FrameError::Closed,
                Ok(_) => {}
                Err(error) => return error.into(),
            },
            read = frame::read(&mut reading, &mut buffer) => {
                let answer = match read {
                    Ok(answer) => answer,
                    Err(error) => return error,
                };
                heard = Instant::now();
                let result = match answer.kind {
                    Kind::Reply => Ok(answer.payload),
                    Kind::Failure => Err(LinkError::Failure(String::from_utf8_lossy(&answer.payload).into_owned())),
                    other => return FrameError::Kind(other as u8),
                };
                if let Some(waiting) = asked.remove(&answer.number) {
                    // It may have given up just now.
                    let _ = waiting.send(result);
                }
            }
            outgoing = queue.recv(), if out.len() < frame::MAX_BYTES => {
                let Some(outgoing) = outgoing else { return FrameError::Closed };
                let mut next = Some(outgoing);
                while let Some(Outgoing { kind, payload, answer }) = next {
                    number += 1;
                    frame::write(&mut out, kind, number, &payload);
                    if let Some(answer) = answer {
                        asked.insert(number, answer);
                    }
                    next = if out.len() < frame::MAX_BYTES { queue.try_recv().ok() } else { None };
                }
                // Those who gave up waiting need no answer.
                asked.retain(|_, answer| !answer.is_closed());
            }
        }
    }
}

/// The ways to all other members.
pub struct Links<N> {
    net: N,
    me: MemberId,
    links: Mutex<BTreeMap<MemberId, Arc<Link>>>,
    /// When each member last answered this one as its leader.
    answered: Mutex<BTreeMap<MemberId, Instant>>,
}

impl<N: Net> Links<N> {
    /// Those of the member `me`.
    pub fn new(net: N, me: MemberId) -> Self {
        Links { net, me, links: Mutex::default(), answered: Mutex::default() }
    }

    /// The way to a member.
    pub fn to(&self, member: MemberId, address: &Address) -> Arc<Link> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&member).filter(|link| link.address == address.peer) {
            return link.clone();
        }
        let link = Arc::new(Link::new(self.net.clone(), self.me, member, address.peer.clone()));
        links.insert(member, link.clone());
        link
    }

    /// Forgets the ways to whoever is not one of these.
    pub fn keep(&self, is_member: impl Fn(&MemberId) -> bool) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).retain(|member, _| is_member(member));
    }

    /// The network.
    pub fn net(&self) -> &N {
        &self.net
    }
}

impl<N> Links<N> {
    /// A member has answered this one as its leader.
    pub fn note_answer(&self, member: MemberId) {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).insert(member, Instant::now());
    }

    /// How long ago it did.
    pub fn answered(&self, member: MemberId) -> Option<Duration> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).get(&member).map(Instant::elapsed)
    }
}
