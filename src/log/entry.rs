//! Log entries: everything non-deterministic that happened to a guest, and what it did that can be
//! checked, in order.

use crate::machine::blocks::{Ask, Completions, Request};
use crate::machine::digest::Digest;
use crate::machine::doors::{ConsoleInput, Control, EndReason};
use crate::machine::instant::Instant;
use crate::machine::packets::Packets;

/// One entry of the log. Entries are numbered from 0; instants never decrease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where in the execution it happened.
    pub at: Instant,
    /// What happened.
    pub body: Body,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Answer: the guest read the clock and got this, nanoseconds since boot. Never decreases.
    Clock(u64),
    /// Answer: the guest read entropy and got this.
    Entropy(u64),
    /// Event: the timer ticked.
    Tick,
    /// Event: console input reached the UART.
    Console(ConsoleInput),
    /// Output: the guest wrote to its console.
    Output {
        /// How many bytes.
        length: u32,
        /// Low 32 bits of the XXH3 of the bytes.
        check: u32,
    },
    /// Event: packets reached the network card; never none.
    Packets(Packets),
    /// Output: the guest sent packets.
    Sent {
        /// How many; never 0.
        packets: u32,
        /// How many bytes, headers included.
        bytes: u32,
        /// Low 32 bits of the XXH3 of the bytes.
        check: u32,
    },
    /// Answer: the guest read this part of the host's name, eight bytes as a little-endian number.
    HostName(u64),
    /// Output: the guest asked this of its disk.
    Asked {
        /// How many requests; never 0.
        requests: u32,
        /// How many bytes they write.
        bytes: u32,
        /// Low 32 bits of an XXH3 over all of them.
        check: u32,
    },
    /// Event: requests to the disk came to their end; never none.
    Disk(Completions),
    /// Event: the operator's doing.
    Control(Control),
    /// Check: the machine's state here.
    Digest(Box<Digest>),
    /// The guest ended here. Always the last entry.
    End(EndReason),
}

impl Body {
    /// The packets that reached the card, if it is that.
    pub fn received(&self) -> Option<&Packets> {
        if let Body::Packets(packets) = self { Some(packets) } else { None }
    }

    /// The entry of these packets as an output.
    pub fn sent(packets: &Packets) -> Body {
        let bytes = packets.bytes();
        Body::Sent { packets: packets.len() as u32, bytes: bytes.len() as u32, check: output_check(bytes) }
    }
}

impl Body {
    /// The entry of these requests as an output.
    pub fn asked(requests: &[Request]) -> Body {
        let mut hash = xxhash_rust::xxh3::Xxh3Default::new();
        let mut bytes = 0;
        for request in requests {
            let (kind, flag) = match &request.ask {
                Ask::Read { .. } => (0u8, false),
                Ask::Write { .. } => (1, false),
                Ask::Flush => (2, false),
                Ask::Discard { .. } => (3, false),
                Ask::WriteZeroes { may_unmap, .. } => (4, *may_unmap),
            };
            let (start, length) = request.ask.extent().unwrap_or_default();
            hash.update(&[kind, flag.into()]);
            for word in [request.id, start, length] {
                hash.update(&word.to_le_bytes());
            }
            if let Ask::Write { data, .. } = &request.ask {
                hash.update(data);
                bytes += data.len() as u32;
            }
        }
        Body::Asked { requests: requests.len() as u32, bytes, check: hash.digest() as u32 }
    }
}

/// The check of an [`Output`](Body::Output) or [`Sent`](Body::Sent) entry: low 32 bits of the XXH3 of the bytes.
pub fn output_check(bytes: &[u8]) -> u32 {
    xxhash_rust::xxh3::xxh3_64(bytes) as u32
}
