//! What a host says about its machine: filled by the channel thread, read by `lockstep status`.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, mpsc};

use super::snapshots::{self, Operated};
use crate::console::hub::Hub;
use crate::console::server::{ControlError, ControlHandler, Who};
use crate::console::status::{GuestState, Status};
use crate::console::wire::Command;
use crate::machine::doors::Control;
use crate::machine::safepoint::Safepoints;

/// The status of this host, and the operator's wish to stop.
pub struct Board {
    hub: Arc<Hub>,
    status: Mutex<Status>,
    /// Of the machine, once there is one: where it stands is asked of itself.
    safepoints: Mutex<Option<Safepoints>>,
    operated: Mutex<Option<Operated>>,
    began: Instant,
    stop: Notify,
    live: AtomicBool,
}

impl Board {
    /// The board of the machine `vm` on `host`.
    pub fn new(hub: Arc<Hub>, vm: &str, host: &str) -> Arc<Self> {
        let status = Status { vm: vm.into(), host: host.into(), ..Status::default() };
        Arc::new(Board {
            hub,
            status: Mutex::new(status),
            safepoints: Mutex::new(None),
            operated: Mutex::new(None),
            began: Instant::now(),
            stop: Notify::new(),
            live: AtomicBool::new(false),
        })
    }

    /// Changes what is said.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The machine whose instant is shown.
    pub fn watch(&self, safepoints: Safepoints) {
        *self.safepoints.lock().unwrap_or_else(PoisonError::into_inner) = Some(safepoints);
    }

    /// Whether this host runs the machine, so that a request to stop it is for this host.
    pub fn set_live(&self, live: bool) {
        self.live.store(live, SeqCst);
    }

    /// Asks this side of the machine to stop, whatever it is.
    pub fn request_stop(&self) {
        self.stop.notify_one();
    }

    /// Waits until somebody asks the machine to stop.
    pub async fn stop_requested(&self) {
        self.stop.notified().await;
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

    fn request(&self, who: &Who, command: Command) -> Result<&'static str, ControlError> {
        self.may_be_asked()?;
        tracing::info!(who = %who.address, ?command, "asked to do something with the machine");
        let control = match command {
            Command::Stop => {
                self.stop.notify_one();
                return Ok("the machine is being stopped");
            }
            Command::Pause => Control::Pause,
            Command::Resume => Control::Resume,
            Command::Reset => Control::Reset,
            Command::Snapshot => return Err(ControlError::NotPossible("a snapshot is asked for in another way")),
        };
        let operated = self.operated().ok_or(ControlError::NotPossible("the machine cannot be operated yet"))?;
        operated.subject.world.control(control);
        Ok(match control {
            Control::Pause => "the machine is being paused",
            Control::Resume => "the machine goes on",
            Control::Reset => "the machine is being reset",
            Control::Switch => unreachable!("not asked for here"),
        })
    }

    fn snapshot(&self, who: &Who) -> Result<mpsc::Receiver<Vec<u8>>, ControlError> {
        self.may_be_asked()?;
        let operated = self.operated().ok_or(ControlError::NotPossible("the machine cannot be operated yet"))?;
        tracing::info!(who = %who.address, "asked for a snapshot");
        snapshots::stream(operated).map_err(|_| ControlError::NotPossible("no thread for the snapshot"))
    }
}

impl Board {
    /// The machine that operators reach, once it lives here.
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
