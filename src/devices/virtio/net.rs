//! The network card.

use bincode::{Decode, Encode};

use crate::machine::memory::Memory;
use crate::machine::packets::Packets;
use crate::machine::snapshot::NicConfig;

/// The network card.
pub struct Nic {
    config: NicConfig,
}

/// The card's state, for digests (and, with state transfer, for snapshots).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NicState {
    config: NicConfig,
}

impl Nic {
    /// A card as after power-on.
    pub fn new(config: NicConfig) -> Self {
        Nic { config }
    }

    /// The guest reads at `offset` in the card's slot.
    pub fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// The guest writes at `offset` in the card's slot. True: it has notified a queue, and [`transmit`](Self::transmit) is due.
    pub fn write(&mut self, _offset: u64, _data: &[u8], _memory: &Memory) -> bool {
        false
    }

    /// Packets that the guest has made receive buffers available for.
    pub fn room(&self, _memory: &Memory) -> usize {
        0
    }

    /// Takes what the guest has queued for sending, as far as it fits into `packets`, which is empty before. Call again until it
    /// stays empty.
    pub fn transmit(&mut self, _memory: &Memory, _packets: &mut Packets) {}

    /// Puts packets into receive buffers, as far as there are any.
    pub fn receive(&mut self, _memory: &Memory, _packets: &Packets) {}

    /// Whether the interrupt line has pulsed since the last call.
    pub fn take_edge(&mut self) -> bool {
        false
    }

    /// The state.
    pub fn state(&self) -> NicState {
        NicState { config: self.config }
    }
}
