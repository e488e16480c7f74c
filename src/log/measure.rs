//! Measures the codec. Time comes from the caller, so that this room needs no clock.

use super::codec::{CodecError, Decoder, Encoder};
use super::entry::{Body, Entry};
use crate::machine::digest::{Digest, PageCheck};
use crate::machine::doors::ConsoleInput;
use crate::machine::instant::Instant;
use crate::machine::packets::{HEADER, Packets};

/// What kind of log is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// A computing guest: two ticks, then a clock read.
    TicksAndClocks,
    /// A busy interactive guest: of 64 entries 32 outputs, 16 clock reads, 8 ticks, 6 console inputs, an
    /// entropy read, and a digest with 40 changed pages.
    Interactive,
    /// A guest with a busy network: of 8 entries 3 batches of received packets (1, 2 and 4, of 60 to 1,514 bytes), 3 of sent ones,
    /// a clock read and a tick.
    Network,
}

/// How fast the codec was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodecRates {
    /// Entries that were encoded and decoded.
    pub entries: u64,
    /// Their encoded bytes.
    pub bytes: u64,
    /// Network packets among them.
    pub packets: u64,
    /// Nanoseconds that encoding took, of the caller's clock.
    pub encode_ns: u64,
    /// Nanoseconds that decoding took, of the caller's clock.
    pub decode_ns: u64,
}

/// Why there is no measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// The codec refused an entry, or its own bytes.
    #[error("the codec refuses what it is measured with")]
    Codec(#[from] CodecError),
    /// An entry came back changed.
    #[error("entry {0} came back changed")]
    Changed(u64),
}

/// Entries per turn: as many as a vCPU or a backup would handle in one go, and few enough to stay in the
/// cache as they would there.
const TURN: usize = 4096;
/// The same of a mix with packets.
const NETWORK_TURN: usize = 256;

/// Encodes and decodes at least `entries` entries of a mix; `now_ns` reads a clock, in nanoseconds. What
/// is timed is the codec alone: making the entries and comparing the results is not.
pub fn measure_codec(mix: Mix, entries: u64, mut now_ns: impl FnMut() -> u64) -> Result<CodecRates, MeasureError> {
    let mut source = Source { mix, number: 0, at: Instant::BOOT, clock_ns: 0, offset: 0, seed: 1 };
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    let entries_per_turn = if mix == Mix::Network { NETWORK_TURN } else { TURN };
    let mut rates = CodecRates { entries: 0, bytes: 0, packets: 0, encode_ns: 0, decode_ns: 0 };
    let (mut bytes, mut decoded) = (Vec::with_capacity(TURN * 64), Vec::with_capacity(TURN));
    while rates.entries < entries {
        let turn: Vec<Entry> = (0..entries_per_turn).map(|_| source.entry()).collect();
        bytes.clear();
        let start = now_ns();
        for entry in &turn {
            encoder.encode(entry, &mut bytes)?;
        }
        rates.encode_ns += now_ns().saturating_sub(start);
        decoded.clear();
        let mut rest = &bytes[..];
        let start = now_ns();
        while !rest.is_empty() {
            decoded.push(decoder.decode(&mut rest)?);
        }
        rates.decode_ns += now_ns().saturating_sub(start);
        if decoded != turn {
            let same = decoded.iter().zip(&turn).take_while(|(a, b)| a == b).count();
            return Err(MeasureError::Changed(rates.entries + same as u64));
        }
        rates.entries += turn.len() as u64;
        rates.packets += turn.iter().map(|entry| entry.body.received().map_or(0, Packets::len) as u64).sum::<u64>();
        rates.bytes += bytes.len() as u64;
    }
    Ok(rates)
}

/// Makes up a log of the mix, the same every time.
struct Source {
    mix: Mix,
    number: u64,
    at: Instant,
    clock_ns: u64,
    offset: u64,
    seed: u64,
}

impl Source {
    /// A number that looks random (splitmix64).
    fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.seed ^ self.seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn entry(&mut self) -> Entry {
        let number = self.number;
        self.number += 1;
        let (kind, computing) = match self.mix {
            Mix::TicksAndClocks => (if number % 3 == 2 { 1 } else { 0 }, true),
            Mix::Interactive => (number % 64, false),
            Mix::Network => (number % 8, false),
        };
        // Ten milliseconds of polling between ticks; or a handful of exits between what a shell does.
        let far = 1 << (if computing { 14 + self.next() % 9 } else { self.next() % 14 });
        self.at.polls += self.next() % far;
        let body = match (self.mix, kind) {
            (Mix::TicksAndClocks, 0) => Body::Tick,
            (Mix::TicksAndClocks, _) => self.clock(10_000_000),
            (Mix::Interactive, 0) => self.digest(),
            (Mix::Interactive, 1) => Body::Entropy(self.next()),
            (Mix::Interactive, 2..8) => self.console(),
            (Mix::Interactive, 8..16) => Body::Tick,
            (Mix::Interactive, 16..32) => self.clock(300_000),
            (Mix::Network, kind @ 0..3) => self.packets(1 << kind),
            (Mix::Network, 3..6) => {
                let packets = 1 + (self.next() % 4) as u32;
                Body::Sent { packets, bytes: packets * 78, check: self.next() as u32 }
            }
            (Mix::Network, 6) => self.clock(1_000_000),
            (Mix::Network, _) => Body::Tick,
            (Mix::Interactive, _) => Body::Output { length: 1 + (self.next() % 80) as u32, check: self.next() as u32 },
        };
        // Every answer and output is an exit of its own.
        if !matches!(body, Body::Tick | Body::Console(_) | Body::Packets(_) | Body::Digest(_)) {
            self.at.exits += 1 + if computing { 0 } else { self.next() % 4 };
        }
        Entry { at: self.at, body }
    }

    fn clock(&mut self, up_to_ns: u64) -> Body {
        self.clock_ns += self.next() % up_to_ns;
        Body::Clock(self.clock_ns)
    }

    fn console(&mut self) -> Body {
        let bytes = vec![b'x'; 1 + (self.next() % 16) as usize];
        let input = ConsoleInput { session: 0x5e55_1011, offset: self.offset, bytes };
        self.offset += input.bytes.len() as u64;
        Body::Console(input)
    }

    fn packets(&mut self, count: usize) -> Body {
        let frame = [self.next() as u8; 1514];
        let mut packets = Packets::new();
        for _ in 0..count {
            packets.push_frame(&[0; HEADER], &frame[..60 + self.next() as usize % 1455]);
        }
        Body::Packets(packets)
    }

    fn digest(&mut self) -> Body {
        let mut registers = [0; 18];
        registers.fill_with(|| self.next());
        let pages = (0..40).map(|i| PageCheck { page: i * 7, check: self.next() as u16 }).collect();
        Body::Digest(Box::new(Digest {
            memory: u128::from(self.next()) << 64 | u128::from(self.next()),
            registers,
            system: 1,
            fpu: self.next(),
            devices: self.next(),
            pages,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mix_is_measured_by_the_clock_given() {
        for mix in [Mix::TicksAndClocks, Mix::Interactive, Mix::Network] {
            let mut now = 0;
            let rates = measure_codec(mix, 10_000, || {
                now += 5;
                now
            });
            let rates = rates.unwrap();
            let turns = if mix == Mix::Network { 40 } else { 3 };
            let entries = turns * if mix == Mix::Network { 256 } else { 4096 };
            assert_eq!((rates.entries, rates.encode_ns, rates.decode_ns), (entries, 5 * turns, 5 * turns));
        }
    }
}
