//! When a member stands for election.
//!
//! ```text
//!                  silence, or the leader's connection closed             a majority would
//!   following ─────────────────────────────────────────────────► canvass ─────────────────► election ─► leading, or following
//!       ▲                                                            │                          │
//!       └────────────────────────────────────────────────────────────┴──────────────────────────┘ a new random pause
//! ```
//!
//! The crate draws one election time-out for the life of a process: two survivors that drew almost the same would split their votes
//! again and again. So its own timer is off, and this one draws anew each time. Before it stands, a member asks whether a majority
//! would vote for it (Ongaro's thesis, 9.6, "pre-vote"): one that was cut off for a while does not put a healthy leader out of
//! office with the high term that it has come to.

use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::core::Core;
use crate::log::entry;
use crate::member::MemberId;
use crate::net::Net;
use crate::peer::frame::Kind;
use crate::peer::message::{Canvass, Inclination};
use crate::raft::LogId;

/// Members whose leader's process has died notice it together: each waits for a random part of this, so that one is first.
const SPREAD: Duration = Duration::from_millis(30);
/// Time that the others have to say whether they would.
const CANVASS_TIME: Duration = Duration::from_millis(80);

/// Stands for election whenever there is a reason to. Ends with the consensus.
pub async fn stand<N: Net>(core: Arc<Core<N>>) {
    let mut metrics = core.raft.server_metrics();
    let mut not_before = Instant::now();
    loop {
        let (state, voters, leader) = {
            let metrics = metrics.borrow_and_update();
            let config = metrics.membership_config.membership().get_joint_config().clone();
            (metrics.state, config, metrics.current_leader)
        };
        let is_voter = voters.iter().any(|config| config.contains(&core.me.member));
        if state == ServerState::Leader || !is_voter {
            if metrics.changed().await.is_err() {
                return;
            }
            continue;
        }
        let alone = voters.iter().all(|config| config.len() == 1);
        let (least, most) = core.settings.election;
        let heard = core.contact.heard();
        let silence = heard.at + core.world.between(least, most);
        let suspicion = match heard.gone {
            _ if alone => Instant::now(),
            Some(gone) => {
                silence.min((gone + core.world.between(Duration::ZERO, SPREAD)).max(heard.at + core.settings.lease()))
            }
            None => silence,
        };
        tokio::select! {
            biased;
            // A leader whose process has died is not waited for.
            () = core.contact.lost(), if heard.gone.is_none() => continue,
            () = tokio::time::sleep_until(suspicion.max(not_before)) => {}
            changed = metrics.changed() => {
                if changed.is_err() {
                    return;
                }
                // A new leader is there, or this member is one. Other news do not begin the wait anew.
                let now = metrics.borrow().current_leader;
                if now != leader && now.is_some() {
                    not_before = Instant::now();
                }
                continue;
            }
        }
        let now = core.contact.heard();
        if now.at != heard.at && now.gone.is_none() {
            continue;
        }
        not_before = Instant::now() + core.world.between(least / 2, most / 2);
        if !alone && !would_win(&core, &voters).await {
            continue;
        }
        tracing::info!(member = %core.me.member, leader = ?heard.leader.map(|leader| leader.id), "standing for election");
        if core.raft.trigger().elect().await.is_err() {
            return;
        }
        not_before = Instant::now() + core.world.between(least, most);
    }
}

/// The last entry of this member's log.
fn last_entry<N>(core: &Core<N>) -> Option<LogId> {
    core.raft.data_metrics().borrow().last_log
}

/// Whether a majority (of both configurations, while one takes the other's place) would vote for this member.
async fn would_win<N: Net>(core: &Arc<Core<N>>, voters: &[std::collections::BTreeSet<MemberId>]) -> bool {
    let nodes = core.raft.server_metrics().borrow().membership_config.clone();
    let canvass = Canvass { last: last_entry(core), members: *nodes.log_id() };
    let payload: bytes::Bytes = entry::cold(&canvass).into();
    let mut answers = JoinSet::new();
    for (member, address) in nodes.nodes().filter(|(member, _)| **member != core.me.member) {
        let (link, payload, member) = (core.links.to(*member, address), payload.clone(), *member);
        answers.spawn(async move {
            let answer = link.call(Kind::Canvass, payload).await.ok()?;
            Some((member, entry::read_cold::<Inclination>(&answer).ok()?))
        });
    }
    let (mut for_it, mut strangers) = (vec![core.me.member], Vec::new());
    let won = |for_it: &[MemberId]| {
        voters.iter().all(|config| 2 * config.iter().filter(|member| for_it.contains(member)).count() > config.len())
    };
    let asking = async {
        while let Some(answer) = answers.join_next().await {
            match answer.ok().flatten() {
                Some((member, Inclination::For)) => for_it.push(member),
                Some((member, Inclination::NotAMember)) => strangers.push(member),
                Some((_, Inclination::Against)) | None => {}
            }
            if won(&for_it) {
                return true;
            }
        }
        // A majority of those that this member knew has gone on without it.
        if won(&strangers) {
            core.removed.send_replace(true);
        }
        false
    };
    tokio::time::timeout(CANVASS_TIME, asking).await.unwrap_or(false)
}

/// Whether this member would vote for `candidate`, whose log ends so.
pub fn would_vote<N>(core: &Core<N>, candidate: Option<MemberId>, canvass: Canvass) -> Inclination {
    let heard = core.contact.heard();
    let silent = heard.gone.is_some() || heard.at.elapsed() >= core.settings.lease();
    let state = core.raft.server_metrics().borrow().state;
    // What is applied was decided by a majority, and stays.
    let goes_without = {
        let decided = &core.replica.state().membership;
        let is_member = candidate.is_some_and(|candidate| decided.membership().get_node(&candidate).is_some());
        !is_member && *decided.log_id() > canvass.members
    };
    let leads = state == ServerState::Leader && core.has_majority();
    if goes_without {
        Inclination::NotAMember
    } else if !leads && silent && canvass.last >= last_entry(core) {
        Inclination::For
    } else {
        Inclination::Against
    }
}
