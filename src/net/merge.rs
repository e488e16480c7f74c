//! Merging of outgoing TCP segments, the way a network card's "generic receive offload" does it: consecutive segments of one
//! connection become one large packet, which the host's kernel carries in one piece and cuts up again only where it leaves the host. A guest
//! without segmentation offload sends packets of 1,500 bytes, and to hand over each of them costs the host more than
//! the guest's work on it.
//!
//! This stands behind the output door: the machine, its log and its replay know nothing of it.

use crate::machine::packets::{HEADER, Packets};

/// Where things stand in a packet (virtio-net header, Ethernet, IPv4 without options, TCP).
const IP: usize = HEADER + 14;
const TCP: usize = IP + 20;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` and `VIRTIO_NET_HDR_GSO_TCPV4` (virtio 1.2, 5.1.6).
const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
/// Flags of TCP: only plain data segments are merged, and a push may end one.
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// The longest IPv4 packet.
const IP_MAX: usize = 65_535;

/// A TCP segment with data that may be merged with others.
#[derive(Clone, Copy)]
struct Segment {
    /// Bytes before the data.
    headers: usize,
    sequence: u32,
    length: usize,
    push: bool,
}

/// Puts the packets of `from` into `into`, which is empty before, with segments merged where they follow each other.
/// What is not merged stays as it is.
pub fn merge(from: &Packets, into: &mut Packets) {
    let mut packets = from.iter().peekable();
    while let Some(first) = packets.next() {
        let mut segment = Segment::of(first);
        let pushed = into.push_with(|out| {
            out.extend_from_slice(first);
            let start = out.len() - first.len();
            let Some(head) = segment else { return true };
            let (mut length, mut next, mut segments) = (head.length, head.sequence.wrapping_add(head.length as u32), 1);
            while let (Some(last), Some(packet)) = (segment, packets.peek())
                && !last.push
                && last.length == head.length
                && let Some(follows) = Segment::of(packet)
                && follows.sequence == next
                && follows.length <= head.length
                && same_but_for_place(&first[..head.headers], &packet[..follows.headers])
                && head.headers - IP + length + follows.length <= IP_MAX
                && out.len() + follows.length <= Packets::MAX_BYTES
            {
                out.extend_from_slice(&packet[follows.headers..follows.headers + follows.length]);
                length += follows.length;
                next = next.wrapping_add(follows.length as u32);
                segments += 1;
                segment = Some(follows);
                packets.next();
            }
            if segments > 1 {
                let push = segment.is_some_and(|last| last.push);
                finish(&mut out[start..], head, length, push);
            }
            true
        });
        assert!(pushed, "no more packets and no more bytes than the batch they come from");
    }
}

impl Segment {
    /// The segment in `packet`, if it is a whole and right one that may be merged.
    fn of(packet: &[u8]) -> Option<Segment> {
        let (header, frame) = packet.split_at_checked(HEADER)?;
        // IPv4 without options, not a fragment, TCP.
        let plain = header.iter().all(|&byte| byte == 0)
            && frame.get(12..15) == Some(&[0x08, 0x00, 0x45])
            && frame.get(20).is_some_and(|flags| flags & 0x3f == 0)
            && frame.get(21) == Some(&0)
            && frame.get(23) == Some(&6);
        if !plain || packet.len() < TCP + 20 {
            return None;
        }
        let ip_length = usize::from(u16::from_be_bytes([packet[IP + 2], packet[IP + 3]]));
        let headers = TCP + usize::from(packet[TCP + 12] >> 4) * 4;
        let end = IP + ip_length;
        let flags = packet[TCP + 13];
        // Ethernet's padding would stand behind the data, but then there is no large data.
        if end != packet.len() || headers < TCP + 20 || headers >= end || flags & !PSH != ACK {
            return None;
        }
        let sequence = u32::from_be_bytes([packet[TCP + 4], packet[TCP + 5], packet[TCP + 6], packet[TCP + 7]]);
        // A wrong checksum is the receiver's to find.
        (fold(pseudo_header(&packet[IP..], end - TCP) + sum(&packet[TCP..end])) == 0xffff
            && fold(sum(&packet[IP..TCP])) == 0xffff)
            .then_some(Segment { headers, sequence, length: end - headers, push: flags & PSH != 0 })
    }
}

/// Whether two packets' headers differ at most in what differs between segments of one flight: IP length, identification and
/// checksum, TCP sequence, checksum and push.
fn same_but_for_place(a: &[u8], b: &[u8]) -> bool {
    let same = |from: usize, to: usize| a[from..to] == b[from..to];
    a.len() == b.len()
        && same(HEADER, IP + 2)
        && same(IP + 6, IP + 10)
        && same(IP + 12, TCP + 4)
        && same(TCP + 8, TCP + 13)
        && same(TCP + 14, TCP + 16)
        && same(TCP + 18, a.len())
}

/// Makes `packet`, whose first segment's headers still say what they said, one packet of `length` bytes of data to be cut up.
fn finish(packet: &mut [u8], head: Segment, length: usize, push: bool) {
    let ip_length = head.headers - IP + length;
    packet[IP + 2..IP + 4].copy_from_slice(&(ip_length as u16).to_be_bytes());
    packet[IP + 10..IP + 12].fill(0);
    let checksum = !fold(sum(&packet[IP..TCP]));
    packet[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
    if push {
        packet[TCP + 13] |= PSH;
    }
    // Whoever cuts it up completes the checksum from that of the pseudo header.
    let partial = fold(pseudo_header(&packet[IP..], IP + ip_length - TCP));
    packet[TCP + 16..TCP + 18].copy_from_slice(&partial.to_be_bytes());
    packet[0] = NEEDS_CHECKSUM;
    packet[1] = GSO_TCPV4;
    packet[2..4].copy_from_slice(&((head.headers - HEADER) as u16).to_le_bytes());
    packet[4..6].copy_from_slice(&(head.length as u16).to_le_bytes());
    packet[6..8].copy_from_slice(&((TCP - HEADER) as u16).to_le_bytes());
    packet[8..10].copy_from_slice(&16u16.to_le_bytes());
}

/// Sum of TCP's pseudo header (RFC 9293, 3.1) of the IPv4 packet `ip` with `tcp_length` bytes of TCP.
fn pseudo_header(ip: &[u8], tcp_length: usize) -> u64 {
    sum(&ip[12..20]) + 6 + tcp_length as u64
}

/// Sum of the 16-bit words of `bytes`, to be [folded](fold) (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    // Four bytes at a time: their sum is the same modulo 65,535.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let (pairs, odd) = rest.as_chunks::<2>();
    total += pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>();
    total + odd.first().map_or(0, |&byte| u64::from(byte) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A data segment of one connection, right in every respect.
    fn segment(sequence: u32, data: &[u8], flags: u8) -> Vec<u8> {
        let mut packet = vec![0; TCP + 20];
        packet[IP - 2..IP].copy_from_slice(&[8, 0]);
        packet[IP] = 0x45;
        packet[IP + 2..IP + 4].copy_from_slice(&((40 + data.len()) as u16).to_be_bytes());
        packet[IP + 8] = 64;
        packet[IP + 9] = 6;
        packet[IP + 12..IP + 20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let checksum = !fold(sum(&packet[IP..TCP]));
        packet[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
        packet[TCP..TCP + 4].copy_from_slice(&[0x13, 0x89, 0xc0, 0x01]);
        packet[TCP + 4..TCP + 8].copy_from_slice(&sequence.to_be_bytes());
        packet[TCP + 12] = 0x50;
        packet[TCP + 13] = flags;
        packet[TCP + 14..TCP + 16].copy_from_slice(&[0x40, 0]);
        packet.extend_from_slice(data);
        let checksum = !fold(pseudo_header(&packet[IP..], 20 + data.len()) + sum(&packet[TCP..]));
        packet[TCP + 16..TCP + 18].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    fn batch(packets: &[Vec<u8>]) -> Packets {
        let mut batch = Packets::new();
        assert!(packets.iter().all(|packet| batch.push(packet)));
        batch
    }

    fn merged(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut out = Packets::new();
        merge(&batch(packets), &mut out);
        out.iter().map(<[u8]>::to_vec).collect()
    }

    /// What a kernel does with a large packet.
    fn cut(packet: &[u8]) -> Vec<Vec<u8>> {
        if packet[1] != GSO_TCPV4 {
            return vec![packet.to_vec()];
        }
        let size = usize::from(u16::from_le_bytes([packet[4], packet[5]]));
        let headers = HEADER + usize::from(u16::from_le_bytes([packet[2], packet[3]]));
        let first = u32::from_be_bytes([packet[TCP + 4], packet[TCP + 5], packet[TCP + 6], packet[TCP + 7]]);
        let data: Vec<_> = packet[headers..].chunks(size).collect();
        let last = data.len() - 1;
        let flags = |i: usize| if i == last { packet[TCP + 13] } else { packet[TCP + 13] & !PSH };
        data.iter()
            .enumerate()
            .map(|(i, data)| segment(first.wrapping_add((i * size) as u32), data, flags(i)))
            .collect()
    }

    #[test]
    fn a_flight_of_segments_becomes_one_packet_that_is_cut_into_the_same_segments() {
        let data = |length| vec![7u8; length];
        let flight =
            [segment(1000, &data(1460), ACK), segment(2460, &data(1460), ACK), segment(3920, &data(100), ACK | PSH)];
        let out = merged(&flight);
        assert_eq!(out.len(), 1);
        assert_eq!(cut(&out[0]), flight);
        let ip = &out[0][IP..];
        assert_eq!(fold(sum(&ip[..20])), 0xffff, "the IP header's checksum");
        let complete = fold(u64::from(!fold(sum(&out[0][TCP..]))));
        let mut whole = out[0].clone();
        whole[TCP + 16..TCP + 18].copy_from_slice(&complete.to_be_bytes());
        assert_eq!(fold(pseudo_header(&whole[IP..], whole.len() - TCP) + sum(&whole[TCP..])), 0xffff);
    }

    #[test]
    fn what_does_not_belong_together_is_left_alone() {
        let data = vec![1u8; 500];
        let first = segment(1, &data, ACK);
        let mut wrong_checksum = segment(501, &data, ACK);
        *wrong_checksum.last_mut().unwrap() ^= 1;
        let mut other_port = segment(501, &data, ACK);
        other_port[TCP] ^= 1;
        let mut window = segment(501, &data, ACK);
        window[TCP + 14] ^= 1;
        for second in [
            wrong_checksum,
            other_port,
            window,
            segment(502, &data, ACK),
            segment(1, &data, ACK),
            segment(501, &[1; 501], ACK),
            segment(501, &data, ACK | 1),
            segment(501, &[], ACK),
            vec![0; 60],
        ] {
            let pair = [first.clone(), second];
            assert_eq!(merged(&pair), pair);
        }
        let pushed = [segment(1, &data, ACK | PSH), segment(501, &data, ACK)];
        assert_eq!(merged(&pushed), pushed, "a push ends a flight");
        let shorter = [segment(1, &data, ACK), segment(501, &[2; 9], ACK), segment(510, &[2; 9], ACK)];
        assert_eq!(merged(&shorter).len(), 2, "and so does a shorter segment");
    }

    proptest! {
        #[test]
        fn whatever_is_sent_arrives(
            steps in prop::collection::vec((1..1461usize, any::<bool>(), 0..20u8), 1..100),
            noise in any::<u8>(),
        ) {
            let mut sequence = 4_294_900_000u32;
            let mut packets: Vec<Vec<u8>> = Vec::new();
            for (length, push, gap) in steps {
                let flags = if push { ACK | PSH } else { ACK };
                let length = if gap % 3 == 0 { 1460 } else { length };
                packets.push(segment(sequence, &vec![noise; length], flags));
                sequence = sequence.wrapping_add(length as u32 + u32::from(gap == 19));
            }
            let out = merged(&packets);
            prop_assert!(out.iter().all(|packet| packet.len() <= Packets::MAX_PACKET));
            let cut: Vec<_> = out.iter().flat_map(|packet| cut(packet)).collect();
            prop_assert_eq!(cut, packets);
        }

        #[test]
        fn noise_passes_unchanged(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 26..200), 1..20)) {
            prop_assert_eq!(merged(&packets), packets);
        }
    }
}
