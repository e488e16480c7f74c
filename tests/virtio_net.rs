//! Promise: the network card does what virtio 1.2 says to a driver that keeps to it. An honest driver, written from the
//! specification, sends and receives; what arrives is compared byte by byte.

mod virtio;

use lockstep::devices::virtio::misuse::{Misuse, StateError};
use lockstep::devices::virtio::net::{Nic, NicState};
use lockstep::machine::memory;
use lockstep::machine::packets::Offloads;
use lockstep::machine::packets::{HEADER, Packets};
use virtio::*;
use virtio_bindings::bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_bindings::bindings::virtio_mmio::*;

const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x20_0000;
const BUFFER: u64 = 2048;

fn offer_receive_buffer(driver: &mut Driver, number: u64) {
    driver.offer(RX, &[(RX_BUFFERS + number * BUFFER, BUFFER as u32)]);
}

/// What the guest finds behind a packet's header, which says that it is one piece.
fn delivered(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[10] = 1;
    packet
}

#[test]
fn the_card_is_found() {
    let mut driver = Driver::new(CONFIG, 256);
    assert_eq!(driver.read32(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read32(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read32(VIRTIO_MMIO_DEVICE_ID), 1);
    let mut features = 0;
    for selector in [1, 0] {
        driver.write32(VIRTIO_MMIO_DEVICE_FEATURES_SEL, selector);
        features = features << 32 | u64::from(driver.read32(VIRTIO_MMIO_DEVICE_FEATURES));
    }
    assert_eq!(features, USUAL);
    driver.write32(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read32(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    let mut config = [0xaa; 14];
    driver.device.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
    assert_eq!(config, [2, 0, 0, 1, 2, 3, 1, 0, 0, 0, 0xdc, 0x05, 0, 0]);
    let mut byte = [0xaa];
    driver.device.read(u64::from(VIRTIO_MMIO_CONFIG) + 5, &mut byte);
    assert_eq!(byte, [3]);
    // Whatever else there is to read is zero, and whatever is written in a wrong way is not written.
    for wrong in [0x002, 0x0fe, 0x0c0, 0x1fc] {
        assert_eq!(driver.read32(wrong), 0, "{wrong:#x}");
    }
    let mut half = [0xaa; 2];
    driver.device.read(0, &mut half);
    assert_eq!(half, [0; 2]);
    driver.device.write(VIRTIO_MMIO_STATUS.into(), &[1], &driver.memory);
    driver.write32(VIRTIO_MMIO_STATUS + 1, 1);
    driver.write32(VIRTIO_MMIO_MAGIC_VALUE, 1);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read32(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    driver.write32(VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(driver.read32(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    assert_eq!(driver.device.misuse(), None);
}

/// Far enough for the rings' indexes, which have 16 bits, to wrap.
#[test]
fn packets_go_both_ways_whole_and_in_order() {
    let mut driver = Driver::started(CONFIG, USUAL);
    for number in 0..256 {
        offer_receive_buffer(&mut driver, number);
    }
    assert_eq!(driver.device.room(&driver.memory), 256);
    let mut seed = 0;
    for round in 0..1000u32 {
        let packets: Vec<Vec<u8>> =
            (0..1 + round % 150).map(|i| packet(seed + i, 14 + (seed + i) as usize * 7 % 1501)).collect();
        seed += packets.len() as u32;
        driver.receive(&packets);
        for sent in &packets {
            let (head, written) = driver.take_used(RX).expect("delivered");
            let address = RX_BUFFERS + u64::from(head) * BUFFER;
            assert_eq!(written as usize, sent.len());
            assert_eq!(driver.bytes(address, sent.len()), delivered(sent));
            driver.offer(RX, &[(address, BUFFER as u32)]);
        }
        assert_eq!(driver.take_used(RX), None);
        for (i, sent) in packets.iter().enumerate() {
            let address = TX_BUFFERS + i as u64 * BUFFER;
            driver.put_bytes(address, sent);
            // Header and frame apart, the frame in two.
            let (header, length) = (HEADER as u64, sent.len() as u64);
            if i % 3 == 0 && length > 40 && packets.len() < 80 {
                driver.offer(
                    TX,
                    &[
                        (address, HEADER as u32),
                        (address + header, 20),
                        (address + header + 20, (length - header - 20) as u32),
                    ],
                );
            } else {
                driver.offer(TX, &[(address, length as u32)]);
            }
        }
        assert!(driver.write32(VIRTIO_MMIO_QUEUE_NOTIFY, TX as u32));
        assert_eq!(driver.transmit(), packets);
        for _ in &packets {
            assert_eq!(driver.take_used(TX).map(|(_, written)| written), Some(0));
        }
    }
    assert!(seed > 1 << 16, "{seed}");
    let counters = driver.device.counters();
    assert_eq!((counters.sent, counters.received), (seed.into(), seed.into()));
    assert_eq!((counters.send_dropped, counters.receive_dropped), (0, 0));
    assert_eq!(driver.device.misuse(), None);
}

/// More than one batch carries: the chain that does not fit any more is the first of the next.
#[test]
fn what_does_not_fit_into_a_batch_comes_with_the_next() {
    let mut driver = Driver::started(CONFIG, USUAL);
    let packets: Vec<Vec<u8>> = (0..256).map(|i| packet(i, 1514)).collect();
    for (i, sent) in packets.iter().enumerate() {
        let address = TX_BUFFERS + i as u64 * BUFFER;
        driver.put_bytes(address, sent);
        driver.offer(TX, &[(address, sent.len() as u32)]);
    }
    let mut first = Packets::new();
    driver.device.transmit(&driver.memory, &mut first);
    assert_eq!(first.len(), Packets::MAX_BYTES / 1526);
    let all: Vec<Vec<u8>> = first.iter().map(<[u8]>::to_vec).chain(driver.transmit()).collect();
    assert_eq!(all, packets);
    for head in 0..256 {
        assert_eq!(driver.take_used(TX), Some((head, 0)));
    }
}

#[test]
fn a_chain_may_be_anywhere_and_in_any_pieces() {
    let mut driver = Driver::started(CONFIG, USUAL);
    let whole = packet(7, 1000);
    // Pieces of three bytes, from all over: the most descriptors that a chain may have.
    let pieces: Vec<(u64, u32)> = (0..256).map(|i| (TX_BUFFERS + 8192 - 31 * i, 3)).collect();
    for (&(address, length), bytes) in pieces.iter().zip(whole[..768].chunks(3)) {
        assert_eq!(length as usize, bytes.len());
        driver.put_bytes(address, bytes);
    }
    driver.offer(TX, &pieces);
    assert_eq!(driver.transmit(), [whole[..768].to_vec()]);
    driver.take_used(TX).expect("given back");
    let pieces: Vec<(u64, u32)> = (0..200).map(|i| (RX_BUFFERS + 8192 - 31 * i, 7)).collect();
    driver.offer(RX, &pieces);
    driver.receive(std::slice::from_ref(&whole));
    assert_eq!(driver.take_used(RX), Some((0, 1012)));
    let found: Vec<u8> = pieces.iter().flat_map(|&(address, length)| driver.bytes(address, length as usize)).collect();
    assert_eq!(found[..1012], delivered(&whole));
    assert!(found[1012..].iter().all(|&byte| byte == 0));
}

#[test]
fn indirect_tables_are_followed() {
    let mut driver = Driver::started(CONFIG, USUAL);
    let (sent, table) = (packet(3, 500), 0x3_0008); // an indirect table need not be aligned
    driver.put_bytes(TX_BUFFERS, &sent);
    driver.put_descriptor(table, 0, TX_BUFFERS, 12, NEXT, 2);
    driver.put_descriptor(table, 2, TX_BUFFERS + 12, 500, 0, 0);
    driver.put_descriptor(driver.queues[TX].descriptors, 9, table, 48, TABLE, 0);
    driver.make_available(TX, 9);
    assert_eq!(driver.transmit(), std::slice::from_ref(&sent));
    driver.put_descriptor(table, 1, RX_BUFFERS, 1000, WRITE, 0);
    driver.put_descriptor(table, 0, RX_BUFFERS + 4000, 100, WRITE | NEXT, 1);
    driver.put_descriptor(driver.queues[RX].descriptors, 200, table, 32, TABLE, 0);
    driver.make_available(RX, 200);
    driver.receive(std::slice::from_ref(&sent));
    assert_eq!(driver.take_used(RX), Some((200, 512)));
    let found = [driver.bytes(RX_BUFFERS + 4000, 100), driver.bytes(RX_BUFFERS, 412)].concat();
    assert_eq!(found, delivered(&sent));
    assert_eq!(driver.device.misuse(), None);
}

/// Virtio 1.2, 2.7.10: an interrupt when the used index passes `used_event`; a notification asked for with `avail_event`.
#[test]
fn event_indexes_are_kept() {
    let mut driver = Driver::started(CONFIG, USUAL);
    for number in 0..64 {
        offer_receive_buffer(&mut driver, number);
    }
    let three = [packet(1, 60), packet(2, 60), packet(3, 60)];
    // Used indexes 0 → 3: passes 2, and only once.
    driver.want_interrupt_after(RX, 2);
    driver.receive(&three[..2]);
    assert!(!driver.device.take_edge());
    assert_eq!(driver.read32(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    driver.receive(&three[2..]);
    assert!(driver.device.take_edge());
    assert!(!driver.device.take_edge());
    assert_eq!(driver.read32(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    driver.receive(&three);
    assert!(!driver.device.take_edge());
    // Within a batch; and again without the first having been acknowledged.
    driver.want_interrupt_after(RX, 7);
    driver.receive(&three);
    assert!(driver.device.take_edge());
    driver.write32(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(driver.read32(VIRTIO_MMIO_INTERRUPT_STATUS), 0);

    // A driver that wants no interrupts for what it sends puts the event far away.
    driver.want_interrupt_after(TX, 0x8000);
    for round in 0..100 {
        let old = driver.queues[TX].next_avail;
        for _ in 0..3 {
            driver.offer(TX, &[(TX_BUFFERS, 60)]);
        }
        assert!(driver.would_notify(TX, old), "round {round}: after all is sent, the card wants to hear of more");
        assert_eq!(driver.transmit().len(), 3);
        assert!(!driver.device.take_edge());
        (0..3).for_each(|_| assert!(driver.take_used(TX).is_some()));
    }
    // The receive queue is looked at without being asked to.
    driver.write32(VIRTIO_MMIO_QUEUE_NOTIFY, RX as u32);
    let old = driver.queues[RX].next_avail;
    offer_receive_buffer(&mut driver, 64);
    assert!(!driver.would_notify(RX, old));
}

#[test]
fn without_event_indexes_the_flags_are_kept() {
    let mut driver = Driver::started(CONFIG, VERSION_1 | MAC);
    // VIRTQ_USED_F_NO_NOTIFY: for received packets the card needs no notification.
    assert_eq!(driver.get16(driver.queues[RX].used), 1);
    assert_eq!(driver.get16(driver.queues[TX].used), 0);
    for number in 0..4 {
        offer_receive_buffer(&mut driver, number);
    }
    driver.receive(&[packet(1, 60)]);
    assert!(driver.device.take_edge());
    // VIRTQ_AVAIL_F_NO_INTERRUPT.
    driver.put16(driver.queues[RX].avail, 1);
    driver.receive(&[packet(1, 60)]);
    assert!(!driver.device.take_edge());
    driver.offer(TX, &[(TX_BUFFERS, 60)]);
    assert_eq!(driver.transmit().len(), 1);
    assert!(driver.device.take_edge());
}

#[test]
fn what_is_no_packet_is_dropped_and_counted() {
    let mut driver = Driver::started(CONFIG, USUAL);
    let good = packet(1, 14);
    driver.put_bytes(TX_BUFFERS, &good);
    for length in [25, 26, Packets::MAX_PACKET as u32 + 1, 26] {
        driver.offer(TX, &[(TX_BUFFERS, length)]);
    }
    assert_eq!(driver.transmit(), [good.clone(), good.clone()]);
    (0..4).for_each(|_| assert!(driver.take_used(TX).is_some()));
    assert_eq!((driver.device.counters().sent, driver.device.counters().send_dropped), (2, 2));
    // The longest packet there is.
    driver.offer(TX, &[(TX_BUFFERS, Packets::MAX_PACKET as u32)]);
    assert_eq!(driver.transmit().len(), 1);

    // Two packets find no buffer that is long enough, one finds none at all; the short buffer takes the one that fits.
    driver.offer(RX, &[(RX_BUFFERS, 72)]);
    driver.receive(&[packet(1, 61), packet(2, 200), packet(3, 60), packet(4, 60)]);
    assert_eq!(driver.take_used(RX), Some((0, 72)));
    assert_eq!(driver.bytes(RX_BUFFERS, 72), delivered(&packet(3, 60)));
    assert_eq!((driver.device.counters().received, driver.device.counters().receive_dropped), (1, 3));
    // And a card that is not live has no buffers.
    driver.write32(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(driver.device.room(&driver.memory), 0);
    driver.receive(&[good]);
    assert_eq!(driver.device.counters().receive_dropped, 4);
    assert_eq!(driver.device.misuse(), None);
}

#[test]
fn features_are_agreed_on_or_refused() {
    for (config, features, agreed) in [
        (CONFIG, VERSION_1, true),
        (CONFIG, USUAL, true),
        (CONFIG, USUAL & !VERSION_1, false),
        (CONFIG, 0, false),
        (CONFIG, USUAL | CSUM, false),
        (CONFIG, USUAL | 1 << 63, false),
        (CONFIG, VERSION_1 | 1 << 34, false), // packed rings
        (WITH_OFFLOADS, USUAL | CSUM, true),
        (WITH_OFFLOADS, USUAL | CSUM | GUEST_CSUM | GUEST_TSO4, true),
        (WITH_OFFLOADS, USUAL | GUEST_TSO4, false), // needs GUEST_CSUM
    ] {
        let mut driver = Driver::new(config, 256);
        assert_eq!(driver.negotiate(features), agreed, "{features:#x}");
        // Without it there is no DRIVER_OK, and a second try is free.
        if !agreed {
            driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
            assert_eq!(driver.status(), 3);
            assert!(driver.negotiate(VERSION_1));
        }
        // Once agreed on they stay.
        let offloads = driver.device.offloads();
        driver.write32(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        driver.write32(VIRTIO_MMIO_DRIVER_FEATURES, (GUEST_CSUM | GUEST_TSO4) as u32);
        assert_eq!(driver.device.offloads(), offloads);
        let expected = agreed && features & GUEST_TSO4 != 0;
        assert_eq!(offloads, Offloads { guest_csum: expected, guest_tso4: expected });
    }
}

const NEEDS_CSUM: [u8; HEADER] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
const SEGMENTS: [u8; HEADER] = [1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 0, 0];

fn with_header(header: [u8; HEADER], length: usize) -> Vec<u8> {
    let mut packet = packet(1, length);
    packet[..HEADER].copy_from_slice(&header);
    packet
}

#[test]
fn headers_say_no_more_than_was_agreed_on() {
    let dirty = [0xff; HEADER];
    let beyond = [1, 0, 0, 0, 0, 0, 80, 0, 19, 0, 0, 0];
    let valid = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mark = |header: [u8; HEADER]| with_header(header, 100);
    let marked = |mut header: [u8; HEADER]| {
        header[10] = 1;
        Some(with_header(header, 100))
    };
    let none = [0; HEADER];
    for (features, sent, received) in [
        (USUAL, [none, none, none], [None, None, marked(none), None]),
        (USUAL | CSUM, [NEEDS_CSUM, none, none], [None, None, marked(none), None]),
        (USUAL | GUEST_CSUM, [none, none, none], [marked(NEEDS_CSUM), None, marked(valid), None]),
        (
            USUAL | CSUM | GUEST_CSUM | GUEST_TSO4,
            [NEEDS_CSUM, none, none],
            [marked(NEEDS_CSUM), marked(SEGMENTS), marked(valid), None],
        ),
    ] {
        let mut driver = Driver::started(WITH_OFFLOADS, features);
        for (from_guest, expected) in [NEEDS_CSUM, dirty, beyond].into_iter().zip(sent) {
            driver.put_bytes(TX_BUFFERS, &mark(from_guest));
            driver.offer(TX, &[(TX_BUFFERS, 112)]);
            assert_eq!(driver.transmit(), [mark(expected)], "{features:#x} {from_guest:?}");
        }
        for (to_guest, expected) in [NEEDS_CSUM, SEGMENTS, valid, dirty].into_iter().zip(received) {
            offer_receive_buffer(&mut driver, 0);
            driver.receive(&[mark(to_guest)]);
            let found = driver.take_used(RX).map(|_| driver.bytes(RX_BUFFERS, 112));
            assert_eq!(found, expected, "{features:#x} {to_guest:?}");
        }
    }
}

/// Digests look only at pages that KVM or the memory's bitmap reports.
#[test]
fn every_page_that_the_card_writes_is_marked() {
    let mut driver = Driver::started(CONFIG, USUAL);
    for number in 0..40 {
        let at = RX_BUFFERS + number * BUFFER + 0xf00; // some of them across pages
        driver.offer(RX, &[(at, 12), (at + 100, 2000)]);
    }
    for number in 0..40 {
        driver.offer(TX, &[(TX_BUFFERS + number * BUFFER, 700)]);
    }
    let mut before = driver.bytes(0, 4 << 20);
    memory::take_written(&driver.memory);
    let mut check = |driver: &Driver, least: usize| {
        let marked = memory::take_written(&driver.memory);
        let after = driver.bytes(0, 4 << 20);
        let changed: Vec<usize> =
            (0..1024).filter(|page| before[page << 12..][..4096] != after[page << 12..][..4096]).collect();
        assert!(changed.len() >= least, "{changed:?}");
        for page in changed {
            assert!(marked[page / 64] >> (page % 64) & 1 == 1, "page {page:#x} was written and is not marked");
        }
        assert!(marked.iter().map(|word| word.count_ones()).sum::<u32>() <= 64, "only what was written");
        before = after;
    };
    // The used ring alone, then buffers and used ring.
    assert_eq!(driver.transmit().len(), 40);
    check(&driver, 1);
    driver.receive(&(0..40).map(|i| packet(i, 1500)).collect::<Vec<_>>());
    check(&driver, 20);
}

#[test]
fn room_is_never_more_than_the_queue() {
    let mut driver = Driver::new(CONFIG, 16);
    driver.start(USUAL);
    assert_eq!(driver.device.room(&driver.memory), 0);
    offer_receive_buffer(&mut driver, 0);
    assert_eq!(driver.device.room(&driver.memory), 1);
    driver.receive(&[packet(1, 60)]);
    assert_eq!(driver.device.room(&driver.memory), 0);
    driver.put16(driver.queues[RX].avail + 2, 9999);
    assert_eq!(driver.device.room(&driver.memory), 16);
    assert_eq!(driver.device.misuse(), None);
}

/// As after a state transfer: the card that goes on and the one made from its state do the same.
#[test]
fn a_card_goes_on_from_its_state() {
    let mut first = Driver::started(WITH_OFFLOADS, USUAL | GUEST_CSUM);
    for number in 0..100 {
        offer_receive_buffer(&mut first, number);
    }
    first.want_interrupt_after(RX, 10);
    first.receive(&(0..8).map(|i| packet(i, 60)).collect::<Vec<_>>());
    first.write32(VIRTIO_MMIO_QUEUE_SEL, 1);
    first.offer(TX, &[(TX_BUFFERS, 99)]);
    assert_eq!(first.transmit().len(), 1);
    first.offer(TX, &[(TX_BUFFERS, 77)]);

    let bytes = bincode::encode_to_vec(first.device.state(), bincode::config::standard()).expect("encoded");
    let (state, length): (NicState, usize) =
        bincode::decode_from_slice(&bytes, bincode::config::standard().with_limit::<4096>()).expect("decoded");
    assert_eq!((&state, length), (&first.device.state(), bytes.len()));
    let mut second = Driver::new(WITH_OFFLOADS, 256);
    second.put_bytes(0, &first.bytes(0, 4 << 20));
    second.queues = first.queues.clone();
    second.device = Nic::from_state(&state).expect("a state");

    for driver in [&mut first, &mut second] {
        assert_eq!(driver.device.room(&driver.memory), 92);
        assert_eq!(driver.transmit().len(), 1);
        driver.receive(&[packet(8, 60), with_header(NEEDS_CSUM, 60), packet(10, 60)]);
        assert!(driver.device.take_edge());
        assert_eq!(driver.read32(VIRTIO_MMIO_QUEUE_READY), 1);
        driver.write32(VIRTIO_MMIO_QUEUE_NOTIFY, 2);
        assert!(driver.needs_reset());
    }
    assert_eq!(first.device.state(), second.device.state());
    assert_eq!(first.bytes(0, 4 << 20), second.bytes(0, 4 << 20));
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let good = Driver::started(CONFIG, USUAL).device.state();
    let bytes = bincode::encode_to_vec(&good, bincode::config::legacy()).expect("encoded");
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        let (state, _): (NicState, usize) =
            bincode::decode_from_slice(&bytes, bincode::config::legacy()).expect("decoded");
        Nic::from_state(&state).err()
    };
    assert_eq!(refused(&|_| {}), None);
    assert_eq!(refused(&|bytes| bytes[0] = 2), Some(StateError::Version(2)));
    // version 4, configuration 9, status 4, two selectors 8: the features; then two selectors, interrupt status, edge, no misuse.
    let features = 4 + 9 + 4 + 8;
    assert_eq!(refused(&|bytes| bytes[features] = 1), Some(StateError::Features(CSUM)));
    let size = features + 8 + 4 + 4 + 1 + 1;
    assert_eq!(bytes[size..size + 4], 256u32.to_le_bytes());
    assert_eq!(refused(&|bytes| bytes[size] = 1), Some(StateError::Queue(Misuse::QueueSize)));
    assert_eq!(refused(&|bytes| bytes[size + 4] = 1), Some(StateError::Queue(Misuse::RingPlace)));
}
