//! What happens to a primary, what it does, and where it stands.

use crate::machine::instant::Instant;
use crate::replication::election::{Answer, Election, Question};
use crate::replication::message::Envelope;
use crate::replication::{StopReason, Suspicion};
use std::fmt;

/// What happens to a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Once, before anything else.
    Start,
    /// Time has passed.
    Tick {
        /// The guest's clock, ns.
        guest_clock_ns: u64,
    },
    /// A backup has connected. The driver keeps one connection at a time, refuses others as
    /// [`Refusal::Busy`](crate::replication::message::Refusal::Busy), and after [`Action::Disconnect`] passes on nothing more from the old one.
    Connected,
    /// The backup closed the connection, or the network did.
    Disconnected,
    /// Part of a message has arrived: a sign of life.
    Heard,
    /// A message has arrived.
    Received(Envelope),
    /// The vCPU has appended entries to the log. Their bytes are the bulk of the message that comes of it.
    Appended {
        /// How many.
        entries: u32,
        /// Bytes they take.
        bytes: u32,
    },
    /// The vCPU publishes its horizon: after the first `entries` entries none follows up to and including `at`.
    Horizon {
        /// Entries there are.
        entries: u64,
        /// The guest may run to here.
        at: Instant,
    },
    /// Outputs of entries below this number have been handed to what carries them away, as far as they were queued by now
    /// (`u64::MAX`: nobody needs to know). What was released may wait for its lease, and does not count before it has left.
    Left {
        /// The first number that has not.
        below: u64,
    },
    /// The guest has ended; its last entry has been appended and its last output queued.
    GuestEnded,
    /// The arbiter has answered the question asked last.
    Arbiter(Answer),
    /// The operator wants the machine to stop.
    StopRequested,
    /// After [`Action::BeginTransfer`]: the vCPU stood still for a moment, and the machine's state before entry `entries` was taken. Every entry
    /// before it has been appended ([`Input::Appended`] included) and every output before it queued; every output from it on is held, *before*
    /// this input comes. Rounds of memory are over: from here on the protocol sends the entries. The bulk of the `State` that comes of it is the rest of the state.
    Captured {
        /// Which transfer it was taken for. One that was ended meanwhile is over: what the driver holds for it leaves.
        transfer: u64,
        /// Entries that led to the state.
        entries: u64,
    },
    /// The operator wants the backup to take over. The answer is [`Action::BecomeBackup`] or [`Action::NoSwitch`]; or the guest's end, or [`Action::Stop`].
    SwitchRequested,
    /// Storage that the hosts share says that the machine has gone live elsewhere, in this generation.
    Fenced {
        /// That generation.
        newer: u64,
    },
    /// After [`Action::SwitchGuest`]: the vCPU stands still, its last entry has been appended, nothing of the disk is under way.
    Parked,
}

/// What a primary does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send this; the bulk of `Boot` and `Transfer` is the VM's boot, that of `Entries` what the input appended, that of `State` what was
    /// captured and not sent in chunks.
    Send(Envelope),
    /// Close the connection after what was sent has left; forget what it still delivers.
    Disconnect,
    /// Let the guest run.
    StartGuest,
    /// What is released may leave before `until_ns` on the clock that `on` is given, and not later (`u64::MAX`: at any time). Whoever lets an output
    /// out looks at that clock first, for the process may have been stopped meanwhile; what came too late waits for the next `Release`.
    Lease {
        /// The end of the lease, ns.
        until_ns: u64,
    },
    /// Let the outputs of entries below this number leave (`u64::MAX`: all, now and later).
    Release {
        /// The first number that still waits.
        below: u64,
    },
    /// Let nothing leave until the next `Release`, not even what was released and has not left.
    Hold,
    /// Stall the vCPU: too much of the log is under way.
    Stall,
    /// Let the vCPU go on.
    Resume,
    /// Slow the vCPU down.
    SlowDown {
        /// By this much of its full speed.
        per_mille: u16,
    },
    /// Ask the arbiter; answer with [`Input::Arbiter`], if need be with [`Answer::Unreachable`].
    Ask(Question),
    /// Deliver the stop event to the guest; [`Input::GuestEnded`] follows.
    StopGuest,
    /// The bulk of the message just given is packets for the guest that went to the other host: let them in. No answer.
    Inject,
    /// For the log of the process: the backup is given up, and why.
    Suspect(Suspicion),
    /// The end: stop the guest, drop every held output, say why.
    Stop(StopReason),
    /// A backup takes part: send it the machine's state in [`Message::Chunk`](crate::replication::message::Message::Chunk)s while the guest runs on unprotected; then capture the rest of it and
    /// say [`Input::Captured`]. What comes between is the driver's: the protocol neither sends nor counts chunks.
    BeginTransfer {
        /// For [`Input::Captured`].
        transfer: u64,
    },
    /// That transfer is over and its backup gone: send and capture nothing more for it, give the guest its full speed. A `Lease` and a `Release`
    /// without end follow if outputs are held for it.
    EndTransfer,
    /// Have the vCPU log `Control::Switch` as its last entry and stand still; answer with [`Input::Parked`].
    SwitchGuest,
    /// The switch asked for does not take place, or not any more.
    NoSwitch(NoSwitch),
    /// The vCPU that stands still after [`Action::SwitchGuest`] goes on here; nobody else has been live.
    TakeBack,
    /// The other side is the primary now. This is the last action: put [`Backup::handed_over`](crate::replication::backup::Backup::handed_over) in this machine's
    /// place, feed it its `Start`, and only then look at what else has arrived on the same connection. The guest here is a replica that stands behind
    /// its last entry. Outputs that were released here and have not left are kept like those of a replayed history, until `Left` says that they are done with.
    BecomeBackup,
}

/// Why the other side does not take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoSwitch {
    /// There is no backup that could.
    Unprotected,
    /// A switch is under way.
    UnderWay,
    /// The guest has ended.
    Ended,
    /// The arbiter did not answer, and without it nobody takes over.
    Unreachable,
    /// The arbiter's register holds another generation: the name belongs to somebody else.
    Renamed,
    /// The backup was lost before it had taken over.
    BackupLost,
}

impl fmt::Display for NoSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoSwitch::Unprotected => "there is no backup that could take over",
            NoSwitch::UnderWay => "a switch is under way",
            NoSwitch::Ended => "the guest has ended",
            NoSwitch::Unreachable => "the arbiter does not answer, and nobody takes over without it",
            NoSwitch::Renamed => "another pair has been started under this name",
            NoSwitch::BackupLost => "the backup was lost before it had taken over",
        })
    }
}

/// Where a primary stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// No backup yet; the guest has not started.
    Waiting,
    /// Winning the VM's first generation. The guest has not started.
    Claiming(Election),
    /// The backup gets the boot. The guest has not started.
    Preparing,
    /// The guest runs; outputs leave when acknowledged.
    Protected,
    /// The backup is given up and the arbiter asked; no output leaves.
    Asking(Election),
    /// The guest runs without a backup; outputs leave at once.
    Unprotected,
    /// As `Unprotected`, and a backup gets the state of the running guest.
    Transferring,
    /// The backup gets the rest of the state and the log from there on; outputs from there on wait.
    Joining {
        /// The backup is ready. Until when the outputs of the time without it may take to leave before the guest counts as protected, ns.
        patience_ends: Option<u64>,
    },
    /// The guest stands still and nothing leaves: the backup is asked to take over.
    HandingOver {
        /// When to ask the arbiter instead, ns.
        until: u64,
    },
    /// The other side is the primary; a backup takes this machine's place.
    HandedOver,
    /// The end.
    Stopped(StopReason),
}

impl State {
    /// The state's name, for `status`.
    pub fn name(&self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Claiming(_) => "claiming",
            State::Preparing => "preparing",
            State::Protected => "protected",
            State::Asking(_) => "asking",
            State::Unprotected => "unprotected",
            State::Transferring => "transferring",
            State::Joining { .. } => "joining",
            State::HandingOver { .. } => "handing over",
            State::HandedOver => "handed over",
            State::Stopped(_) => "stopped",
        }
    }
}
