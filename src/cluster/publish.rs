//! Keeping a record in the ensemble for as long as a process lives: an ephemeral node, written anew with every change, put again when it or its session is
//! lost, and taken away in the end.
//!
//! All of it is a task on the ensemble's own thread. It waits for the ensemble as long as it takes, and nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use zookeeper_client as zk;

use super::paths::{node_of, second_node_of};
use super::records::Record;
use crate::arbiter::ensemble::Server;
use crate::arbiter::zookeeper::{Session, Sessions};

/// How long a server may take for one request, before another one is asked.
const PATIENCE: Duration = Duration::from_millis(1000);

/// How long the record may take to go away in the end.
const LAST_PATIENCE: Duration = Duration::from_millis(1000);

/// Pause after a session, or a server, that was of no use.
const PAUSE: Duration = Duration::from_millis(20);

/// Pause after the ensemble has refused the record.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// A record that is being kept.
pub struct Publication {
    /// Dropped: it is not to be kept any more.
    stop: Option<watch::Sender<()>>,
    task: JoinHandle<()>,
}

impl Publication {
    /// Keeps what `record` holds in the node of `host` below `parent`.
    pub fn start<R: Record>(sessions: Arc<Sessions>, parent: String, host: &str, record: watch::Receiver<R>) -> Self {
        let (stop, stopped) = watch::channel(());
        let publisher = Publisher { parent, host: host.into(), record };
        let task = sessions.handle().clone().spawn(publisher.run(sessions, stopped));
        Publication { stop: Some(stop), task }
    }

    /// Takes the record away, if that can be done at once. (Otherwise it goes when the session is over.)
    pub async fn end(mut self) {
        drop(self.stop.take());
        let _ = timeout(LAST_PATIENCE, &mut self.task).await;
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a record is not kept through a session any more.
enum End {
    /// It is not to be kept any more.
    Stopped,
    /// The session is of no use.
    Session,
    /// The ensemble does not want it.
    Refused(zk::Error),
}

/// The node that holds the record.
struct Node {
    path: String,
    /// The version that was written here.
    version: i32,
}

/// Ends with the wish to keep the record.
type Stop = watch::Receiver<()>;

struct Publisher<R> {
    parent: String,
    host: String,
    record: watch::Receiver<R>,
}

/// A request with an end.
async fn in_time<T>(request: impl Future<Output = Result<T, zk::Error>>) -> Result<T, zk::Error> {
    timeout(PATIENCE, request).await.unwrap_or(Err(zk::Error::Timeout))
}

impl<R: Record> Publisher<R> {
    async fn run(mut self, sessions: Arc<Sessions>, mut stop: Stop) {
        let (mut but, mut said) = (None, false);
        loop {
            let (link, session) = tokio::select! {
                _ = stop.changed() => return,
                found = sessions.any(but.as_deref()) => found,
            };
            let pause = match self.keep(&session, &mut stop).await {
                End::Stopped => return,
                End::Session => {
                    tracing::debug!(server = link.address(), "the record is to be put again, by another server");
                    but = Some(link.address().to_owned());
                    PAUSE
                }
                End::Refused(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, node = self.parent, "this host cannot be listed in the cluster");
                    }
                    REFUSED_PAUSE
                }
            };
            tokio::select! {
                _ = stop.changed() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Keeps the record through one session.
    async fn keep(&mut self, session: &Session, stop: &mut Stop) -> End {
        let kept = async {
            loop {
                let mut node = self.put(session).await?;
                tracing::debug!(node = node.path, "the record is put");
                while self.hold(session, &mut node, stop).await? {
                    if stop.has_changed().is_err() {
                        return Ok(());
                    }
                }
            }
        };
        let ended: Result<(), zk::Error> = tokio::select! {
            ended = kept => ended,
            () = session.gone() => return End::Session,
        };
        match ended {
            Ok(()) => End::Stopped,
            Err(
                error @ (zk::Error::NoAuth
                | zk::Error::InvalidAcl
                | zk::Error::QuotaExceeded
                | zk::Error::NoChildrenForEphemerals),
            ) => End::Refused(error),
            Err(error) => {
                tracing::debug!(%error, "the session is given up");
                End::Session
            }
        }
    }

    /// Puts the record, in the place of one that a process has left which is gone.
    async fn put(&mut self, session: &Session) -> Result<Node, zk::Error> {
        let record = self.record.borrow_and_update().clone();
        let (client, bytes) = (&session.client, record.to_bytes());
        let mut path = format!("{}/{}", self.parent, node_of(&self.host));
        loop {
            match in_time(client.create(&path, &bytes, &session.ephemeral())).await {
                Ok(_) => return Ok(Node { path, version: 0 }),
                Err(zk::Error::NoNode) => {
                    in_time(client.mkdir(&self.parent, &session.persistent())).await?;
                    continue;
                }
                Err(zk::Error::NodeExists) => {}
                Err(error) => return Err(error),
            }
            let (old, stat) = match in_time(client.get_data(&path)).await {
                Ok(found) => found,
                Err(zk::Error::NoNode) => continue,
                Err(error) => return Err(error),
            };
            if stat.ephemeral_owner == client.session_id().0 {
                // The answer to its creation was lost.
                let stat = in_time(client.set_data(&path, &bytes, None)).await?;
                return Ok(Node { path, version: stat.version });
            }
            let before = R::from_bytes(&old).ok();
            let gone =
                before.is_some_and(|old| old.process().number == record.process().number || old.process().is_gone());
            if !gone {
                // Whoever it is, it is there: a record must not be lost to it, nor to the wait for it.
                path = format!("{}/{}", self.parent, second_node_of(&self.host, &record.process().number));
                continue;
            }
            let mut instead = client.new_multi_writer();
            instead.add_delete(&path, Some(stat.version))?;
            instead.add_create(&path, &bytes, &session.ephemeral())?;
            match timeout(PATIENCE, instead.commit()).await.map_err(|_| zk::Error::Timeout)? {
                Ok(_) => return Ok(Node { path, version: 0 }),
                Err(zk::MultiWriteError::OperationFailed {
                    source: zk::Error::NoNode | zk::Error::BadVersion | zk::Error::NodeExists,
                    ..
                }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes the record into its node. False: the node has to be put again.
    async fn write(&mut self, session: &Session, node: &mut Node) -> Result<bool, zk::Error> {
        let bytes = self.record.borrow_and_update().to_bytes();
        match in_time(session.client.set_data(&node.path, &bytes, Some(node.version))).await {
            Ok(stat) => {
                node.version = stat.version;
                Ok(true)
            }
            Err(zk::Error::NoNode | zk::Error::BadVersion) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits for what comes next, and does it. False: the node has to be put again.
    async fn hold(&mut self, session: &Session, node: &mut Node, stop: &mut Stop) -> Result<bool, zk::Error> {
        let client = &session.client;
        let (stat, changed) = in_time(client.check_and_watch_stat(&node.path)).await?;
        match stat {
            // Not by this session. A request of this very process that was given up may have its effect late, when the node was made anew, and versions
            // begin at 0 with every node: what it has written over is the newer record.
            Some(stat) if stat.ephemeral_owner == client.session_id().0 && stat.version != node.version => {
                node.version = stat.version;
                return self.write(session, node).await;
            }
            Some(stat) if stat.ephemeral_owner == client.session_id().0 => {}
            _ => return Ok(false),
        }
        tokio::select! {
            biased;
            _ = stop.changed() => {}
            told = self.record.changed() => match told {
                Ok(()) => return self.write(session, node).await,
                // Nobody says anything any more, and the end is near.
                Err(_) => drop(stop.changed().await),
            },
            // By somebody else, who may have taken it away.
            _ = changed.changed() => return Ok(true),
        }
        let _ = in_time(client.delete(&node.path, Some(node.version))).await;
        Ok(true)
    }
}
