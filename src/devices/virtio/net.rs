//! The network card: virtio-net (virtio 1.2, section 5.1) with one receive and one transmit queue. A packet is one chain of
//! descriptors and begins with its 12-byte header. The card has no memory of its own: what the guest sends goes straight from its
//! buffers into the batch that leaves, and what it receives straight from the batch into its buffers.

use bincode::{Decode, Encode};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::buffers::{self, Buffer};
use super::misuse::{Misuse, StateError};
use super::mmio::{Identity, Request, Transport, TransportState};
use super::reach::Reach;
use super::ring::{Direction, MAX_SIZE};
use crate::machine::memory::Memory;
use crate::machine::packets::{HEADER, Offloads, Packets};
use crate::machine::snapshot::NicConfig;

/// Kind of device: a network card.
const DEVICE_ID: u32 = 1;
/// The receive queue.
const RX: usize = 0;
/// The transmit queue.
const TX: usize = 1;

const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const GUEST_TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
const HOST_TSO4: u64 = 1 << VIRTIO_NET_F_HOST_TSO4;

/// Version of [`NicState`].
const STATE_VERSION: u32 = 1;

/// The network card.
pub struct Nic {
    config: NicConfig,
    transport: Transport<2>,
    counters: Counters,
    /// The buffers of the chain at hand: kept for its memory.
    buffers: Vec<Buffer>,
}

/// The card's state, for digests (and, with state transfer, for snapshots).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NicState {
    version: u32,
    config: NicConfig,
    transport: TransportState<2>,
    counters: Counters,
}

impl NicState {
    /// The card as the guest finds it.
    pub fn config(&self) -> NicConfig {
        self.config
    }
}

/// What the card has done since power-on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Counters {
    /// Packets taken from the guest.
    pub sent: u64,
    /// Chains of the guest that were no packet: too short or too long.
    pub send_dropped: u64,
    /// Packets put into the guest's buffers.
    pub received: u64,
    /// Packets for the guest that found no buffer, none that was long enough, or a guest that had not agreed to their offload.
    pub receive_dropped: u64,
}

impl Nic {
    /// A card as after power-on.
    pub fn new(config: NicConfig) -> Self {
        Nic {
            config,
            transport: Transport::new(identity(config)),
            counters: Counters::default(),
            buffers: Vec::with_capacity(MAX_SIZE.into()),
        }
    }

    /// The card in `state`.
    pub fn from_state(state: &NicState) -> Result<Self, StateError> {
        if state.version != STATE_VERSION {
            return Err(StateError::Version(state.version));
        }
        let transport = Transport::from_state(identity(state.config), &state.transport)?;
        Ok(Nic { transport, counters: state.counters, ..Nic::new(state.config) })
    }

    /// The state.
    pub fn state(&self) -> NicState {
        NicState {
            version: STATE_VERSION,
            config: self.config,
            transport: self.transport.state(),
            counters: self.counters,
        }
    }

    /// The guest reads at `offset` in the card's slot.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.read(offset, data);
    }

    /// The guest writes at `offset` in the card's slot. True: it has notified the transmit queue, and [`transmit`](Self::transmit) is due.
    pub fn write(&mut self, offset: u64, data: &[u8], memory: &Memory) -> bool {
        let memory = &Reach::new(memory);
        match self.transport.write(offset, data, memory) {
            None => false,
            // Receive buffers are seen at the next exit, which this one is.
            Some(Request::Look(queue)) => queue == TX,
            Some(Request::Start) => {
                let asked = self.transport.ring_mut(RX).do_without_notification(memory);
                if let Err(misuse) = asked.and_then(|()| self.transport.ring_mut(TX).ask_for_notification(memory)) {
                    self.transport.fail(misuse);
                }
                false
            }
        }
    }

    /// Packets that the guest has made receive buffers available for. Cheap: called at every instant.
    pub fn room(&self, memory: &Memory) -> usize {
        if self.transport.live() { self.transport.ring(RX).available(&Reach::new(memory)) } else { 0 }
    }

    /// Takes what the guest has queued for sending, as far as it fits into `packets`, which is empty before. Call again until it
    /// stays empty.
    pub fn transmit(&mut self, memory: &Memory, packets: &mut Packets) {
        if !self.transport.live() {
            return;
        }
        match self.take_chains(&Reach::new(memory), packets) {
            Ok(false) => {}
            Ok(true) => self.transport.interrupt(),
            Err(misuse) => self.transport.fail(misuse),
        }
    }

    /// Puts packets into receive buffers, one chain each, as far as there are any; the rest is dropped.
    pub fn receive(&mut self, memory: &Memory, packets: &Packets) {
        let before = self.counters.received;
        if self.transport.live() {
            match self.fill_chains(&Reach::new(memory), packets) {
                Ok(false) => {}
                Ok(true) => self.transport.interrupt(),
                Err(misuse) => self.transport.fail(misuse),
            }
        }
        self.counters.receive_dropped += packets.len() as u64 - (self.counters.received - before);
    }

    /// Whether the interrupt line has pulsed since the last call.
    pub fn take_edge(&mut self) -> bool {
        self.transport.take_edge()
    }

    /// What the guest has agreed to. Changes only with a write to the card's registers.
    pub fn offloads(&self) -> Offloads {
        let features = self.transport.negotiated();
        Offloads { guest_csum: features & GUEST_CSUM != 0, guest_tso4: features & GUEST_TSO4 != 0 }
    }

    /// Why the card needs a reset, if it does.
    pub fn misuse(&self) -> Option<Misuse> {
        self.transport.misuse()
    }

    /// What the card has done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether the guest wants an interrupt.
    fn take_chains(&mut self, memory: &Reach, packets: &mut Packets) -> Result<bool, Misuse> {
        let features = self.transport.negotiated();
        let ring = self.transport.ring_mut(TX);
        let mut taken = false;
        // Bounded, even if the guest laid its rings such that giving a chain back makes another one available.
        for _ in 0..MAX_SIZE {
            let Some(chain) = ring.pop(memory, Direction::FromDriver, &mut self.buffers)? else { break };
            if (Packets::MIN_PACKET..=Packets::MAX_PACKET).contains(&chain.length) {
                if !packets.has_room(chain.length) {
                    ring.put_back();
                    break;
                }
                let whole = packets.push_with(|bytes| gather(memory, &self.buffers, bytes, features));
                if !whole {
                    return Err(Misuse::Buffer);
                }
                self.counters.sent += 1;
            } else {
                self.counters.send_dropped += 1;
            }
            ring.complete(memory, chain.head, 0)?;
            taken = true;
        }
        if !taken {
            return Ok(false);
        }
        ring.ask_for_notification(memory)?;
        ring.interrupt_wanted(memory)
    }

    /// Whether the guest wants an interrupt.
    fn fill_chains(&mut self, memory: &Reach, packets: &Packets) -> Result<bool, Misuse> {
        let offloads = self.offloads();
        let ring = self.transport.ring_mut(RX);
        let before = self.counters.received;
        for packet in packets.iter() {
            let Some(header) = header_to_guest(packet, offloads) else { continue };
            let Some(chain) = ring.pop(memory, Direction::ToDriver, &mut self.buffers)? else { break };
            if chain.length < packet.len() {
                ring.put_back();
                continue;
            }
            buffers::scatter(memory, &self.buffers, &[&header, &packet[HEADER..]])?;
            ring.complete(memory, chain.head, packet.len())?;
            self.counters.received += 1;
        }
        if self.counters.received == before {
            return Ok(false);
        }
        ring.interrupt_wanted(memory)
    }
}

fn identity(config: NicConfig) -> Identity {
    let mut features = 1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | 1 << VIRTIO_NET_F_MAC
        | 1 << VIRTIO_NET_F_MTU
        | 1 << VIRTIO_NET_F_STATUS;
    if config.offloads {
        features |= CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4;
    }
    // struct virtio_net_config: mac, status, max_virtqueue_pairs (there is no multiqueue), mtu.
    let mut bytes = config.mac.to_vec();
    bytes.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(config.mtu.to_le_bytes());
    Identity { device_id: DEVICE_ID, features, needs: &[(GUEST_TSO4, GUEST_CSUM), (HOST_TSO4, CSUM)], config: bytes }
}

// Offsets in struct virtio_net_hdr_v1.
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const HDR_LEN: usize = 2;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;
const NUM_BUFFERS: usize = 10;

/// The header that the guest gets before a packet. `None`: the packet needs an offload that it has not agreed to.
fn header_to_guest(packet: &[u8], offloads: Offloads) -> Option<[u8; HEADER]> {
    let mut header: [u8; HEADER] = packet.first_chunk().copied()?;
    let checksum_missing = u32::from(header[FLAGS]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    let segments = u32::from(header[GSO_TYPE]) & !VIRTIO_NET_HDR_GSO_ECN;
    let agreed = match segments {
        VIRTIO_NET_HDR_GSO_NONE => !checksum_missing || offloads.guest_csum,
        // Segments with congestion marks (GUEST_ECN) are not on offer.
        VIRTIO_NET_HDR_GSO_TCPV4 => offloads.guest_tso4 && u32::from(header[GSO_TYPE]) == segments,
        _ => false,
    };
    if !agreed {
        return None;
    }
    if offloads.guest_csum {
        header[FLAGS] &= (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID) as u8;
    } else {
        header.fill(0);
    }
    header[NUM_BUFFERS..].copy_from_slice(&1u16.to_le_bytes());
    Some(header)
}

/// Makes the header that the guest wrote one that the outside can trust: all zero, but for a checksum to be filled in within the frame and,
/// with that, segments to be cut.
fn clean_header(packet: &mut [u8], features: u64) {
    let (header, frame) = packet.split_at_mut(HEADER);
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (start, offset, segment) = (field(CSUM_START), field(CSUM_OFFSET), field(GSO_SIZE));
    let checksum = features & CSUM != 0 && u32::from(header[FLAGS]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    let segments = features & HOST_TSO4 != 0 && u32::from(header[GSO_TYPE]) == VIRTIO_NET_HDR_GSO_TCPV4 && segment > 0;
    header.fill(0);
    if !checksum || usize::from(start) + usize::from(offset) + 2 > frame.len() {
        return;
    }
    header[FLAGS] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    header[CSUM_START..CSUM_OFFSET].copy_from_slice(&start.to_le_bytes());
    header[CSUM_OFFSET..NUM_BUFFERS].copy_from_slice(&offset.to_le_bytes());
    // The TCP header's length, which its data offset says, ends the headers; the field is a hint, and not taken from the guest.
    let headers = frame.get(usize::from(start) + 12).map(|offset| usize::from(start) + usize::from(offset >> 4) * 4);
    if let Some(headers) = headers.filter(|&headers| segments && headers < frame.len()) {
        header[GSO_TYPE] = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
        header[HDR_LEN..GSO_SIZE].copy_from_slice(&(headers as u16).to_le_bytes());
        header[GSO_SIZE..CSUM_START].copy_from_slice(&segment.to_le_bytes());
    }
}

/// Appends the contents of `buffers`, a whole packet, to `bytes`. False: memory was not there.
fn gather(memory: &Reach, buffers: &[Buffer], bytes: &mut Vec<u8>, features: u64) -> bool {
    let start = bytes.len();
    let read = buffers::gather(memory, buffers, bytes).is_ok();
    if read {
        clean_header(&mut bytes[start..], features);
    }
    read
}
