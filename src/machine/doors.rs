//! The two doors of the machine. Everything non-deterministic comes in through [`Inputs`];
//! everything that anybody can see goes out through [`Outputs`]. Who stands at the doors decides
//! what the machine is:
//!
//! | | inputs | outputs |
//! | --- | --- | --- |
//! | run | the world | the world |
//! | record, primary | the world, each appended to the log | appended to the log; held until released |
//! | replay, backup | the log | checked against the log |
//!
//! Going live is changing who stands at the doors of a machine that keeps running.

use super::blocks::{Completions, Requests};
use super::digest::Digest;
use super::instant::Instant;
use super::packets::{Offloads, Packets};
use super::snapshot::MachineState;

/// What can stop a machine at a door.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The log has ended here: a recording was replayed to its end.
    #[error("the log ends at {0}")]
    EndOfLog(Instant),
    /// The owner of the machine asked it to stop.
    #[error("stopped on request at {0}")]
    Requested(Instant),
    /// The execution is not the one in the log.
    #[error(transparent)]
    Diverged(#[from] Box<super::divergence::Divergence>),
    /// What stands behind the door failed (a log that cannot be read or written, say).
    #[error("{what}")]
    Failed {
        /// What could not be done.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Something that happens to the guest at an instant that somebody must choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The timer's output went up once.
    Tick,
    /// Bytes typed at the console, at most what the UART's receive FIFO has room for.
    Console(ConsoleInput),
    /// Packets reached the network card, at most as many as it has buffers for.
    Packets(Packets),
    /// Requests to the disk have come to their end.
    Disk(Completions),
    /// The operator's doing.
    Control(Control),
    /// Take a digest here (see [`Outputs::digest`]). The guest does not notice.
    Digest,
    /// Hand out the machine's state here (see [`Outputs::captured`]). The guest does not notice, and no log says so.
    Capture,
    /// Stop the machine here, on its owner's request.
    Stop,
}

/// What an operator does to a machine, on both sides of a pair at the same instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// The guest stands still from here on. (To the machine, nothing: no event comes until [`Control::Resume`].)
    Pause,
    /// It goes on.
    Resume,
    /// The machine is as at its boot, and boots.
    Reset,
    /// The other host goes on from here. (To the machine, nothing.)
    Switch,
}

/// A piece of one console client's keyboard stream. `session` and `offset` let whoever is live
/// later know how much of that stream the guest has got, so that nothing is typed twice or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleInput {
    /// The client's session: a random number it keeps across reconnects.
    pub session: u64,
    /// Position of the first byte in the session's stream.
    pub offset: u64,
    /// The bytes; never empty, never more than [`ConsoleInput::MAX`].
    pub bytes: Vec<u8>,
}

impl ConsoleInput {
    /// The most bytes one event carries: the UART's receive FIFO.
    pub const MAX: usize = 64;
}

/// What the machine tells the input door when it asks for events.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// The guest waits (in `hlt`, or at the waiting port) and no interrupt is pending: it does not go on without an event, and
    /// the door may block until there is one.
    pub idle: bool,
    /// Bytes that the UART's receive FIFO has room for.
    pub console_room: usize,
    /// Packets that the network card has buffers for.
    pub packet_room: usize,
    /// What the guest takes off its network link.
    pub offloads: Offloads,
    /// Period of the guest's timer in nanoseconds; 0 while it is not programmed.
    pub timer_period_ns: u64,
}

/// How far the guest may run before the door must be asked again. A guest-caused exit always
/// ends the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// To its next exit, or to wherever somebody rings the doorbell.
    Exit,
    /// To the safepoint with this count, or to its next exit, whichever comes first.
    Poll(u64),
}

/// The door through which anything non-deterministic gets in.
///
/// The machine asks in this order at every instant `at` where it stands: [`run_until`](Self::run_until),
/// then [`event`](Self::event), both again after every event, until there is none; then the guest runs.
pub trait Inputs {
    /// Answers a clock read at `at`: nanoseconds since boot, never less than before.
    fn clock(&mut self, at: Instant) -> Result<u64, Halt>;
    /// Answers an entropy read at `at`.
    fn entropy(&mut self, at: Instant) -> Result<u64, Halt>;
    /// Answers a read of a part of the host's name at `at`: eight bytes of it from `8 * word` on, as a little-endian number; 0 behind its end.
    fn host_name(&mut self, at: Instant, word: usize) -> Result<u64, Halt>;
    /// How far the guest may run from `at`.
    fn run_until(&mut self, at: Instant) -> Result<Until, Halt>;
    /// The next event to be delivered at exactly `at`.
    fn event(&mut self, at: Instant, ready: Readiness) -> Result<Option<Event>, Halt>;
    /// A signal interrupted the guest between two instants. `Err` stops the machine.
    fn interrupted(&mut self, at: Instant) -> Result<(), Halt>;
}

/// The door through which anything gets out.
pub trait Outputs {
    /// The guest wrote `bytes` to its console at `at`; never empty.
    fn console(&mut self, at: Instant, bytes: &[u8]) -> Result<(), Halt>;
    /// The guest sent `packets` at `at`; never none. The door may take them out.
    fn network(&mut self, at: Instant, packets: &mut Packets) -> Result<(), Halt>;
    /// The guest asks `requests` of its disk at `at`; never none. The door may take them out.
    fn disk(&mut self, at: Instant, requests: &mut Requests) -> Result<(), Halt>;
    /// The state at `at`, asked for by [`Event::Capture`]. Memory is as the state wants it until this returns.
    fn captured(&mut self, at: Instant, state: Box<MachineState>) -> Result<(), Halt>;
    /// The digest of the state at `at`, asked for by [`Event::Digest`].
    fn digest(&mut self, at: Instant, digest: Digest) -> Result<(), Halt>;
    /// The guest has ended at `at` and will not run again.
    fn ended(&mut self, at: Instant, reason: &EndReason) -> Result<(), Halt>;
}

/// Why a guest ended. All of these happen at a known instant, the same on every replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The guest wrote this code to the debug-exit port.
    Exit(u8),
    /// [`Event::Stop`] was delivered.
    Stopped,
    /// `hlt` with interrupts off: nothing can wake the guest any more.
    HaltedForever,
    /// The guest's processor shut down (triple fault).
    TripleFault,
    /// The guest's safepoint count went backwards: it does not keep the safepoint page's rules.
    SafepointsWentBack,
    /// The host's KVM could not run an instruction of the guest; the instruction pointer.
    CannotExecute(u64),
}

impl std::fmt::Display for EndReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EndReason::Exit(code) => write!(f, "the guest ended with code {code}"),
            EndReason::Stopped => write!(f, "the machine was stopped"),
            EndReason::HaltedForever => write!(f, "the guest halted with interrupts off"),
            EndReason::TripleFault => write!(f, "the guest's processor shut down (triple fault)"),
            EndReason::SafepointsWentBack => write!(f, "the guest's safepoint count went backwards"),
            EndReason::CannotExecute(rip) => write!(f, "KVM cannot execute the guest's instruction at {rip:#x}"),
        }
    }
}
