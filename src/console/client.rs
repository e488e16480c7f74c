//! The console's client: output and input exactly once, whichever host the machine lives on. What it
//! does inside stands in `follow`.

pub use super::dial::DialError;
use super::follow::Core;
use super::server::KEEP_ALIVE;
use super::session::{Session, SessionError};
use super::status::Role;
use super::wire::{Ended, Refusal, Start, WireError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The client's times.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A host that accepts a connection must say something within this.
    pub hello: Duration,
    /// A live host silent for this long is suspected: the others are called.
    pub suspect: Duration,
    /// A live host silent for this long is given up.
    pub silence: Duration,
    /// First pause before a failed call is repeated; it doubles.
    pub retry_min: Duration,
    /// Longest pause before a failed call is repeated.
    pub retry_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            hello: Duration::from_secs(1),
            suspect: KEEP_ALIVE * 3,
            silence: Duration::from_millis(500),
            retry_min: Duration::from_millis(10),
            retry_max: Duration::from_millis(200),
        }
    }
}

/// What a client is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Console ports of the hosts, `host:port`. Hosts learned from them are added.
    pub addresses: Vec<String>,
    /// Where output begins.
    pub start: Start,
    /// How long the first attach may take; `None`: for ever.
    pub first_attach: Option<Duration>,
    /// How long later ones may take; `None`: for ever.
    pub reattach: Option<Duration>,
    /// The times.
    pub timing: Timing,
}

impl Options {
    /// All output, ten seconds for the first attach, all the time in the world for later ones.
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Options {
            addresses: addresses.into_iter().map(Into::into).collect(),
            start: Start::At(0),
            first_attach: Some(Duration::from_secs(10)),
            reattach: None,
            timing: Timing::default(),
        }
    }
}

/// Something that happened, and when it was noticed.
#[derive(Debug)]
pub struct Event {
    /// When.
    pub at: std::time::Instant,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug)]
pub enum What {
    /// Attached to a host. Output follows without a gap unless [`What::Gap`] says so.
    Attached {
        /// The address that was called.
        address: String,
        /// The VM's name.
        vm: String,
        /// The host's name.
        host: String,
        /// The generation.
        generation: u64,
        /// Position of the output that follows.
        position: u64,
        /// Time since the host before was last known to be there; `None` for the first attach.
        away: Option<Duration>,
    },
    /// The host is lost; another is being looked for.
    Lost {
        /// The address it had.
        address: String,
        /// Why.
        reason: Lost,
    },
    /// A host is there and waits to go live.
    Waiting {
        /// Its address.
        address: String,
        /// What it is.
        role: Role,
    },
    /// A host cannot be used now. Said once for each kind of trouble.
    Unusable {
        /// Its address.
        address: String,
        /// Why.
        error: Arc<DialError>,
    },
    /// Output that was not seen before.
    Output {
        /// Position of the first byte.
        position: u64,
        /// The bytes; never empty.
        bytes: Vec<u8>,
    },
    /// Output from one position up to another is no longer kept by the machine.
    Gap {
        /// First lost position.
        from: u64,
        /// First kept position.
        to: u64,
    },
    /// The guest has ended. The last event.
    Ended(Ended),
    /// No host can be used. The last event.
    Failed(ClientError),
}

/// Why a host was lost.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// It closed the connection.
    #[error("the host closed the connection")]
    Closed,
    /// It was silent.
    #[error("the host was silent")]
    Silent,
    /// It runs the machine no more.
    #[error("the host is {0} now")]
    NotLive(Role),
    /// It refuses.
    #[error("the host refuses: {0}")]
    Refused(Refusal),
    /// The connection failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// What it said does not fit.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It said something out of place.
    #[error("the host sent a message out of place")]
    OutOfPlace,
}

/// Why a client gives up.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// No address was given.
    #[error("no address to attach to")]
    NoAddress,
    /// No host could be used; the last word on each.
    #[error("{}", list(.0))]
    NoHost(Vec<(String, Trouble)>),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
    /// The client's task is gone.
    #[error("the console client has ended")]
    Closed,
}

/// What became of calling an address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Trouble {
    /// Called, and no answer yet.
    #[error("no answer")]
    NoAnswer,
    /// It is there and does not run the machine.
    #[error("is {0} and does not run the machine (yet)")]
    Waiting(Role),
    /// It cannot be used.
    #[error("{0}")]
    Unusable(Arc<DialError>),
}

fn list(troubles: &[(String, Trouble)]) -> String {
    troubles.iter().map(|(address, trouble)| format!("{address}: {trouble}")).collect::<Vec<_>>().join("; ")
}

/// A console attached to a machine.
#[derive(Debug)]
pub struct Client {
    events: mpsc::Receiver<Event>,
    keyboard: Keyboard,
}

/// Types into the guest. Any number of clones may.
#[derive(Clone, Debug)]
pub struct Keyboard {
    typed: mpsc::Sender<Vec<u8>>,
    typed_bytes: Arc<AtomicU64>,
    safe: watch::Receiver<u64>,
}

impl Keyboard {
    /// Bytes handed to the task at a time.
    pub(super) const PIECE_MAX: usize = 4 << 10;

    /// Types `bytes`. Waits while much of what was typed before is not safe yet.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), ClientError> {
        for piece in bytes.chunks(Self::PIECE_MAX) {
            let permit = self.typed.reserve().await.map_err(|_| ClientError::Closed)?;
            self.typed_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            permit.send(piece.to_vec());
        }
        Ok(())
    }

    /// Completes when everything typed so far survives the loss of a host.
    pub async fn safe(&self) -> Result<(), ClientError> {
        let typed = self.typed_bytes.load(Ordering::Relaxed);
        let mut safe = self.safe.clone();
        safe.wait_for(|&safe| safe >= typed).await.map_err(|_| ClientError::Closed)?;
        Ok(())
    }
}

impl Client {
    /// Starts a client; its first event is [`What::Attached`] or [`What::Failed`], after any number
    /// of [`What::Waiting`] and [`What::Unusable`]. Needs a tokio runtime with time and I/O.
    pub fn start(options: Options) -> Result<Client, ClientError> {
        if options.addresses.is_empty() {
            return Err(ClientError::NoAddress);
        }
        let (events_in, events) = mpsc::channel(64);
        let (typed, typed_out) = mpsc::channel(4);
        let (safe_in, safe) = watch::channel(0);
        let session = Session::new(random_session()?, options.start);
        let addresses = options.addresses.clone();
        let core = Core { options, addresses, session, events: events_in, typed: typed_out, safe: safe_in };
        tokio::spawn(core.run());
        Ok(Client { events, keyboard: Keyboard { typed, typed_bytes: Arc::default(), safe } })
    }

    /// Starts a client and waits until it is attached.
    pub async fn connect(options: Options) -> Result<Client, ClientError> {
        let mut client = Self::start(options)?;
        loop {
            match client.next().await.map(|event| event.what) {
                Some(What::Attached { .. }) => return Ok(client),
                Some(What::Failed(error)) => return Err(error),
                Some(_) => {}
                None => return Err(ClientError::Closed),
            }
        }
    }

    /// The next event; `None` after the last. Cancellation safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The keyboard, to be used from elsewhere.
    pub fn keyboard(&self) -> Keyboard {
        self.keyboard.clone()
    }

    /// Types `bytes`; see [`Keyboard::send`].
    pub async fn send(&self, bytes: &[u8]) -> Result<(), ClientError> {
        self.keyboard.send(bytes).await
    }
}

#[expect(clippy::disallowed_methods, reason = "a session is a random number; nothing of the machine depends on it")]
fn random_session() -> Result<u64, ClientError> {
    getrandom::u64().map_err(ClientError::Random)
}
