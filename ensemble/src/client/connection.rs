//! A client's connection, from its first bytes to its end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::slots::{Next, Slots};
use super::words;
use crate::core::Core;
use crate::log::proposal::Proposal;
use crate::net::Net;
use crate::replica::mailbox::{Item, Mailbox};
use crate::replica::pending::Waiter;
use crate::tree::acl::Id;
use crate::tree::batch::Applied;
use crate::tree::session::PASSWORD_BYTES;
use crate::wire::jute::JuteError;
use crate::wire::reply;
use crate::wire::request::Connect;

/// Why a connection ended, beside that the client closed it or its session was over.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// A frame that is too long, or of a negative length.
    #[error("a frame of {0} bytes")]
    Frame(i32),
    /// The first frame makes no sense.
    #[error("the first frame cannot be read")]
    Connect(#[from] JuteError),
    /// Nothing came in time.
    #[error("no session was made in time")]
    Slow,
    /// The client has seen changes that this ensemble has not made.
    #[error("the client has seen zxid {client}, and this member has {here}")]
    Ahead {
        /// What the client has seen.
        client: i64,
        /// What is here.
        here: i64,
    },
}

/// Time that a client has to say what it wants, and the ensemble to give it a session.
const GREETING: Duration = Duration::from_secs(10);
/// Frames that are taken at one time: the state stands still meanwhile.
const MAX_FRAMES: usize = 256;
/// The buffer's least free room when more is read.
const READ_BYTES: usize = 16 << 10;

/// Takes the connection out of the member's books, however it ends.
struct Entered<'a, N>(&'a Core<N>, Arc<Mailbox>);

impl<N> Drop for Entered<'_, N> {
    fn drop(&mut self) {
        self.0.replica.disconnect(&self.1);
    }
}

/// Serves one connection.
pub async fn serve<N: Net>(core: &Core<N>, stream: N::Stream, from: IpAddr) -> Result<(), ConnectionError> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let greeting = async {
        while buffer.len() < 4 {
            if reading.read_buf(&mut buffer).await? == 0 {
                return Ok::<_, ConnectionError>(None);
            }
        }
        if let Some(answer) = words::answer(core, &buffer) {
            writing.write_all(answer.as_bytes()).await?;
            writing.shutdown().await?;
            return Ok(None);
        }
        if !*core.serving.borrow() {
            return Ok(None);
        }
        loop {
            if let Some(frame) = next_frame(&mut buffer, core.settings.max_frame, 1)? {
                return Ok(Some(frame));
            }
            if reading.read_buf(&mut buffer).await? == 0 {
                return Ok(None);
            }
        }
    };
    let Some(frame) = tokio::time::timeout(GREETING, greeting).await.map_err(|_| ConnectionError::Slow)?? else {
        return Ok(());
    };
    let connect = Connect::read(&frame)?;
    let id = Id { scheme: "ip".into(), id: from.to_string() };
    let mailbox = Mailbox::new(core.replica.number_connection(), vec![id]);
    core.replica.connect(&mailbox);
    let entered = Entered(core, mailbox);
    let attached = attach(core, &entered.1, &connect);
    let Some((mut slots, answer)) =
        tokio::time::timeout(GREETING, attached).await.map_err(|_| ConnectionError::Slow)??
    else {
        return Ok(());
    };
    writing.write_all(&answer).await?;
    if let Some(slots) = &mut slots {
        go_on(core, &entered.1, slots, &mut buffer, reading, &mut writing).await?;
    }
    // Whoever has been told something hears it before the end.
    let _ = tokio::time::timeout(GREETING, writing.shutdown()).await;
    Ok(())
}

/// Takes the next frame out of `buffer`, if it is whole. It has at least `least` bytes.
fn next_frame(buffer: &mut BytesMut, most: usize, least: usize) -> Result<Option<Bytes>, ConnectionError> {
    let Some(length) = buffer.first_chunk().map(|bytes| i32::from_be_bytes(*bytes)) else { return Ok(None) };
    let bytes = usize::try_from(length).ok().filter(|bytes| (least..=most).contains(bytes));
    let bytes = bytes.ok_or(ConnectionError::Frame(length))?;
    if buffer.len() < 4 + bytes {
        return Ok(None);
    }
    Ok(Some(buffer.split_to(4 + bytes).freeze().slice(4..)))
}

/// What a client that wants a session gets: the session, or nothing but the word that there is none; and the answer's bytes. `None`: this
/// member can do nothing for it.
async fn attach<N: Net>(
    core: &Core<N>,
    mailbox: &Arc<Mailbox>,
    connect: &Connect<'_>,
) -> Result<Option<(Option<Slots>, BytesMut)>, ConnectionError> {
    let wanted = Duration::from_millis(connect.timeout_ms.max(0) as u64);
    let timeout_ms = wanted.clamp(core.settings.min_session, core.settings.max_session).as_millis() as u32;
    let mut password = [0; PASSWORD_BYTES];
    let session = (connect.session != 0).then_some(connect.session);
    let proposal = match session {
        None => {
            (core.world.random)(&mut password);
            Proposal::Open { timeout_ms, password }
        }
        Some(session) => Proposal::Attach { session, timeout_ms, password: connect.password },
    };
    core.replica.propose(&proposal, Waiter::Session(mailbox.clone(), session));
    let (zxid, applied) = loop {
        let mut items = mailbox.take().into_iter();
        match items.next() {
            Some(Item::Applied { zxid, applied }) => {
                // The session may be over already: whatever else there is, is for the slots.
                items.for_each(|item| mailbox.send(item));
                break (zxid, applied);
            }
            Some(Item::Event(..) | Item::Close(_)) => return Ok(None),
            None => mailbox.woken().await,
        }
    };
    let here = core.replica.zxid();
    if connect.last_zxid > here {
        return Err(ConnectionError::Ahead { client: connect.last_zxid, here });
    }
    let number = match applied {
        Applied::Opened => Some(zxid),
        Applied::Attached(Ok(())) => {
            password = connect.password.try_into().unwrap_or_default();
            session
        }
        Applied::Attached(Err(_)) | Applied::Reply(_) | Applied::Done => None,
    };
    let mut out = BytesMut::new();
    let told = number.map(|number| (number, &password));
    reply::connected(&mut out, told, if told.is_some() { timeout_ms } else { 0 }, connect.with_read_only);
    Ok(Some((number.map(|number| Slots::new(mailbox.clone(), number, zxid)), out)))
}

/// Takes requests and gives answers, until the connection ends.
async fn go_on<N: Net>(
    core: &Core<N>,
    mailbox: &Mailbox,
    slots: &mut Slots,
    buffer: &mut BytesMut,
    mut reading: ReadHalf<N::Stream>,
    writing: &mut WriteHalf<N::Stream>,
) -> Result<(), ConnectionError> {
    let mut frames = Vec::new();
    loop {
        while slots.has_room()
            && frames.len() < MAX_FRAMES
            && let Some(frame) = next_frame(buffer, core.settings.max_frame, 8)?
        {
            frames.push(frame);
        }
        let more = frames.len() == MAX_FRAMES;
        if slots.may_say() {
            if slots.go_on(core, &mut frames) == Next::Ends {
                // A client that takes nothing does not hear the rest.
                let said = tokio::time::timeout(GREETING, writing.write_all(&slots.out)).await;
                return said.unwrap_or(Ok(())).map_err(Into::into);
            }
            if more {
                continue;
            }
        }
        tokio::select! {
            biased;
            written = writing.write_buf(&mut slots.out), if !slots.out.is_empty() => {
                if written? == 0 {
                    return Ok(());
                }
            }
            () = mailbox.woken(), if slots.may_say() => {}
            read = reading.read_buf(buffer), if slots.has_room() => {
                if read? == 0 {
                    return Ok(());
                }
                mailbox.note_heard();
            }
        }
        buffer.reserve(READ_BYTES);
    }
}
