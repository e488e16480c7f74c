//! The consensus' network: questions over the [`Links`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openraft::error::{NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{OptionalSend, Snapshot};
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;

use super::{Types, Vote};
use crate::log::entry::{self, CodecError};
use crate::member::{Address, MemberId};
use crate::net::Net;
use crate::peer::frame::{self, FrameError, Kind};
use crate::peer::link::{GreetError, Link, LinkError, Links, greet};
use crate::peer::message::{Hello, VERSION, write_append};

type RpcError = RPCError<MemberId, Address, RaftError<MemberId>>;

/// Makes the ways to other members.
pub struct Factory<N> {
    me: MemberId,
    links: Arc<Links<N>>,
}

impl<N> Factory<N> {
    /// Over these.
    pub fn new(me: MemberId, links: Arc<Links<N>>) -> Self {
        Factory { me, links }
    }
}

/// The way to one member.
pub struct Peer<N> {
    me: MemberId,
    target: MemberId,
    address: Address,
    links: Arc<Links<N>>,
    link: Arc<Link>,
}

impl<N: Net> RaftNetworkFactory<Types> for Factory<N> {
    type Network = Peer<N>;

    async fn new_client(&mut self, target: MemberId, node: &Address) -> Peer<N> {
        let link = self.links.to(target, node);
        Peer { me: self.me, target, address: node.clone(), links: self.links.clone(), link }
    }
}

/// Pause before a member that was not reached is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// Bytes of a piece of a snapshot.
const CHUNK_BYTES: usize = 1 << 20;
/// Time that each piece, and the installation at the end, may take.
const CHUNK_TIME: Duration = Duration::from_secs(20);

impl<N: Net> Peer<N> {
    async fn ask<T: DeserializeOwned>(&self, kind: Kind, payload: Bytes) -> Result<T, RpcError> {
        match self.link.call(kind, payload).await {
            Ok(answer) => entry::read_cold(&answer).map_err(|error| NetworkError::new(&error).into()),
            Err(error @ (LinkError::Down | LinkError::Full)) => Err(Unreachable::new(&error).into()),
            Err(error @ LinkError::Failure(_)) => Err(NetworkError::new(&error).into()),
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot<Types>,
    ) -> Result<SnapshotResponse<MemberId>, SendError> {
        let hello = Hello { version: VERSION, from: Some(self.me), to: Some(self.target) };
        let greeting = async { Ok(greet(self.links.net(), &hello, &self.address.peer).await?) };
        let (mut stream, mut buffer) = in_time(greeting).await?;
        let state = &snapshot.snapshot.0;
        let mut out = BytesMut::new();
        frame::write(&mut out, Kind::Snapshot, 1, &entry::cold(&(vote, &snapshot.meta, state.len() as u64)));
        for chunk in state.chunks(CHUNK_BYTES) {
            frame::write(&mut out, Kind::Chunk, 1, chunk);
            in_time(async { Ok(stream.write_all(&out).await.map_err(FrameError::Io)?) }).await?;
            out.clear();
        }
        frame::write(&mut out, Kind::SnapshotEnd, 1, &[]);
        in_time(async { Ok(stream.write_all(&out).await.map_err(FrameError::Io)?) }).await?;
        let answer = in_time(async { Ok(frame::read(&mut stream, &mut buffer).await?) }).await?;
        match answer.kind {
            Kind::Reply => Ok(entry::read_cold(&answer.payload)?),
            _ => Err(SendError::Refused(String::from_utf8_lossy(&answer.payload).into_owned())),
        }
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, SendError>>) -> Result<T, SendError> {
    tokio::time::timeout(CHUNK_TIME, work).await.map_err(|_| SendError::Slow)?
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the member was not reached")]
    Greet(#[from] GreetError),
    #[error("the connection was lost")]
    Frame(#[from] FrameError),
    #[error("the answer cannot be read")]
    Codec(#[from] CodecError),
    #[error("it took too long")]
    Slow,
    #[error("it was not taken: {0}")]
    Refused(String),
}

impl<N: Net> RaftNetwork<Types> for Peer<N> {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, RpcError> {
        let mut payload = BytesMut::new();
        write_append(&request, &mut payload);
        let answer = self.ask(Kind::Append, payload.freeze()).await?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.links.note_answer(self.target);
        }
        Ok(answer)
    }

    async fn vote(&mut self, request: VoteRequest<MemberId>, _: RPCOption) -> Result<VoteResponse<MemberId>, RpcError> {
        self.ask(Kind::Vote, entry::cold(&request).into()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<MemberId>, StreamingError<Types, openraft::error::Fatal<MemberId>>> {
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => {
                sent.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}
