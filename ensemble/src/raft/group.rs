//! How a group of members comes about, and how its members change.
//!
//! A member that has never been told of a group asks the addresses that it was given. If one of them belongs to a group, it asks that
//! group's leader to be taken in: for the member of its own number whose disk is lost, or as a new one. If *all* of them are there and
//! none belongs to a group, they are one from now on; the one with the smallest number says so, once. A majority is not enough for
//! that: two of three members that lost their disks must not begin anew beside the third, which has not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use openraft::ChangeMembers;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use super::Raft;
use crate::core::Core;
use crate::log::entry;
use crate::member::{Address, MemberId};
use crate::net::Net;
use crate::peer::frame::{self, FrameError, Kind};
use crate::peer::link::{GreetError, greet};
use crate::peer::message::{ChangeError, Group, Hello, Join, VERSION, Who};

/// Time that a question to another member may take. A change of members waits for the new one to catch up.
const ASK_TIME: Duration = Duration::from_millis(1000);
const CHANGE_TIME: Duration = Duration::from_secs(60);
/// Time that a new member has to get the log.
const CATCH_UP_TIME: Duration = Duration::from_secs(40);
/// Pause between two attempts to form or join a group.
const PAUSE: Duration = Duration::from_millis(200);
/// A member that was heard this long ago is alive: nobody takes its place.
const ALIVE: Duration = Duration::from_secs(2);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers there.
    #[error("no answer")]
    Greet(#[from] GreetError),
    /// The connection was lost.
    #[error("the connection was lost")]
    Frame(#[from] FrameError),
    /// The answer makes no sense.
    #[error("the answer cannot be read")]
    Codec(#[from] entry::CodecError),
    /// Nothing came in time.
    #[error("no answer in time")]
    Slow,
    /// It says why not.
    #[error("refused: {0}")]
    Refused(String),
}

/// Asks whoever is at `address`.
pub async fn ask<T: serde::de::DeserializeOwned>(
    net: &impl Net,
    from: Option<MemberId>,
    address: &str,
    kind: Kind,
    question: Vec<u8>,
) -> Result<T, AskError> {
    let asking = async {
        let hello = Hello { version: VERSION, from, to: None };
        let (mut stream, mut buffer) = greet(net, &hello, address).await?;
        let mut out = BytesMut::new();
        frame::write(&mut out, kind, 1, &question);
        stream.write_all(&out).await.map_err(FrameError::Io)?;
        let answer = frame::read(&mut stream, &mut buffer).await?;
        match answer.kind {
            Kind::Reply => Ok(entry::read_cold(&answer.payload)?),
            _ => Err(AskError::Refused(String::from_utf8_lossy(&answer.payload).into_owned())),
        }
    };
    let time = if matches!(kind, Kind::Join | Kind::Remove) { CHANGE_TIME } else { ASK_TIME };
    tokio::time::timeout(time, asking).await.map_err(|_| AskError::Slow)?
}

/// The group that this member belongs to, as it sees it.
pub fn group<N>(core: &Core<N>) -> Option<Group> {
    let metrics = core.raft.server_metrics();
    let metrics = metrics.borrow();
    let membership = metrics.membership_config.membership();
    let members: Vec<(MemberId, Address)> = membership.nodes().map(|(id, at)| (*id, at.clone())).collect();
    if members.is_empty() {
        return None;
    }
    Some(Group {
        members,
        voters: membership.voter_ids().collect(),
        leader: metrics.current_leader,
        term: metrics.vote.leader_id.term,
        applied: core.applied().map_or(0, |log_id| log_id.index),
    })
}

/// How a member comes to a group.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// The members' numbers and peer addresses, its own among them.
    pub peers: BTreeMap<u32, String>,
    /// Whether it is a new member of a group that is there.
    pub join: bool,
}

/// Forms or joins a group, unless this member belongs to one. Ends when it votes there.
pub async fn begin<N: Net>(core: Arc<Core<N>>, beginning: Beginning) {
    let mut told = None;
    loop {
        // A member that is being taken in gets the log before it votes; if the leader dies meanwhile, the next one has to be asked.
        if group(&core).is_some_and(|group| group.voters.contains(&core.me.member)) {
            return;
        }
        let found = look_around(&core, &beginning).await;
        let grouped = found.values().find_map(|who| who.group.as_ref());
        let missing: Vec<u32> = beginning.peers.keys().filter(|id| !found.contains_key(id)).copied().collect();
        if let Some(group) = grouped {
            let outcome = join(&core, group, beginning.join).await;
            if let Err(error) = outcome
                && told.as_ref() != Some(&error.to_string())
            {
                tracing::warn!(member = core.me.member.id, %error, "not taken in yet");
                told = Some(error.to_string());
            }
        } else if missing.is_empty() && !beginning.join {
            let smallest = beginning.peers.keys().next() == Some(&core.me.member.id);
            let members = found.into_values().map(|who| (who.me, who.address)).collect();
            if smallest {
                initialize(&core.raft, members).await;
            }
        } else if told.as_ref() != Some(&format!("{missing:?}")) {
            tracing::info!(member = core.me.member.id, ?missing, "waiting for the other members");
            told = Some(format!("{missing:?}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Who is at the addresses that this member was given. Itself is.
async fn look_around<N: Net>(core: &Arc<Core<N>>, beginning: &Beginning) -> BTreeMap<u32, Who> {
    let mut asked = JoinSet::new();
    for (id, address) in beginning.peers.iter().filter(|(id, _)| **id != core.me.member.id) {
        let (core, id, address) = (core.clone(), *id, address.clone());
        asked.spawn(async move {
            let who: Who = ask(core.links.net(), Some(core.me.member), &address, Kind::Who, vec![]).await.ok()?;
            // Somebody of another number is not whom this address was given for.
            (who.me.id == id).then_some(who)
        });
    }
    let me = Who { me: core.me.member, address: core.address.clone(), group: None };
    let mut found = BTreeMap::from([(me.me.id, me)]);
    while let Some(answer) = asked.join_next().await {
        found.extend(answer.ok().flatten().map(|who| (who.me.id, who)));
    }
    found
}

async fn initialize(raft: &Raft, members: BTreeMap<MemberId, Address>) {
    match raft.initialize(members).await {
        Ok(()) => tracing::info!("a new group"),
        Err(error) => tracing::warn!(%error, "the group could not be formed"),
    }
}

/// Asks the leader of `group` to be taken in.
async fn join<N: Net>(core: &Core<N>, group: &Group, as_new: bool) -> Result<(), ChangeError> {
    let join = entry::cold(&Join { me: core.me.member, address: core.address.clone(), as_new });
    let leader = group.leader.and_then(|leader| group.members.iter().find(|(id, _)| *id == leader));
    let Some((_, address)) = leader else { return Err(ChangeError::NotLeader(None)) };
    let answer = ask::<Result<(), ChangeError>>(core.links.net(), None, &address.peer, Kind::Join, join).await;
    answer.map_err(|error| ChangeError::Failed(error.to_string()))?
}

/// The leader, if it is another member.
fn other_leader<N>(core: &Core<N>) -> Option<ChangeError> {
    if core.leads().is_some() {
        return None;
    }
    let group = group(core);
    let leader = group.and_then(|group| {
        let leader = group.leader?;
        group.members.into_iter().find(|(id, _)| *id == leader)
    });
    Some(ChangeError::NotLeader(leader))
}

fn failed(error: impl std::fmt::Display) -> ChangeError {
    ChangeError::Failed(error.to_string())
}

/// Takes a member in, if this one leads.
pub async fn take_in<N: Net>(core: &Core<N>, join: Join) -> Result<(), ChangeError> {
    if let Some(other) = other_leader(core) {
        return Err(other);
    }
    let _changing = core.changing.try_lock().map_err(|_| ChangeError::Busy)?;
    let membership = core.raft.server_metrics().borrow().membership_config.membership().clone();
    let voters: BTreeSet<MemberId> = membership.voter_ids().collect();
    if voters.contains(&join.me) {
        return Ok(());
    }
    let before = voters.iter().find(|member| member.id == join.me.id).copied();
    match before {
        None if !join.as_new => return Err(ChangeError::NoSuchMember(join.me.id)),
        Some(before) if core.links.answered(before).is_some_and(|ago| ago < ALIVE) => {
            return Err(ChangeError::Alive(before));
        }
        _ => {}
    }
    let instead_of = before.map(|member| member.to_string());
    tracing::info!(member = %join.me, address = %join.address, instead_of, "taking a member in");
    let mut wanted = voters;
    wanted.retain(|member| member.id != join.me.id);
    wanted.insert(join.me);
    let taking = async {
        core.raft.add_learner(join.me, join.address, true).await.map_err(failed)?;
        core.raft.change_membership(ChangeMembers::ReplaceAllVoters(wanted), false).await.map_err(failed)?;
        Ok(())
    };
    // One that dies before it has the log must not be waited for: it, or another, asks again.
    tokio::time::timeout(CATCH_UP_TIME, taking)
        .await
        .unwrap_or_else(|_| Err(failed("the new member does not catch up")))
}

/// Does without a member from now on, if this one leads.
pub async fn remove<N: Net>(core: &Core<N>, id: u32) -> Result<(), ChangeError> {
    if let Some(other) = other_leader(core) {
        return Err(other);
    }
    let _changing = core.changing.try_lock().map_err(|_| ChangeError::Busy)?;
    let membership = core.raft.server_metrics().borrow().membership_config.membership().clone();
    let (gone, rest): (BTreeSet<MemberId>, BTreeSet<MemberId>) =
        membership.voter_ids().partition(|member| member.id == id);
    if gone.is_empty() {
        return Err(ChangeError::NoSuchMember(id));
    }
    if rest.is_empty() {
        return Err(ChangeError::LastMember(id));
    }
    core.raft.change_membership(ChangeMembers::ReplaceAllVoters(rest), false).await.map_err(failed)?;
    Ok(())
}

/// Looks whether this member was one of a group and is not any more.
pub async fn watch_removal<N>(core: &Core<N>) {
    let mut metrics = core.raft.server_metrics();
    let mut was_member = false;
    loop {
        {
            let metrics = metrics.borrow_and_update();
            let is_member = metrics.membership_config.membership().get_node(&core.me.member).is_some();
            // One that is being taken in reads of older members before it reads of itself.
            was_member |= is_member;
            if was_member && !is_member {
                core.removed.send_replace(true);
            }
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Brings a change of the members to its end that a leader has begun and not lived to end.
pub async fn finish_change<N: Net>(core: &Core<N>) {
    let Ok(_changing) = core.changing.try_lock() else { return };
    let wanted = {
        let metrics = core.raft.server_metrics();
        let metrics = metrics.borrow();
        let configs = metrics.membership_config.membership().get_joint_config();
        if configs.len() < 2 { None } else { configs.last().cloned() }
    };
    if let Some(wanted) = wanted {
        tracing::info!(?wanted, "bringing a change of the members to its end");
        let change = core.raft.change_membership(ChangeMembers::ReplaceAllVoters(wanted), false);
        // If it fails, it is tried again.
        let _ = tokio::time::timeout(CATCH_UP_TIME, change).await;
    }
}
