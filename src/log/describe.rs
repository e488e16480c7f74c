//! One line of words for what an entry says, for `lockstep log` and for reports of a divergence.

use super::entry::Body;
use crate::machine::blocks::Outcome;
use crate::machine::digest::REGISTER_NAMES;
use std::fmt;

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Body::Clock`].
    Clock,
    /// [`Body::Entropy`].
    Entropy,
    /// [`Body::Tick`].
    Tick,
    /// [`Body::Console`].
    Console,
    /// [`Body::Output`].
    Output,
    /// [`Body::Digest`].
    Digest,
    /// [`Body::End`].
    End,
    /// [`Body::Packets`].
    Packets,
    /// [`Body::Sent`].
    Sent,
    /// [`Body::HostName`].
    HostName,
    /// [`Body::Asked`].
    Asked,
    /// [`Body::Disk`].
    Disk,
    /// [`Body::Control`].
    Control,
}

impl Kind {
    /// All kinds, in the order in which the byte format numbers them.
    pub const ALL: [Kind; 13] = [
        Kind::Clock,
        Kind::Entropy,
        Kind::Tick,
        Kind::Console,
        Kind::Output,
        Kind::Digest,
        Kind::End,
        Kind::Packets,
        Kind::Sent,
        Kind::HostName,
        Kind::Asked,
        Kind::Disk,
        Kind::Control,
    ];

    /// The name under which `lockstep log` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Clock => "clock",
            Kind::Entropy => "entropy",
            Kind::Tick => "tick",
            Kind::Console => "console",
            Kind::Output => "output",
            Kind::Packets => "packets",
            Kind::Sent => "sent",
            Kind::HostName => "host",
            Kind::Asked => "asked",
            Kind::Disk => "disk",
            Kind::Control => "control",
            Kind::Digest => "digest",
            Kind::End => "end",
        }
    }
}

impl Body {
    /// The kind of this body.
    #[inline]
    pub fn kind(&self) -> Kind {
        match self {
            Body::Clock(_) => Kind::Clock,
            Body::Entropy(_) => Kind::Entropy,
            Body::Tick => Kind::Tick,
            Body::Console(_) => Kind::Console,
            Body::Output { .. } => Kind::Output,
            Body::Packets(_) => Kind::Packets,
            Body::Sent { .. } => Kind::Sent,
            Body::HostName(_) => Kind::HostName,
            Body::Asked { .. } => Kind::Asked,
            Body::Disk(_) => Kind::Disk,
            Body::Control(_) => Kind::Control,
            Body::Digest(_) => Kind::Digest,
            Body::End(_) => Kind::End,
        }
    }
}

/// What the entry says beyond its kind, in words; empty for a tick. Control characters are escaped.
pub fn details(body: &Body) -> String {
    match body {
        Body::Clock(ns) => format!("{}.{:09} s", ns / 1_000_000_000, ns % 1_000_000_000),
        Body::Entropy(value) => format!("{value:#018x}"),
        Body::Tick => String::new(),
        Body::Console(input) => {
            format!("session {:016x} offset {} \"{}\"", input.session, input.offset, input.bytes.escape_ascii())
        }
        Body::Output { length, check } => format!("{length} byte{} check {check:08x}", plural(*length)),
        Body::Packets(packets) => {
            let count = packets.len() as u32;
            format!("{count} packet{} {} bytes", plural(count), packets.bytes().len())
        }
        Body::Sent { packets, bytes, check } => {
            format!("{packets} packet{} {bytes} bytes check {check:08x}", plural(*packets))
        }
        Body::Asked { requests, bytes, check } => {
            format!("{requests} request{} {bytes} bytes to write check {check:08x}", plural(*requests))
        }
        Body::Disk(completions) => {
            let failed = completions.iter().filter(|c| c.outcome == Outcome::Failed).count();
            let read: usize = completions.iter().map(|c| read_bytes(&c.outcome)).sum();
            let count = completions.len() as u32;
            format!("{count} request{} done {failed} failed {read} bytes read", plural(count))
        }
        Body::Control(control) => format!("{control:?}").to_lowercase(),
        Body::HostName(word) => format!("\"{}\"", host_name_part(*word).escape_ascii()),
        Body::Digest(digest) => {
            let rip = REGISTER_NAMES.iter().zip(digest.registers).find(|(name, _)| **name == "rip");
            let (pages, rip) = (digest.pages.len(), rip.map_or(0, |(_, value)| value));
            format!("memory {:032x} rip {rip:#x} {pages} changed page{}", digest.memory, plural(pages as u32))
        }
        Body::End(reason) => reason.to_string(),
    }
}

fn read_bytes(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Read(bytes) => bytes.len(),
        Outcome::ReadElsewhere { bytes, .. } => *bytes as usize,
        Outcome::Done | Outcome::Failed => 0,
    }
}

/// The whole entry but its instant: kind and [`details`].
pub fn describe(body: &Body) -> String {
    body.to_string()
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Tick => f.write_str(Kind::Tick.name()),
            body => write!(f, "{} {}", body.kind().name(), details(body)),
        }
    }
}

/// The bytes of a part of the host's name, without what fills it up.
pub fn host_name_part(word: u64) -> Vec<u8> {
    let mut part = word.to_le_bytes().to_vec();
    part.truncate(8 - word.leading_zeros() as usize / 8);
    part
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::doors::{ConsoleInput, EndReason};

    #[test]
    fn every_kind_reads_as_one_line_without_control_characters() {
        let typed = ConsoleInput { session: 0xbeef, offset: 7, bytes: b"ls \"\x1b[A\xff\r".to_vec() };
        let lines = [
            (Body::Clock(1_000_000_042), "clock 1.000000042 s"),
            (Body::Entropy(0xabc), "entropy 0x0000000000000abc"),
            (Body::Tick, "tick"),
            (Body::Console(typed), r#"console session 000000000000beef offset 7 "ls \"\x1b[A\xff\r""#),
            (Body::Output { length: 1, check: 0x2a }, "output 1 byte check 0000002a"),
            (Body::HostName(u64::from_le_bytes(*b"al\"pha\n\0")), r#"host "al\"pha\n""#),
            (Body::End(EndReason::Exit(3)), "end the guest ended with code 3"),
        ];
        for (body, line) in lines {
            assert_eq!(describe(&body), line);
        }
    }
}
