//! What goes with the pages: the rest of a machine's state, as the payload of a State frame (bincode, bounded).

use bincode::config::{Configuration, standard};
use bincode::{Decode, Encode};

use crate::console::state::ConsoleState;
use crate::log::codec::Encoder;
use crate::machine::snapshot::MachineState;

/// All of a guest but its memory and its disk, between two entries of its log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GuestState {
    /// The machine's.
    pub machine: MachineState,
    /// The log's: an encoder that would write the next entry.
    pub position: Encoder,
    /// What the guest's clock shows, nanoseconds since boot.
    pub guest_clock_ns: u64,
    /// The console's.
    pub console: ConsoleState,
}

/// Why bytes are no state.
#[derive(Debug, thiserror::Error)]
pub enum StateBytesError {
    /// bincode cannot read them.
    #[error("the state of a guest cannot be read")]
    Decode(#[source] bincode::error::DecodeError),
    /// Bytes are left over behind it.
    #[error("{0} bytes behind the state of a guest")]
    Trailing(usize),
}

/// The most bytes that reading a state may allocate.
const LIMIT: usize = 8 << 20;
const CONFIG: Configuration = standard();

impl GuestState {
    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, CONFIG).expect("encoding to memory")
    }

    /// The state in these bytes, all of them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateBytesError> {
        let (state, used) =
            bincode::decode_from_slice(bytes, CONFIG.with_limit::<LIMIT>()).map_err(StateBytesError::Decode)?;
        if used < bytes.len() { Err(StateBytesError::Trailing(bytes.len() - used)) } else { Ok(state) }
    }
}
