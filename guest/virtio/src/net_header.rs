//! `struct virtio_net_hdr` of a version 1 device (virtio 1.2, section 5.1.6), before each frame: what is left to the other side to do
//! about the frame's checksum and size. All zeros: nothing.

use core::num::NonZero;

/// Its size.
pub const BYTES: usize = 12;

/// Flag: the checksum is that of the pseudo header, and the rest is to be added.
const NEEDS_CHECKSUM: u8 = 1;
/// Flag: the device has found the checksum right.
const DATA_VALID: u8 = 2;
/// To be cut into TCP segments over IPv4.
const GSO_TCPV4: u8 = 1;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Whether whoever sent the frame behind this header vouches for its TCP or UDP checksum.
pub fn vouched_for(header: &[u8; BYTES]) -> bool {
    header[0] & (NEEDS_CHECKSUM | DATA_VALID) != 0
}

/// Leaves the checksum of a TCP or UDP packet over IPv4 (without options) to the device, and with `segment`, the most data bytes of a
/// segment, cutting a TCP packet into segments. Other frames stay as they are.
pub fn delegate(header: &mut [u8; BYTES], frame: &mut [u8], segment: Option<NonZero<u16>>) {
    *header = [0; BYTES];
    const START: usize = ETHERNET + IPV4;
    let Some((head, transport)) = frame.split_at_mut_checked(START) else { return };
    if head[12..15] != [0x08, 0x00, 0x45] {
        return;
    }
    let protocol = head[23];
    let (offset, headers) = match (protocol, transport.len()) {
        (TCP, 20..) => (16, usize::from(transport[12] >> 4) * 4),
        (UDP, 8..) => (6, 8),
        _ => return,
    };
    // The pseudo header: addresses, protocol, length.
    let mut sum = u32::from(protocol) + transport.len() as u32;
    for word in head[26..34].as_chunks().0 {
        sum += u32::from(u16::from_be_bytes(*word));
    }
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    transport[offset..offset + 2].copy_from_slice(&(sum as u16).to_be_bytes());
    header[0] = NEEDS_CHECKSUM;
    header[6..8].copy_from_slice(&(START as u16).to_le_bytes());
    header[8..10].copy_from_slice(&(offset as u16).to_le_bytes());
    if let (TCP, Some(segment)) = (protocol, segment) {
        header[1] = GSO_TCPV4;
        header[2..4].copy_from_slice(&((START + headers) as u16).to_le_bytes());
        header[4..6].copy_from_slice(&segment.get().to_le_bytes());
    }
}
