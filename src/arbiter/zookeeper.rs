//! Registers as nodes of a ZooKeeper ensemble: `ROOT/vms/VM/generation`, with the same text as a register file.
//!
//! A claim is one conditional write, on the version of the node that the claimant has read; the leader puts all writes into one order, so of two
//! that saw the same version one wins, and what it has written is on the disks of a majority when it is told so.
//!
//! Reads are another matter: a server answers them from what it knows, which may be old, and a host that is told "lost" stops for good. So a verdict is
//! given either by the conditional write itself, or by a read *behind a barrier*: a transaction that checks something that is always so (`multi` with
//! one `check` of any version). It goes through the leader and a majority like a write, and is answered by a server that has applied
//! everything before it; what this server is asked next on the same session is at least as new. (`sync` is weaker: it asks the
//! leader alone, who may be one that has been deposed and does not know it yet.)
//!
//! The first read of a claim needs no barrier: if it is old, the write that is conditional on it fails.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use zookeeper_client as zk;

use super::ensemble::{Ensemble, Health, Io, Server, Silence, Trouble};
use super::register::{from_text, to_text};
use super::standing::{Standing, check_claim, check_vm};
use super::uri::{Address, ArbiterUri, Credentials, EnsembleUri};
use super::{Arbiter, ArbiterError, Claim, Verdict, names};

/// The time-out that sessions ask for. Our arbiters grant it; ZooKeeper grants no less than twice its tick (4 s by default). A node that a process keeps goes
/// away so long after the process was last heard: a host that has died is missed that soon.
const SESSION_TIMEOUT: Duration = Duration::from_secs(1);

/// How long opening a session may take.
const CONNECT_PATIENCE: Duration = Duration::from_millis(1500);

/// Pauses between two attempts to open a session: the first, and the longest.
const RECONNECT: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

/// A session that is open.
#[derive(Clone)]
pub struct Session {
    /// For requests.
    pub client: zk::Client,
    /// The nodes that are created with it get this access control list.
    pub acls: zk::Acls<'static>,
}

impl Session {
    /// Waits until it is of no use any more.
    pub async fn gone(&self) {
        let mut state = self.client.state_watcher();
        let mut now = self.client.state();
        while now == zk::SessionState::SyncConnected {
            now = state.changed().await;
        }
    }

    /// Options of a node that stays.
    pub fn persistent(&self) -> zk::CreateOptions<'static> {
        zk::CreateMode::Persistent.with_acls(self.acls)
    }

    /// Options of a node that goes with the session.
    pub fn ephemeral(&self) -> zk::CreateOptions<'static> {
        zk::CreateMode::Ephemeral.with_acls(self.acls)
    }

    /// What is read from here on is at least as new as anything that was committed before this call. `root` is any path that may be read.
    pub async fn barrier(&self, root: &str) -> Result<(), zk::Error> {
        let mut transaction = self.client.new_multi_writer();
        transaction.add_check_version(if root.is_empty() { "/" } else { root }, -1)?;
        match transaction.commit().await {
            // That there is no such node is an answer that came the same way.
            Ok(_) | Err(zk::MultiWriteError::OperationFailed { source: zk::Error::NoNode, .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// One server, and the session that is kept open through it.
pub struct Link {
    address: String,
    session: watch::Receiver<Option<Session>>,
    health: watch::Receiver<Health>,
}

impl Link {
    /// Keeps a session through the server at `address` open, on `io`, for as long as somebody has the link.
    fn keep(io: &Handle, address: &Address, credentials: Option<Credentials>, changes: watch::Sender<()>) -> Arc<Self> {
        let (session_here, session) = watch::channel(None);
        let (health_here, health) = watch::channel(Err(Silence::Connecting));
        let address = address.to_string();
        io.spawn(keep(address.clone(), credentials, session_here, health_here, changes));
        Arc::new(Link { address, session, health })
    }

    /// The session; waits for as long as there is none.
    pub async fn session(&self) -> Session {
        let mut session = self.session.clone();
        while session.wait_for(Option::is_some).await.is_ok() {
            if let Some(session) = session.borrow().clone() {
                return session;
            }
        }
        // Nobody keeps it open any more: this thread ends.
        std::future::pending().await
    }

    /// Does something over the session, as soon as there is one, and for as long as it is of use: the client would keep what it is asked
    /// for until it has a connection again.
    pub(crate) async fn during<T>(&self, work: impl AsyncFnOnce(&Session) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let session = self.session().await;
        tokio::select! {
            biased;
            done = work(&session) => done,
            () = session.gone() => Err(Silence::Lost.into()),
        }
    }
}

impl Server for Link {
    fn address(&self) -> &str {
        &self.address
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

async fn keep(
    address: String,
    credentials: Option<Credentials>,
    session_here: watch::Sender<Option<Session>>,
    health_here: watch::Sender<Health>,
    changes: watch::Sender<()>,
) {
    let [first, longest] = RECONNECT;
    let mut pause = first;
    let opening = async {
        loop {
            match connect(&address, credentials.as_ref()).await {
                Ok(session) => {
                    tracing::debug!(server = address, session = %session.client.session_id(), "a session is open");
                    pause = first;
                    let _ = session_here.send(Some(session.clone()));
                    let _ = health_here.send(Ok(()));
                    changes.send_replace(());
                    session.gone().await;
                    tracing::debug!(server = address, state = %session.client.state(), "the session is of no use any more");
                    let _ = session_here.send(None);
                    let _ = health_here.send(Err(Silence::Lost));
                }
                Err(silence) => {
                    tracing::debug!(server = address, %silence, "cannot open a session");
                    let _ = health_here.send(Err(silence));
                }
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(longest);
        }
    };
    tokio::select! {
        () = opening => {}
        () = session_here.closed() => {}
    }
}

/// Three to five quarters of it: the hosts of a cluster shall not all come at once.
fn jittered(pause: Duration) -> Duration {
    #[allow(clippy::disallowed_methods, reason = "nothing of the protocol depends on it")]
    let random = getrandom::u64().unwrap_or(0) % 512;
    pause * (768 + random as u32) / 1024
}

async fn connect(address: &str, credentials: Option<&Credentials>) -> Result<Session, Silence> {
    let mut connector = zk::Client::connector().with_session_timeout(SESSION_TIMEOUT).with_fail_eagerly();
    if let Some(Credentials { user, password }) = credentials {
        connector = connector.with_auth("digest", format!("{user}:{password}").as_bytes());
    }
    let acls = if credentials.is_some() { zk::Acls::creator_all() } else { zk::Acls::anyone_all() };
    match timeout(CONNECT_PATIENCE, connector.connect(address)).await {
        Ok(Ok(client)) => Ok(Session { client, acls }),
        // The client does not tell why: whether anybody listens there does.
        Ok(Err(zk::Error::NoHosts)) => match tokio::net::TcpStream::connect(address).await {
            Ok(_) => Err(Silence::NotServing),
            Err(error) => Err(error.into()),
        },
        Ok(Err(error)) => Err(Silence::Said(error.to_string())),
        Err(_) => Err(Silence::Silent),
    }
}

/// Sessions to the servers of an ensemble, and where on it everything is.
pub struct Sessions {
    ensemble: Ensemble<Link>,
    root: String,
    /// Changes when a session was opened.
    opened: watch::Receiver<()>,
}

impl Sessions {
    /// Opens them.
    pub fn open(uri: &EnsembleUri) -> Result<Arc<Self>, ArbiterError> {
        let io = Io::start().map_err(ArbiterError::Thread)?;
        let (changes, opened) = watch::channel(());
        let link = |server| Link::keep(io.handle(), server, uri.credentials.clone(), changes.clone());
        let links = uri.servers.iter().map(link).collect();
        let location = ArbiterUri::ZooKeeper(uri.clone()).to_string();
        Ok(Arc::new(Sessions { ensemble: Ensemble::new(io, links, location), root: uri.root.clone(), opened }))
    }

    /// A session through any server, as soon as there is one; through `but` only if there is no other.
    pub async fn any(&self, but: Option<&str>) -> (Arc<Link>, Session) {
        let mut opened = self.opened.clone();
        loop {
            opened.borrow_and_update();
            let open = |link: &Arc<Link>| link.session.borrow().clone().map(|session| (link.clone(), session));
            let mut all: Vec<_> = self.links().iter().filter_map(open).collect();
            all.sort_by_key(|(link, _)| Some(link.address()) == but);
            match all.into_iter().next() {
                Some(found) => return found,
                None if opened.changed().await.is_ok() => {}
                None => std::future::pending().await,
            }
        }
    }

    /// What is known of each of the servers, where none of them is of use.
    pub fn no_answer(&self) -> ArbiterError {
        self.ensemble.no_answer(|_| None)
    }

    /// Where everything is; empty for the root of the tree itself.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Where it is, for people.
    pub fn location(&self) -> &str {
        self.ensemble.location()
    }

    /// The thread on which they live.
    pub fn handle(&self) -> &Handle {
        self.ensemble.io().handle()
    }

    /// One to each server.
    pub fn links(&self) -> &[Arc<Link>] {
        self.ensemble.servers()
    }
}

/// Registers in an ensemble.
pub struct ZooKeeper {
    sessions: Arc<Sessions>,
}

/// A register: where it is, and whose.
#[derive(Clone, Debug)]
struct Register {
    root: String,
    path: String,
    vm: String,
    location: String,
}

impl ZooKeeper {
    /// Begins to open sessions to the servers of an ensemble.
    pub fn open(uri: &EnsembleUri) -> Result<Self, ArbiterError> {
        Ok(Self::over(Sessions::open(uri)?))
    }

    /// Registers in the ensemble to which there are sessions already.
    pub fn over(sessions: Arc<Sessions>) -> Self {
        sessions.ensemble.warn_of_loss();
        ZooKeeper { sessions }
    }

    fn register(&self, vm: &str) -> Result<Register, ArbiterError> {
        check_vm(vm)?;
        let root = self.sessions.root().to_owned();
        let path = names::register_path(&root, vm);
        Ok(Register { root, path, vm: vm.into(), location: self.location() })
    }
}

impl Arbiter for ZooKeeper {
    fn read(&self, vm: &str) -> Result<Option<Claim>, ArbiterError> {
        let register = self.register(vm)?;
        self.sessions.ensemble.ask(move |link| {
            let register = register.clone();
            async move {
                let held = link.during(async |session| {
                    session.barrier(&register.root).await.map_err(|error| register.trouble(error))?;
                    register.held(session).await
                });
                Ok(held.await?.map(|(claim, _)| claim))
            }
        })
    }

    fn compare_and_set(&self, vm: &str, expected: Option<u64>, claim: &Claim) -> Result<Verdict, ArbiterError> {
        check_claim(expected, claim)?;
        let (register, claim) = (self.register(vm)?, claim.clone());
        self.sessions.ensemble.ask(move |link| {
            let (register, claim) = (register.clone(), claim.clone());
            async move { link.during(async |session| register.compare_and_set(session, expected, &claim).await).await }
        })
    }

    fn location(&self) -> String {
        self.sessions.location().into()
    }
}

impl Register {
    /// What it holds, as far as this server knows, and the version to write over it.
    async fn held(&self, session: &Session) -> Result<Option<(Claim, i32)>, Trouble> {
        match session.client.get_data(&self.path).await {
            Ok((bytes, stat)) => match from_text(&self.vm, &bytes) {
                Ok(claim) => Ok(Some((claim, stat.version))),
                Err(flaw) => {
                    let path = format!("{} ({})", self.path, self.location).into();
                    Err(Trouble::Final(ArbiterError::Corrupt { path, flaw }))
                }
            },
            Err(zk::Error::NoNode) => Ok(None),
            Err(error) => Err(self.trouble(error)),
        }
    }

    async fn compare_and_set(
        &self,
        session: &Session,
        expected: Option<u64>,
        claim: &Claim,
    ) -> Result<Verdict, Trouble> {
        // Whether what is read next is new enough for a verdict. Every round but the first follows somebody else's write.
        let mut fresh = false;
        loop {
            let held = self.held(session).await?;
            let (held, version) = held.map_or((None, None), |(claim, version)| (Some(claim), Some(version)));
            match Standing::of(held.as_ref(), expected, claim) {
                Standing::Next => {
                    if self.write(session, version, claim).await.map_err(|error| self.trouble(error))? {
                        return Ok(Verdict::Won);
                    }
                }
                Standing::Held if fresh => return Ok(Verdict::Won),
                Standing::Beaten if fresh => return Ok(Verdict::Lost(held)),
                Standing::Held | Standing::Beaten => {}
            }
            session.barrier(&self.root).await.map_err(|error| self.trouble(error))?;
            fresh = true;
        }
    }

    /// Writes over the version that was read, or what was not there. False: it is not so any more.
    async fn write(&self, session: &Session, version: Option<i32>, claim: &Claim) -> Result<bool, zk::Error> {
        let text = to_text(&self.vm, claim);
        let (client, options) = (&session.client, session.persistent());
        let Some(version) = version else {
            return match client.create(&self.path, text.as_bytes(), &options).await {
                Ok(_) => Ok(true),
                Err(zk::Error::NodeExists) => Ok(false),
                Err(zk::Error::NoNode) => {
                    let above = self.path.rsplit_once('/').map_or("", |(above, _)| above);
                    client.mkdir(above, &options).await?;
                    Ok(false)
                }
                Err(error) => Err(error),
            };
        };
        match client.set_data(&self.path, text.as_bytes(), Some(version)).await {
            Ok(_) => Ok(true),
            Err(zk::Error::BadVersion | zk::Error::NoNode) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn trouble(&self, error: zk::Error) -> Trouble {
        match error {
            zk::Error::NoAuth | zk::Error::AuthFailed | zk::Error::InvalidAcl => Trouble::Final(ArbiterError::Denied {
                location: self.location.clone(),
                reason: format!("{}: {error} (USER:PASSWORD in the URI?)", self.path),
            }),
            zk::Error::ConnectionLoss | zk::Error::ClientClosed | zk::Error::SessionExpired => Silence::Lost.into(),
            zk::Error::UnmarshalError { .. } => Silence::Unreadable.into(),
            error => Silence::Said(error.to_string()).into(),
        }
    }
}
