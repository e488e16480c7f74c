//! Who stands at the doors of the machine: the [world](live), a [log](replay), or first the one and then the other
//! ([takeover]).

pub mod live;
pub mod replay;
pub mod takeover;

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

/// What stands behind the doors.
#[derive(Clone)]
pub struct Behind {
    /// The console.
    pub console: std::sync::Arc<dyn Console>,
    /// The network.
    pub network: std::sync::Arc<dyn Network>,
}

impl Behind {
    /// A console and no network.
    pub fn console(console: std::sync::Arc<dyn Console>) -> Self {
        Behind { console, network: std::sync::Arc::new(NoNetwork) }
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
