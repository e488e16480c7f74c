//! Following the machine: the task behind a [`Client`](super::client::Client).
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

use super::client::{ClientError, Event, Keyboard, Lost, Options, Trouble, What};
use super::dial::{Dials, Link, News, Note};
use super::server::KEEP_ALIVE;
use super::session::Session;
use super::wire::{ClientMessage, DATA_MAX, ServerMessage};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// The task's state.
pub(super) struct Core {
    pub(super) options: Options,
    /// The hosts known by now.
    pub(super) addresses: Vec<String>,
    pub(super) session: Session,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) typed: mpsc::Receiver<Vec<u8>>,
    pub(super) safe: watch::Sender<u64>,
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

    /// Follows the machine until its guest ends, the client is dropped, or no host can be used.
    pub(super) async fn run(mut self) {
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
                // Every host gets the chance of a first word.
                0 if troubles.values().any(|t| matches!(t, Trouble::NoAnswer)) => {
                    limit.map(|limit| limit.max(self.options.timing.hello))
                }
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
