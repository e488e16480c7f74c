//! The network card as `smoltcp` wants to see it: tokens for a frame that has come, and for one that may go. A safepoint before
//! each frame.

use crate::buffers::{FRAME_MAX, LARGE_FRAME_MAX, Receiver, Transmitter};
use crate::nic::Nic;
use core::num::NonZero;
use lockstep_runtime::safepoint;
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, UdpPacket};

/// A frame that has come.
pub(crate) struct Incoming<'a> {
    receiver: &'a mut Receiver,
    /// The stack leaves the checksums of TCP and UDP to the card.
    checksum_in: bool,
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, use_frame: F) -> R {
        let mut connecting = false;
        let deaf = self.receiver.deaf;
        let result = self.receiver.next(|frame, vouched_for| {
            connecting = asks_for_connection(frame);
            let right = !self.checksum_in || vouched_for || checksum_is_right(frame);
            // The stack does nothing about an empty frame.
            use_frame(if right && !(connecting && deaf) { frame } else { &[] })
        });
        self.receiver.connecting |= connecting;
        result
    }
}

/// Whether this is a TCP segment over IPv4 with SYN and without ACK. What only looks like one does no harm.
fn asks_for_connection(frame: &[u8]) -> bool {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let Some(&[.., kind, kind_low, length]) = frame.first_chunk::<15>() else { return false };
    let flags = 14 + 4 * usize::from(length & 15) + 13;
    (kind, kind_low, frame.get(23)) == (8, 0, Some(&6))
        && frame.get(flags).is_some_and(|flags| flags & (SYN | ACK) == SYN)
}

/// Whether the TCP or UDP checksum of a frame for which nobody vouches is right. What is neither is left to the stack.
fn checksum_is_right(frame: &[u8]) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return true };
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return true;
    }
    let Ok(packet) = Ipv4Packet::new_checked(frame.payload()) else { return true };
    let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
    match packet.next_header() {
        IpProtocol::Tcp => TcpPacket::new_checked(packet.payload()).is_ok_and(|tcp| tcp.verify_checksum(&from, &to)),
        IpProtocol::Udp => UdpPacket::new_checked(packet.payload()).is_ok_and(|udp| udp.verify_checksum(&from, &to)),
        _ => true,
    }
}

/// Room for a frame.
pub(crate) struct Outgoing<'a> {
    transmitter: &'a mut Transmitter,
    segment: Option<NonZero<u16>>,
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.transmitter.send(length, self.segment, write)
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}

impl Device for Nic {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    /// Only together with room for an answer, which the stack wants to give at once.
    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        safepoint();
        let Nic { receiver, transmitter, offloads, .. } = self;
        (receiver.has_frame() && transmitter.ready()).then_some((
            Incoming { receiver, checksum_in: offloads.checksum_in },
            Outgoing { transmitter, segment: None },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        safepoint();
        self.transmitter.ready().then_some(Outgoing { transmitter: &mut self.transmitter, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_MAX;
        let ours = |tx| match (self.offloads.checksum_in, tx) {
            (false, true) => Checksum::Both,
            (false, false) => Checksum::Rx,
            (true, true) => Checksum::Tx,
            (true, false) => Checksum::None,
        };
        capabilities.checksum.tcp = ours(!self.offloads.checksum_out);
        capabilities.checksum.udp = ours(!self.offloads.checksum_out);
        capabilities.segmentation.tcpv4 = NonZero::new(LARGE_FRAME_MAX).filter(|_| self.offloads.large_out);
        capabilities
    }
}
