//! What a log consists of, in numbers: counts and bytes by kind, its rate, and how far its entries lie
//! apart.

use super::describe::Kind;
use super::entry::{Body, Entry};
use crate::machine::packets::HEADER;

/// Buckets of [`Summary::gaps`]: one for 0 and one for each bit of a 64-bit count.
pub const GAP_BUCKETS: usize = 65;

/// Guests start with a timer of this rate; the log itself does not know the rate.
pub const ASSUMED_TICK_HZ: u64 = 100;

/// Entries of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How many.
    pub entries: u64,
    /// Their encoded bytes, without frames.
    pub bytes: u64,
}

/// Packets that passed the guest's network card one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many.
    pub packets: u64,
    /// Bytes of their Ethernet frames.
    pub bytes: u64,
}

impl Traffic {
    fn add(&mut self, packets: u64, bytes_with_headers: u64) {
        self.packets += packets;
        self.bytes += bytes_with_headers.saturating_sub(packets * HEADER as u64);
    }
}

/// What the length of a recording is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The guest's last clock read.
    Clock,
    /// The ticks, as if there had been [`ASSUMED_TICK_HZ`]: the guest hardly read its clock.
    Ticks,
}

/// Log bytes over guest time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The guest time from the log's start, in nanoseconds; never 0.
    pub span_ns: u64,
    /// Encoded bytes logged in that time, without frames.
    pub bytes: u64,
    /// What the span is known from.
    pub basis: Basis,
}

impl Rate {
    /// Bytes per second of guest time.
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 * 1e9 / self.span_ns as f64
    }
}

/// The numbers of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    kinds: [Total; Kind::ALL.len()],
    gaps: [u64; GAP_BUCKETS],
    total: Total,
    received: Traffic,
    sent: Traffic,
    last_polls: u64,
    /// What the clock showed before.
    began_ns: u64,
    /// The last clock read, and what had been logged up to and with it.
    clock_ns: u64,
    bytes_at_clock: u64,
    ticks_at_clock: u64,
}

impl Default for Summary {
    fn default() -> Self {
        Summary {
            kinds: [Total::default(); Kind::ALL.len()],
            gaps: [0; GAP_BUCKETS],
            total: Total::default(),
            received: Traffic::default(),
            sent: Traffic::default(),
            last_polls: 0,
            began_ns: 0,
            clock_ns: 0,
            bytes_at_clock: 0,
            ticks_at_clock: 0,
        }
    }
}

impl Summary {
    /// The numbers of a log that goes on where the guest has read its clock up to `clock_ns`.
    pub fn from_clock(clock_ns: u64) -> Self {
        Summary { began_ns: clock_ns, clock_ns, ..Summary::default() }
    }

    /// Counts an entry that takes up this many encoded bytes.
    pub fn add(&mut self, entry: &Entry, bytes: u64) {
        for total in [&mut self.kinds[entry.body.kind() as usize], &mut self.total] {
            total.entries += 1;
            total.bytes += bytes;
        }
        let gap = entry.at.polls.saturating_sub(self.last_polls);
        self.gaps[(64 - gap.leading_zeros()) as usize] += 1;
        self.last_polls = entry.at.polls;
        match &entry.body {
            Body::Clock(ns) => {
                self.clock_ns = *ns;
                self.bytes_at_clock = self.total.bytes;
                self.ticks_at_clock = self.kind(Kind::Tick).entries;
            }
            Body::Packets(packets) => self.received.add(packets.len() as u64, packets.bytes().len() as u64),
            Body::Sent { packets, bytes, .. } => self.sent.add((*packets).into(), (*bytes).into()),
            Body::Entropy(_)
            | Body::Tick
            | Body::Console(_)
            | Body::Output { .. }
            | Body::HostName(_)
            | Body::Asked { .. }
            | Body::Disk(_)
            | Body::Control(_)
            | Body::Digest(_)
            | Body::End(_) => {}
        }
    }

    /// The entries of one kind.
    pub fn kind(&self, kind: Kind) -> Total {
        self.kinds[kind as usize]
    }

    /// What the guest received by its network card.
    pub fn received(&self) -> Traffic {
        self.received
    }

    /// What the guest sent by its network card.
    pub fn sent(&self) -> Traffic {
        self.sent
    }

    /// Bytes of the log, all of its entries, for each byte that the guest received; `None` if it received nothing.
    pub fn log_bytes_per_received_byte(&self) -> Option<f64> {
        (self.received.bytes > 0).then(|| self.total.bytes as f64 / self.received.bytes as f64)
    }

    /// All entries.
    pub fn total(&self) -> Total {
        self.total
    }

    /// How many entries came how many polls after the one before: bucket 0 counts gaps of 0, bucket `b`
    /// those from 2^(b-1) to below 2^b.
    pub fn gaps(&self) -> &[u64; GAP_BUCKETS] {
        &self.gaps
    }

    /// Bytes over guest time; `None` where the log shows no time at all. By the clock, unless most ticks
    /// came after its last read.
    pub fn rate(&self) -> Option<Rate> {
        let ticks = self.kind(Kind::Tick).entries;
        let span_ns = self.clock_ns.saturating_sub(self.began_ns);
        if span_ns > 0 && self.ticks_at_clock >= ticks.div_ceil(2) {
            Some(Rate { span_ns, bytes: self.bytes_at_clock, basis: Basis::Clock })
        } else if ticks > 0 {
            let span_ns = ticks.saturating_mul(1_000_000_000 / ASSUMED_TICK_HZ);
            Some(Rate { span_ns, bytes: self.total.bytes, basis: Basis::Ticks })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::instant::Instant;
    use crate::machine::packets::Packets;

    fn summary(entries: &[(u64, Body, u64)]) -> Summary {
        let mut summary = Summary::default();
        for (polls, body, bytes) in entries {
            summary.add(&Entry { at: Instant::new(0, *polls), body: body.clone() }, *bytes);
        }
        summary
    }

    #[test]
    fn kinds_bytes_and_gaps_are_counted() {
        let summary = summary(&[(0, Body::Tick, 1), (1, Body::Tick, 2), (4, Body::Entropy(9), 4), (4, Body::Tick, 8)]);
        assert_eq!(summary.kind(Kind::Tick), Total { entries: 3, bytes: 11 });
        assert_eq!(summary.kind(Kind::Clock), Total::default());
        assert_eq!(summary.total(), Total { entries: 4, bytes: 15 });
        assert_eq!(summary.gaps()[..4], [2, 1, 1, 0]);
    }

    #[test]
    fn packets_are_counted_without_their_headers() {
        let mut packets = Packets::new();
        packets.push(&[0; HEADER + 60]);
        packets.push(&[0; HEADER + 40]);
        let sent = Body::Sent { packets: 3, bytes: 3 * HEADER as u32 + 200, check: 0 };
        let both = summary(&[(0, Body::Packets(packets), 106), (1, sent, 9), (2, Body::Tick, 5)]);
        assert_eq!(both.received(), Traffic { packets: 2, bytes: 100 });
        assert_eq!(both.sent(), Traffic { packets: 3, bytes: 200 });
        assert_eq!(both.log_bytes_per_received_byte(), Some(1.2));
        assert_eq!(summary(&[(2, Body::Tick, 5)]).log_bytes_per_received_byte(), None);
    }

    #[test]
    fn the_rate_is_by_the_clock_unless_most_ticks_came_after_it() {
        assert_eq!(summary(&[(0, Body::Entropy(0), 9)]).rate(), None);
        let early = [(0, Body::Clock(5), 3), (1, Body::Tick, 4), (2, Body::Tick, 4)];
        let by_ticks = Rate { span_ns: 20_000_000, bytes: 11, basis: Basis::Ticks };
        assert_eq!(summary(&early).rate(), Some(by_ticks));
        let late = [(0, Body::Tick, 4), (1, Body::Clock(1_000_000), 5), (2, Body::Tick, 6)];
        let rate = summary(&late).rate().unwrap();
        assert_eq!(rate, Rate { span_ns: 1_000_000, bytes: 9, basis: Basis::Clock });
        assert_eq!(rate.bytes_per_s(), 9000.0);
    }
}
