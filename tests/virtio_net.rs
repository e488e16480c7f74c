//! Promise: the network card does what virtio 1.2 says to a driver that keeps to it. An honest driver, written from the
//! specification, sends and receives; what arrives is compared byte by byte.

mod virtio;

use lockstep::machine::packets::HEADER;
use virtio::*;
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
    driver.nic.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
    assert_eq!(config, [2, 0, 0, 1, 2, 3, 1, 0, 0, 0, 0xdc, 0x05, 0, 0]);
    let mut byte = [0xaa];
    driver.nic.read(u64::from(VIRTIO_MMIO_CONFIG) + 5, &mut byte);
    assert_eq!(byte, [3]);
    // Whatever else there is to read is zero, and whatever is written in a wrong way is not written.
    for wrong in [0x002, 0x0fe, 0x0c0, 0x1fc] {
        assert_eq!(driver.read32(wrong), 0, "{wrong:#x}");
    }
    let mut half = [0xaa; 2];
    driver.nic.read(0, &mut half);
    assert_eq!(half, [0; 2]);
    driver.nic.write(VIRTIO_MMIO_STATUS.into(), &[1], &driver.memory);
    driver.write32(VIRTIO_MMIO_STATUS + 1, 1);
    driver.write32(VIRTIO_MMIO_MAGIC_VALUE, 1);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read32(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    driver.write32(VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(driver.read32(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    assert_eq!(driver.nic.misuse(), None);
}

/// Far enough for the rings' indexes, which have 16 bits, to wrap.
#[test]
fn packets_go_both_ways_whole_and_in_order() {
    let mut driver = Driver::started(CONFIG, USUAL);
    for number in 0..256 {
        offer_receive_buffer(&mut driver, number);
    }
    assert_eq!(driver.nic.room(&driver.memory), 256);
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
    let counters = driver.nic.counters();
    assert_eq!((counters.sent, counters.received), (seed.into(), seed.into()));
    assert_eq!((counters.send_dropped, counters.receive_dropped), (0, 0));
    assert_eq!(driver.nic.misuse(), None);
}
