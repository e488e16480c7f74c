//! "The guest is here now": after a take-over the switches and neighbours must learn where the guest's addresses are. Gratuitous ARP
//! in both of its forms (RFC 5227, 3) tells the neighbours, RARP (as of QEMU) tells switches, also about a guest without an IPv4 address.

use crate::machine::packets::{HEADER, Packets};

/// IPv4 addresses of one card that are remembered.
const MAX_ADDRESSES: usize = 8;
/// The shortest frame on a wire, checksum left out.
const SHORTEST: usize = 60;
const BROADCAST: [u8; 6] = [0xff; 6];
const ARP: [u8; 2] = [0x08, 0x06];
const RARP: [u8; 2] = [0x80, 0x35];
const IPV4: [u8; 2] = [0x08, 0x00];
/// Ethernet and IPv4, with addresses of 6 and 4 bytes: how an ARP packet begins.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// The guest's addresses: the card's own, and what is learned from what the guest sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    mac: Option<[u8; 6]>,
    /// What the guest says in ARP that it has; the newest last.
    told: Vec<[u8; 4]>,
    /// The source of its IPv4 packets. It may be somebody else's, if the guest is a router: this counts only where it told none.
    source: Option<[u8; 4]>,
}

impl Addresses {
    /// The card's own address: known before the guest has sent anything.
    pub fn set_mac(&mut self, mac: [u8; 6]) {
        self.mac = Some(mac);
    }

    /// Learns from packets that the guest sends.
    pub fn learn(&mut self, packets: &Packets) {
        for packet in packets.iter() {
            let frame = &packet[HEADER..];
            // Nearly always: the same card, an IPv4 packet, the same source.
            let known = self.mac.is_some_and(|mac| frame[6..12] == mac)
                && frame[12..14] == IPV4
                && self.source.is_some_and(|source| frame.get(26..30) == Some(&source));
            if !known {
                self.learn_from(frame);
            }
        }
    }

    fn learn_from(&mut self, frame: &[u8]) {
        let Some((ethernet, rest)) = frame.split_first_chunk::<14>() else { return };
        let [_, _, _, _, _, _, mac @ .., kind_0, kind_1] = *ethernet;
        if mac[0] & 1 != 0 {
            return;
        }
        self.mac = Some(mac);
        match [kind_0, kind_1] {
            ARP if rest.len() >= 28 && rest[..6] == ARP_KIND && rest[8..14] == mac => {
                let Some(address) = address(&rest[14..18]) else { return };
                if self.told.last() != Some(&address) {
                    self.told.retain(|known| *known != address);
                    if self.told.len() == MAX_ADDRESSES {
                        self.told.remove(0);
                    }
                    self.told.push(address);
                }
            }
            IPV4 if rest.len() >= 20 => self.source = address(&rest[12..16]).or(self.source),
            _ => {}
        }
    }

    /// What tells everybody where the guest is; none if nothing is known.
    pub fn announcement(&self) -> Packets {
        let mut packets = Packets::new();
        let Some(mac) = self.mac else { return packets };
        let source: &[_] = if self.told.is_empty() { self.source.as_slice() } else { &[] };
        for &ip in self.told.iter().chain(source) {
            // As a request, and as an answer that nobody asked for: some listen only to the one, some only to the other.
            push(&mut packets, ARP, 1, (mac, ip), ([0; 6], ip));
            push(&mut packets, ARP, 2, (mac, ip), (mac, ip));
        }
        push(&mut packets, RARP, 3, (mac, [0; 4]), (mac, [0; 4]));
        packets
    }
}

/// An address of one host. (An ARP probe comes from 0.0.0.0, and so does a question for an address by DHCP.)
fn address(bytes: &[u8]) -> Option<[u8; 4]> {
    let address: [u8; 4] = bytes.try_into().ok()?;
    (address != [0; 4] && address[0] < 224 && address[0] != 127).then_some(address)
}

fn push(packets: &mut Packets, kind: [u8; 2], operation: u8, from: ([u8; 6], [u8; 4]), to: ([u8; 6], [u8; 4])) {
    packets.push_with(|bytes| {
        let begin = bytes.len();
        bytes.extend_from_slice(&[0; HEADER]);
        for part in [&BROADCAST[..], &from.0, &kind, &ARP_KIND, &[0, operation], &from.0, &from.1, &to.0, &to.1] {
            bytes.extend_from_slice(part);
        }
        bytes.resize(begin + HEADER + SHORTEST, 0);
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn sent(frames: &[Vec<u8>]) -> Packets {
        let mut packets = Packets::new();
        frames.iter().for_each(|frame| assert!(packets.push(&[&[0; HEADER][..], frame].concat())));
        packets
    }

    fn arp(operation: u8, ip: [u8; 4]) -> Vec<u8> {
        let to: [&[u8]; 2] = [&[0; 6], &[10, 0, 0, 9]];
        [&BROADCAST[..], &MAC, &ARP, &ARP_KIND, &[0, operation], &MAC, &ip, to[0], to[1]].concat()
    }

    fn ip(source: [u8; 4]) -> Vec<u8> {
        let header = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0];
        [&[2; 6][..], &MAC, &IPV4, &header, &source, &[10, 0, 0, 9]].concat()
    }

    fn learned(frames: &[Vec<u8>]) -> Addresses {
        let mut addresses = Addresses::default();
        addresses.learn(&sent(frames));
        addresses
    }

    #[test]
    fn nobody_announces_a_guest_that_was_silent() {
        assert!(Addresses::default().announcement().is_empty());
    }

    #[test]
    fn an_announcement_has_both_forms_of_arp_and_rarp() {
        let packets = learned(&[arp(1, [10, 0, 0, 2])]).announcement();
        let frames: Vec<_> = packets.iter().map(|packet| &packet[HEADER..]).collect();
        assert_eq!(frames.len(), 3);
        assert!(frames.iter().all(|f| f.len() == 60 && f[..6] == BROADCAST && f[6..12] == MAC && f[22..28] == MAC));
        let says = |f: &[u8]| ([f[12], f[13]], f[21], <[u8; 4]>::try_from(&f[28..32]).unwrap());
        assert_eq!(says(frames[0]), (ARP, 1, [10, 0, 0, 2]));
        assert_eq!(says(frames[1]), (ARP, 2, [10, 0, 0, 2]));
        assert_eq!(says(frames[2]), (RARP, 3, [0; 4]));
        assert_eq!(frames[0][32..42], [0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        assert_eq!(frames[1][32..42], [0x52, 0x54, 0, 1, 2, 3, 10, 0, 0, 2]);
    }

    #[test]
    fn what_arp_says_counts_before_where_packets_come_from() {
        let routed = learned(&[ip([192, 168, 7, 7]), arp(2, [10, 0, 0, 2]), ip([192, 168, 8, 8])]);
        assert_eq!(routed.announcement().len(), 3, "not the addresses behind a router");
        let silent = learned(&[ip([10, 0, 0, 3])]);
        assert_eq!(silent.announcement().get(0).unwrap()[HEADER + 28..HEADER + 32], [10, 0, 0, 3]);
    }

    #[test]
    fn no_address_yet_is_none() {
        let asking = learned(&[arp(1, [0; 4]), ip([0; 4])]);
        assert_eq!(asking.announcement().len(), 1, "RARP for the card alone");
    }

    #[test]
    fn addresses_are_bounded_and_the_newest_stay() {
        let frames: Vec<_> = (1..=20).map(|n| arp(1, [10, 0, 0, n])).collect();
        let addresses = learned(&frames);
        assert_eq!(addresses.told.len(), MAX_ADDRESSES);
        assert_eq!(addresses.told.last(), Some(&[10, 0, 0, 20]));
    }

    #[test]
    fn frames_that_end_early_are_no_trouble() {
        for whole in [arp(1, [10, 0, 0, 2]), ip([10, 0, 0, 2])] {
            for length in 14..whole.len() {
                learned(&[whole[..length].to_vec()]);
            }
        }
    }
}
