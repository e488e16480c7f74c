//! A host's process: a state machine in one of the roles, and what its driver would keep beside it.

use super::world::In;
use super::{Entry, Guest};
use lockstep::replication::backup::{self, Backup};
use lockstep::replication::held::HeldOutputs;
use lockstep::replication::message::Message;
use lockstep::replication::primary::{self, Primary};
use std::collections::VecDeque;

pub(super) enum Machine {
    Primary(Primary),
    Backup(Backup),
    /// Only while the one goes and the other comes.
    Changing,
}

pub(super) struct Process {
    pub(super) machine: Machine,
    /// Which process this is.
    pub(super) life: u64,
    /// The number that the arbiter knows it by.
    pub(super) id: u64,
    /// Killed, or its machine room burnt.
    pub(super) dead: bool,
    pub(super) paused: bool,
    /// What waits for a stopped process.
    pub(super) inbox: VecDeque<In>,
    pub(super) connection: Option<u64>,
    /// On which connection the other side was heard, and for which generation it spoke last.
    pub(super) heard_for: (u64, u64),
    pub(super) tick_at: Option<u64>,
    /// When it last did anything.
    pub(super) active_at: u64,
    /// How long the host has been stopped in all.
    pub(super) slept_ns: u64,
    /// It woke from longer than the time-out and has not won since.
    pub(super) overslept: bool,
    pub(super) guest: Guest,
    pub(super) held: HeldOutputs<u64>,
    /// Outputs were released, and the process has not come to writing them.
    pub(super) writing: bool,
    /// Nothing may leave until the next release.
    pub(super) on_hold: bool,
    /// Released outputs may be written before this.
    pub(super) lease_until_ns: u64,
    /// Outputs of entries below this number have left, by what the primary says.
    pub(super) left: u64,
    /// The guest runs here.
    pub(super) running: bool,
    /// It stands still for a switch.
    pub(super) parked: bool,
    pub(super) stalled: bool,
    pub(super) ended: bool,
    /// The output that is logged and that the vCPU has not queued yet.
    pub(super) unqueued: Option<(u64, u64)>,
    /// As a primary: where the log of the pair begins.
    pub(super) base: u64,
    /// The transfer that is under way.
    pub(super) transfer: Option<u64>,
    /// The handover was sent, and the guest is not back.
    pub(super) handed_over: bool,
    /// The state machine is just being told how far outputs have left.
    pub(super) telling: bool,
    /// What the backup said last.
    pub(super) last_ack: Option<Message>,
    /// As a backup: the machine stands where the log begins or after.
    pub(super) loaded: bool,
    /// What was received, from entry `log_base` on.
    pub(super) log: Vec<Entry>,
    pub(super) log_base: u64,
    /// The stamps of frames by the entries they end with.
    pub(super) stamps: VecDeque<(u64, u64)>,
    /// It has won alone, as a backup.
    pub(super) alone: bool,
    /// It has given the other side up for silence, or for not taking over.
    pub(super) for_silence: bool,
    /// Number of the newest question.
    pub(super) asked: u64,
}

impl Process {
    pub(super) fn new(life: u64, id: u64, machine: Machine) -> Self {
        Process {
            machine,
            life,
            id,
            dead: false,
            paused: false,
            inbox: VecDeque::new(),
            connection: None,
            heard_for: (0, 0),
            tick_at: None,
            active_at: 0,
            slept_ns: 0,
            overslept: false,
            guest: Guest::default(),
            held: HeldOutputs::default(),
            writing: false,
            on_hold: false,
            lease_until_ns: u64::MAX,
            left: 0,
            running: false,
            parked: false,
            stalled: false,
            ended: false,
            unqueued: None,
            base: 0,
            transfer: None,
            handed_over: false,
            telling: false,
            last_ack: None,
            loaded: false,
            log: Vec::new(),
            log_base: 0,
            stamps: VecDeque::new(),
            alone: false,
            for_silence: false,
            asked: 0,
        }
    }

    pub(super) fn primary(&self) -> Option<&Primary> {
        match &self.machine {
            Machine::Primary(primary) => Some(primary),
            Machine::Backup(_) | Machine::Changing => None,
        }
    }

    pub(super) fn primary_state(&self) -> Option<&primary::State> {
        self.primary().map(Primary::state)
    }

    pub(super) fn backup(&self) -> Option<&Backup> {
        match &self.machine {
            Machine::Backup(backup) => Some(backup),
            Machine::Primary(_) | Machine::Changing => None,
        }
    }

    pub(super) fn backup_state(&self) -> Option<&backup::State> {
        self.backup().map(Backup::state)
    }

    pub(super) fn state_name(&self) -> &'static str {
        match &self.machine {
            Machine::Primary(primary) => primary.state().name(),
            Machine::Backup(backup) => backup.state().name(),
            Machine::Changing => "changing",
        }
    }

    pub(super) fn generation(&self) -> u64 {
        match &self.machine {
            Machine::Primary(primary) => primary.generation(),
            Machine::Backup(backup) => backup.generation(),
            Machine::Changing => 0,
        }
    }

    /// Messages that it has refused for their generation.
    pub(super) fn fenced(&self) -> u64 {
        self.primary().map_or(0, Primary::fenced) + self.backup().map_or(0, Backup::fenced)
    }

    pub(super) fn has_stopped(&self) -> bool {
        matches!(self.primary_state(), Some(primary::State::Stopped(_)))
            || matches!(self.backup_state(), Some(backup::State::Stopped(_)))
    }

    /// Whether the guest lives here and nowhere else.
    pub(super) fn lives_alone(&self) -> bool {
        use primary::State::{Joining, Transferring, Unprotected};
        let primary = matches!(self.primary_state(), Some(Unprotected | Transferring | Joining { .. }));
        let backup = matches!(self.backup_state(), Some(backup::State::GoingLive | backup::State::Live)) && self.alone;
        !self.dead && (primary || backup)
    }

    /// Whether the backup has given up its primary.
    pub(super) fn gave_up(&self) -> bool {
        let going = matches!(self.backup_state(), Some(backup::State::GoingLive | backup::State::Live));
        matches!(self.backup_state(), Some(backup::State::Asking(_))) || (going && self.alone)
    }

    /// Entries in the process: passed, or waiting to be.
    pub(super) fn entries(&self) -> u64 {
        self.log_base + self.log.len() as u64
    }
}
