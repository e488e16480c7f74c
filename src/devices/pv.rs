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

    /// The wall clock at boot, in nanoseconds since 1970 UTC.
    pub fn boot_time_ns(&self) -> u64 {
        self.boot_time_ns
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::world::World;
    use crate::doors::Behind;
    use crate::doors::live::{LiveDoor, NoLog};
    use crate::machine::memory;
    use crate::machine::safepoint::Safepoints;

    /// What a guest reads of the name.
    fn read(name: &str) -> Vec<u8> {
        let world = World::new(Safepoints::new(memory::map(memory::MIN).unwrap()), 0, 0);
        world.set_host_name(name);
        let console = std::sync::Arc::new(crate::console::hub::Hub::new("v", "h", 0));
        let mut door = LiveDoor::new(world, Behind::console(console), NoLog, u64::MAX);
        let mut bytes = Vec::new();
        for word in 0..=pv::HOST_NAME_WORDS {
            let mut data = [0; 8];
            Pv::new(0).read(Instant::BOOT, pv::HOST_NAME + 8 * word, &mut data, &mut door).unwrap();
            bytes.extend(data);
        }
        bytes
    }

    #[test]
    fn the_host_name_is_read_in_eight_registers_with_zeros_behind_it() {
        let nothing = [0xff; 8];
        assert_eq!(read("alpha"), [&b"alpha"[..], &[0; 59], &nothing].concat());
        let long = "é".repeat(40);
        assert_eq!(read(&long), [&long.as_bytes()[..64], &nothing].concat());
        let odd = format!("x{long}");
        assert_eq!(read(&odd), [&odd.as_bytes()[..63], &[0], &nothing].concat(), "cut between two characters");
    }
}
