//! What a host says about its machine, and what is asked of it: filled and heard by the channel thread, read and written by the console port.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::snapshots::{self, Operated};

use crate::console::hub::Hub;
use crate::console::server::{ControlError, ControlHandler, Pending, Who};
use crate::console::status::{GuestState, Role, Status};
use crate::console::wire::{Answer, Command};
use crate::machine::doors::Control;
use crate::machine::safepoint::Safepoints;

/// What the operator asks of a host's driver.
#[derive(Debug)]
pub enum Request {
    /// To stop.
    Stop,
    /// To let the other host go on.
    Switch(Reply),
    /// To end, if the machine does not depend on this side.
    Leave(Reply),
    /// To do this to the guest, on both hosts.
    Control(Control),
}

/// Where the answer to a request goes. Dropping it tells whoever waits that there is none.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Answer>);

impl Reply {
    /// A reply, and where it arrives.
    pub fn new() -> (Self, oneshot::Receiver<Answer>) {
        let (say, heard) = oneshot::channel();
        (Reply(say), heard)
    }

    /// It is done; `text` says what.
    pub fn accept(self, text: String) {
        // Whoever asked may have gone.
        let _ = self.0.send(Answer { accepted: true, text });
    }

    /// It is not done; `text` says why.
    pub fn refuse(self, text: String) {
        let _ = self.0.send(Answer { accepted: false, text });
    }
}

/// What of a host's status changes seldom, and matters at once when it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// What this host is to the machine.
    pub role: Role,
    /// The protocol's state.
    pub state: String,
    /// The generation.
    pub generation: u64,
    /// Name of the other host.
    pub peer: Option<String>,
    /// Memory of the guest, in MiB.
    pub memory_mib: Option<u64>,
}

impl Summary {
    /// Takes over what differs; whether anything did.
    fn follow(&mut self, status: &Status) -> bool {
        let Status { role, state, generation, peer, memory_mib, .. } = status;
        let same = (self.role, &self.state, self.generation, &self.peer, self.memory_mib)
            == (*role, state, *generation, peer, *memory_mib);
        if !same {
            *self = Summary {
                role: *role,
                state: state.clone(),
                generation: *generation,
                peer: peer.clone(),
                memory_mib: *memory_mib,
            };
        }
        !same
    }
}

/// The status of this host, and the operator's wishes.
pub struct Board {
    hub: Arc<Hub>,
    status: Mutex<Status>,
    summary: watch::Sender<Summary>,
    /// Of the machine, once there is one: where it stands is asked of itself.
    safepoints: Mutex<Option<Safepoints>>,
    /// Of the machine, while it lives here: what snapshots are taken of.
    operated: Mutex<Option<Operated>>,
    began: Instant,
    requests: Mutex<VecDeque<Request>>,
    requested: Notify,
    live: AtomicBool,
}

/// Requests that may wait for the driver. It looks at each within milliseconds.
const MAX_REQUESTS: usize = 64;

impl Board {
    /// The board of the machine `vm` on `host`.
    pub fn new(hub: Arc<Hub>, vm: &str, host: &str) -> Arc<Self> {
        let status = Status { vm: vm.into(), host: host.into(), ..Status::default() };
        Arc::new(Board {
            hub,
            summary: watch::Sender::new(Summary::default()),
            status: Mutex::new(status),
            safepoints: Mutex::new(None),
            operated: Mutex::new(None),
            began: Instant::now(),
            requests: Mutex::default(),
            requested: Notify::new(),
            live: AtomicBool::new(false),
        })
    }

    /// Changes what is said.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut status);
        self.summary.send_if_modified(|summary| summary.follow(&status));
    }

    /// What changes seldom, and the changes.
    pub fn summary(&self) -> watch::Receiver<Summary> {
        self.summary.subscribe()
    }

    /// The machine whose instant is shown.
    pub fn watch(&self, safepoints: Safepoints) {
        *self.safepoints.lock().unwrap_or_else(PoisonError::into_inner) = Some(safepoints);
    }

    /// The machine that lives here.
    pub fn operate(&self, operated: Operated) {
        *self.operated.lock().unwrap_or_else(PoisonError::into_inner) = Some(operated);
    }

    fn operated(&self) -> Option<Operated> {
        self.operated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether what an operator wants is for this host.
    fn may_be_asked(&self) -> Result<(), ControlError> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(status.guest, GuestState::Ended(_)) {
            return Err(ControlError::Ended);
        }
        if !self.live.load(SeqCst) {
            return Err(ControlError::NotLive(status.peer.clone()));
        }
        Ok(())
    }

    /// Whether this host runs the machine, so that a request to it is for this host.
    pub fn set_live(&self, live: bool) {
        self.live.store(live, SeqCst);
    }

    fn ask(&self, request: Request) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() < MAX_REQUESTS {
            requests.push_back(request);
        }
        drop(requests);
        self.requested.notify_one();
    }

    /// Asks this side of the machine to stop, whatever it is.
    pub fn request_stop(&self) {
        self.ask(Request::Stop);
    }

    /// Waits until somebody asks for something. Cancelling the wait loses nothing.
    pub async fn requested(&self) -> Request {
        loop {
            if let Some(request) = self.requests.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                return request;
            }
            self.requested.notified().await;
        }
    }
}

impl ControlHandler for Board {
    fn status(&self) -> Status {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(safepoints) = &*self.safepoints.lock().unwrap_or_else(PoisonError::into_inner) {
            (status.instant_exits, status.instant_polls) = (safepoints.exits(), safepoints.count());
        }
        if status.guest == GuestState::Running
            && self.operated().is_some_and(|operated| operated.subject.world.paused())
        {
            status.guest = GuestState::Paused;
        }
        status.console = self.hub.console_status();
        status.outputs_held = status.console.outputs_held;
        status.uptime_ms = self.began.elapsed().as_millis() as u64;
        status
    }

    fn command(&self, command: Command, who: &Who) -> Result<Pending, ControlError> {
        if command != Command::Leave {
            self.may_be_asked()?;
        }
        tracing::info!(who = %who.address, ?command, "asked for");
        Ok(match command {
            Command::Stop => {
                self.ask(Request::Stop);
                Pending::Done("the machine is being stopped".into())
            }
            Command::Pause => {
                self.ask(Request::Control(Control::Pause));
                Pending::Done("the guest is being paused".into())
            }
            Command::Resume => {
                self.ask(Request::Control(Control::Resume));
                Pending::Done("the guest goes on".into())
            }
            Command::Reset => {
                self.ask(Request::Control(Control::Reset));
                Pending::Done("the machine is being reset".into())
            }
            Command::Switch => {
                let (reply, answer) = Reply::new();
                self.ask(Request::Switch(reply));
                Pending::Later(answer)
            }
            Command::Leave => {
                let (reply, answer) = Reply::new();
                self.ask(Request::Leave(reply));
                Pending::Later(answer)
            }
            Command::Snapshot => return Err(ControlError::NotPossible("a snapshot needs a connection of its own")),
        })
    }

    fn snapshot(&self, who: &Who) -> Result<mpsc::Receiver<Vec<u8>>, ControlError> {
        self.may_be_asked()?;
        let operated = self.operated().ok_or(ControlError::NotPossible("this host takes no snapshots yet"))?;
        tracing::info!(who = %who.address, "asked for a snapshot");
        snapshots::stream(operated).map_err(|_| ControlError::NotPossible("there is no thread for the snapshot"))
    }
}
/// When the board is to be filled anew. A timer of its own: what else happens comes too seldom in an idle machine, and in a
/// busy one too often for a pause in it.
pub fn refresh() -> tokio::time::Interval {
    let mut refresh = tokio::time::interval(std::time::Duration::from_millis(20));
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    refresh
}

/// Bytes per second of a growing count, measured over about a second.
#[derive(Debug)]
pub struct Rate {
    began: Instant,
    bytes: u64,
    per_second: u64,
    total: u64,
}

impl Default for Rate {
    fn default() -> Self {
        Rate { began: Instant::now(), bytes: 0, per_second: 0, total: 0 }
    }
}

impl Rate {
    /// Counts `bytes` more.
    pub fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.total += bytes;
    }

    /// All that was counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The rate of the last whole second.
    pub fn per_second(&mut self) -> u64 {
        let elapsed = self.began.elapsed().as_nanos() as u64;
        if elapsed >= 1_000_000_000 {
            self.per_second = (u128::from(self.bytes) * 1_000_000_000 / u128::from(elapsed)) as u64;
            (self.began, self.bytes) = (Instant::now(), 0);
        }
        self.per_second
    }
}
