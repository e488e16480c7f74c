//! Who stands at the doors of the machine: the [world](live), a [log](replay), or one after the other ([turns]).

pub mod live;
pub mod replay;
pub mod turns;

use crate::machine::blocks::{Completion, Completions, Outcome, Requests};
use crate::machine::doors::{ConsoleInput, EndReason};
use crate::machine::packets::{Offloads, Packets};

/// The console behind the doors: where output goes and input comes from. Called on the vCPU thread.
pub trait Console: Send + Sync {
    /// The live guest wrote `bytes`, logged as `entry`. They may leave when that entry is safe.
    fn output(&self, entry: u64, bytes: &[u8]);
    /// Input to give to the guest, at most `room` bytes of it.
    fn take(&self, room: usize) -> Option<ConsoleInput>;
    /// `input` was given to the guest and logged as `entry`.
    fn logged(&self, input: &ConsoleInput, entry: u64);
    /// The live guest ended, logged as `entry`.
    fn ended(&self, entry: u64, reason: &EndReason);
    /// The replayed guest wrote `bytes`, which are `entry` in the log.
    fn replayed_output(&self, entry: u64, bytes: &[u8]);
    /// `input` was given to the guest out of the log, where it is `entry`.
    fn replayed_input(&self, input: &ConsoleInput, entry: u64);
}

/// The network behind the doors. Called on the vCPU thread.
pub trait Network: Send + Sync {
    /// Packets for the guest, at most `room` of them; never an empty batch.
    fn take(&self, room: usize) -> Option<Packets>;
    /// The guest takes this off its link from now on.
    fn set_offloads(&self, _offloads: Offloads) {}
    /// The live guest sent `packets`, logged as `entry`. They may leave when that entry is safe.
    fn sent(&self, entry: u64, packets: Packets);
    /// The replayed guest sent `packets`, which are `entry` in the log.
    fn replayed_sent(&self, entry: u64, packets: &Packets);
}

/// The network of a machine without a card, or of a replay that nobody watches.
pub struct NoNetwork;

impl Network for NoNetwork {
    fn take(&self, _: usize) -> Option<Packets> {
        None
    }

    fn sent(&self, _: u64, _: Packets) {}

    fn replayed_sent(&self, _: u64, _: &Packets) {}
}

/// The disk behind the doors. Called on the vCPU thread.
pub trait Disk: Send + Sync {
    /// The live guest asks for `requests`, logged as `entry`. Those that change an image which both hosts reach are carried out when
    /// that entry is safe. The order in which overlapping requests were asked for is kept.
    fn submit(&self, entry: u64, requests: Requests);
    /// What has come to its end, in any order; never an empty batch. Every read has its bytes.
    fn take(&self) -> Option<Completions>;
    /// Whether changes wait until their entry is safe.
    fn holds_changes(&self) -> bool {
        true
    }
    /// Whether the backup reads by itself what this side has read: the log then carries a check instead of the bytes.
    fn backup_reads(&self) -> bool {
        false
    }
    /// These completions were given to the live guest, logged as `entry`.
    fn completed(&self, _entry: u64, _completions: &Completions) {}
    /// The replayed guest asks for `requests`, which are `entry` in the log.
    fn replayed(&self, entry: u64, requests: &mut Requests);
    /// The log, at `entry`, says that these requests have come to their end. Bytes that the log left to this side are filled in, which may
    /// take a while.
    fn replayed_completed(&self, entry: u64, completions: &mut Completions) -> Result<(), DiskReplayError>;
}

/// Why a replay cannot go on with what the log says of the disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskReplayError {
    /// The log leaves reads to whoever replays it, and there is no disk here.
    #[error("the log has left what was read from the disk to the backup, and there is no such disk here")]
    NoDisk,
    /// The log leaves reads to whoever replays it, and this side was not told to make any.
    #[error("the primary leaves reads to its backup: say reads=backup with --disk on this host, too")]
    NotHere,
    /// This side reads something else than the primary has read.
    #[error("this host reads other bytes from the disk than the primary did (request {0})")]
    OtherBytes(u64),
    /// This side cannot read.
    #[error("cannot read from the disk")]
    Read(#[source] std::io::Error),
    /// The log speaks of a request that was not made.
    #[error("the log says that disk request {0} has come to its end, which was not made")]
    NoSuchRequest(u64),
}

/// The disk of a machine that has none, or of a replay out of a file that carries all that was read.
pub struct NoDisk;

impl Disk for NoDisk {
    fn submit(&self, _: u64, _: Requests) {}

    fn take(&self) -> Option<Completions> {
        None
    }

    fn replayed(&self, _: u64, _: &mut Requests) {}

    fn replayed_completed(&self, _: u64, completions: &mut Completions) -> Result<(), DiskReplayError> {
        let elsewhere = |completion: &Completion| matches!(completion.outcome, Outcome::ReadElsewhere { .. });
        if completions.iter().any(elsewhere) { Err(DiskReplayError::NoDisk) } else { Ok(()) }
    }
}

/// What stands behind the doors.
#[derive(Clone)]
pub struct Behind {
    /// The console.
    pub console: std::sync::Arc<dyn Console>,
    /// The network.
    pub network: std::sync::Arc<dyn Network>,
    /// The disk.
    pub disk: std::sync::Arc<dyn Disk>,
}

impl Behind {
    /// A console, no network and no disk.
    pub fn console(console: std::sync::Arc<dyn Console>) -> Self {
        Behind { console, network: std::sync::Arc::new(NoNetwork), disk: std::sync::Arc::new(NoDisk) }
    }
}

impl Console for crate::console::hub::Hub {
    fn output(&self, entry: u64, bytes: &[u8]) {
        self.output(entry, bytes);
    }

    fn take(&self, room: usize) -> Option<ConsoleInput> {
        self.take_input(room.min(ConsoleInput::MAX))
    }

    fn logged(&self, input: &ConsoleInput, entry: u64) {
        self.input_logged(input, entry);
    }

    fn ended(&self, entry: u64, reason: &EndReason) {
        self.ended(entry, reason);
    }

    fn replayed_output(&self, entry: u64, bytes: &[u8]) {
        self.replayed_output(entry, bytes);
    }

    fn replayed_input(&self, input: &ConsoleInput, entry: u64) {
        if let Err(error) = self.replayed_input(input, entry) {
            // The log passed its checks, so its writer broke the numbering; the guest is not touched by it.
            tracing::warn!(%error, entry, "console input in the log is out of order");
        }
    }
}
