//! A host of the model: a real state machine and what its driver would keep beside it.

use super::Side;
use super::actions::{Item, Plant};
use lockstep::replication::backup::{self, Backup};
use lockstep::replication::election::{Answer, Question};
use lockstep::replication::held::HeldOutputs;
use lockstep::replication::message::Envelope;
use lockstep::replication::primary::{self, Primary};
use std::collections::VecDeque;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    Primary(Primary),
    Backup(Backup),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    pub machine: Machine,
    pub dead: bool,
    pub connected: bool,
    pub connecting: bool,
    pub incoming: VecDeque<Item>,
    /// What it has asked the arbiter, and the answer on its way.
    pub question: Option<Question>,
    pub answer: Option<Answer>,
    /// The generation that its answer says it has won, if it says so.
    pub claimed: u64,
    /// Who made the output; its entry number is its position.
    pub held: HeldOutputs<Side>,
    /// What is released may be written before this.
    pub lease_until: u64,
    /// How far outputs have left, by what the primary says.
    pub left: u64,
    /// The state machine is just being told how far outputs have left.
    pub telling: bool,
    /// The guest runs here.
    pub running: bool,
    pub parked: bool,
    /// It shall stand still.
    pub park: bool,
    /// Its state shall be taken, for this transfer.
    pub capture: Option<u64>,
    /// Where the log of the pair begins.
    pub base: u64,
    /// As a backup, it has won alone.
    pub alone: bool,
    /// It has given the other side up for silence.
    pub silence: bool,
    /// When it last processed a message, or, as a primary, took a backup: that hears of it later, and keeps still for a time-out from then.
    pub heard_at: u64,
    pub handed_over: bool,
    pub taken_back: bool,
    pub ended_transfer: bool,
}

impl Host {
    pub fn new(machine: Machine) -> Self {
        Host {
            machine,
            dead: false,
            connected: false,
            connecting: false,
            incoming: VecDeque::new(),
            question: None,
            answer: None,
            claimed: 0,
            held: HeldOutputs::default(),
            lease_until: u64::MAX,
            left: 0,
            telling: false,
            running: false,
            parked: false,
            park: false,
            capture: None,
            base: 0,
            alone: false,
            silence: false,
            heard_at: 0,
            handed_over: false,
            taken_back: false,
            ended_transfer: false,
        }
    }

    /// The connection is over, and so is whatever it would still deliver.
    pub fn close(&mut self) -> bool {
        self.incoming.clear();
        std::mem::take(&mut self.connected)
    }

    pub fn primary(&self) -> Option<&Primary> {
        match &self.machine {
            Machine::Primary(primary) => Some(primary),
            Machine::Backup(_) => None,
        }
    }

    pub fn backup(&self) -> Option<&Backup> {
        match &self.machine {
            Machine::Backup(backup) => Some(backup),
            Machine::Primary(_) => None,
        }
    }

    pub fn generation(&self) -> u64 {
        match &self.machine {
            Machine::Primary(primary) => primary.generation(),
            Machine::Backup(backup) => backup.generation(),
        }
    }

    pub fn deadline(&self) -> Option<u64> {
        match &self.machine {
            Machine::Primary(primary) => primary.next_deadline(),
            Machine::Backup(backup) => backup.next_deadline(),
        }
    }

    /// The message, as a side that looks at no token would take it: with one that this side admits.
    pub fn unfenced(&self, envelope: Envelope) -> Envelope {
        let kind = envelope.message.kind();
        let admits = |generation: &u64| match &self.machine {
            Machine::Primary(primary) => primary.admits(kind, *generation),
            Machine::Backup(backup) => backup.admits(kind, *generation),
        };
        let own = self.generation();
        let generation = [own, 0, own + 1].into_iter().find(admits).unwrap_or(envelope.generation);
        Envelope { generation, ..envelope }
    }

    /// Whether the guest lives here and nowhere else.
    pub fn lives_alone(&self) -> bool {
        use primary::State::{Joining, Transferring, Unprotected};
        match &self.machine {
            Machine::Primary(primary) => matches!(primary.state(), Unprotected | Transferring | Joining { .. }),
            Machine::Backup(backup) => *backup.state() == backup::State::GoingLive && self.alone,
        }
    }

    /// Whether it is a backup that has given up its primary.
    pub fn gave_up(&self) -> bool {
        self.backup().is_some_and(|backup| match backup.state() {
            backup::State::Asking(_) => true,
            backup::State::GoingLive => self.alone,
            _ => false,
        })
    }

    /// What it finds when it looks at its clock.
    pub fn lease_holds(&self, plant: Plant, now: u64) -> bool {
        plant == Plant::IgnoreTime || now < self.lease_until
    }
}
