//! Arbitrary scripts of a guest with a disk and of the world behind it: mostly sensible, so that they get far, and now and then anything at all.

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_blk::*;
use virtio_bindings::bindings::virtio_mmio::*;

use crate::virtio::anything::*;
use crate::virtio::disk::{ALL, FLUSH, SECTORS};
use crate::virtio::*;

/// Where a queue is: its size, descriptors, available and used ring.
pub type Parts = (u16, u64, u64, u64);

/// Queues are mostly below this address, headers and status bytes of requests mostly above it.
const HEADERS: u64 = 16 << 10;
/// And data mostly above this one.
const DATA: u64 = 20 << 10;

/// What the guest does, or the world.
#[derive(Clone, Debug)]
pub enum Step {
    /// Reset, and up to DRIVER_OK with these features and this queue.
    Start {
        features: u64,
        queue: Parts,
    },
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    Read {
        offset: u64,
        length: usize,
    },
    /// A descriptor in the queue's table.
    Descriptor {
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    },
    /// Chains beginning at these descriptors are made available.
    Offer {
        heads: Vec<u16>,
    },
    /// A request: its header at `at`, then data (address, length), of which the first `from` pieces are to be read, and its status behind the header.
    /// From descriptor `first` on, or (`indirect`) from that address in a table; made available.
    Ask {
        first: u16,
        indirect: Option<u64>,
        at: u64,
        kind: u32,
        sector: u64,
        data: Vec<(u64, u32)>,
        from: usize,
    },
    /// Two bytes of memory, anywhere.
    Poke {
        address: u64,
        value: u16,
    },
    /// What was asked for leaves the device.
    Take,
    /// Some of it comes to its end: (which of those that are out, how).
    Complete {
        ends: Vec<(usize, End)>,
    },
    /// A replica goes on from the state.
    Transfer,
}

/// How a request comes to its end.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// As it should.
    Well,
    Failed,
    /// As another kind of request would.
    Wrong,
    /// One of a number that is not out.
    Unknown(u64),
}

fn ask() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        6 => Just(VIRTIO_BLK_T_IN),
        6 => Just(VIRTIO_BLK_T_OUT),
        2 => Just(VIRTIO_BLK_T_FLUSH),
        1 => Just(VIRTIO_BLK_T_GET_ID),
        1 => Just(VIRTIO_BLK_T_DISCARD),
        1 => Just(VIRTIO_BLK_T_WRITE_ZEROES),
        1 => any::<u32>(),
    ];
    let sector = prop_oneof![20 => 0..SECTORS - 8, 1 => SECTORS - 4..SECTORS + 4, 1 => any::<u64>()];
    let piece = prop_oneof![
        12 => ((DATA / 16..SIZE / 16 - 100).prop_map(|n| n * 16), (1u32..4).prop_map(|n| n * 512)),
        1 => ((0..SIZE / 16 - 100).prop_map(|n| n * 16), Just(512)),
        1 => ((0..SIZE / 16).prop_map(|n| n * 16), prop::sample::select(vec![16u32, 20, 32])),
        1 => (address(), length()),
    ];
    let first = prop_oneof![9 => 0u16..16, 1 => any::<u16>()];
    let indirect =
        prop_oneof![3 => Just(None), 1 => (0..SIZE / 16).prop_map(|n| Some(n * 16)), 1 => address().prop_map(Some)];
    let at = prop_oneof![20 => (HEADERS / 32..DATA / 32).prop_map(|n| n * 32), 1 => address()];
    // Of each kind what it takes, mostly.
    (kind, sector, prop::collection::vec(piece, 1..3), first, indirect, at, 0usize..12).prop_map(
        |(kind, sector, mut data, first, indirect, at, odd)| {
            let mut from = 0;
            match kind {
                VIRTIO_BLK_T_OUT => from = data.len(),
                VIRTIO_BLK_T_FLUSH if odd > 0 => data.clear(),
                VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if odd > 0 => {
                    data.truncate(1);
                    data.iter_mut().for_each(|piece| piece.1 = 16);
                    from = data.len();
                }
                _ => {}
            }
            if odd == 1 {
                from = from.abs_diff(1).min(data.len());
            }
            Step::Ask { first, indirect, at, kind, sector, data, from }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        3 => Just(0),
        3 => Just(NEXT),
        3 => Just(WRITE),
        2 => Just(WRITE | NEXT),
        1 => Just(TABLE),
        1 => any::<u16>(),
    ];
    let index = || prop_oneof![9 => 0u16..4, 1 => any::<u16>()];
    let value = prop_oneof![
        0u32..8,
        address().prop_map(|address| address as u32),
        any::<u32>(),
        prop::sample::select(vec![0u32, 1, 3, 11, 15, 0x40, 0x4f, 0x80]),
    ];
    let register = || prop_oneof![9 => (0u64..64).prop_map(|n| n * 4), 1 => 0u64..0x200];
    let end = prop_oneof![
        8 => Just(End::Well),
        1 => Just(End::Failed),
        1 => Just(End::Wrong),
        1 => prop_oneof![0u64..100, any::<u64>()].prop_map(End::Unknown),
    ];
    prop_oneof![
        1 => (prop_oneof![4 => Just(ALL), 1 => Just(VERSION_1 | FLUSH), 1 => any::<u64>()], queue_place())
            .prop_map(|(features, queue)| Step::Start { features, queue }),
        1 => (register(), value).prop_map(|(offset, value)| Step::Write { offset, bytes: value.to_le_bytes().to_vec() }),
        1 => (register(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(offset, bytes)| Step::Write { offset, bytes }),
        1 => written(VIRTIO_MMIO_QUEUE_NOTIFY, vec![0, 0, 0, 1]).prop_map(|(offset, bytes)| Step::Write { offset, bytes }),
        1 => written(VIRTIO_MMIO_STATUS, vec![0, 3, 11, 15, 0x40, 0x80])
            .prop_map(|(offset, bytes)| Step::Write { offset, bytes }),
        1 => (register(), 1usize..9).prop_map(|(offset, length)| Step::Read { offset, length }),
        16 => ask(),
        1 => (index(), address(), length(), flags, index()).prop_map(|(index, address, length, flags, next)| {
            Step::Descriptor { index, address, length, flags, next }
        }),
        1 => prop::collection::vec(index(), 1..4).prop_map(|heads| Step::Offer { heads }),
        1 => (address(), any::<u16>()).prop_map(|(address, value)| Step::Poke { address, value }),
        8 => Just(Step::Take),
        8 => prop::collection::vec((0usize..8, end), 1..5).prop_map(|ends| Step::Complete { ends }),
        1 => Just(Step::Transfer),
    ]
}

/// A script that begins with a start, which mostly works.
pub fn script() -> impl Strategy<Value = Vec<Step>> {
    let good =
        (4u32..6, 0..HEADERS / 2048).prop_map(|(size, n)| (1 << size, n * 2048, n * 2048 + 1024, n * 2048 + 1536));
    let queue = prop_oneof![7 => good, 1 => queue_place()];
    let start = queue.prop_map(|queue| Step::Start { features: ALL, queue });
    (start, prop::collection::vec(step(), 1..40)).prop_map(|(start, mut steps)| {
        steps.insert(0, start);
        steps
    })
}
