//! Asking an ensemble of servers of which some may be dead, silent or without a majority, at the very moment when the answer is needed.
//!
//! There are connections to all the servers from the start, kept warm by tasks on a thread of their own. A question goes to one of them, the one that
//! answered last, and after [`HEDGE`] to the next as well, and so on; a server that fails is asked again after a pause. The first answer
//! counts. So every question must be one that may be asked any number of times, which is so for an arbiter's: a register that already
//! holds the claim counts as won. A server that dies with the primary costs nothing where its kernel says so, and [`HEDGE`] where it does not.
//!
//! ```text
//!  referee's thread          I/O thread (tokio)
//!    ask() ────────────────► first_answer ──┬── at once ───► server 1   (silent)
//!    waits, at most PATIENCE                ├── + 30 ms ───► server 2 ── answer ─┐
//!      ▲                                    └── + 60 ms ───► server 3            │
//!      └─────────────────────────────────────────────────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::ArbiterError;
use crate::backends::priority::prefer_this_thread;

/// How long a question may take. A little less than the protocol waits for an arbiter, so that it hears why there is no answer.
pub const PATIENCE: Duration = Duration::from_millis(1800);

/// After how long the next server is asked as well.
pub const HEDGE: Duration = Duration::from_millis(30);

/// Between two questions to a server that has failed to answer the first.
const PAUSE: Duration = Duration::from_millis(50);

/// For how long none of the servers must be there before that is said.
const SAID_AFTER: Duration = Duration::from_secs(3);

/// Why a server has given no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Silence {
    /// It is being connected to.
    #[error("no connection yet")]
    Connecting,
    /// There is no connection to it.
    #[error("{0}")]
    Connect(Arc<io::Error>),
    /// It accepts connections and does not serve.
    #[error("it serves nobody now; perhaps it has no majority behind it")]
    NotServing,
    /// The connection broke.
    #[error("the connection was lost")]
    Lost,
    /// Nothing comes from it.
    #[error("it does not answer")]
    Silent,
    /// It answers something that is no answer to what was asked.
    #[error("its answer cannot be read")]
    Unreadable,
    /// It says why not.
    #[error("{0}")]
    Said(String),
}

impl From<io::Error> for Silence {
    fn from(error: io::Error) -> Self {
        Silence::Connect(Arc::new(error))
    }
}

/// What each server of an ensemble was heard of, when no answer came.
#[derive(Clone, Debug)]
pub struct Unanswered(Vec<(String, Silence)>);

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (server, silence)) in self.0.iter().enumerate() {
            write!(f, "{}{server}: {silence}", if index > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

/// Why a server gives no verdict.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Another server may answer, or this one later.
    NoAnswer(Silence),
    /// No server will say anything else.
    Final(ArbiterError),
}

impl From<Silence> for Trouble {
    fn from(silence: Silence) -> Self {
        Trouble::NoAnswer(silence)
    }
}

/// Whether a server looks well.
pub(crate) type Health = Result<(), Silence>;

/// One server.
pub(crate) trait Server: Send + Sync + 'static {
    /// `HOST:PORT`.
    fn address(&self) -> &str;
    /// Whether it looks well, now and later.
    fn health(&self) -> watch::Receiver<Health>;
}

/// The thread on which an ensemble's connections live. Dropping it ends them.
pub(crate) struct Io {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Io {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("arbiter-io".into()).spawn(move || {
            // A question asked in the moment of failure does not wait for a busy guest.
            prefer_this_thread();
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Io { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Where its tasks are started.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        drop(self.stop.take());
        // One of the thread's own tasks may have been the last to need it.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

/// The servers of an ensemble.
pub(crate) struct Ensemble<S> {
    servers: Vec<Arc<S>>,
    /// The one that answered last.
    preferred: Arc<AtomicUsize>,
    location: String,
    /// Last: the thread ends after everything else.
    io: Io,
}

impl<S: Server> Ensemble<S> {
    /// The ensemble of `servers`, whose tasks live on `io`. `location` is where it is, for people.
    pub fn new(io: Io, servers: Vec<Arc<S>>, location: String) -> Self {
        Ensemble { servers, preferred: Arc::default(), location, io }
    }

    /// Warns from now on while none of its servers can be reached.
    pub fn warn_of_loss(&self) {
        let health = self.servers.iter().map(|server| server.health()).collect();
        self.io.handle().spawn(say_when_none_is_there(self.location.clone(), health));
    }

    /// Where it is, for people.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The servers.
    pub fn servers(&self) -> &[Arc<S>] {
        &self.servers
    }

    /// The thread on which it lives.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// The first answer to `question` that any of the servers gives. Blocks, for [`PATIENCE`] at most; may be called from any thread.
    pub fn ask<T, F>(&self, question: impl Fn(Arc<S>) -> F + Send + Sync + 'static) -> Result<T, ArbiterError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Trouble>> + Send + 'static,
    {
        let (servers, preferred, location) = (self.servers.clone(), self.preferred.clone(), self.location.clone());
        let (say, heard) = mpsc::sync_channel(1);
        self.io.handle.spawn(async move {
            // Whoever asked waits for it.
            let _ = say.send(first_answer(&servers, &preferred, location, question).await);
        });
        heard.recv().unwrap_or_else(|_| Err(self.no_answer(|_| None)))
    }

    /// That there is no answer, with what is known of each of the servers.
    pub fn no_answer(&self, heard: impl Fn(usize) -> Option<Silence>) -> ArbiterError {
        no_answer(&self.servers, self.location.clone(), heard)
    }
}

fn no_answer<S: Server>(
    servers: &[Arc<S>],
    location: String,
    heard: impl Fn(usize) -> Option<Silence>,
) -> ArbiterError {
    let of = |(index, server): (usize, &Arc<S>)| {
        let silence = || server.health().borrow().clone().err().unwrap_or(Silence::Silent);
        (server.address().to_owned(), heard(index).unwrap_or_else(silence))
    };
    ArbiterError::NoAnswer { location, servers: Unanswered(servers.iter().enumerate().map(of).collect()) }
}

/// The servers in the order in which they are asked: those that look well first, and of these the preferred one.
fn order<S: Server>(servers: &[Arc<S>], preferred: usize) -> VecDeque<usize> {
    let mut order: Vec<usize> = (0..servers.len()).collect();
    let count = servers.len();
    order
        .sort_by_key(|&index| (servers[index].health().borrow().is_err(), (index + count - preferred % count) % count));
    order.into()
}

async fn first_answer<S, T, F>(
    servers: &[Arc<S>],
    preferred: &AtomicUsize,
    location: String,
    question: impl Fn(Arc<S>) -> F + Sync,
) -> Result<T, ArbiterError>
where
    S: Server,
    T: Send + 'static,
    F: Future<Output = Result<T, Trouble>> + Send + 'static,
{
    let began = Instant::now();
    let mut heard: Vec<Option<Silence>> = vec![None; servers.len()];
    let mut waiting = order(servers, preferred.load(Relaxed));
    let mut next_at = began;
    let mut attempts = JoinSet::new();
    let attempt = |attempts: &mut JoinSet<_>, index: usize, pause: Duration| {
        let asked = question(servers[index].clone());
        attempts.spawn(async move {
            sleep(pause).await;
            (index, asked.await)
        });
    };
    loop {
        tokio::select! {
            biased;
            Some(done) = attempts.join_next() => {
                let (index, answer) = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                match answer {
                    Ok(answer) => {
                        preferred.store(index, Relaxed);
                        tracing::debug!(server = servers[index].address(), took = ?began.elapsed(), "the arbiter has answered");
                        return Ok(answer);
                    }
                    Err(Trouble::Final(error)) => return Err(error),
                    Err(Trouble::NoAnswer(silence)) => {
                        tracing::debug!(server = servers[index].address(), %silence, "no answer yet");
                        heard[index] = Some(silence);
                        next_at = Instant::now();
                        attempt(&mut attempts, index, PAUSE);
                    }
                }
            }
            () = sleep_until(began + PATIENCE) => {
                return Err(no_answer(servers, location, |index| heard[index].clone()));
            }
            () = sleep_until(next_at), if !waiting.is_empty() => {
                if let Some(index) = waiting.pop_front() {
                    attempt(&mut attempts, index, Duration::ZERO);
                }
                next_at = Instant::now() + HEDGE;
            }
        }
    }
}

/// Warns while no server can be reached: nothing happens to a healthy pair, but whoever runs it should know before it is needed.
async fn say_when_none_is_there(location: String, mut health: Vec<watch::Receiver<Health>>) {
    let (mut alone_since, mut said) = (None, false);
    loop {
        // Each of them is looked at: a change that was not seen would be one for ever.
        let ready = health.iter_mut().filter_map(|health| health.borrow_and_update().is_ok().then_some(())).count();
        if ready > 0 {
            alone_since = None;
            if std::mem::take(&mut said) {
                tracing::warn!(arbiter = location, "the arbiter can be reached again");
            }
        }
        let since = (ready == 0).then(|| *alone_since.get_or_insert_with(Instant::now));
        let mut changes: JoinSet<_> =
            health.iter().cloned().map(|mut health| async move { health.changed().await.is_ok() }).collect();
        tokio::select! {
            Some(changed) = changes.join_next() => {
                if !matches!(changed, Ok(true)) {
                    // Its server is gone, and with it the ensemble.
                    return;
                }
            }
            () = sleep_until(since.unwrap_or_else(Instant::now) + SAID_AFTER), if since.is_some() && !said => {
                said = true;
                tracing::warn!(
                    arbiter = location,
                    "none of the arbiter's servers can be reached: while that is so, neither side can go on alone"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
