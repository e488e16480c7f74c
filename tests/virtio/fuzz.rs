//! Arbitrary scripts against the card, and what has to hold after each step of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use lockstep::devices::virtio::net::Nic;
use lockstep::machine::memory::Memory;
use lockstep::machine::packets::Packets;
use proptest::prelude::*;
use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};

use crate::script::{Step, script};
use crate::virtio::anything::{Place, SIZE, changing, last_changed, put_descriptor, read_all};
use crate::virtio::*;

/// No call may leave the guest waiting: so many calls must empty any queue.
const CALLS: usize = 300;

/// How often what was seen, over all scripts: that the promise is not kept for want of trying.
#[derive(Clone, Debug, Default)]
struct Seen {
    scripts: u64,
    sent: u64,
    received: u64,
    misused: u64,
    checked_receptions: u64,
    /// How many of the scripts ended with each kind of misuse.
    kinds: BTreeMap<String, u64>,
}

/// A card under a script, its replica, and what the test knows about it.
struct Run<'a> {
    memories: [&'a Memory; 2],
    nics: [Nic; 2],
    places: [Place; 2],
    selected: u32,
    seen: &'a mut Seen,
}

impl Run<'_> {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Start { features, queues } => self.start(*features, queues),
            Step::Write { offset, bytes } => self.write(*offset, bytes),
            Step::Read { offset, length } => {
                let before = self.nics[0].state();
                self.both(|nic, _| {
                    let mut data = vec![0xaa; *length];
                    nic.read(*offset, &mut data);
                    data
                });
                assert_eq!(self.nics[0].state(), before, "reading changes nothing");
            }
            Step::Descriptor { queue, index, address, length, flags, next } => {
                let table = self.places[*queue].descriptors().start;
                self.put_descriptor(table, *index, *address, *length, *flags, *next);
            }
            Step::Chain { queue, first, indirect, buffers } => {
                let size = self.places[*queue].size.clamp(1, 256) as u16;
                let head = first % size;
                let table = self.places[*queue].descriptors().start;
                let (table, first) = match indirect {
                    Some(indirect) => {
                        self.put_descriptor(table, head, *indirect, 16 * buffers.len() as u32, TABLE, 0);
                        (*indirect, 0)
                    }
                    None => (table, head),
                };
                for (i, &(address, length)) in buffers.iter().enumerate() {
                    let index = first + i as u16;
                    let next = if i + 1 < buffers.len() { NEXT } else { 0 };
                    let write = if *queue == RX { WRITE } else { 0 };
                    self.put_descriptor(
                        table,
                        index % size.max(4),
                        address,
                        length,
                        write | next,
                        (index + 1) % size.max(4),
                    );
                }
                self.step(&Step::Offer { queue: *queue, heads: vec![head] });
            }
            Step::Offer { queue, heads } => {
                let place = self.places[*queue];
                let mut index = [0; 2];
                let at = place.avail().start.wrapping_add(2);
                if place.size == 0 || self.memories[0].read_slice(&mut index, GuestAddress(at)).is_err() {
                    return;
                }
                let mut index = u16::from_le_bytes(index);
                for head in heads {
                    let slot = u64::from(u32::from(index) % place.size);
                    self.put(at.wrapping_add(2 + 2 * slot), &head.to_le_bytes());
                    index = index.wrapping_add(1);
                }
                self.put(at, &index.to_le_bytes());
            }
            Step::Poke { address, value } => self.put(*address, &value.to_le_bytes()),
            Step::Transmit => self.transmit(),
            Step::Receive { packets } => self.receive(packets),
            Step::Transfer => self.nics[1] = Nic::from_state(&self.nics[0].state()).expect("a state that was"),
        }
        self.check();
    }

    /// What holds whenever the guest can look.
    fn check(&mut self) {
        let edge = self.both(|nic, _| nic.take_edge());
        let status = self.read32(VIRTIO_MMIO_STATUS);
        let misused = self.nics[0].misuse().is_some();
        assert_eq!(status & VIRTIO_CONFIG_S_NEEDS_RESET != 0, misused, "told of exactly when it is so");
        let room = self.both(|nic, memory| nic.room(memory));
        assert!(room <= 256 && (room == 0 || !misused));
        assert!(!edge || self.read32(VIRTIO_MMIO_INTERRUPT_STATUS) != 0, "an interrupt says what for");
    }

    /// Does the same with the card and its replica, which must give the same.
    fn both<T: PartialEq + std::fmt::Debug>(&mut self, act: impl Fn(&mut Nic, &Memory) -> T) -> T {
        let first = act(&mut self.nics[0], self.memories[0]);
        assert_eq!(act(&mut self.nics[1], self.memories[1]), first);
        first
    }

    fn read32(&mut self, register: u32) -> u32 {
        self.both(|nic, _| {
            let mut data = [0; 4];
            nic.read(register.into(), &mut data);
            u32::from_le_bytes(data)
        })
    }

    /// The guest writes to memory, if it is there.
    fn put(&mut self, address: u64, bytes: &[u8]) {
        for memory in self.memories {
            let _ = memory.write_slice(bytes, GuestAddress(address));
        }
    }

    fn put_descriptor(&mut self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        for memory in self.memories {
            put_descriptor(memory, table, index, address, length, flags, next);
        }
    }

    fn write32(&mut self, register: u32, value: u32) {
        self.write(register.into(), &value.to_le_bytes());
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let ready = self.read32(VIRTIO_MMIO_QUEUE_READY) == 1;
        let before_start = self.read32(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK == 0;
        let allowed = self.places.map(|place| place.used());
        self.changing(&allowed, |run| {
            run.both(|nic, memory| nic.write(offset, bytes, memory));
        });
        let started = before_start && self.read32(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        assert!(started || last_changed().is_empty(), "a register write writes to memory only at the start");
        let Ok(value) = <[u8; 4]>::try_from(bytes).map(u32::from_le_bytes) else { return };
        let Ok(register) = u32::try_from(offset) else { return };
        match register {
            VIRTIO_MMIO_STATUS if value == 0 => (self.places, self.selected) = Default::default(),
            VIRTIO_MMIO_QUEUE_SEL => self.selected = value,
            _ => {}
        }
        let Some(place) = self.places.get_mut(self.selected as usize).filter(|_| !ready) else { return };
        place.set(register, value);
    }

    fn start(&mut self, features: u64, queues: &[(u16, u64, u64, u64); 2]) {
        self.write32(VIRTIO_MMIO_STATUS, 0);
        for &(_, descriptors, avail, used) in queues {
            for (address, length) in [(descriptors, 1024), (avail, 512), (used, 512)] {
                self.put(address, &vec![0; length]);
            }
        }
        self.write32(VIRTIO_MMIO_STATUS, 3);
        for (selector, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write32(VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
            self.write32(VIRTIO_MMIO_DRIVER_FEATURES, word);
        }
        self.write32(VIRTIO_MMIO_STATUS, 11);
        for (index, &(size, descriptors, avail, used)) in queues.iter().enumerate() {
            self.write32(VIRTIO_MMIO_QUEUE_SEL, index as u32);
            self.write32(VIRTIO_MMIO_QUEUE_NUM, size.into());
            for (register, address) in [
                (VIRTIO_MMIO_QUEUE_DESC_LOW, descriptors),
                (VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail),
                (VIRTIO_MMIO_QUEUE_USED_LOW, used),
            ] {
                self.write32(register, address as u32);
                self.write32(register + 4, (address >> 32) as u32);
            }
            self.write32(VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.write32(VIRTIO_MMIO_STATUS, 15);
    }

    fn transmit(&mut self) {
        let allowed = [self.places[TX].used()];
        self.changing(&allowed, |run| {
            let mut batches = [Packets::new(), Packets::new()];
            for _ in 0..CALLS {
                for ((nic, memory), batch) in run.nics.iter_mut().zip(run.memories).zip(&mut batches) {
                    batch.clear();
                    nic.transmit(memory, batch);
                }
                assert_eq!(batches[0], batches[1]);
                if batches[0].is_empty() {
                    return;
                }
                run.seen.sent += batches[0].len() as u64;
            }
            panic!("the card sends on and on");
        });
    }

    fn receive(&mut self, lengths: &[usize]) {
        let mut packets = Packets::new();
        for (seed, &length) in lengths.iter().enumerate() {
            packets.push(&packet(seed as u32, length));
        }
        let named = self.places[RX].named_to_write(self.memories[0]);
        let before = self.nics[0].counters();
        match named {
            Some(allowed) => {
                self.changing(&allowed, |run| run.both(|nic, memory| nic.receive(memory, &packets)));
                self.seen.checked_receptions += u64::from(!last_changed().is_empty());
            }
            None => self.both(|nic, memory| nic.receive(memory, &packets)),
        }
        let after = self.nics[0].counters();
        let received = after.received - before.received;
        assert_eq!(received + after.receive_dropped - before.receive_dropped, packets.len() as u64);
        self.seen.received += received;
    }

    /// Runs `act`, which may change nothing but the `allowed` addresses, and what it changes is marked.
    fn changing(&mut self, allowed: &[Range<u64>], act: impl FnOnce(&mut Self)) {
        let memory = self.memories[0];
        changing(memory, allowed, || act(self));
    }
}

/// Runs a script in zeroed memories.
fn run(script: &[Step], memories: [&Memory; 2], seen: &mut Seen) {
    for memory in memories {
        memory.write_slice(&[0; SIZE as usize], GuestAddress(0)).expect("all of memory");
    }
    let nics = [Nic::new(CONFIG), Nic::new(CONFIG)];
    let mut run = Run { memories, nics, places: Default::default(), selected: 0, seen };
    for step in script {
        run.step(step);
    }
    assert_eq!(run.nics[0].state(), run.nics[1].state());
    let all = memories.map(|memory| {
        let mut bytes = Vec::new();
        read_all(memory, &mut bytes);
        bytes
    });
    assert!(all[0] == all[1], "the same script, the same memory");

    run.seen.scripts += 1;
    if let Some(misuse) = run.nics[0].misuse() {
        run.seen.misused += 1;
        *run.seen.kinds.entry(format!("{misuse:?}")).or_default() += 1;
    }
    // Whatever was done to it, after a reset it works.
    let tried = (run.seen.sent, run.seen.received, run.seen.checked_receptions);
    let before = run.nics[0].counters();
    run.start(USUAL, &[(4, 0x1000, 0x1100, 0x1200), (4, 0x2000, 0x2100, 0x2200)]);
    for (queue, flags) in [(RX, WRITE), (TX, 0)] {
        run.step(&Step::Descriptor { queue, index: 2, address: 0x4000, length: 2000, flags, next: 0 });
        run.step(&Step::Offer { queue, heads: vec![2] });
    }
    run.step(&Step::Receive { packets: vec![1500] });
    run.step(&Step::Transmit);
    let after = run.nics[0].counters();
    assert_eq!((after.received - before.received, after.sent - before.sent), (1, 1), "after a reset it works");
    (run.seen.sent, run.seen.received, run.seen.checked_receptions) = tried;
}

/// Kinds of [`Misuse`](lockstep::devices::virtio::misuse::Misuse).
const KINDS: usize = 10;

/// The scripts to be tried; `PROPTEST_CASES` says otherwise.
const SCRIPTS: u32 = 100_000;

#[test]
fn whatever_the_guest_writes() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(SCRIPTS);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let memories = [(); 2].map(|()| Memory::from_ranges(&[(GuestAddress(0), SIZE as usize)]).expect("memory"));
    let seen = RefCell::new(Seen::default());
    proptest::test_runner::TestRunner::new(config)
        .run(&script(), |script| {
            run(&script, memories.each_ref(), &mut seen.borrow_mut());
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    println!("{seen:#?}");
    let often = u64::from(cases) / 20;
    assert!(
        [seen.sent, seen.received, seen.misused, seen.scripts - seen.misused, seen.checked_receptions]
            .into_iter()
            .all(|times| times >= often),
        "too little was tried: {seen:?}"
    );
    assert!(cases < 10_000 || seen.kinds.len() == KINDS, "not every kind of misuse: {:?}", seen.kinds);
}
