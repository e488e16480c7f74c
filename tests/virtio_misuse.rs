//! Promise: whatever a guest writes into the card's registers and rings costs it the card, until it resets it, and nothing else. Each
//! kind of misuse by hand; then arbitrary scripts: no panic, bounded work, no memory changed but what the rings name,
//! DEVICE_NEEDS_RESET told of, the card as good as new after a reset, and the same script always the same card and memory.

mod virtio;

#[path = "virtio/fuzz.rs"]
mod fuzz;
#[path = "virtio/script.rs"]
mod script;

use lockstep::devices::virtio::misuse::Misuse;
use lockstep::machine::packets::Packets;
use virtio::*;
use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;

const BUFFERS: u64 = 0x10_0000;
const END: u64 = 4 << 20;
const INDIRECT_AT: u64 = 0x3_0000;

/// A driver with receive buffers and something to send, and both queues looked at once.
fn at_work() -> Driver {
    let mut driver = Driver::started(CONFIG, USUAL);
    for number in 0..8 {
        driver.offer(RX, &[(BUFFERS + number * 2048, 2048)]);
    }
    driver.offer(TX, &[(BUFFERS, 100)]);
    assert_eq!(driver.transmit().len(), 1);
    driver.receive(&[packet(1, 60)]);
    driver.want_interrupt_after(RX, 0x8000);
    driver.want_interrupt_after(TX, 0x8000);
    driver.device.take_edge();
    driver.write32(VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
    driver
}

/// The card says so, does nothing any more, and is good again after a reset.
fn needs_reset(driver: &mut Driver, misuse: Misuse, case: &str) {
    let live = driver.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0;
    assert_eq!(driver.device.misuse(), Some(misuse), "{case}");
    assert!(driver.needs_reset(), "{case}");
    assert_eq!(driver.device.take_edge(), live, "{case}: a driver that is ready is told");
    assert_eq!(driver.read32(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG != 0, live, "{case}");

    driver.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    assert!(driver.needs_reset(), "{case}: no way out but a reset");
    let before = driver.bytes(0, END as usize);
    assert_eq!(driver.device.room(&driver.memory), 0, "{case}");
    assert_eq!(driver.transmit().len(), 0, "{case}");
    driver.receive(&[packet(1, 60)]);
    driver.write32(VIRTIO_MMIO_QUEUE_NOTIFY, TX as u32);
    assert!(!driver.device.take_edge(), "{case}: told once");
    assert!(driver.bytes(0, END as usize) == before, "{case}: a card that needs a reset leaves memory alone");

    driver.start(USUAL);
    assert_eq!(driver.device.misuse(), None, "{case}");
    works(driver, case);
}

fn works(driver: &mut Driver, case: &str) {
    let (out, into) = (packet(5, 300), packet(6, 400));
    driver.put_bytes(BUFFERS, &out);
    driver.offer(TX, &[(BUFFERS, out.len() as u32)]);
    assert_eq!(driver.transmit(), [out], "{case}");
    driver.offer(RX, &[(BUFFERS, 2048)]);
    driver.receive(std::slice::from_ref(&into));
    assert_eq!(driver.take_used(RX), Some((0, into.len() as u32)), "{case}");
    assert_eq!(driver.bytes(BUFFERS + 12, 400), into[12..], "{case}");
}

/// Descriptors: address, length, flags, next.
type Table = &'static [(u64, u32, u16, u16)];
/// Its name, what it is, the queue, the descriptors there and those in an indirect table.
type BadChain = (&'static str, Misuse, usize, Table, Table);

#[test]
fn bad_chains() {
    let cases: [BadChain; 22] = [
        ("a loop of one", Misuse::Chain, TX, &[(BUFFERS, 9, NEXT, 0)], &[]),
        ("a loop of two", Misuse::Chain, TX, &[(BUFFERS, 9, NEXT, 1), (BUFFERS, 9, NEXT, 0)], &[]),
        ("a loop to receive into", Misuse::Chain, RX, &[(BUFFERS, 2000, NEXT | WRITE, 0)], &[]),
        ("an index beyond the table", Misuse::Chain, TX, &[(BUFFERS, 9, NEXT, 256)], &[]),
        ("buffers of 4 GiB", Misuse::Buffer, TX, &[(0, u32::MAX, NEXT, 1), (0, u32::MAX, 0, 0)], &[]),
        ("an empty buffer", Misuse::Buffer, TX, &[(BUFFERS, 0, 0, 0)], &[]),
        (
            "an empty buffer to receive into",
            Misuse::Buffer,
            RX,
            &[(BUFFERS, 100, NEXT | WRITE, 1), (BUFFERS, 0, WRITE, 0)],
            &[],
        ),
        ("beyond the end", Misuse::Buffer, TX, &[(END - 59, 60, 0, 0)], &[]),
        ("beyond the end to receive into", Misuse::Buffer, RX, &[(END - 2000, 2001, WRITE, 0)], &[]),
        ("from the end on", Misuse::Buffer, TX, &[(END, 1, 0, 0)], &[]),
        ("around the address space", Misuse::Buffer, TX, &[(u64::MAX - 5, 60, 0, 0)], &[]),
        ("around the address space to receive into", Misuse::Buffer, RX, &[(u64::MAX, 2000, WRITE, 0)], &[]),
        ("far out", Misuse::Buffer, RX, &[(1 << 63, 2000, WRITE, 0)], &[]),
        ("to be written, in the transmit queue", Misuse::Direction, TX, &[(BUFFERS, 60, WRITE, 0)], &[]),
        ("to be written at the end", Misuse::Direction, TX, &[(BUFFERS, 60, NEXT, 1), (BUFFERS, 4, WRITE, 0)], &[]),
        ("to be read, in the receive queue", Misuse::Direction, RX, &[(BUFFERS, 2000, 0, 0)], &[]),
        (
            "an indirect table of no whole entries",
            Misuse::Chain,
            TX,
            &[(INDIRECT_AT, 17, TABLE, 0)],
            &[(BUFFERS, 60, 0, 0)],
        ),
        ("an empty indirect table", Misuse::Chain, TX, &[(INDIRECT_AT, 0, TABLE, 0)], &[]),
        ("an indirect table out of memory", Misuse::Chain, TX, &[(END, 16, TABLE, 0)], &[]),
        (
            "an indirect table in an indirect table",
            Misuse::Chain,
            TX,
            &[(INDIRECT_AT, 16, TABLE, 0)],
            &[(INDIRECT_AT, 16, TABLE, 0)],
        ),
        ("a loop in an indirect table", Misuse::Chain, TX, &[(INDIRECT_AT, 32, TABLE, 0)], &[(BUFFERS, 9, NEXT, 0)]),
        (
            "an indirect table of 65536",
            Misuse::Chain,
            TX,
            &[(INDIRECT_AT, 1 << 20, TABLE, 0)],
            &[(BUFFERS, 9, NEXT, 0)],
        ),
    ];
    for (case, misuse, queue, chain, indirect) in cases {
        let mut driver = at_work();
        // Behind one that is good, which still counts.
        let good = if queue == RX { (BUFFERS, 2048) } else { (BUFFERS, 60) };
        if queue == RX {
            driver.receive(&vec![packet(1, 60); 7]);
        }
        let next = driver.queues[queue].descriptors;
        driver.put_descriptor(next, 200, good.0, good.1, if queue == RX { WRITE } else { 0 }, 0);
        driver.make_available(queue, 200);
        for (i, &(address, length, flags, next)) in chain.iter().enumerate() {
            driver.put_descriptor(driver.queues[queue].descriptors, i as u16, address, length, flags, next);
        }
        for (i, &(address, length, flags, next)) in indirect.iter().enumerate() {
            driver.put_descriptor(INDIRECT_AT, i as u16, address, length, flags, next);
        }
        driver.make_available(queue, 0);
        if queue == RX {
            let before = driver.device.counters();
            driver.receive(&[packet(1, 60), packet(2, 60), packet(3, 60)]);
            assert_eq!(driver.device.counters().received, before.received + 1, "{case}");
            assert_eq!(driver.device.counters().receive_dropped, before.receive_dropped + 2, "{case}");
        } else {
            assert_eq!(driver.transmit().len(), 1, "{case}");
        }
        needs_reset(&mut driver, misuse, case);
    }
}

#[test]
fn bad_rings() {
    for queue in [RX, TX] {
        for ahead in [257, 0x7fff, 0xffff] {
            let case = format!("queue {queue}: available index {ahead} ahead");
            let mut driver = at_work();
            if queue == RX {
                driver.receive(&vec![packet(1, 60); 7]);
            }
            let index = driver.queues[queue].next_avail.wrapping_add(ahead);
            driver.put16(driver.queues[queue].avail + 2, index);
            assert!(driver.device.room(&driver.memory) <= 256);
            if queue == RX {
                driver.receive(&[packet(1, 60)]);
            } else {
                driver.transmit();
            }
            needs_reset(&mut driver, Misuse::AvailableIndex, &case);
        }
        // A head beyond the descriptor table.
        let mut driver = at_work();
        if queue == RX {
            driver.receive(&vec![packet(1, 60); 7]);
        }
        driver.make_available(queue, 256);
        if queue == RX {
            driver.receive(&[packet(1, 60)]);
        } else {
            driver.transmit();
        }
        needs_reset(&mut driver, Misuse::Chain, "head");
    }
}

#[test]
fn queues_that_cannot_be() {
    type Change = fn(&mut Queue);
    let cases: [(&str, Misuse, Change); 12] = [
        ("no entry", Misuse::QueueSize, |queue| queue.size = 0),
        ("three entries", Misuse::QueueSize, |queue| queue.size = 3),
        ("more than the most", Misuse::QueueSize, |queue| queue.size = 512),
        ("misaligned descriptors", Misuse::RingPlace, |queue| queue.descriptors += 8),
        ("misaligned available ring", Misuse::RingPlace, |queue| queue.avail += 1),
        ("misaligned used ring", Misuse::RingPlace, |queue| queue.used += 2),
        ("descriptors beyond the end", Misuse::RingPlace, |queue| queue.descriptors = END - 4080),
        ("available ring beyond the end", Misuse::RingPlace, |queue| queue.avail = END - 516),
        ("used ring beyond the end", Misuse::RingPlace, |queue| queue.used = END - 2052),
        ("around the address space", Misuse::RingPlace, |queue| queue.descriptors = u64::MAX - 15),
        ("around the address space, used", Misuse::RingPlace, |queue| queue.used = u64::MAX - 3),
        ("available ring nowhere", Misuse::RingPlace, |queue| queue.avail = 0),
    ];
    for (case, misuse, change) in cases {
        let mut driver = Driver::new(CONFIG, 256);
        assert!(driver.negotiate(USUAL));
        let good = driver.queues.clone();
        change(&mut driver.queues[TX]);
        driver.set_up_queue(TX);
        assert_eq!(driver.read32(VIRTIO_MMIO_QUEUE_READY), 0, "{case}");
        driver.queues = good;
        needs_reset(&mut driver, misuse, case);
    }
    // At the very end there is still room.
    let mut driver = Driver::new(CONFIG, 256);
    driver.queues[TX].descriptors = END - 4096;
    driver.queues[TX].avail = END - 4096 - 518;
    assert!(driver.negotiate(USUAL));
    driver.set_up_queue(TX);
    assert_eq!(driver.device.misuse(), None);
}

#[test]
fn registers_out_of_turn() {
    type Act = fn(&mut Driver);
    let cases: [(&str, Misuse, Act); 8] = [
        ("a ready queue after DRIVER_OK", Misuse::ReadyOutOfTurn, |driver| {
            driver.write32(VIRTIO_MMIO_QUEUE_READY, 0);
            driver.write32(VIRTIO_MMIO_QUEUE_READY, 1);
        }),
        ("a ready queue before FEATURES_OK", Misuse::ReadyOutOfTurn, |driver| {
            driver.reset();
            driver.set_up_queue(RX);
        }),
        ("a third queue", Misuse::NoSuchQueue, |driver| {
            driver.reset();
            driver.negotiate(USUAL);
            driver.write32(VIRTIO_MMIO_QUEUE_SEL, 2);
            driver.write32(VIRTIO_MMIO_QUEUE_NUM, 256);
            driver.write32(VIRTIO_MMIO_QUEUE_READY, 1);
        }),
        ("a notification before DRIVER_OK", Misuse::NotifiedTooEarly, |driver| {
            driver.reset();
            driver.negotiate(USUAL);
            driver.set_up_queue(TX);
            driver.write32(VIRTIO_MMIO_QUEUE_NOTIFY, TX as u32);
        }),
        ("a notification of a third queue", Misuse::NoSuchQueue, |driver| {
            assert!(!driver.write32(VIRTIO_MMIO_QUEUE_NOTIFY, 2));
        }),
        ("a notification of a queue far away", Misuse::NoSuchQueue, |driver| {
            assert!(!driver.write32(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX));
        }),
        ("a notification of a queue that is not ready", Misuse::NoSuchQueue, |driver| {
            driver.write32(VIRTIO_MMIO_QUEUE_SEL, TX as u32);
            driver.write32(VIRTIO_MMIO_QUEUE_READY, 0);
            assert!(!driver.write32(VIRTIO_MMIO_QUEUE_NOTIFY, TX as u32));
        }),
        ("a write to the configuration space", Misuse::ConfigWritten, |driver| {
            driver.device.write(u64::from(VIRTIO_MMIO_CONFIG) + 5, &[9], &driver.memory);
        }),
    ];
    for (case, misuse, act) in cases {
        let mut driver = at_work();
        act(&mut driver);
        needs_reset(&mut driver, misuse, case);
    }
    // Registers of a ready queue are locked: what is written there does nothing.
    let mut driver = at_work();
    driver.queues[RX] = Queue::at(END, 512);
    let kept = driver.device.state();
    driver.write32(VIRTIO_MMIO_QUEUE_SEL, RX as u32);
    for register in [VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH] {
        driver.write32(register, 0xffff_fff3);
    }
    driver.write32(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.device.state(), kept);
}

/// As much work as a guest can make for one call: 256 chains of 256 descriptors each, one of them loose.
#[test]
fn the_longest_chains_are_an_end_too() {
    let mut driver = Driver::started(CONFIG, USUAL);
    let table = INDIRECT_AT;
    for i in 0..256 {
        driver.put_descriptor(table, i, BUFFERS, 4096, if i < 255 { NEXT } else { 0 }, i + 1);
    }
    driver.put_descriptor(driver.queues[TX].descriptors, 0, table, 4096, TABLE, 0);
    (0..256).for_each(|_| driver.make_available(TX, 0));
    let mut packets = Packets::new();
    driver.device.transmit(&driver.memory, &mut packets);
    assert!(packets.is_empty());
    assert_eq!(driver.device.counters().send_dropped, 256);
    assert_eq!(driver.device.misuse(), None);
    driver.put_descriptor(table, 255, BUFFERS, 4096, NEXT, 256);
    driver.put_descriptor(driver.queues[TX].descriptors, 0, table, 257 * 16, TABLE, 0);
    driver.make_available(TX, 0);
    driver.transmit();
    needs_reset(&mut driver, Misuse::Chain, "one descriptor too many");
}
