//! Arbitrary scripts of a guest: mostly sensible, so that they get far, and now and then anything at all.

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_mmio::*;

use crate::virtio::anything::*;
use crate::virtio::*;

/// What the guest does, or the world.
#[derive(Clone, Debug)]
pub enum Step {
    /// Reset, and up to DRIVER_OK with these features and queues.
    Start {
        features: u64,
        queues: [(u16, u64, u64, u64); 2],
    },
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    Read {
        offset: u64,
        length: usize,
    },
    /// A descriptor in a queue's table.
    Descriptor {
        queue: usize,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    },
    /// Chains beginning at these descriptors are made available.
    Offer {
        queue: usize,
        heads: Vec<u16>,
    },
    /// A chain of these buffers, from descriptor `first` on, or (`indirect`) from that address in a table; made available.
    Chain {
        queue: usize,
        first: u16,
        indirect: Option<u64>,
        buffers: Vec<(u64, u32)>,
    },
    /// Two bytes of memory, anywhere.
    Poke {
        address: u64,
        value: u16,
    },
    Transmit,
    Receive {
        packets: Vec<usize>,
    },
    /// A replica goes on from the state.
    Transfer,
}

fn step() -> impl Strategy<Value = Step> {
    let flags =
        |write: u16| prop_oneof![6 => Just(write), 3 => Just(write | NEXT), 1 => Just(TABLE), 1 => any::<u16>()];
    let index = || prop_oneof![9 => 0u16..4, 1 => any::<u16>()];
    let descriptor = (0usize..2).prop_flat_map(move |queue| {
        let direction = if queue == RX { WRITE } else { 0 };
        (Just(queue), index(), address(), length(), flags(direction), index())
    });
    let buffer =
        || prop_oneof![9 => ((0..SIZE / 16 - 100).prop_map(|n| n * 16), 26u32..1600), 1 => (address(), length())];
    let indirect = prop_oneof![4 => Just(None), 1 => address().prop_map(Some)];
    let chain =
        (0usize..2, prop_oneof![9 => 0u16..16, 1 => any::<u16>()], indirect, prop::collection::vec(buffer(), 1..4))
            .prop_map(|(queue, first, indirect, buffers)| Step::Chain { queue, first, indirect, buffers });
    let value = prop_oneof![
        0u32..8,
        address().prop_map(|address| address as u32),
        any::<u32>(),
        prop::sample::select(vec![0u32, 1, 3, 11, 15, 0x40, 0x4f, 0x80]),
    ];
    let register = prop_oneof![9 => (0u64..64).prop_map(|n| n * 4), 1 => 0u64..0x200];
    let packet = prop_oneof![6 => 14usize..200, 2 => 14usize..1515, 1 => 1515usize..65000];
    prop_oneof![
        1 => (prop_oneof![4 => Just(USUAL), 1 => Just(VERSION_1), 1 => any::<u64>()], [queue_place(), queue_place()])
            .prop_map(|(features, queues)| Step::Start { features, queues }),
        1 => (register.clone(), value).prop_map(|(offset, value)| Step::Write { offset, bytes: value.to_le_bytes().to_vec() }),
        1 => (register.clone(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(offset, bytes)| Step::Write { offset, bytes }),
        1 => written(VIRTIO_MMIO_QUEUE_NOTIFY, vec![0, 1, 1, 1, 2]).prop_map(|(offset, bytes)| Step::Write { offset, bytes }),
        1 => written(VIRTIO_MMIO_STATUS, vec![0, 3, 11, 15, 0x40, 0x80]).prop_map(|(offset, bytes)| Step::Write { offset, bytes }),
        1 => (register, 1usize..9).prop_map(|(offset, length)| Step::Read { offset, length }),
        14 => chain,
        4 => descriptor.prop_map(|(queue, index, address, length, flags, next)| {
            Step::Descriptor { queue, index, address, length, flags, next }
        }),
        2 => (0usize..2, prop::collection::vec(index(), 1..4)).prop_map(|(queue, heads)| Step::Offer { queue, heads }),
        1 => (address(), any::<u16>()).prop_map(|(address, value)| Step::Poke { address, value }),
        4 => Just(Step::Transmit),
        4 => prop::collection::vec(packet, 1..5).prop_map(|packets| Step::Receive { packets }),
        1 => Just(Step::Transfer),
    ]
}

/// A script that begins with a start, which mostly works.
pub fn script() -> impl Strategy<Value = Vec<Step>> {
    let good = (2u32..5, 2u32..5, 0u64..8, 8u64..16).prop_map(|(rx, tx, first, second)| {
        [(rx, first), (tx, second)].map(|(size, n)| (1 << size, n * 2048, n * 2048 + 1024, n * 2048 + 1536))
    });
    let queues = prop_oneof![7 => good, 1 => [queue_place(), queue_place()]];
    let start = queues.prop_map(|queues| Step::Start { features: USUAL, queues });
    (start, prop::collection::vec(step(), 1..24)).prop_map(|(start, mut steps)| {
        steps.insert(0, start);
        steps
    })
}
