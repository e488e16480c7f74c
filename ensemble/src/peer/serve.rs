//! What this member does for others.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openraft::Snapshot;
use openraft::error::RaftError;
use openraft::raft::{AppendEntriesResponse, VoteRequest};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::frame::{self, Frame, FrameError, Kind};
use super::message::{Canvass, Hello, Refusal, VERSION, Who, read_append};
use crate::core::Core;
use crate::log::entry::{self, CodecError};
use crate::member::MemberId;
use crate::net::Net;
use crate::raft::machine::{Meta, SnapshotFile};
use crate::raft::{Vote, election, group};

/// Answers that may wait to be sent.
const ANSWERS: usize = 256;
/// Silence after which the other side is gone: it asks four times a second whether this one is there.
const SILENCE: Duration = Duration::from_secs(20);
/// The most bytes of a state that is taken from another member.
const MAX_STATE: u64 = 16 << 30;

/// Why a connection of another member ends.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a message cannot be read")]
    Codec(#[from] CodecError),
    #[error("refused")]
    Refused(#[from] Refusal),
    #[error("a piece of a snapshot that was not announced, or too many of them")]
    Snapshot,
    #[error("a frame of kind {0:?} out of turn")]
    Turn(Kind),
    #[error("the consensus has ended")]
    Over,
}

/// Takes connections of other members, until it is cancelled.
pub async fn listen<N: Net>(core: Arc<Core<N>>, listener: N::Listener) {
    loop {
        match N::accept(&listener).await {
            Ok((stream, from)) => {
                let core = core.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(core, stream).await {
                        tracing::debug!(%from, error = &error as &dyn std::error::Error, "connection of a member ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection of a member");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve<N: Net>(core: Arc<Core<N>>, stream: N::Stream) -> Result<(), ServeError> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let mut buffer = BytesMut::new();
    let first = frame::read(&mut reading, &mut buffer).await?;
    let greeting = match first.kind {
        Kind::Hello => greeted(&core, entry::read_cold(&first.payload)),
        _ => Err(Refusal::Greeting),
    };
    let mut out = BytesMut::new();
    match &greeting {
        Ok(_) => frame::write(&mut out, Kind::Welcome, 0, &[]),
        Err(refusal) => frame::write(&mut out, Kind::Refuse, 0, &entry::cold(refusal)),
    }
    writing.write_all(&out).await.map_err(FrameError::Io)?;
    let from = greeting?;

    let (answers, mut answered) = mpsc::channel::<(Kind, u64, Bytes)>(ANSWERS);
    let sending = async move {
        let mut out = BytesMut::new();
        while let Some((kind, number, payload)) = answered.recv().await {
            frame::write(&mut out, kind, number, &payload);
            while let Ok((kind, number, payload)) = answered.try_recv() {
                frame::write(&mut out, kind, number, &payload);
            }
            writing.write_all(&out).await?;
            out.clear();
        }
        Ok::<(), std::io::Error>(())
    };
    let taking = async {
        let mut snapshot = None;
        loop {
            let next = tokio::time::timeout(SILENCE, frame::read(&mut reading, &mut buffer)).await;
            let frame = next.map_err(|_| FrameError::Io(std::io::ErrorKind::TimedOut.into()))??;
            take(&core, from, frame, &answers, &mut snapshot).await?;
        }
    };
    let end: Result<(), ServeError> = tokio::select! {
        biased;
        sent = sending => sent.map_err(|error| FrameError::Io(error).into()),
        taken = taking => taken,
    };
    if let Some(from) = from {
        core.contact.closed(from);
    }
    end
}

fn greeted<N>(core: &Core<N>, hello: Result<Hello, CodecError>) -> Result<Option<MemberId>, Refusal> {
    let hello = hello.map_err(|_| Refusal::Greeting)?;
    if hello.version != VERSION {
        return Err(Refusal::Version(hello.version));
    }
    match hello.to {
        Some(to) if to != core.me.member => Err(Refusal::OtherMember(core.me.member)),
        _ => Ok(hello.from),
    }
}

/// A snapshot that is being received.
struct Receiving {
    vote: Vote,
    meta: Meta,
    length: u64,
    state: Vec<u8>,
}

type Answers = mpsc::Sender<(Kind, u64, Bytes)>;

/// Deals with one frame. What takes its time goes on beside the next one; what has an order is done at once.
async fn take<N: Net>(
    core: &Arc<Core<N>>,
    from: Option<MemberId>,
    frame: Frame,
    answers: &Answers,
    snapshot: &mut Option<Receiving>,
) -> Result<(), ServeError> {
    let Frame { kind, number, payload } = frame;
    match kind {
        Kind::Append => {
            let request = read_append(&payload)?;
            let leader = request.vote.leader_id.node_id;
            core.contact.note_if_leader(leader);
            let core = core.clone();
            answer(answers, number, async move {
                let answer = core.raft.append_entries(request).await?;
                if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                    core.contact.note(leader);
                }
                Ok::<_, RaftError<MemberId>>(answer)
            });
        }
        Kind::Vote => {
            let request: VoteRequest<MemberId> = entry::read_cold(&payload)?;
            let core = core.clone();
            answer(answers, number, async move {
                let answer = core.raft.vote(request).await?;
                if answer.vote_granted {
                    core.contact.voted();
                }
                Ok::<_, RaftError<MemberId>>(answer)
            });
        }
        Kind::Canvass => {
            let canvass: Canvass = entry::read_cold(&payload)?;
            let core = core.clone();
            answer(answers, number, async move { Ok::<_, Never>(election::would_vote(&core, from, canvass)) });
        }
        // No room: they will be said again.
        Kind::Propose => drop(core.proposals.try_send(payload)),
        Kind::Heard => core.sessions.note(entry::read_cold::<Vec<i64>>(&payload)?),
        Kind::Snapshot => {
            let (vote, meta, length): (Vote, Meta, u64) = entry::read_cold(&payload)?;
            if length > MAX_STATE {
                return Err(ServeError::Snapshot);
            }
            *snapshot = Some(Receiving { vote, meta, length, state: Vec::new() });
        }
        Kind::Chunk => {
            let receiving = snapshot.as_mut().ok_or(ServeError::Snapshot)?;
            if (receiving.state.len() + payload.len()) as u64 > receiving.length {
                return Err(ServeError::Snapshot);
            }
            receiving.state.extend_from_slice(&payload);
        }
        Kind::SnapshotEnd => {
            let Receiving { vote, meta, length, state } = snapshot.take().ok_or(ServeError::Snapshot)?;
            if state.len() as u64 != length {
                return Err(ServeError::Snapshot);
            }
            let core = core.clone();
            answer(answers, number, async move {
                let snapshot = Snapshot { meta, snapshot: Box::new(SnapshotFile(state.into())) };
                core.raft.install_full_snapshot(vote, snapshot).await
            });
        }
        Kind::Ping => drop(answers.send((Kind::Reply, number, Bytes::new())).await),
        Kind::Who => {
            let who = Who { me: core.me.member, address: core.address.clone(), group: group::group(core) };
            let _ = answers.send((Kind::Reply, number, entry::cold(&who).into())).await;
        }
        Kind::Join => {
            let join = entry::read_cold(&payload)?;
            let core = core.clone();
            answer(answers, number, async move { Ok::<_, Never>(group::take_in(&core, join).await) });
        }
        Kind::Remove => {
            let id = entry::read_cold(&payload)?;
            let core = core.clone();
            answer(answers, number, async move { Ok::<_, Never>(group::remove(&core, id).await) });
        }
        Kind::Hello | Kind::Welcome | Kind::Refuse | Kind::Reply | Kind::Failure => return Err(ServeError::Turn(kind)),
    }
    if answers.is_closed() { Err(ServeError::Over) } else { Ok(()) }
}

type Never = std::convert::Infallible;

/// Answers when `work` is done.
fn answer<T, E>(answers: &Answers, number: u64, work: impl Future<Output = Result<T, E>> + Send + 'static)
where
    T: Serialize + Send,
    E: std::fmt::Display + Send,
{
    let answers = answers.clone();
    tokio::spawn(async move {
        let (kind, payload) = match work.await {
            Ok(answer) => (Kind::Reply, entry::cold(&answer)),
            Err(error) => (Kind::Failure, error.to_string().into_bytes()),
        };
        // The connection may have ended meanwhile.
        let _ = answers.send((kind, number, payload.into())).await;
    });
}
