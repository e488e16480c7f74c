//! The timer: an i8254. Channel 0 drives interrupt line 0; its ticks are events from the input
//! door, at the period programmed here. Channels 1 and 2 only keep what is written to them.
//!
//! Source: Intel 8254 data sheet. A counter read answers from the guest's clock, which the caller
//! passes in: the device itself has no time.

use bincode::{Decode, Encode};
use lockstep_abi::PIT_HZ;

/// The shortest period the timer ticks at, in nanoseconds. A guest that programs a higher rate than 1,000 Hz gets 1,000 Hz.
pub const MIN_PERIOD_NS: u64 = 1_000_000;

/// One counter of the chip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct Channel {
    /// Reload value; 0 counts as 65536.
    reload: u16,
    /// Access mode: 1 low byte, 2 high byte, 3 low then high.
    access: u8,
    /// Operating mode 0–5.
    mode: u8,
    /// A reload value was written since the mode.
    loaded: bool,
    /// The low byte of a two-byte write, while the high byte is awaited.
    low_written: Option<u8>,
    /// The latched count, while it is read.
    latch: Option<u16>,
    /// The next read of a two-byte read gives the high byte.
    high_next: bool,
}

/// The chip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Pit {
    channels: [Channel; 3],
}

impl Channel {
    fn divisor(&self) -> u64 {
        if self.reload == 0 { 0x1_0000 } else { u64::from(self.reload) }
    }

    /// The count at guest time `now_ns`, counting down from the reload value at the input clock.
    fn count(&self, now_ns: u64) -> u16 {
        let ticks = (u128::from(now_ns) * u128::from(PIT_HZ) / 1_000_000_000) as u64;
        (self.divisor() - ticks % self.divisor()) as u16
    }

    fn write(&mut self, value: u8) {
        let reload = match (self.access, self.low_written) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, None) => {
                self.low_written = Some(value);
                return;
            }
            (_, Some(low)) => u16::from_le_bytes([low, value]),
        };
        self.low_written = None;
        self.reload = reload;
        self.loaded = true;
    }

    fn read(&mut self, now_ns: u64) -> u8 {
        let [low, high] = self.latch.unwrap_or_else(|| self.count(now_ns)).to_le_bytes();
        match self.access {
            1 => {
                self.latch = None;
                low
            }
            2 => {
                self.latch = None;
                high
            }
            _ if self.high_next => {
                self.high_next = false;
                self.latch = None;
                high
            }
            _ => {
                self.high_next = true;
                low
            }
        }
    }
}

impl Pit {
    /// Whether the chip can be in this state.
    pub fn is_valid(&self) -> bool {
        self.channels.iter().all(|channel| channel.access < 4 && channel.mode < 6)
    }

    /// Period of channel 0 in nanoseconds, at least [`MIN_PERIOD_NS`]; 0 while no periodic mode (2, 3) is programmed.
    pub fn period_ns(&self) -> u64 {
        let channel = &self.channels[0];
        if !channel.loaded || !matches!(channel.mode, 2 | 3) {
            return 0;
        }
        (channel.divisor() * 1_000_000_000 / PIT_HZ).max(MIN_PERIOD_NS)
    }

    /// Whether a read of port `offset` needs the clock.
    pub fn read_needs_clock(&self, offset: u16) -> bool {
        offset < 3 && self.channels[usize::from(offset)].latch.is_none()
    }

    /// Whether writing `value` to port `offset` needs the clock (it latches a count).
    pub fn write_needs_clock(&self, offset: u16, value: u8) -> bool {
        offset == 3 && value >> 6 < 3 && value & 0x30 == 0
    }

    /// Reads port `offset` (0–3) at guest time `now_ns`.
    pub fn read(&mut self, offset: u16, now_ns: u64) -> u8 {
        match offset {
            0..=2 => self.channels[usize::from(offset)].read(now_ns),
            _ => 0xff, // the mode register is write-only
        }
    }

    /// Writes port `offset` (0–3) at guest time `now_ns`.
    pub fn write(&mut self, offset: u16, value: u8, now_ns: u64) {
        if offset < 3 {
            return self.channels[usize::from(offset)].write(value);
        }
        let Some(channel) = self.channels.get_mut(usize::from(value >> 6)) else { return }; // read-back: not offered
        match value >> 4 & 3 {
            0 => channel.latch = Some(channel.count(now_ns)),
            access => {
                // Modes 6 and 7 are other spellings of 2 and 3.
                let mode = if value >> 1 & 7 > 5 { (value >> 1 & 7) - 4 } else { value >> 1 & 7 };
                *channel = Channel { access, mode, ..Channel::default() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(pit: &mut Pit, divisor: u16) {
        pit.write(3, 0x34, 0);
        let [low, high] = divisor.to_le_bytes();
        pit.write(0, low, 0);
        pit.write(0, high, 0);
    }

    #[test]
    fn period_follows_the_divisor() {
        let mut pit = Pit::default();
        assert_eq!(pit.period_ns(), 0);
        program(&mut pit, 11_932); // 100 Hz
        assert_eq!(pit.period_ns(), 10_000_150);
        program(&mut pit, 100);
        assert_eq!(pit.period_ns(), MIN_PERIOD_NS, "faster than 1,000 Hz is 1,000 Hz");
        program(&mut pit, 0);
        assert_eq!(pit.period_ns(), 54_925_401);
        pit.write(3, 0x30, 0); // mode 0: one shot
        assert_eq!(pit.period_ns(), 0);
    }

    #[test]
    fn a_latched_count_is_read_low_then_high() {
        let mut pit = Pit::default();
        program(&mut pit, 0x1000);
        assert!(pit.write_needs_clock(3, 0x00));
        pit.write(3, 0x00, 1_000_000); // 1,193 input clocks
        assert!(!pit.read_needs_clock(0));
        let count = u16::from_le_bytes([pit.read(0, 0), pit.read(0, 0)]);
        assert_eq!(count, 0x1000 - 1193);
    }
}
