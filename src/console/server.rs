//! The console port's server: one task a connection, between a socket and the [`Hub`].
//!
//! ```text
//!   accepted ──Attach──> parked ──host is live──> attached ──ended, lost, superseded──> closed
//!      │ StatusRequest, Control: answered in every state
//! ```
//!
//! A client that attaches to a host which is not live stays connected and is attached the moment the
//! host goes live: a failover costs it no polling and no round trip. Nothing that a connection sends
//! can disturb another: what is wrong is named, answered, and closes that connection only.

use super::hub::{Admission, Hub, Seat, Step};
use super::input::InputError;
use super::status::Status;
use super::wire::{
    Answer, Attach, Attached, ClientMessage, Command, DATA_MAX, NotLive, PAYLOAD_MAX, Reader, Refusal, ServerMessage,
    WireError,
};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// Connections one host serves at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// A server that has nothing to say says so this often.
pub const KEEP_ALIVE: Duration = Duration::from_millis(50);
/// A client must send a whole message this often (it sends keep-alives, too).
pub const CLIENT_SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a shutdown waits for clients to take what is left.
const GRACE: Duration = Duration::from_millis(500);

/// The machine's owner, as the console port sees it. Called on the server's thread: must not block.
pub trait ControlHandler: Send + Sync {
    /// What this host says about its machine.
    fn status(&self) -> Status;
    /// `who` asks for something.
    fn command(&self, command: Command, who: &Who) -> Result<Pending, ControlError>;
    /// `who` asks for a snapshot: the frames of a log that starts from it. They end with a close frame; without one, it failed.
    fn snapshot(&self, _who: &Who) -> Result<mpsc::Receiver<Vec<u8>>, ControlError> {
        Err(ControlError::NotPossible("this host takes no snapshots"))
    }
}

/// What becomes of a command.
pub enum Pending {
    /// It is being done; what.
    Done(String),
    /// The answer comes when it is known.
    Later(oneshot::Receiver<Answer>),
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Where the connection comes from.
    pub address: SocketAddr,
}

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Only the live host can do it.
    #[error("this host does not run the machine; ask {}", .0.as_deref().unwrap_or("the other host"))]
    NotLive(Option<String>),
    /// The guest has ended already.
    #[error("the guest has ended already")]
    Ended,
    /// It cannot be done now or here, and why.
    #[error("{0}")]
    NotPossible(&'static str),
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// It could not be read, or was not understood.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// No whole message came in time.
    #[error("the client was silent for {} s", CLIENT_SILENCE_MAX.as_secs())]
    Silent,
    /// Input that does not fit what came before.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Input or a second attach at the wrong time.
    #[error("{0} at the wrong time")]
    OutOfPlace(&'static str),
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        ConnectionError::Wire(WireError::Io(error))
    }
}

/// What every connection shares.
#[derive(Clone)]
struct Shared {
    hub: Arc<Hub>,
    control: Arc<dyn ControlHandler>,
    closing: watch::Receiver<bool>,
}

/// Serves the console port until `shutdown` completes; then clients are given what has been
/// released, and the connections are closed.
pub async fn serve(
    listener: TcpListener,
    hub: Arc<Hub>,
    control: Arc<dyn ControlHandler>,
    shutdown: impl Future<Output = ()>,
) {
    let (close, closing) = watch::channel(false);
    let shared = Shared { hub, control, closing };
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: the connections that are there go on.
                tracing::warn!(%error, "the console port cannot accept a connection");
                tokio::time::sleep(KEEP_ALIVE).await;
                continue;
            }
        };
        let (shared, slot) = (shared.clone(), slots.clone().try_acquire_owned());
        connections.spawn(async move {
            let result = async {
                let (reader, writer) = secure(stream).await?;
                match slot {
                    Ok(_slot) => converse(reader, writer, Who { address }, shared).await,
                    Err(_) => refuse(writer, Refusal::Busy(CONNECTIONS_MAX as u32)).await,
                }
            };
            if let Err(error) = result.await {
                tracing::debug!(%address, %error, "console connection closed");
            }
        });
    }
    drop(listener);
    close.send_replace(true);
    // Whoever does not take it now is dropped with the set.
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

/// Makes a raw connection one that may be trusted. Encryption and authentication have their place
/// here, and nothing else of the console needs to know of them.
pub(super) async fn secure(stream: TcpStream) -> io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
    stream.set_nodelay(true)?;
    Ok(stream.into_split())
}

/// Serves one connection, whatever it runs over.
pub async fn serve_connection(
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin,
    who: Who,
    hub: Arc<Hub>,
    control: Arc<dyn ControlHandler>,
) -> Result<(), ConnectionError> {
    let (_open, closing) = watch::channel(false);
    converse(reader, writer, who, Shared { hub, control, closing }).await
}

async fn converse(
    reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    who: Who,
    shared: Shared,
) -> Result<(), ConnectionError> {
    let mut reader = Reader::new(reader);
    let result = async {
        let Some(attach) = accepted(&mut reader, &mut writer, &who, &shared).await? else { return Ok(()) };
        let Some((seat, attached)) = parked(&mut reader, &mut writer, &who, &shared, attach).await? else {
            return Ok(());
        };
        let seat = Seated { hub: shared.hub.clone(), seat };
        serve_attached(&mut reader, &mut writer, &who, &shared, &seat.seat, attached).await
    }
    .await;
    // The other side may be gone or not reading; it is told if that costs nothing. Closing a socket with
    // data unread would take back what was sent last, so that is read first.
    let farewell = async {
        match &result {
            Err(error) => refuse(&mut writer, Refusal::BadMessage(error.to_string())).await,
            Ok(()) => Ok(writer.shutdown().await?),
        }
    };
    let _ = timeout(GRACE, async { farewell.await.is_ok() && reader.discard().await.is_ok() }).await;
    result
}

/// Leaves the seat, also when the task is dropped.
struct Seated {
    hub: Arc<Hub>,
    seat: Seat,
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.hub.detach(&self.seat);
    }
}

/// Until the client attaches. `None`: it left.
async fn accepted(
    reader: &mut Reader<impl AsyncRead + Unpin>,
    writer: &mut (impl AsyncWrite + Unpin),
    who: &Who,
    shared: &Shared,
) -> Result<Option<Attach>, ConnectionError> {
    let (mut out, mut closing) = (Vec::new(), shared.closing.clone());
    loop {
        let message = tokio::select! {
            biased;
            () = closed(&mut closing) => return Ok(None),
            message = timeout(CLIENT_SILENCE_MAX, reader.client_message()) => message.map_err(|_| ConnectionError::Silent)??,
        };
        match message {
            Some(ClientMessage::Attach(attach)) => return Ok(Some(attach)),
            Some(ClientMessage::Input { .. }) => return Err(ConnectionError::OutOfPlace("input")),
            Some(ClientMessage::StatusRequest) => answer_status(shared, &mut out),
            Some(ClientMessage::Control(Command::Snapshot)) => {
                return send_snapshot(writer, who, shared).await.map(|()| None);
            }
            Some(ClientMessage::Control(command)) => answer_control(shared, who, command, &mut out).await,
            Some(ClientMessage::KeepAlive) => {}
            None => return Ok(None),
        }
        writer.write_all(&out).await?;
        out.clear();
    }
}

/// Waits until the server closes.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that it has closed altogether.
    let _ = closing.wait_for(|&closing| closing).await;
}

/// Until this host is live. `None`: the client left or was refused.
async fn parked(
    reader: &mut Reader<impl AsyncRead + Unpin>,
    writer: &mut (impl AsyncWrite + Unpin),
    who: &Who,
    shared: &Shared,
    attach: Attach,
) -> Result<Option<(Seat, Attached)>, ConnectionError> {
    let (hub, mut closing) = (&shared.hub, shared.closing.clone());
    let mut told: Option<NotLive> = None;
    let mut out = Vec::new();
    let (mut heard, mut spoke) = (Instant::now(), Instant::now());
    loop {
        let mut changed = pin!(hub.changed());
        changed.as_mut().enable();
        match hub.attach(&attach) {
            Admission::Attached(seat, attached) => return Ok(Some((seat, attached))),
            Admission::Refused(refusal) => {
                refuse(writer, refusal).await?;
                return Ok(None);
            }
            Admission::NotLive(not_live) if told.as_ref() == Some(&not_live) => {}
            Admission::NotLive(not_live) => {
                ServerMessage::NotLive(not_live.clone()).encode(&mut out);
                told = Some(not_live);
            }
        }
        if !out.is_empty() {
            writer.write_all(&out).await?;
            out.clear();
            spoke = Instant::now();
        }
        tokio::select! {
            biased;
            () = closed(&mut closing) => return Ok(None),
            () = changed => {}
            message = timeout_at(heard + CLIENT_SILENCE_MAX, reader.client_message()) => {
                heard = Instant::now();
                match message.map_err(|_| ConnectionError::Silent)?? {
                    Some(ClientMessage::Attach(_)) => return Err(ConnectionError::OutOfPlace("a second attach")),
                    Some(ClientMessage::Input { .. }) => return Err(ConnectionError::OutOfPlace("input")),
                    Some(ClientMessage::StatusRequest) => answer_status(shared, &mut out),
                    Some(ClientMessage::Control(command)) => answer_control(shared, who, command, &mut out).await,
                    Some(ClientMessage::KeepAlive) => {}
                    None => return Ok(None),
                }
            }
            () = sleep_until(spoke + KEEP_ALIVE) => ServerMessage::KeepAlive.encode(&mut out),
        }
    }
}

/// While the client is attached: one half reads, the other writes, and neither waits for the other.
async fn serve_attached(
    reader: &mut Reader<impl AsyncRead + Unpin>,
    writer: &mut (impl AsyncWrite + Unpin),
    who: &Who,
    shared: &Shared,
    seat: &Seat,
    attached: Attached,
) -> Result<(), ConnectionError> {
    let (replies, to_send) = mpsc::channel(4);
    let reading = read_attached(reader, who, shared.clone(), seat, replies);
    let writing = write_attached(writer, shared, seat, attached, to_send);
    tokio::select! {
        result = reading => result,
        result = writing => result,
    }
}

/// Takes input and requests. While the session's queue is full, the socket is not read.
async fn read_attached(
    reader: &mut Reader<impl AsyncRead + Unpin>,
    who: &Who,
    shared: Shared,
    seat: &Seat,
    replies: mpsc::Sender<Vec<u8>>,
) -> Result<(), ConnectionError> {
    loop {
        let message = timeout(CLIENT_SILENCE_MAX, reader.client_message()).await;
        let mut reply = Vec::new();
        match message.map_err(|_| ConnectionError::Silent)?? {
            Some(ClientMessage::Input { mut offset, mut bytes }) => loop {
                let mut room = pin!(shared.hub.room());
                room.as_mut().enable();
                let done = shared.hub.offer(seat, offset, bytes)?;
                (offset, bytes) = (offset + done as u64, &bytes[done..]);
                if bytes.is_empty() {
                    break;
                }
                room.await;
            },
            Some(ClientMessage::Attach(_)) => return Err(ConnectionError::OutOfPlace("a second attach")),
            Some(ClientMessage::StatusRequest) => answer_status(&shared, &mut reply),
            Some(ClientMessage::Control(command)) => answer_control(&shared, who, command, &mut reply).await,
            Some(ClientMessage::KeepAlive) => {}
            None => return Ok(()),
        }
        if !reply.is_empty() && replies.send(reply).await.is_err() {
            return Ok(());
        }
    }
}

/// Sends output and acknowledgements the moment they are released.
async fn write_attached(
    writer: &mut (impl AsyncWrite + Unpin),
    shared: &Shared,
    seat: &Seat,
    attached: Attached,
    mut replies: mpsc::Receiver<Vec<u8>>,
) -> Result<(), ConnectionError> {
    let (hub, mut closing) = (&shared.hub, shared.closing.clone());
    let (mut position, mut acknowledged) = (attached.output_position, None);
    let (mut out, mut data) = (Vec::new(), Vec::new());
    let mut spoke = Instant::now();
    ServerMessage::Attached(attached).encode(&mut out);
    loop {
        let mut changed = pin!(hub.changed());
        changed.as_mut().enable();
        // Here, too: a guest that never stops writing must not keep anybody from an answer.
        while let Ok(reply) = replies.try_recv() {
            out.extend(reply);
        }
        let safe = hub.safe_offset(seat);
        if acknowledged != Some(safe) {
            ServerMessage::InputAck(safe).encode(&mut out);
            acknowledged = Some(safe);
        }
        data.clear();
        let last = match hub.step(seat, position, DATA_MAX, &mut data) {
            Step::Output => {
                ServerMessage::Output { position, bytes: &data }.encode(&mut out);
                position += data.len() as u64;
                false
            }
            Step::Gap(to) => {
                ServerMessage::Gap(to).encode(&mut out);
                position = to;
                false
            }
            Step::Wait => *closing.borrow(),
            Step::Ended(ended) => {
                ServerMessage::Ended(ended).encode(&mut out);
                true
            }
            Step::NotLive(not_live) => {
                ServerMessage::NotLive(not_live).encode(&mut out);
                true
            }
            Step::Refused(refusal) => {
                ServerMessage::Refused(refusal).encode(&mut out);
                true
            }
        };
        if !out.is_empty() {
            writer.write_all(&out).await?;
            out.clear();
            spoke = Instant::now();
            if !last {
                continue;
            }
        }
        if last {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = changed => {}
            Some(reply) = replies.recv() => out = reply,
            _ = closing.changed() => {}
            () = sleep_until(spoke + KEEP_ALIVE) => ServerMessage::KeepAlive.encode(&mut out),
        }
    }
}

fn answer_status(shared: &Shared, out: &mut Vec<u8>) {
    let status = Status { console: shared.hub.console_status(), ..shared.control.status() };
    let json = serde_json::to_vec(&status).ok().filter(|json| json.len() <= PAYLOAD_MAX);
    ServerMessage::Status(json.as_deref().unwrap_or(b"{}")).encode(out);
}

async fn answer_control(shared: &Shared, who: &Who, command: Command, out: &mut Vec<u8>) {
    let answer = match shared.control.command(command, who) {
        Ok(Pending::Done(text)) => Answer { accepted: true, text },
        Ok(Pending::Later(answer)) => answer.await.unwrap_or_else(|_| Answer {
            accepted: false,
            text: "the host gave no answer: it may have ended meanwhile".into(),
        }),
        Err(error) => Answer { accepted: false, text: error.to_string() },
    };
    tracing::info!(address = %who.address, ?command, accepted = answer.accepted, "control");
    ServerMessage::Answer(answer).encode(out);
}

/// Sends a snapshot, if there is one to be had, after which the connection ends.
async fn send_snapshot(
    writer: &mut (impl AsyncWrite + Unpin),
    who: &Who,
    shared: &Shared,
) -> Result<(), ConnectionError> {
    let (mut out, mut closing) = (Vec::new(), shared.closing.clone());
    let (mut frames, answer) = match shared.control.snapshot(who) {
        Ok(frames) => (Some(frames), Answer { accepted: true, text: "a snapshot is being taken".into() }),
        Err(error) => (None, Answer { accepted: false, text: error.to_string() }),
    };
    ServerMessage::Answer(answer).encode(&mut out);
    writer.write_all(&out).await?;
    while let Some(receiver) = &mut frames {
        // A client that does not read is given up: until then, the guest's pages wait in memory.
        let next = tokio::select! {
            biased;
            _ = closing.wait_for(|&closing| closing) => None,
            next = receiver.recv() => next,
        };
        match next {
            Some(frame) => {
                timeout(CLIENT_SILENCE_MAX, writer.write_all(&frame)).await.map_err(|_| ConnectionError::Silent)??;
            }
            None => frames = None,
        }
    }
    Ok(())
}

async fn refuse(mut writer: impl AsyncWrite + Unpin, refusal: Refusal) -> Result<(), ConnectionError> {
    let mut out = Vec::new();
    ServerMessage::Refused(refusal).encode(&mut out);
    writer.write_all(&out).await?;
    writer.shutdown().await?;
    Ok(())
}
