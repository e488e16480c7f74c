//! Promise: a guest that waits for its disk at the port `WAIT`, without interrupts and without a timer, goes on when its request has come to its end: by an event
//! where the request went out, and at once where the device has answered it by itself.
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

mod recording;

use std::sync::Arc;
use std::time::Duration;

use lockstep::log::entry::Body;
use lockstep::machine::doors::EndReason;
use lockstep::machine::snapshot::Boot;
use lockstep_abi::{port, virtio};
use recording::disk::{CONFIG, Manner, SlowDisk};
use recording::image::image;
use recording::machine::{Recording, boot_image, read_log, record_with, replay};
use virtio_bindings::bindings::virtio_blk::*;
use virtio_bindings::bindings::virtio_mmio::*;

const HEADER: u32 = 0x20_0000;
const DATA: u32 = 0x20_1000;
const STATUS: u32 = 0x20_2000;
const DESCRIPTORS: u32 = 0x21_0000;
const AVAIL: u32 = 0x21_1000;
const USED: u32 = 0x21_2000;

/// A guest that makes one request with `room` bytes for data, waits once, and ends with the status as its code.
fn waiter(kind: u32, room: u32) -> Boot {
    let (next, write) = (1, 2);
    let register = |offset: u32, value: u32| {
        ((virtio::MMIO_BASE + virtio::DISK_SLOT * virtio::MMIO_STRIDE) as u32 + offset, value)
    };
    let mut writes = vec![(HEADER, kind), (STATUS, 0xee)];
    let mut chain = vec![(HEADER, 16, 0), (DATA, room, write), (STATUS, 1, write)];
    chain.retain(|&(_, length, _)| length > 0);
    for (i, &(address, length, flags)) in chain.iter().enumerate() {
        let at = DESCRIPTORS + 16 * i as u32;
        let link = if i + 1 < chain.len() { next | (i as u32 + 1) << 16 } else { 0 };
        writes.extend([(at, address), (at + 8, length), (at + 12, flags | link)]);
    }
    // No interrupts; one chain, which begins at descriptor 0.
    writes.push((AVAIL, 1 | 1 << 16));
    writes.extend([
        register(VIRTIO_MMIO_STATUS, 3),
        register(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0),
        register(VIRTIO_MMIO_DRIVER_FEATURES, 1 << VIRTIO_BLK_F_FLUSH),
        register(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
        register(VIRTIO_MMIO_DRIVER_FEATURES, 1),
        register(VIRTIO_MMIO_STATUS, 11),
        register(VIRTIO_MMIO_QUEUE_NUM, 4),
        register(VIRTIO_MMIO_QUEUE_DESC_LOW, DESCRIPTORS),
        register(VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL),
        register(VIRTIO_MMIO_QUEUE_USED_LOW, USED),
        register(VIRTIO_MMIO_QUEUE_READY, 1),
        register(VIRTIO_MMIO_STATUS, 15),
        (0, 0),
    ]);
    const TABLE: u32 = 0x10_0040;
    let [wait_low, wait_high] = port::WAIT.to_le_bytes();
    let [exit, _] = port::DEBUG_EXIT.to_le_bytes();
    let mut code = [&[0xbe][..], &TABLE.to_le_bytes()].concat(); // mov esi, TABLE
    code.extend([0xad, 0x89, 0xc7, 0xad]); // again: lodsd; mov edi, eax; lodsd
    code.extend([0x85, 0xff, 0x74, 4]); // test edi, edi; jz done
    code.extend([0x89, 0x07, 0xeb, 0xf4]); // mov [edi], eax; jmp again
    code.extend([0x66, 0xba, wait_low, wait_high, 0xee]); // done: mov dx, WAIT; out dx, al
    code.push(0xa0); // mov al, [STATUS]
    code.extend(STATUS.to_le_bytes());
    code.extend([0xe6, exit, 0xf4]); // out DEBUG_EXIT, al; hlt
    code.resize(0x40, 0x90);
    code.extend(writes.iter().flat_map(|(address, value)| [address.to_le_bytes(), value.to_le_bytes()].concat()));
    Boot { disk: Some(CONFIG), ..boot_image(image(&code), "") }
}

#[test]
fn a_guest_that_waits_for_its_disk_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    for (what, kind, room, status, goes_out) in [
        ("the disk's name", VIRTIO_BLK_T_GET_ID, 20, VIRTIO_BLK_S_OK, false),
        ("a read of no whole sector", VIRTIO_BLK_T_IN, 100, VIRTIO_BLK_S_IOERR, false),
        ("something unknown", 99, 0, VIRTIO_BLK_S_UNSUPP, false),
        ("a read", VIRTIO_BLK_T_IN, 512, VIRTIO_BLK_S_OK, true),
        ("a flush", VIRTIO_BLK_T_FLUSH, 0, VIRTIO_BLK_S_OK, true),
    ] {
        let boot = waiter(kind, room);
        let manner = Manner { seed: 1, slow_us: 100, fails: 0, backup_reads: false };
        let how = Recording { deadline: Duration::from_secs(30), ..Recording::default() };
        let recorded = record_with(&boot, &log, how, |world| Arc::new(SlowDisk::start(world, manner)));
        assert_eq!(recorded.end.as_ref().ok(), Some(&EndReason::Exit(status as u8)), "{what}: {recorded:?}");
        let (_, entries) = read_log(&log);
        let disk = entries.iter().filter(|entry| matches!(entry.body, Body::Asked { .. } | Body::Disk(_))).count();
        assert_eq!(disk, if goes_out { 2 } else { 0 }, "{what}");
        let replayed = replay(&log);
        assert_eq!((replayed.end.ok(), replayed.at), (recorded.end.ok(), recorded.at), "{what}");
    }
}
