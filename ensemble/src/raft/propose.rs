//! From a member's proposals to entries of the log: the *forwarder* on every member sends them to whoever leads, the *proposer* on
//! the leader makes batches of what comes.
//!
//! While the log takes in one batch, what comes is gathered for the next: the busier the ensemble, the larger the batches, and the
//! fewer flushes of the disk for each change.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::Vote;
use crate::core::Core;
use crate::log::proposal::{Batch, begin_batch};
use crate::net::Net;
use crate::peer::frame::Kind;
use crate::peer::link::Link;

/// Groups that may wait at the leader. What finds no room is said again.
pub const QUEUE: usize = 4096;
/// The most bytes of a batch, but for its last group.
const MAX_BATCH: usize = 1 << 20;
/// A proposal that was not carried out for this long is said again, whatever may have become of it.
const STALLED: Duration = Duration::from_millis(1000);
const LOOK: Duration = Duration::from_millis(200);

/// Where proposals go.
struct Way {
    /// The leader, in the term in which it leads.
    vote: Vote,
    /// How to reach it; `None`: it is this member.
    link: Option<(Arc<Link>, watch::Receiver<u64>)>,
}

/// Sends this member's proposals to whoever leads. Ends with the consensus.
pub async fn forward<N: Net>(core: Arc<Core<N>>) {
    let mut metrics = core.raft.server_metrics();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut way: Option<Way> = None;
    let mut oldest = (None, Instant::now());
    loop {
        let reconnected = async {
            match way.as_mut().and_then(|way| way.link.as_mut()) {
                // The link lives as long as it is held here.
                Some((_, connections)) => drop(connections.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = reconnected => core.replica.pending().send_again(),
            changed = metrics.changed() => {
                if changed.is_err() {
                    return;
                }
                let new = find_way(&core);
                if way.as_ref().map(|way| way.vote) != new.as_ref().map(|way| way.vote) {
                    core.replica.pending().send_again();
                    way = new;
                }
            }
            _ = look.tick() => {
                let now = core.replica.pending().oldest();
                if now != oldest.0 || now.is_none() {
                    oldest = (now, Instant::now());
                } else if oldest.1.elapsed() > STALLED {
                    oldest.1 = Instant::now();
                    core.replica.pending().send_again();
                }
            }
            () = core.replica.proposed() => {}
        }
        let Some(way) = &way else { continue };
        loop {
            // The lock is given back before anything is sent.
            let group = core.replica.pending().next_group();
            let Some(group) = group else { break };
            let sent = match &way.link {
                None => core.proposals.try_send(group).is_ok(),
                Some((link, _)) => link.send(Kind::Propose, group).is_ok(),
            };
            if !sent {
                core.replica.pending().send_again();
                break;
            }
        }
    }
}

fn find_way<N: Net>(core: &Core<N>) -> Option<Way> {
    let metrics = core.raft.server_metrics();
    let metrics = metrics.borrow();
    let leader = metrics.current_leader?;
    let link = match leader == core.me.member {
        true => None,
        false => {
            let link = core.links.to(leader, metrics.membership_config.membership().get_node(&leader)?);
            let mut connections = link.connections();
            connections.borrow_and_update();
            Some((link, connections))
        }
    };
    Some(Way { vote: metrics.vote, link })
}

/// Makes batches of groups and puts them into the log, as long as this member leads; groups that come to another one are lost, and
/// said again by whoever sent them. Ends with the consensus.
pub async fn propose<N: Net>(core: Arc<Core<N>>, mut groups: mpsc::Receiver<Bytes>) {
    while let Some(first) = groups.recv().await {
        let mut batch = begin_batch((core.world.wall_ms)());
        let mut next = Some(first);
        while let Some(group) = next {
            batch.extend_from_slice(&group);
            next = if batch.len() < MAX_BATCH { groups.try_recv().ok() } else { None };
        }
        let Ok(written) = core.raft.client_write_ff(Batch(batch.freeze())).await else { return };
        // One at a time: what comes in meanwhile makes the next one larger. It was carried out, or could not be: whose proposals they were sees which.
        let _: Result<_, tokio::sync::oneshot::error::RecvError> = written.await;
    }
}
