//! Promise: the disk's device does what virtio 1.2 says to a driver that keeps to it, and data moves between guest memory and the world only
//! where the machine says: out when a request is taken, in when it is completed. An honest driver, written from the specification.

mod virtio;

use lockstep::devices::virtio::blk::{Blk, BlkState};
use lockstep::devices::virtio::misuse::{Misuse, StateError};
use lockstep::machine::blocks::{Ask, Completion, MAX_BYTES, MAX_REQUEST, Outcome, Request, Requests, SECTOR};
use lockstep::machine::memory;
use virtio::disk::*;
use virtio::{Driver, EVENT_IDX, INDIRECT, NEXT, TABLE, VERSION_1, WRITE};
use virtio_bindings::bindings::virtio_blk::*;
use virtio_bindings::bindings::virtio_mmio::*;

const BUFFERS: u64 = 0x10_0000;

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|i| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i as u32 % 64) + i) as u8)
        .collect()
}

fn done(id: u64) -> Completion {
    Completion { id, outcome: Outcome::Done }
}

#[test]
fn the_disk_is_found() {
    let offered = |config| {
        let mut driver: DiskDriver = Driver::of(Blk::new(config), 256);
        assert_eq!(driver.read32(VIRTIO_MMIO_DEVICE_ID), 2);
        [1, 0].into_iter().fold(0u64, |features, selector| {
            driver.write32(VIRTIO_MMIO_DEVICE_FEATURES_SEL, selector);
            features << 32 | u64::from(driver.read32(VIRTIO_MMIO_DEVICE_FEATURES))
        })
    };
    assert_eq!(offered(DISK), ALL);
    assert_eq!(offered(READ_ONLY), ALL & !DISCARD & !WRITE_ZEROES | RO);

    let mut driver: DiskDriver = Driver::of(Blk::new(DISK), 256);
    let mut config = [0xaa; 64];
    driver.device.read(VIRTIO_MMIO_CONFIG.into(), &mut config);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().expect("four"));
    assert_eq!(u64::from_le_bytes(config[..8].try_into().expect("eight")), SECTORS);
    let (segment, segments) = (word(8), word(12));
    assert_eq!(segment as usize * segments as usize, MAX_REQUEST, "whoever keeps to both is never refused");
    assert_eq!((word(16), word(20)), (0, 512));
    assert_eq!(config[24..36], [0; 12]);
    assert_eq!([word(36), word(40), word(44)], [1 << 21, 1, 8]);
    assert_eq!([word(48), word(52), word(56), word(60)], [1 << 15, 1, 1, 0]);
}

#[test]
fn a_driver_that_would_take_writes_for_stable_is_refused() {
    for (config, features, agreed) in [
        (DISK, VERSION_1 | FLUSH, true),
        (DISK, ALL, true),
        (DISK, VERSION_1, false),
        (DISK, ALL & !FLUSH, false),
        (DISK, ALL | RO, false),
        (READ_ONLY, VERSION_1, true),
        (READ_ONLY, VERSION_1 | RO | FLUSH, true),
        (READ_ONLY, VERSION_1 | FLUSH | DISCARD, false),
    ] {
        let mut driver: DiskDriver = Driver::of(Blk::new(config), 256);
        assert_eq!(driver.negotiate(features), agreed, "{features:#x}");
    }
}

/// Each kind of request, and where its data is at each moment.
#[test]
fn data_moves_when_the_machine_says_and_not_before_or_after() {
    let mut driver = DiskDriver::ready(DISK, ALL);
    let data = pattern(1, 4096);
    driver.put_bytes(BUFFERS, &data);
    let write = driver.ask(0, VIRTIO_BLK_T_OUT, 8, &[(BUFFERS, 1024), (BUFFERS + 1024, 3072)], &[]);
    let read = driver.ask(1, VIRTIO_BLK_T_IN, 16, &[], &[(BUFFERS + 8192, 512), (BUFFERS + 16384, 1024)]);
    let flush = driver.ask(2, VIRTIO_BLK_T_FLUSH, 99, &[], &[]);
    assert!(driver.write32(VIRTIO_MMIO_QUEUE_NOTIFY, 0));
    let requests = driver.taken();
    let expected = [Ask::Write { sector: 8, data: data.clone() }, Ask::Read { sector: 16, bytes: 1536 }, Ask::Flush];
    let asked: Vec<Ask> = requests.iter().map(|request| request.ask.clone()).collect();
    assert_eq!(asked, expected);
    assert_eq!(requests.iter().map(|request| request.id).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(driver.device.in_flight(&driver.memory), requests);
    assert_eq!(driver.taken(), [], "taken once");
    assert_eq!(driver.take_used(0), None);
    assert!(!driver.device.take_edge());

    // The write's data has left: what the guest does with its buffer now is nobody's business but its own.
    driver.put_bytes(BUFFERS, &[0xff; 4096]);
    assert_eq!(requests[0].ask, expected[0]);
    let before = driver.bytes(BUFFERS + 8192, 512);
    memory::take_written(&driver.memory);

    // Out of order, and two at once.
    let bytes = pattern(2, 1536);
    driver.complete(vec![done(2), Completion { id: 1, outcome: Outcome::Read(bytes.clone()) }]);
    assert_ne!(before, bytes[..512]);
    assert_eq!(driver.bytes(BUFFERS + 8192, 512), bytes[..512]);
    assert_eq!(driver.bytes(BUFFERS + 16384, 1024), bytes[512..]);
    let marked = memory::take_written(&driver.memory);
    for address in [BUFFERS + 8192, BUFFERS + 16384, read.status] {
        let page = (address >> 12) as usize;
        assert_eq!(marked[page / 64] >> (page % 64) & 1, 1, "{address:#x} is not marked as written");
    }
    assert_eq!([driver.status_of(write), driver.status_of(read), driver.status_of(flush)], [UNTOUCHED, OK, OK]);
    assert_eq!(driver.take_used(0), Some((flush.head, 1)));
    assert_eq!(driver.take_used(0), Some((read.head, 1537)));
    assert_eq!(driver.take_used(0), None);
    assert!(driver.device.take_edge(), "one interrupt for the batch");
    assert!(!driver.device.take_edge());
    driver.complete(vec![done(0)]);
    assert_eq!((driver.take_used(0), driver.status_of(write)), (Some((write.head, 1)), OK));
    assert_eq!(driver.device.in_flight(&driver.memory), []);
    assert_eq!((driver.device.counters().done, driver.device.misuse()), (3, None));
}

/// Far enough for the rings' indexes, which have 16 bits, to wrap; the image comes to hold what a model says.
#[test]
fn a_long_stream_of_requests_reads_back_what_was_written() {
    let mut driver = DiskDriver::ready(DISK, ALL);
    let (mut image, mut model, mut random) = (image(), image(), 1u64);
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let (mut asked, mut interrupts) = (0u64, 0);
    while asked < 70_000 {
        let count = 1 + next(60);
        let mut made = Vec::new();
        for number in 0..count {
            // Apart from each other: what overlaps in flight is for the world to order.
            let stripe = SECTORS / count;
            let (sector, at) = (number * stripe + next(stripe - 8), BUFFERS + number * 8192);
            let length = 512 * (1 + next(8)) as usize;
            if next(2) == 0 {
                let data = pattern(next(1 << 30), length);
                driver.put_bytes(at, &data);
                let start = (sector * SECTOR) as usize;
                model[start..start + length].copy_from_slice(&data);
                made.push((driver.ask(number, VIRTIO_BLK_T_OUT, sector, &[(at, length as u32)], &[]), None));
            } else {
                let wanted = ((sector * SECTOR) as usize, length, at);
                made.push((driver.ask(number, VIRTIO_BLK_T_IN, sector, &[], &[(at, length as u32)]), Some(wanted)));
            }
        }
        let mut requests = driver.taken();
        assert_eq!(requests.len() as u64, count);
        assert_eq!(requests[0].id, asked);
        asked += count;
        while !requests.is_empty() {
            let some = 1 + next(requests.len() as u64);
            let batch: Vec<Request> =
                (0..some).map(|_| requests.swap_remove(next(requests.len() as u64) as usize)).collect();
            driver.want_interrupt_after(0, driver.queues[0].next_used);
            driver.complete(batch.iter().map(|request| carry_out(&mut image, request)).collect());
            interrupts += u64::from(driver.device.take_edge());
            assert_eq!((0..).take_while(|_| driver.take_used(0).is_some()).count() as u64, some);
        }
        for (made, wanted) in made {
            assert_eq!(driver.status_of(made), OK);
            if let Some((start, length, at)) = wanted {
                assert_eq!(driver.bytes(at, length), model[start..start + length]);
            }
        }
    }
    assert!(image == model);
    assert!(interrupts > 1000, "{interrupts}");
    let counters = driver.device.counters();
    assert_eq!((counters.done, counters.failed, counters.refused, counters.forgotten), (asked, 0, 0, 0));
}

/// What it is, its status, its kind, sector, data to be read and room to be written.
type Refused = (&'static str, u8, u32, u64, Vec<(u64, u32)>, Vec<(u64, u32)>);

/// Requests the device answers by itself: nothing of them reaches the world.
#[test]
fn what_is_no_request_is_refused_as_the_specification_says() {
    let buffer = |length: u32| vec![(BUFFERS, length)];
    let none = Vec::new;
    let most = MAX_REQUEST as u32;
    let cases: Vec<Refused> = vec![
        ("read of nothing", IO_ERROR, VIRTIO_BLK_T_IN, 0, none(), none()),
        ("read of half a sector", IO_ERROR, VIRTIO_BLK_T_IN, 0, none(), buffer(256)),
        ("read of a sector and a byte", IO_ERROR, VIRTIO_BLK_T_IN, 0, none(), buffer(513)),
        ("read of too much", IO_ERROR, VIRTIO_BLK_T_IN, 0, none(), buffer(most + 512)),
        ("read beyond the end", IO_ERROR, VIRTIO_BLK_T_IN, SECTORS, none(), buffer(512)),
        ("read across the end", IO_ERROR, VIRTIO_BLK_T_IN, SECTORS - 1, none(), buffer(1024)),
        ("read around all numbers", IO_ERROR, VIRTIO_BLK_T_IN, u64::MAX, none(), buffer(1024)),
        ("read far out", IO_ERROR, VIRTIO_BLK_T_IN, 1 << 55, none(), buffer(512)),
        ("read with data to write", IO_ERROR, VIRTIO_BLK_T_IN, 0, buffer(512), buffer(512)),
        ("write of nothing", IO_ERROR, VIRTIO_BLK_T_OUT, 0, none(), none()),
        ("write of a byte", IO_ERROR, VIRTIO_BLK_T_OUT, 0, buffer(1), none()),
        ("write of too much", IO_ERROR, VIRTIO_BLK_T_OUT, 0, vec![(BUFFERS, most), (BUFFERS, 512)], none()),
        ("write across the end", IO_ERROR, VIRTIO_BLK_T_OUT, SECTORS - 1, buffer(1024), none()),
        ("write with room to read", IO_ERROR, VIRTIO_BLK_T_OUT, 0, buffer(512), buffer(512)),
        ("flush with data", IO_ERROR, VIRTIO_BLK_T_FLUSH, 0, buffer(512), none()),
        ("name into too little", IO_ERROR, VIRTIO_BLK_T_GET_ID, 0, none(), buffer(19)),
        ("discard of nothing", IO_ERROR, VIRTIO_BLK_T_DISCARD, 0, none(), none()),
        ("discard of half a segment", IO_ERROR, VIRTIO_BLK_T_DISCARD, 0, buffer(8), none()),
        ("discard of two segments", IO_ERROR, VIRTIO_BLK_T_DISCARD, 0, buffer(32), none()),
        ("secure erase", UNSUPPORTED, VIRTIO_BLK_T_SECURE_ERASE, 0, buffer(16), none()),
        ("a SCSI command", UNSUPPORTED, VIRTIO_BLK_T_SCSI_CMD, 0, buffer(512), none()),
        ("something else", UNSUPPORTED, 77, 0, none(), none()),
        ("the last kind", UNSUPPORTED, u32::MAX, 0, none(), none()),
    ];
    let count = cases.len() as u64;
    let mut driver = DiskDriver::ready(DISK, ALL);
    for (case, status, kind, sector, from, into) in cases {
        driver.put_bytes(BUFFERS, &[0x55; 1024]);
        let made = driver.ask(0, kind, sector, &from, &into);
        driver.want_interrupt_after(0, driver.queues[0].next_used);
        let mut requests = Requests::new();
        assert!(driver.device.take_requests(&driver.memory, &mut requests), "{case}: answered at once");
        assert_eq!(requests, [], "{case}");
        assert_eq!(driver.status_of(made), status, "{case}");
        // Without data of its own, the status is the first byte that the device has written.
        assert_eq!(driver.take_used(0), Some((made.head, u32::from(into.is_empty()))), "{case}");
        assert!(driver.device.take_edge(), "{case}");
        assert_eq!(driver.bytes(BUFFERS, 1024), [0x55; 1024], "{case}");
    }
    assert_eq!((driver.device.counters().refused, driver.device.misuse()), (count, None));

    // What the driver has not agreed on.
    let mut driver = DiskDriver::ready(READ_ONLY, VERSION_1);
    for (kind, status) in [
        (VIRTIO_BLK_T_FLUSH, UNSUPPORTED),
        (VIRTIO_BLK_T_DISCARD, UNSUPPORTED),
        (VIRTIO_BLK_T_WRITE_ZEROES, UNSUPPORTED),
        (VIRTIO_BLK_T_OUT, IO_ERROR),
    ] {
        let from = if kind == VIRTIO_BLK_T_OUT { buffer(512) } else { none() };
        let made = driver.ask(0, kind, 0, &from, &[]);
        assert_eq!((driver.taken(), driver.status_of(made)), (Requests::new(), status), "{kind}");
        driver.take_used(0);
    }
    // A disk that cannot be written can be read.
    driver.ask(0, VIRTIO_BLK_T_IN, SECTORS - 1, &[], &[(BUFFERS, 512)]);
    assert_eq!(driver.taken(), [Request { id: 0, ask: Ask::Read { sector: SECTORS - 1, bytes: 512 } }]);
}

#[test]
fn sectors_are_discarded_and_made_zeros() {
    let mut driver = DiskDriver::ready(DISK, ALL);
    let (discard, zeroes) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
    let refused = |status: u8| Err(status);
    for (kind, sector, sectors, flags, expected) in [
        (discard, 8u64, 16u32, 0u32, Ok(Ask::Discard { sector: 8, sectors: 16 })),
        (discard, 0, SECTORS as u32, 0, Ok(Ask::Discard { sector: 0, sectors: SECTORS as u32 })),
        (zeroes, 1, 3, 0, Ok(Ask::WriteZeroes { sector: 1, sectors: 3, may_unmap: false })),
        (zeroes, SECTORS - 1, 1, 1, Ok(Ask::WriteZeroes { sector: SECTORS - 1, sectors: 1, may_unmap: true })),
        (discard, 8, 16, 1, refused(UNSUPPORTED)),
        (discard, 8, 16, 1 << 31, refused(UNSUPPORTED)),
        (zeroes, 8, 16, 2, refused(UNSUPPORTED)),
        (discard, 8, 0, 0, refused(IO_ERROR)),
        (zeroes, 8, 0, 1, refused(IO_ERROR)),
        (discard, SECTORS, 1, 0, refused(IO_ERROR)),
        (zeroes, SECTORS - 1, 2, 0, refused(IO_ERROR)),
        (zeroes, u64::MAX, 1, 0, refused(IO_ERROR)),
        (discard, 1 << 63, u32::MAX, 0, refused(IO_ERROR)),
    ] {
        let mut segment = sector.to_le_bytes().to_vec();
        segment.extend(sectors.to_le_bytes());
        segment.extend(flags.to_le_bytes());
        driver.put_bytes(BUFFERS, &segment);
        // In two pieces, as nobody sane would do it.
        let made = driver.ask(0, kind, 12345, &[(BUFFERS, 5), (BUFFERS + 5, 11)], &[]);
        let requests = driver.taken();
        match expected {
            Ok(ask) => {
                assert_eq!(requests.iter().map(|request| &request.ask).collect::<Vec<_>>(), [&ask]);
                driver.complete(vec![done(requests[0].id)]);
                assert_eq!(driver.status_of(made), OK);
            }
            Err(status) => {
                assert_eq!((requests, driver.status_of(made)), (Requests::new(), status), "{sector} {sectors}")
            }
        }
        assert_eq!(driver.take_used(0), Some((made.head, 1)));
    }
    // As much as there can be at once, on a disk that is large enough.
    let large = lockstep::machine::snapshot::DiskConfig { sectors: 1 << 40, ..DISK };
    let mut driver = DiskDriver::ready(large, ALL);
    for (kind, most) in [(discard, 1u32 << 21), (zeroes, 1 << 15)] {
        for (sectors, status) in [(most, UNTOUCHED), (most + 1, IO_ERROR)] {
            let mut segment = vec![0; 8];
            segment.extend(sectors.to_le_bytes());
            segment.extend([0; 4]);
            driver.put_bytes(BUFFERS, &segment);
            let made = driver.ask(0, kind, 0, &[(BUFFERS, 16)], &[]);
            driver.taken();
            assert_eq!(driver.status_of(made), status, "{sectors}");
            driver.offer_chain(0, [(made.status, 1, WRITE)].into_iter());
            driver.start(ALL);
        }
    }
}

#[test]
fn the_disk_says_its_name() {
    let mut driver = DiskDriver::ready(DISK, ALL);
    let made = driver.ask(0, VIRTIO_BLK_T_GET_ID, 0, &[], &[(BUFFERS, 7), (BUFFERS + 100, 13)]);
    let mut requests = Requests::new();
    assert!(driver.device.take_requests(&driver.memory, &mut requests));
    assert_eq!((requests.len(), driver.status_of(made)), (0, OK));
    assert_eq!(driver.bytes(BUFFERS, 7), b"a disk ");
    assert_eq!(driver.bytes(BUFFERS + 100, 13), b"of the tests\0");
    assert_eq!(driver.take_used(0), Some((made.head, 21)));
    let made = driver.ask(0, VIRTIO_BLK_T_GET_ID, 0, &[], &[(BUFFERS, 512)]);
    driver.taken();
    assert_eq!((driver.take_used(0), driver.status_of(made)), (Some((made.head, 20)), OK));
}

/// Header, data and status may be cut and joined in any way.
#[test]
fn how_a_request_is_cut_into_descriptors_has_no_meaning() {
    let mut driver = DiskDriver::ready(DISK, ALL);
    let data = pattern(3, 1024);
    let mut whole = vec![0; 16];
    whole[0] = VIRTIO_BLK_T_OUT as u8;
    whole[8] = 5;
    whole.extend(&data);
    driver.put_bytes(BUFFERS, &whole);
    // Header and data in one piece, then in pieces that cut the header twice and cross into the data.
    let status = (BUFFERS + 4096, 1, WRITE);
    for cuts in [vec![1040], vec![3, 8, 100, 929], vec![16, 1024], vec![15, 1, 1, 1023]] {
        let mut at = BUFFERS;
        let mut chain: Vec<(u64, u32, u16)> = Vec::new();
        for length in &cuts {
            chain.push((at, *length, 0));
            at += u64::from(*length);
        }
        chain.push(status);
        driver.offer_chain(0, chain.into_iter());
        let requests = driver.taken();
        assert_eq!(requests[0].ask, Ask::Write { sector: 5, data: data.clone() }, "{cuts:?}");
        assert_eq!(driver.device.in_flight(&driver.memory), requests);
        driver.complete(vec![done(requests[0].id)]);
        assert!(driver.take_used(0).is_some());
    }
    // Data and status in one piece, by an indirect table.
    let table = 0x3_0000;
    whole[0] = VIRTIO_BLK_T_IN as u8;
    driver.put_bytes(BUFFERS, &whole[..16]);
    driver.put_descriptor(table, 0, BUFFERS, 16, NEXT, 1);
    driver.put_descriptor(table, 1, BUFFERS + 8192, 500, NEXT | WRITE, 2);
    driver.put_descriptor(table, 2, BUFFERS + 16384, 13, WRITE, 0);
    let head = driver.offer_chain(0, [(table, 48, TABLE)].into_iter());
    let requests = driver.taken();
    assert_eq!(requests[0].ask, Ask::Read { sector: 5, bytes: 512 });
    let bytes = pattern(4, 512);
    driver.complete(vec![Completion { id: requests[0].id, outcome: Outcome::Read(bytes.clone()) }]);
    assert_eq!(driver.bytes(BUFFERS + 8192, 500), bytes[..500]);
    assert_eq!(driver.bytes(BUFFERS + 16384, 13), [&bytes[500..], &[OK]].concat());
    assert_eq!(driver.take_used(0), Some((head, 513)));
    // The most that a request can be, in more pieces than the device asks for.
    let pieces: Vec<(u64, u32)> = (0..16).map(|i| (BUFFERS + 0x4000 * i, 0x4000)).collect();
    driver.ask(9, VIRTIO_BLK_T_OUT, 0, &pieces, &[]);
    let requests = driver.taken();
    assert_eq!(requests[0].ask.extent(), Some((0, MAX_REQUEST as u64)));
    assert_eq!(driver.device.misuse(), None);
}

#[test]
fn batches_are_bounded_and_nothing_is_left_behind() {
    let mut driver = DiskDriver::ready(DISK, ALL);
    for number in 0..64 {
        driver.ask(number, VIRTIO_BLK_T_OUT, number * 8, &[(BUFFERS + number * 64, 100 * 512)], &[]);
    }
    let (mut sizes, mut ids) = (Vec::new(), Vec::new());
    loop {
        let mut requests = Requests::new();
        driver.device.take_requests(&driver.memory, &mut requests);
        if requests.is_empty() {
            break;
        }
        ids.extend(requests.iter().map(|request| request.id));
        sizes.push(requests.len());
    }
    let each = MAX_BYTES.div_ceil(100 * 512);
    assert_eq!(sizes, [each, each, each, 64 - 3 * each]);
    assert_eq!(ids, (0..64).collect::<Vec<_>>());
}

#[test]
fn errors_of_the_world_are_the_disks() {
    let mut driver = DiskDriver::ready(DISK, ALL);
    let read = driver.ask(0, VIRTIO_BLK_T_IN, 0, &[], &[(BUFFERS, 512)]);
    let write = driver.ask(1, VIRTIO_BLK_T_OUT, 0, &[(BUFFERS, 512)], &[]);
    driver.put_bytes(BUFFERS, &[0x33; 512]);
    assert_eq!(driver.taken().len(), 2);
    let failed = |id| Completion { id, outcome: Outcome::Failed };
    driver.complete(vec![failed(0), failed(1)]);
    assert_eq!([driver.status_of(read), driver.status_of(write)], [IO_ERROR, IO_ERROR]);
    assert_eq!(driver.bytes(BUFFERS, 512), [0x33; 512]);
    // What a read has written from its beginning is nothing.
    assert_eq!([driver.take_used(0), driver.take_used(0)], [Some((read.head, 0)), Some((write.head, 1))]);
    assert_eq!(driver.device.counters().failed, 2);
    assert!(driver.device.take_edge());

    // What a damaged log could say: other bytes than were asked for, an end of another kind. Never more than an I/O error.
    let wrong = [
        Outcome::Read(vec![1; 511]),
        Outcome::Read(vec![1; 1024]),
        Outcome::Read(Vec::new()),
        Outcome::Done,
        Outcome::ReadElsewhere { bytes: 512, check: 1 },
    ];
    for outcome in wrong {
        let read = driver.ask(0, VIRTIO_BLK_T_IN, 0, &[], &[(BUFFERS, 512)]);
        let id = driver.taken()[0].id;
        driver.complete(vec![Completion { id, outcome: outcome.clone() }]);
        assert_eq!((driver.status_of(read), driver.take_used(0)), (IO_ERROR, Some((read.head, 0))), "{outcome:?}");
        assert_eq!(driver.bytes(BUFFERS, 1024), [&[0x33; 512][..], &[0; 512]].concat());
    }
    for outcome in [Outcome::Read(vec![1; 512]), Outcome::ReadElsewhere { bytes: 512, check: 1 }] {
        let write = driver.ask(0, VIRTIO_BLK_T_OUT, 0, &[(BUFFERS, 512)], &[]);
        let id = driver.taken()[0].id;
        driver.complete(vec![Completion { id, outcome }]);
        assert_eq!((driver.status_of(write), driver.take_used(0)), (IO_ERROR, Some((write.head, 1))));
    }
    // Numbers that were never given out, and one that is answered twice.
    let (before, state) = (driver.bytes(0, 4 << 20), driver.device.state());
    driver.complete(vec![done(99), failed(u64::MAX), done(0), done(0)]);
    assert!(driver.bytes(0, 4 << 20) == before && !driver.device.take_edge());
    assert_ne!(driver.device.state(), state, "counted");
    assert_eq!((driver.device.counters().forgotten, driver.device.misuse()), (4, None));
}

#[test]
fn a_reset_forgets_what_is_in_flight_and_its_numbers_never_come_again() {
    type Forget = fn(&mut DiskDriver);
    let ways: [(&str, Forget); 3] = [
        ("reset", |driver| driver.start(ALL)),
        ("the queue taken back", |driver| {
            driver.write32(VIRTIO_MMIO_QUEUE_READY, 0);
            assert_eq!(driver.device.in_flight(&driver.memory), []);
            driver.start(ALL);
        }),
        ("power", |driver| {
            driver.device.power_on_again();
            driver.start(ALL);
        }),
    ];
    for (way, forget) in ways {
        let mut driver = DiskDriver::ready(DISK, ALL);
        let read = driver.ask(0, VIRTIO_BLK_T_IN, 0, &[], &[(BUFFERS, 512)]);
        driver.ask(1, VIRTIO_BLK_T_FLUSH, 0, &[], &[]);
        assert_eq!(driver.taken().len(), 2);
        forget(&mut driver);
        assert_eq!(driver.device.in_flight(&driver.memory), [], "{way}");
        let again = driver.ask(2, VIRTIO_BLK_T_FLUSH, 0, &[], &[]);
        assert_eq!(again.head, read.head, "the same chain, another request");
        assert_eq!(driver.taken(), [Request { id: 2, ask: Ask::Flush }], "{way}");
        // The old ones come to their end meanwhile.
        driver.complete(vec![Completion { id: 0, outcome: Outcome::Read(vec![1; 512]) }, done(1)]);
        assert_eq!(driver.bytes(BUFFERS, 512), [0; 512], "{way}: memory is the guest's again");
        assert_eq!((driver.status_of(read), driver.take_used(0)), (UNTOUCHED, None), "{way}");
        assert_eq!(driver.device.counters().forgotten, 2, "{way}");
        driver.complete(vec![done(2)]);
        assert_eq!((driver.status_of(again), driver.take_used(0)), (OK, Some((again.head, 1))), "{way}");
    }
}

#[test]
fn interrupts_come_as_the_driver_asked_for_them() {
    for features in [ALL, VERSION_1 | FLUSH | INDIRECT] {
        let event_idx = features & EVENT_IDX != 0;
        let mut driver = DiskDriver::ready(DISK, features);
        for number in 0..6 {
            driver.ask(number, VIRTIO_BLK_T_FLUSH, 0, &[], &[]);
        }
        let old = driver.queues[0].next_avail;
        driver.taken();
        if event_idx {
            driver.ask(6, VIRTIO_BLK_T_FLUSH, 0, &[], &[]);
            assert!(driver.would_notify(0, old), "the device asks to be told of the next");
            driver.want_interrupt_after(0, 3);
            driver.complete(vec![done(0), done(1), done(2)]);
            assert!(!driver.device.take_edge(), "not yet");
            driver.complete(vec![done(3), done(4)]);
            assert!(driver.device.take_edge());
            driver.complete(vec![done(5)]);
            assert!(!driver.device.take_edge(), "the driver has not asked again");
        } else {
            driver.put16(driver.queues[0].avail, 1);
            driver.complete(vec![done(0)]);
            assert!(!driver.device.take_edge());
            driver.put16(driver.queues[0].avail, 0);
            driver.complete(vec![done(1)]);
            assert!(driver.device.take_edge());
        }
    }
}

#[test]
fn a_disk_goes_on_from_its_state_and_its_requests_are_made_again() {
    let mut driver = DiskDriver::ready(DISK, ALL);
    let data = pattern(9, 2048);
    driver.put_bytes(BUFFERS, &data);
    let write = driver.ask(0, VIRTIO_BLK_T_OUT, 1, &[(BUFFERS, 2048)], &[]);
    let read = driver.ask(1, VIRTIO_BLK_T_IN, 7, &[], &[(BUFFERS + 4096, 512)]);
    driver.put_bytes(BUFFERS + 8192, &[&3u64.to_le_bytes()[..], &[5, 0, 0, 0, 1, 0, 0, 0]].concat());
    let zeroes = driver.ask(2, VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(BUFFERS + 8192, 16)], &[]);
    let flush = driver.ask(3, VIRTIO_BLK_T_FLUSH, 0, &[], &[]);
    let requests = driver.taken();
    driver.complete(vec![done(3)]);
    assert_eq!(driver.status_of(flush), OK);
    driver.ask(4, VIRTIO_BLK_T_FLUSH, 0, &[], &[]);

    let bytes = bincode::encode_to_vec(driver.device.state(), bincode::config::standard()).expect("encodes");
    let (state, length): (BlkState, usize) =
        bincode::decode_from_slice(&bytes, bincode::config::standard()).expect("decodes");
    assert_eq!((length, &state), (bytes.len(), &driver.device.state()));
    let replica = Blk::from_state(&state).expect("a state that was");
    assert_eq!(replica.state(), state);
    assert_eq!(replica.in_flight(&driver.memory), requests[..3]);
    driver.device = replica;
    assert_eq!(driver.taken(), [Request { id: 4, ask: Ask::Flush }]);
    driver.complete(vec![done(0), done(2), Completion { id: 1, outcome: Outcome::Read(pattern(8, 512)) }]);
    assert_eq!([write, read, zeroes].map(|made| driver.status_of(made)), [OK; 3]);
    assert_eq!(driver.bytes(BUFFERS + 4096, 512), pattern(8, 512));
}

/// States that no disk was in: found by changing the bytes of one that was.
#[test]
fn a_state_that_cannot_be_is_refused_and_never_more_than_that() {
    let mut driver = DiskDriver::ready(DISK, ALL);
    driver.ask(0, VIRTIO_BLK_T_IN, 7, &[], &[(BUFFERS, 512)]);
    driver.ask(1, VIRTIO_BLK_T_OUT, 7, &[(BUFFERS, 512)], &[]);
    assert_eq!(driver.taken().len(), 2);
    let good = bincode::encode_to_vec(driver.device.state(), bincode::config::standard()).expect("encodes");
    let (mut in_flight, mut other, mut taken) = (0, 0, 0);
    let mut image = image();
    for at in 0..good.len() {
        for value in 0..=255 {
            let mut bytes = good.clone();
            bytes[at] = value;
            let config = bincode::config::standard().with_limit::<65536>();
            let Ok((state, _)) = bincode::decode_from_slice::<BlkState, _>(&bytes, config) else { continue };
            match Blk::from_state(&state) {
                Ok(mut blk) => {
                    taken += 1;
                    let requests = blk.in_flight(&driver.memory);
                    let ends = requests.iter().filter(|request| {
                        request.ask.extent().is_none_or(|(at, length)| at + length <= image.len() as u64)
                    });
                    let ends: Vec<Completion> = ends
                        .cloned()
                        .collect::<Vec<_>>()
                        .iter()
                        .map(|request| carry_out(&mut image, request))
                        .collect();
                    blk.complete_requests(&driver.memory, ends);
                    blk.take_requests(&driver.memory, &mut Requests::new());
                }
                Err(StateError::InFlight(_)) => in_flight += 1,
                Err(StateError::Version(_) | StateError::Features(_) | StateError::Queue(_)) => other += 1,
            }
        }
    }
    println!("{in_flight} requests in flight that cannot be, {other} other reasons, {taken} taken");
    assert!(in_flight > 100 && other > 100 && taken > 100);
}

#[test]
fn misuse_has_a_name() {
    const END: u64 = 4 << 20;
    type Act = fn(&mut DiskDriver);
    let cases: [(&str, Misuse, Act); 9] = [
        ("no status", Misuse::Request, |driver| {
            driver.offer_chain(0, [(BUFFERS, 16, 0)].into_iter());
        }),
        ("no header", Misuse::Request, |driver| {
            driver.offer_chain(0, [(BUFFERS, 1, WRITE)].into_iter());
        }),
        ("a header of 15 bytes", Misuse::Request, |driver| {
            driver.offer_chain(0, [(BUFFERS, 15, 0), (BUFFERS, 513, WRITE)].into_iter());
        }),
        ("read behind written", Misuse::Direction, |driver| {
            driver.offer_chain(0, [(BUFFERS, 16, 0), (BUFFERS, 1, WRITE), (BUFFERS, 512, 0)].into_iter());
        }),
        ("beyond the end", Misuse::Buffer, |driver| {
            driver.offer_chain(0, [(BUFFERS, 16, 0), (END - 511, 512, WRITE), (BUFFERS, 1, WRITE)].into_iter());
        }),
        ("an empty buffer", Misuse::Buffer, |driver| {
            driver.offer_chain(0, [(BUFFERS, 16, 0), (BUFFERS, 0, WRITE)].into_iter());
        }),
        ("a chain that is in flight", Misuse::InFlight, |driver| {
            let made = driver.ask(1, VIRTIO_BLK_T_FLUSH, 0, &[], &[]);
            driver.make_available(0, made.head);
        }),
        ("a loop", Misuse::Chain, |driver| {
            driver.put_descriptor(driver.queues[0].descriptors, 0, BUFFERS, 16, NEXT, 0);
            driver.make_available(0, 0);
        }),
        ("an index that jumps", Misuse::AvailableIndex, |driver| {
            let index = driver.queues[0].next_avail.wrapping_add(300);
            driver.put16(driver.queues[0].avail + 2, index);
        }),
    ];
    for (case, misuse, act) in cases {
        let mut driver = DiskDriver::ready(DISK, ALL);
        act(&mut driver);
        // What was good before it has left the device.
        let before = driver.taken();
        assert_eq!(driver.device.misuse(), Some(misuse), "{case}");
        assert!(driver.needs_reset() && driver.device.take_edge(), "{case}");
        // From here on the device leaves memory alone, whatever comes in.
        let memory = driver.bytes(0, END as usize);
        driver.complete(before.iter().map(|request| done(request.id)).collect());
        driver.make_available(0, 9);
        let written = driver.bytes(0, 0x4_0000);
        assert_eq!(driver.taken(), [], "{case}");
        assert!(driver.bytes(0x4_0000, END as usize - 0x4_0000) == memory[0x4_0000..], "{case}");
        assert!(driver.bytes(0, 0x4_0000) == written, "{case}");
        assert!(!driver.device.take_edge(), "{case}: told once");

        driver.start(ALL);
        let made = driver.ask(0, VIRTIO_BLK_T_FLUSH, 0, &[], &[]);
        let requests = driver.taken();
        driver.complete(vec![done(requests[0].id)]);
        assert_eq!(driver.status_of(made), OK, "{case}: as good as new after a reset");
    }
}
