//! The paravirtual page: clock, entropy, and where the guest's safepoint page is. See `lockstep-abi`.

use bincode::{Decode, Encode};
use lockstep_abi::pv;

use crate::machine::doors::{Halt, Inputs};
use crate::machine::instant::Instant;

/// The page's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Pv {
    /// Guest-physical address of the safepoint page; 0: none.
    pub safepoint_page: u64,
    boot_time_ns: u64,
}

impl Pv {
    /// The page of a machine that booted at `boot_time_ns` since 1970 UTC.
    pub fn new(boot_time_ns: u64) -> Self {
        Pv { safepoint_page: 0, boot_time_ns }
    }

    /// Sets the wall clock at boot.
    pub fn set_boot_time(&mut self, boot_time_ns: u64) {
        self.boot_time_ns = boot_time_ns;
    }

    /// Reads at `offset` into `data`. Anything but a whole register reads as all ones.
    pub fn read(&self, at: Instant, offset: u64, data: &mut [u8], door: &mut impl Inputs) -> Result<(), Halt> {
        data.fill(0xff);
        let Ok(register) = <&mut [u8; 8]>::try_from(data) else { return Ok(()) };
        *register = match offset {
            pv::CLOCK_NS => door.clock(at)?,
            pv::ENTROPY => door.entropy(at)?,
            offset if let Some(word) = host_name_word(offset) => door.host_name(at, word)?,
            pv::BOOT_TIME_NS => self.boot_time_ns,
            pv::IDENTITY => pv::MAGIC,
            pv::SAFEPOINT_PAGE => self.safepoint_page,
            _ => return Ok(()),
        }
        .to_le_bytes();
        Ok(())
    }

    /// The safepoint page that a write of `data` at `offset` asks for, if that is what it is.
    pub fn asks_for_page(&self, offset: u64, data: &[u8]) -> Option<u64> {
        (offset == pv::SAFEPOINT_PAGE).then(|| data.try_into().ok().map(u64::from_le_bytes)).flatten()
    }
}

/// Which part of the host's name the register at this offset is.
fn host_name_word(offset: u64) -> Option<usize> {
    let word = offset.checked_sub(pv::HOST_NAME)? / 8;
    (offset.is_multiple_of(8) && word < pv::HOST_NAME_WORDS).then_some(word as usize)
}
