//! The view as it changes. Persistent watches tell which nodes have changed, and those are read anew; whatever happens to a session, the next one begins
//! with everything.
//!
//! (Watches are set on every session for itself: the client does not set persistent ones again after a reconnection, and our sessions do not outlive
//! their connections anyway.)

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use zookeeper_client as zk;

use super::ClusterError;
use super::paths::Paths;
use super::tree::Tree;
use super::view::View;
use crate::arbiter::ensemble::{PATIENCE, Server};
use crate::arbiter::zookeeper::{Session, Sessions};
use crate::backends::clock::boot_clock_ns;

/// The longest that what was read is taken for new where no watch has said otherwise.
const READ_EVERY: Duration = Duration::from_secs(10);

/// The same where there are no watches.
const READ_EVERY_WITHOUT: Duration = Duration::from_secs(1);

/// Pause after a server that could not be asked.
const PAUSE: Duration = Duration::from_millis(50);

/// Everything that is known, and from when.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What is known.
    pub view: Arc<View>,
    /// When the reading of all of it began; changes since then are in it as far as they were told. On [`boot_clock_ns`].
    pub read_at_ns: u64,
}

/// What is known now, or why nothing is.
pub type Told = Result<Seen, Arc<ClusterError>>;

/// Somebody who follows. Ends when it is dropped.
pub struct Following {
    told: watch::Receiver<Told>,
    renew: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Following {
    /// Begins. Until the first view is there, the ensemble counts as silent.
    pub fn start(sessions: Arc<Sessions>) -> Self {
        let (tell, told) = watch::channel::<Told>(Err(Arc::new(sessions.no_answer().into())));
        let renew = Arc::new(Notify::new());
        let task = sessions.handle().clone().spawn(follow(sessions, tell, renew.clone()));
        Following { told, renew, task }
    }

    /// What is known, now and later.
    pub fn told(&self) -> watch::Receiver<Told> {
        self.told.clone()
    }

    /// Has everything read anew, behind everything that was written before this call.
    pub fn renew(&self) {
        self.renew.notify_one();
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(sessions: Arc<Sessions>, tell: watch::Sender<Told>, renew: Arc<Notify>) {
    let mut but = None;
    loop {
        let (link, session) = match timeout(PATIENCE, sessions.any(but.as_deref())).await {
            Ok(found) => found,
            Err(_) => {
                let _ = tell.send(Err(Arc::new(sessions.no_answer().into())));
                continue;
            }
        };
        let ended = tokio::select! {
            Err(error) = follow_through(&sessions, &session, &tell, &renew) => Some(error),
            () = session.gone() => None,
        };
        tracing::debug!(server = link.address(), ?ended, "the cluster is followed through another server");
        let _ = tell.send(Err(Arc::new(ended.unwrap_or_else(|| sessions.no_answer().into()))));
        but = Some(link.address().to_owned());
        sleep(PAUSE).await;
    }
}

/// The watches of a session.
struct Watches(Vec<zk::PersistentWatcher>);

impl Watches {
    async fn set(session: &Session, paths: &Paths) -> Result<Option<Self>, zk::Error> {
        let mut all = Vec::new();
        let mode = zk::AddWatchMode::PersistentRecursive;
        let asked = [paths.vms(), paths.hosts(), paths.reservations()].map(|path| {
            let client = session.client.clone();
            async move { client.watch(&path, mode).await }
        });
        for asked in asked {
            match asked.await {
                Ok(watcher) => all.push(watcher),
                // An older server.
                Err(zk::Error::Unimplemented) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Watches(all)))
    }

    /// Waits for changes; the nodes that have changed.
    async fn changed(&mut self) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        let [vms, hosts, reservations] = &mut self.0[..] else { return std::future::pending().await };
        loop {
            // Everything that has come, and if nothing has, what comes next.
            let event = tokio::select! {
                biased;
                event = vms.changed() => event,
                event = hosts.changed() => event,
                event = reservations.changed() => event,
                () = std::future::ready(()), if !changed.is_empty() => return changed,
            };
            match event.event_type {
                // The session is of no use any more, and whoever waits for that hears of it. (After such an event there is no other.)
                zk::EventType::Session => std::future::pending::<()>().await,
                _ => drop(changed.insert(event.path)),
            }
        }
    }
}

/// Through one session, until it is of no use.
async fn follow_through(
    sessions: &Sessions,
    session: &Session,
    tell: &watch::Sender<Told>,
    renew: &Notify,
) -> Result<std::convert::Infallible, ClusterError> {
    let paths = Paths::below(sessions.root());
    let error = |source| ClusterError::Read { location: sessions.location().into(), path: paths.vms(), source };
    let late = || ClusterError::from(sessions.no_answer());
    // Watches first: what changes while everything is read is told.
    let watches = timeout(PATIENCE, Watches::set(session, &paths)).await.map_err(|_| late())?;
    let mut watches = watches.map_err(error)?;
    let every = if watches.is_some() { READ_EVERY } else { READ_EVERY_WITHOUT };
    loop {
        let read_at_ns = boot_clock_ns();
        let all = async {
            View::renew(sessions, session).await?;
            Tree::read(sessions, session).await
        };
        let mut tree = timeout(PATIENCE, all).await.map_err(|_| late())??;
        let until = Instant::now() + every;
        loop {
            let view = Arc::new(View::of(&tree, &paths));
            let _ = tell.send(Ok(Seen { view, read_at_ns }));
            let changed = tokio::select! {
                biased;
                () = renew.notified() => break,
                () = tokio::time::sleep_until(until) => break,
                changed = changed(&mut watches) => changed,
            };
            let reread = tree.reread(sessions, session, changed);
            timeout(PATIENCE, reread).await.map_err(|_| late())??;
        }
    }
}

async fn changed(watches: &mut Option<Watches>) -> BTreeSet<String> {
    match watches {
        Some(watches) => watches.changed().await,
        None => std::future::pending().await,
    }
}
