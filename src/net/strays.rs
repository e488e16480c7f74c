//! Packets that go astray in a planned change of hosts: they came for the guest to the host that has just handed it over, and the network has yet
//! to learn where it is now. That host passes them on over the logging channel for a moment; otherwise each client would wait for its TCP's
//! retransmission, which is ten times the switch.
//!
//! ```text
//! strays = { length (u32, little endian), packet of that length, its header included } ...
//! ```

use crate::machine::packets::Packets;

/// The bytes of `packets`.
pub fn encode(packets: &Packets) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(packets.bytes().len() + 4 * packets.len());
    for packet in packets.iter() {
        bytes.extend_from_slice(&(packet.len() as u32).to_le_bytes());
        bytes.extend_from_slice(packet);
    }
    bytes
}

/// The packets in these bytes, as far as they are some: packets may get lost anywhere.
pub fn decode(mut bytes: &[u8]) -> Packets {
    let mut packets = Packets::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let Some((packet, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else { break };
        if !packets.push(packet) {
            break;
        }
        bytes = rest;
    }
    packets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_back_and_damage_costs_packets_only() {
        let mut packets = Packets::new();
        for length in [Packets::MIN_PACKET, 60, 1500] {
            assert!(packets.push(&vec![length as u8; length]));
        }
        let bytes = encode(&packets);
        assert_eq!(decode(&bytes), packets);
        assert_eq!(decode(&bytes[..bytes.len() - 1]).len(), 2);
        assert_eq!(decode(&[255; 40]).len(), 0);
        assert_eq!(decode(&[]).len(), 0);
    }
}
