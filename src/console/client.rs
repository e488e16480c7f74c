//! The console's client: output and input exactly once, whichever host the machine lives on.
//!
//! ```text
//!            first host that attaches                 closed, or silent for long
//!   search ───────────────────────────> attached ──────────────────────────────> search
//!                                        │    ^
//!                       silent for a while    speaks again
//!                                        v    │
//!                                       suspecting ── another host attaches ──> attached there
//! ```
//!
//! A host that was stopped (not killed) keeps its connections, so silence must be noticed as well.
//! While it suspects, the client calls the other hosts and sends nothing: what it said when calling
//! stays true. [`Session`] does the counting, [`dial`](super::dial) the calling.

pub use super::dial::DialError;
use super::dial::{Dials, Link, News, Note};
use super::server::KEEP_ALIVE;
use super::session::{Session, SessionError};
use super::status::Role;
use super::wire::{ClientMessage, DATA_MAX, Ended, Refusal, ServerMessage, Start, WireError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

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
    const PIECE_MAX: usize = 4 << 10;

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

struct Core {
    options: Options,
    /// The hosts known by now.
    addresses: Vec<String>,
    session: Session,
    events: mpsc::Sender<Event>,
    typed: mpsc::Receiver<Vec<u8>>,
    safe: watch::Sender<u64>,
}

/// How an attachment ended.
enum Outcome {
    /// The client was dropped, or the guest has ended.
    Over,
    /// The host is lost, and was last known to be there then.
    Lost(Lost, Instant),
    /// The host is silent since then, and another has attached the session.
    Moved(Box<Link>, Instant),
}

impl Core {
    /// Hosts that are learned are called, too, up to this many altogether.
    const ADDRESSES_MAX: usize = 8;

    async fn run(mut self) {
        let mut lost_at = None;
        let mut moved = None;
        loop {
            let link = match moved.take() {
                Some(link) => link,
                None => match self.search(lost_at.is_some()).await {
                    Ok(Some(link)) => link,
                    Ok(None) => return,
                    Err(error) => return self.tell(What::Failed(error)).await,
                },
            };
            let address = link.address.clone();
            let outcome = match self.session.attached(&link.attached) {
                Ok(()) => self.converse(*link, lost_at).await,
                Err(error) => {
                    tokio::time::sleep(self.options.timing.retry_max).await;
                    Outcome::Lost(error.into(), Instant::now())
                }
            };
            let (reason, at) = match outcome {
                Outcome::Over => return,
                Outcome::Lost(reason, at) => (reason, at),
                Outcome::Moved(link, at) => {
                    moved = Some(link);
                    (Lost::Silent, at)
                }
            };
            // Away since the first loss, if there was no attachment in between that lasted.
            lost_at = Some(at);
            self.tell(What::Lost { address, reason }).await;
        }
    }

    async fn tell(&self, what: What) {
        // Nobody listens any more: the next wait notices.
        let _ = self.events.send(event(what)).await;
    }

    /// Looks for the live host. `None`: the client was dropped.
    async fn search(&mut self, again: bool) -> Result<Option<Box<Link>>, ClientError> {
        /// What answers, but wrongly, is given this long for another host to do better.
        const DOUBT: Duration = Duration::from_secs(5);
        let begun = Instant::now();
        let limit = if again { self.options.reattach } else { self.options.first_attach };
        let mut troubles: BTreeMap<String, Trouble> =
            self.addresses.iter().map(|address| (address.clone(), Trouble::NoAnswer)).collect();
        let mut dials = Dials::start(self.addresses.iter(), self.session.attach(), self.options.timing);
        loop {
            let finals = troubles.values().filter(|t| matches!(t, Trouble::Unusable(e) if e.is_final())).count();
            let limit = match finals {
                0 => limit,
                some if some == troubles.len() => Some(Duration::ZERO),
                _ => Some(limit.map_or(DOUBT, |limit| limit.min(DOUBT))),
            };
            let give_up = async {
                match limit {
                    Some(limit) => sleep_until(begun + limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.events.closed() => return Ok(None),
                news = dials.next() => match news {
                    News::Attached(link) => return Ok(Some(link)),
                    News::Note(Note::Waiting { address, role, peer }) => {
                        if let Some(peer) = self.learn(peer) {
                            troubles.insert(peer.clone(), Trouble::NoAnswer);
                            dials.call(peer);
                        }
                        troubles.insert(address.clone(), Trouble::Waiting(role));
                        let _ = self.events.try_send(event(What::Waiting { address, role }));
                    }
                    News::Note(Note::Failed { address, error }) => {
                        let error = Arc::new(error);
                        let before = troubles.insert(address.clone(), Trouble::Unusable(error.clone()));
                        if before.map(|trouble| trouble.to_string()) != Some(error.to_string()) {
                            let _ = self.events.try_send(event(What::Unusable { address, error }));
                        }
                    }
                },
                Some(bytes) = self.typed.recv(), if self.session.room() >= Keyboard::PIECE_MAX => self.session.typed(&bytes),
                () = give_up => return Err(ClientError::NoHost(troubles.into_iter().collect())),
            }
        }
    }

    /// Adds the address of a host that another one has named, if it is new.
    fn learn(&mut self, peer: Option<String>) -> Option<String> {
        let peer = peer.filter(|peer| !self.addresses.contains(peer) && self.addresses.len() < Self::ADDRESSES_MAX)?;
        self.addresses.push(peer.clone());
        Some(peer)
    }

    /// Carries output and input until the host is lost or the guest ends.
    async fn converse(&mut self, link: Link, lost_at: Option<Instant>) -> Outcome {
        let Link { address, mut reader, mut writer, attached } = link;
        self.learn(attached.peer);
        let (timing, events) = (self.options.timing, self.events.clone());
        let (mut heard, mut spoke) = (Instant::now(), Instant::now());
        // The socket is not read while an event waits for room: output is never buffered without bound.
        let mut waiting = Some(event(What::Attached {
            address: address.clone(),
            vm: attached.vm,
            host: attached.host,
            generation: attached.generation,
            position: attached.output_position,
            away: lost_at.map(|at| heard - at),
        }));
        let (mut over, mut mute) = (false, false);
        let (mut out, mut written) = (Vec::new(), 0);
        let mut dials: Option<Dials> = None;
        loop {
            if out.is_empty() && dials.is_none() && !mute {
                if let Some((offset, bytes)) = self.session.next_input(DATA_MAX) {
                    ClientMessage::Input { offset, bytes: &bytes }.encode(&mut out);
                } else if spoke.elapsed() >= KEEP_ALIVE {
                    ClientMessage::KeepAlive.encode(&mut out);
                }
            }
            let can_suspect = dials.is_none() && self.addresses.len() > 1;
            let suspect_at = heard + if can_suspect { timing.suspect } else { timing.silence };
            let wake_at = if dials.is_none() && out.is_empty() && !mute {
                suspect_at.min(spoke + KEEP_ALIVE)
            } else {
                suspect_at
            };
            tokio::select! {
                // What is typed comes first: it is bounded by its acknowledgements, output is not.
                biased;
                () = events.closed() => return Outcome::Over,
                result = writer.write(&out[written..]), if !out.is_empty() => match result {
                    Ok(bytes) => {
                        written += bytes;
                        spoke = Instant::now();
                        if written == out.len() {
                            out.clear();
                            written = 0;
                        }
                    }
                    // What the host said before it went may still be read, and tells the reason.
                    Err(_) => {
                        mute = true;
                        out.clear();
                    }
                },
                Some(bytes) = self.typed.recv(), if self.session.room() >= Keyboard::PIECE_MAX => self.session.typed(&bytes),
                permit = events.reserve(), if waiting.is_some() => {
                    if let (Ok(permit), Some(event)) = (permit, waiting.take()) {
                        permit.send(event);
                    }
                    if over {
                        return Outcome::Over;
                    }
                    heard = Instant::now();
                }
                message = reader.server_message(), if waiting.is_none() => {
                    heard = Instant::now();
                    dials = None;
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Outcome::Lost(Lost::Closed, heard),
                        Err(error) => return Outcome::Lost(error.into(), heard),
                    };
                    match self.on_message(message) {
                        Ok(what) => {
                            over = matches!(what, Some(What::Ended(_)));
                            waiting = what.map(event);
                        }
                        Err(lost) => return Outcome::Lost(lost, heard),
                    }
                }
                link = attached_elsewhere(&mut dials) => return Outcome::Moved(link, heard),
                () = sleep_until(wake_at) => {
                    if waiting.is_some() {
                        heard = Instant::now();
                        continue;
                    }
                    if heard.elapsed() >= timing.silence {
                        return Outcome::Lost(Lost::Silent, heard);
                    }
                    if heard.elapsed() < timing.suspect || self.addresses.len() == 1 {
                        continue;
                    }
                    let others = self.addresses.iter().filter(|&other| *other != address);
                    dials.get_or_insert_with(|| Dials::start(others, self.session.attach(), timing));
                }
            }
        }
    }

    fn on_message(&mut self, message: ServerMessage<'_>) -> Result<Option<What>, Lost> {
        Ok(match message {
            ServerMessage::Output { position, bytes } => {
                let (position, bytes) = self.session.output(position, bytes)?;
                (!bytes.is_empty()).then(|| What::Output { position, bytes: bytes.to_vec() })
            }
            ServerMessage::Gap(to) => self.session.gap(to).map(|(from, to)| What::Gap { from, to }),
            ServerMessage::InputAck(offset) => {
                self.session.input_safe(offset)?;
                self.safe.send_replace(self.session.safe_offset());
                None
            }
            ServerMessage::KeepAlive => None,
            ServerMessage::Ended(ended) => Some(What::Ended(ended)),
            ServerMessage::NotLive(not_live) => {
                self.learn(not_live.peer);
                return Err(Lost::NotLive(not_live.role));
            }
            ServerMessage::Refused(refusal) => return Err(Lost::Refused(refusal)),
            ServerMessage::Attached(_) | ServerMessage::Status(_) | ServerMessage::Answer(_) => {
                return Err(Lost::OutOfPlace);
            }
        })
    }
}

async fn attached_elsewhere(dials: &mut Option<Dials>) -> Box<Link> {
    let Some(dials) = dials else { return std::future::pending().await };
    loop {
        if let News::Attached(link) = dials.next().await {
            return link;
        }
    }
}

fn event(what: What) -> Event {
    Event { at: Instant::now().into_std(), what }
}
