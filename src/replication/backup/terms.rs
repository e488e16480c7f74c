//! What happens to a backup, what it does, and where it stands.

use crate::machine::instant::Instant;
use crate::replication::election::{Answer, Election, Question};
use crate::replication::message::Envelope;
use crate::replication::{StopReason, Suspicion};

/// What happens to a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Once, before anything else.
    Start,
    /// Time has passed.
    Tick,
    /// The connection asked for stands.
    Connected,
    /// The connection asked for cannot be made, was closed, or broke.
    Disconnected,
    /// Part of a message has arrived: a sign of life.
    Heard,
    /// A message has arrived.
    Received(Envelope),
    /// The machine that the last [`Action::Load`] or [`Action::Restore`] asked for stands where the log begins.
    Loaded,
    /// The vCPU has got on. Neither value ever decreases.
    Executed {
        /// Entries it has passed.
        entries: u64,
        /// Stamp of the newest frame whose entries or horizon it has passed.
        stamp: u64,
    },
    /// The vCPU is not where the log is; it has stopped.
    Diverged {
        /// The entry that was not met.
        entry: u64,
        /// The first difference, for people; cut at [`MAX_TEXT`](crate::replication::message::MAX_TEXT) bytes.
        text: Box<str>,
    },
    /// After [`Action::GoLive`]: the vCPU has passed every received entry, and the world stands at its doors.
    WentLive,
    /// The guest has ended, in replay or live.
    GuestEnded,
    /// The arbiter has answered the question asked last.
    Arbiter(Answer),
    /// The operator wants this side to stop.
    StopRequested,
}

/// What a backup does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Connect to the primary; answer with `Connected` or `Disconnected`. A machine that was loaded, or
    /// is being loaded, is forgotten.
    Connect,
    /// Send this.
    Send(Envelope),
    /// Close the connection after what was sent has left; forget what it still delivers.
    Disconnect,
    /// Build the machine from the bulk of the message just given; answer with [`Input::Loaded`].
    Load,
    /// Make a machine of the kind that the bulk of the message just given describes; its state comes in pieces. No answer.
    LoadBlank,
    /// Put the piece of state in the bulk of the message just given where it belongs. No answer.
    Apply,
    /// The bulk of the message just given is the last piece: give the machine its state; answer with [`Input::Loaded`]. Entries may come to be replayed
    /// before that; they follow the state.
    Restore {
        /// Entries that led to the state: the number of the next one.
        entries: u64,
    },
    /// Give the bulk of the message just given to the vCPU for replay.
    Replay {
        /// Number of the first entry.
        first: u64,
        /// How many.
        count: u32,
        /// Stamp of the frame, for [`Input::Executed`].
        stamp: u64,
    },
    /// The vCPU may run to `at` once it has passed `entries` entries.
    RunTo {
        /// Entries before the horizon.
        entries: u64,
        /// The horizon.
        at: Instant,
        /// Stamp of the frame, for [`Input::Executed`].
        stamp: u64,
    },
    /// Outputs of entries below this number have left the primary: going live need not repeat them. Only ever more.
    Left {
        /// The first number that may not have.
        below: u64,
    },
    /// Ask the arbiter; answer with [`Input::Arbiter`], if need be with [`Answer::Unreachable`].
    Ask(Question),
    /// Let the vCPU pass every received entry, then put the world at its doors; answer with [`Input::WentLive`].
    GoLive {
        /// The generation won.
        generation: u64,
        /// Entries of the history this side goes on from.
        entries: u64,
        /// Whether there is no backup then. If there is one (the old primary), nothing may leave before the first `Release`.
        alone: bool,
    },
    /// The guest runs here now. This is the last action: put [`Primary::from_backup`](crate::replication::primary::Primary::from_backup) in this machine's place and feed
    /// it its `Start`, which says what may leave (alone: all, those of the replayed history as well, which may or may not have left the old primary).
    /// The connection, if there is one, stays.
    BecomePrimary,
    /// For the log of the process: the primary is given up, and why.
    Suspect(Suspicion),
    /// The end: stop the machine, say why.
    Stop(StopReason),
}

/// Where a backup stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Looking for its primary, or waiting for the primary's hello.
    Connecting {
        /// When to connect again, ns; `None` while a connection is being made or stands.
        again_at: Option<u64>,
    },
    /// The boot is awaited, or the machine is being built from it.
    Loading,
    /// The state of a running guest comes in pieces.
    Receiving,
    /// The machine is given its state; the log that follows it may come already.
    Restoring,
    /// The machine stands where the log begins; the guest may not have started, or this side does not count yet.
    Ready,
    /// The guest runs; this side replays.
    Following,
    /// The guest has ended and all its output has left; this side replays to the end.
    Finishing,
    /// The primary has handed over and the arbiter is asked; nothing is acknowledged, the connection stands.
    Taking(Election),
    /// The primary is given up and the arbiter asked; nothing is acknowledged.
    Asking(Election),
    /// Won; the vCPU passes what was received.
    GoingLive,
    /// The guest runs here; a primary takes this machine's place.
    Live,
    /// The end.
    Stopped(StopReason),
}

impl State {
    /// The state's name, for `status`.
    pub fn name(&self) -> &'static str {
        match self {
            State::Connecting { .. } => "connecting",
            State::Loading => "loading",
            State::Ready => "ready",
            State::Following => "following",
            State::Finishing => "finishing",
            State::Receiving => "receiving",
            State::Restoring => "restoring",
            State::Taking(_) => "taking over",
            State::Asking(_) => "asking",
            State::GoingLive => "going live",
            State::Live => "live",
            State::Stopped(_) => "stopped",
        }
    }
}
