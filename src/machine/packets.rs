//! Network packets on their way through a door: a bounded batch of Ethernet frames, each behind its virtio-net header.

/// Bytes of the header before each frame (`struct virtio_net_hdr_v1`, virtio 1.2, 5.1.6). All zero where no offload was negotiated.
pub const HEADER: usize = 12;

/// What the guest takes off the hands of its link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It takes packets whose checksum is not filled in.
    pub guest_csum: bool,
    /// It takes TCP over IPv4 segments longer than the link's packets.
    pub guest_tso4: bool,
}

/// Some packets, in order, in one piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    bytes: Vec<u8>,
    /// Where each packet ends in `bytes`; ascending.
    ends: Vec<u32>,
}

impl Packets {
    /// The most packets of one batch: as many as a queue of the card has entries.
    pub const MAX_COUNT: usize = 256;
    /// The most bytes of one batch, headers included.
    pub const MAX_BYTES: usize = 256 << 10;
    /// The longest packet in bytes, header included: 64 KiB of segments to be cut up, and the Ethernet header.
    pub const MAX_PACKET: usize = HEADER + 14 + (64 << 10);
    /// The shortest: header and Ethernet header.
    pub const MIN_PACKET: usize = HEADER + 14;

    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// None yet, with memory for so many packets of so many bytes in all.
    pub fn with_capacity(count: usize, bytes: usize) -> Self {
        Packets { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(count) }
    }

    /// Whether a packet of `length` bytes, header included, is one and still fits.
    pub fn has_room(&self, length: usize) -> bool {
        (Self::MIN_PACKET..=Self::MAX_PACKET).contains(&length)
            && self.ends.len() < Self::MAX_COUNT
            && self.bytes.len() + length <= Self::MAX_BYTES
    }

    /// Adds a packet, header included. False, and nothing is added, unless it [has room](Self::has_room).
    pub fn push(&mut self, packet: &[u8]) -> bool {
        let fits = self.has_room(packet.len());
        if fits {
            self.bytes.extend_from_slice(packet);
            self.ends.push(self.bytes.len() as u32);
        }
        fits
    }

    /// Adds a packet in its two parts. False, and nothing is added, unless it [has room](Self::has_room).
    pub fn push_frame(&mut self, header: &[u8; HEADER], frame: &[u8]) -> bool {
        let fits = self.has_room(HEADER + frame.len());
        if fits {
            self.bytes.extend_from_slice(header);
            self.bytes.extend_from_slice(frame);
            self.ends.push(self.bytes.len() as u32);
        }
        fits
    }

    /// Adds a packet that `write` appends to the buffer it gets, header included. False, and nothing is added, if what it wrote
    /// does not [fit](Self::has_room) or it failed.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let start = self.bytes.len();
        let written = write(&mut self.bytes);
        let end = self.bytes.len();
        let fits = written
            && (Self::MIN_PACKET..=Self::MAX_PACKET).contains(&(end - start))
            && self.ends.len() < Self::MAX_COUNT
            && end <= Self::MAX_BYTES;
        if fits {
            self.ends.push(end as u32);
        } else {
            self.bytes.truncate(start);
        }
        fits
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All packets one after the other, headers included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Each packet, header included.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let packet = &self.bytes[start..end as usize];
            start = end as usize;
            packet
        })
    }

    /// The packet with this number, from 0 on; header included.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.bytes[start..end])
    }

    /// Forgets all, and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}
