//! A member as a whole: started, run, and stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotPolicy;
use redb::Database;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::client;
use crate::client::statistics::Statistics;
use crate::core::Core;
use crate::log::proposal::Proposal;
use crate::log::store::{LogStore, StoreError};
use crate::member::Address;
use crate::net::Net;
use crate::peer;
use crate::peer::frame::Kind;
use crate::peer::link::Links;
use crate::raft::contact::Contact;
use crate::raft::group::{self, Beginning};
use crate::raft::machine::{self, Machine, SnapshotFileError, SnapshotStore};
use crate::raft::network::Factory;
use crate::raft::{Raft, election, propose};
use crate::replica::mailbox::CloseReason;
use crate::replica::pending::Waiter;
use crate::replica::{Replica, State};
use crate::sessions::Sessions;
use crate::settings::{Settings, World};

/// What a member keeps.
pub struct Storage {
    log: Database,
    snapshots: SnapshotStore,
    threaded: bool,
}

/// The file of the log within a member's directory.
pub const LOG_FILE: &str = "log.redb";

impl Storage {
    /// In a directory, which is made if need be.
    pub fn open(directory: &Path) -> Result<Self, StartError> {
        let failed = |source| StartError::Directory { path: directory.into(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let path = directory.join(LOG_FILE);
        let log = Database::create(&path).map_err(|source| StartError::Database { path, source: source.into() })?;
        Ok(Storage { log, snapshots: SnapshotStore::Directory(directory.into()), threaded: true })
    }

    /// Of these parts, for simulations: nothing has a thread.
    pub fn simulated(log: Database, snapshots: SnapshotStore) -> Self {
        Storage { log, snapshots, threaded: false }
    }
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory.
    #[error("cannot use the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its database.
    #[error("cannot open the log {}{}", path.display(), if matches!(**source, redb::DatabaseError::DatabaseAlreadyOpen) { ": another member runs in this directory" } else { "" })]
    Database {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::DatabaseError>,
    },
    /// What stands in the database.
    #[error("cannot read the log")]
    Store(#[from] StoreError),
    /// The snapshot.
    #[error("cannot read the snapshot")]
    Snapshot(#[from] SnapshotFileError),
    /// An address that cannot be listened on.
    #[error("cannot listen on {address} for {whom}")]
    Listen {
        /// The address.
        address: String,
        /// For whom.
        whom: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The consensus.
    #[error("cannot start the consensus")]
    Raft(#[source] Box<openraft::error::Fatal<crate::member::MemberId>>),
    /// The settings.
    #[error(transparent)]
    Settings(#[from] crate::settings::SettingsError),
}

/// How a member ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its storage failed, mostly.
    #[error("the consensus has ended: {0}")]
    Raft(openraft::error::Fatal<crate::member::MemberId>),
}

/// How a member that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was asked to.
    Stopped,
    /// The group goes on without it.
    Removed,
}

/// What a member is made of.
pub struct Plan {
    /// Its number.
    pub id: u32,
    /// Where it listens for other members, and where they reach it.
    pub peer: (String, String),
    /// Where it listens for clients, and where they reach it.
    pub client: (String, String),
    /// The group it belongs to, or is to.
    pub beginning: Beginning,
    /// Its numbers.
    pub settings: Settings,
    /// Clock and random numbers.
    pub world: World,
}

/// A member that listens, and does nothing yet.
pub struct Member<N: Net> {
    core: Arc<Core<N>>,
    groups: mpsc::Receiver<bytes::Bytes>,
    peers: N::Listener,
    clients: N::Listener,
    beginning: Beginning,
    log: LogStore,
}

impl<N: Net> Member<N> {
    /// Starts a member.
    pub async fn start(plan: Plan, net: N, storage: Storage) -> Result<Self, StartError> {
        let Plan { id, peer, client, beginning, settings, world } = plan;
        let settings = settings.checked()?;
        let (log, me) = LogStore::open(storage.log, id, world.number() | 1, storage.threaded)?;
        let (tree, applied, membership) = machine::restore(&storage.snapshots)?;
        let listen = async |address: &str, whom| {
            let bound = net.bind(address).await;
            bound.map_err(|source| StartError::Listen { address: address.into(), whom, source })
        };
        let peers = listen(&peer.0, "other members").await?;
        let clients = listen(&client.0, "clients").await?;

        let replica = Replica::new(me, State { tree, applied, membership });
        let links = Arc::new(Links::new(net, me.member));
        let raft = Raft::new(
            me.member,
            raft_config(&settings),
            Factory::new(me.member, links.clone()),
            log.clone(),
            Machine::new(replica.clone(), storage.snapshots),
        )
        .await
        .map_err(|error| StartError::Raft(error.into()))?;
        let (proposals, groups) = mpsc::channel(propose::QUEUE);
        let core = Arc::new(Core {
            me,
            address: Address { peer: peer.1, client: client.1 },
            settings,
            world,
            raft,
            replica,
            links,
            contact: Contact::default(),
            sessions: Sessions::default(),
            proposals,
            serving: watch::Sender::new(false),
            statistics: Statistics::default(),
            removed: watch::Sender::new(false),
            changing: tokio::sync::Mutex::new(()),
        });
        Ok(Member { core, groups, peers, clients, beginning, log })
    }

    /// What its tasks share.
    pub fn core(&self) -> Arc<Core<N>> {
        self.core.clone()
    }

    /// Where clients come in.
    pub fn client_address(&self) -> std::io::Result<std::net::SocketAddr> {
        N::local_address(&self.clients)
    }

    /// Where other members come in.
    pub fn peer_address(&self) -> std::io::Result<std::net::SocketAddr> {
        N::local_address(&self.peers)
    }

    /// Runs it until `stop`, or until it cannot go on.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<End, RunError> {
        let Member { core, groups, peers, clients, beginning, log } = self;
        let raft = core.raft.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(peer::serve::listen(core.clone(), peers));
        tasks.spawn(client::listen::listen(core.clone(), clients));
        tasks.spawn(election::stand(core.clone()));
        tasks.spawn(beat(core.clone()));
        tasks.spawn(propose::forward(core.clone()));
        tasks.spawn(propose::propose(core.clone(), groups));
        tasks.spawn(tell_heard(core.clone()));
        tasks.spawn(keep_house(core.clone(), log));
        tasks.spawn(watch_majority(core.clone()));
        tasks.spawn(tend_members(core.clone()));
        tasks.spawn(group::begin(core.clone(), beginning));
        tasks.spawn({
            let core = core.clone();
            async move { group::watch_removal(&core).await }
        });
        let fatal = async {
            let mut metrics = raft.metrics();
            loop {
                if let Err(fatal) = metrics.borrow_and_update().running_state.clone() {
                    return fatal;
                }
                if metrics.changed().await.is_err() {
                    return openraft::error::Fatal::Stopped;
                }
            }
        };
        let removed = async {
            let mut removed = core.removed.subscribe();
            if removed.wait_for(|removed| *removed).await.is_err() {
                std::future::pending().await
            }
        };
        let end = tokio::select! {
            biased;
            () = stop => Ok(End::Stopped),
            fatal = fatal => Err(RunError::Raft(fatal)),
            () = removed => Ok(End::Removed),
        };
        core.replica.close_all(CloseReason::NotServing);
        tasks.shutdown().await;
        // It is stopped already if it has failed.
        let _ = raft.shutdown().await;
        end
    }
}

fn raft_config(settings: &Settings) -> Arc<openraft::Config> {
    // Elections and signs of life are our own (see `election` and `beat`), so these numbers mean something else here:
    // `election_timeout_max` is the lease of a leader, `election_timeout_min` the time that a vote may take, and `heartbeat_interval` the
    // time that a message with entries may take, which includes a flush of the other member's disk.
    let lease = settings.lease().as_millis() as u64;
    Arc::new(openraft::Config {
        cluster_name: "lockstep".into(),
        heartbeat_interval: settings.append_time().as_millis() as u64,
        election_timeout_min: lease - 1,
        election_timeout_max: lease,
        enable_elect: false,
        enable_heartbeat: false,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: settings.snapshot_entries / 10,
        replication_lag_threshold: settings.snapshot_entries,
        max_payload_entries: 256,
        ..openraft::Config::default()
    })
}

/// Has the leader send its signs of life.
async fn beat<N: Net>(core: Arc<Core<N>>) {
    let mut beats = looks(core.settings.heartbeat);
    loop {
        beats.tick().await;
        if core.leads().is_some() && core.raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}

/// Time between two looks at things that have time.
const LOOK: Duration = Duration::from_millis(100);

fn looks(every: Duration) -> tokio::time::Interval {
    let mut looks = tokio::time::interval(every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Tells the leader which sessions were heard.
async fn tell_heard<N: Net>(core: Arc<Core<N>>) {
    let mut looks = looks(LOOK.min(core.settings.min_session / 4));
    loop {
        looks.tick().await;
        let heard = core.replica.heard_sessions();
        if heard.is_empty() {
            continue;
        }
        let (leader, address) = {
            let metrics = core.raft.server_metrics();
            let metrics = metrics.borrow();
            let leader = metrics.current_leader;
            let address = leader.and_then(|leader| metrics.membership_config.membership().get_node(&leader).cloned());
            (leader, address)
        };
        match (leader, address) {
            (Some(leader), _) if leader == core.me.member => core.sessions.note(heard),
            (Some(leader), Some(address)) => {
                for some in heard.chunks(10_000) {
                    // If it does not arrive, the next will.
                    let _ = core.links.to(leader, &address).send(Kind::Heard, crate::log::entry::cold(&some).into());
                }
            }
            _ => {}
        }
    }
}

/// What a leader has to look after, sessions and containers, and what every member has: its log's length, and who the others are.
async fn keep_house<N: Net>(core: Arc<Core<N>>, log: LogStore) {
    let mut looks = looks(LOOK.min(core.settings.min_session / 4));
    let mut containers_at = tokio::time::Instant::now() + core.settings.container_check;
    loop {
        let now = looks.tick().await;
        keep_log_short(&core, &log).await;
        let members: Vec<_> = {
            let metrics = core.raft.server_metrics();
            let metrics = metrics.borrow();
            metrics.membership_config.membership().nodes().map(|(member, _)| *member).collect()
        };
        core.links.keep(|member| members.contains(member));
        let Some(term) = core.leads() else {
            core.sessions.forget();
            containers_at = now + core.settings.container_check;
            continue;
        };
        let silent = {
            let state = core.replica.state();
            let sessions = state.tree.sessions();
            let timeouts = sessions.map(|(id, session)| (id, Duration::from_millis(session.timeout_ms.into())));
            core.sessions.silent(term, now, timeouts)
        };
        for session in silent {
            tracing::info!(session = format_args!("{session:#x}"), "session expired");
            core.replica.propose(&Proposal::Expire { session, term }, Waiter::Nobody);
        }
        if now >= containers_at {
            containers_at = now + core.settings.container_check;
            let spent: Vec<Arc<str>> = core.replica.state().tree.spent_containers().cloned().collect();
            for path in &spent {
                core.replica.propose(&Proposal::RemoveContainer { path }, Waiter::Nobody);
            }
        }
    }
}

/// Ends the changes of members that leaders have left behind.
async fn tend_members<N: Net>(core: Arc<Core<N>>) {
    let mut looks = looks(5 * LOOK);
    loop {
        looks.tick().await;
        if core.leads().is_some() {
            group::finish_change(&core).await;
        }
    }
}

/// Has a snapshot taken when the log has become long.
async fn keep_log_short<N: Net>(core: &Core<N>, log: &LogStore) {
    let (applied, snapshot) = {
        let metrics = core.raft.data_metrics();
        let metrics = metrics.borrow();
        let index = |log_id: &Option<crate::raft::LogId>| log_id.map_or(0, |log_id| log_id.index);
        (index(&metrics.last_applied), index(&metrics.snapshot))
    };
    let long = applied.saturating_sub(snapshot) >= core.settings.snapshot_entries
        || log.bytes_since_snapshot() >= core.settings.snapshot_bytes;
    if long && applied > snapshot {
        log.begin_snapshot();
        // It says so itself if it fails.
        let _ = core.raft.trigger().snapshot().await;
    }
}

/// Sends clients away while this member cannot do anything for them.
async fn watch_majority<N: Net>(core: Arc<Core<N>>) {
    let mut looks = looks(Duration::from_millis(20));
    loop {
        looks.tick().await;
        let can = core.can_serve();
        if core.serving.send_if_modified(|serving| std::mem::replace(serving, can) != can) {
            tracing::info!(member = core.me.member.id, serving = can, "clients");
            if !can {
                core.replica.close_all(CloseReason::NotServing);
            }
        }
    }
}
