//! Promise: whatever a guest writes into the disk's registers and rings, and whatever a log says of its requests, costs the guest its disk until it resets
//! it, and nothing else. Arbitrary scripts: no panic, bounded work, no memory changed but what the rings name, nothing asked
//! of the world that is not on the disk, every number once, the disk as good as new after a reset, and the same script
//! always the same disk and memory. (Each kind of misuse by hand: `tests/virtio_blk.rs`.)

mod virtio;

#[path = "virtio/disk_script.rs"]
mod disk_script;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use disk_script::{End, Parts, Step, script};
use lockstep::devices::virtio::blk::Blk;
use lockstep::machine::blocks::{Ask, Completion, MAX_BYTES, MAX_COUNT, MAX_REQUEST, Outcome, Requests, SECTOR};
use lockstep::machine::memory::Memory;
use proptest::prelude::*;
use virtio::anything::*;
use virtio::disk::*;
use virtio::{NEXT, TABLE, WRITE};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_IN;
use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};

/// No call may leave the guest waiting: so many calls must empty any queue.
const CALLS: usize = 300;

/// How often what was seen, over all scripts: that the promise is not kept for want of trying.
#[derive(Clone, Debug, Default)]
struct Seen {
    scripts: u64,
    asked: u64,
    written: u64,
    done: u64,
    failed: u64,
    refused: u64,
    forgotten: u64,
    misused: u64,
    checked_completions: u64,
    transfers_in_flight: u64,
    /// How many of the scripts ended with each kind of misuse.
    kinds: BTreeMap<String, u64>,
}

/// A request that has left the device, and the memory that it may write when it comes to its end: `None` if there is no telling.
struct Out {
    ask: Ask,
    named: Option<Vec<Range<u64>>>,
}

/// A disk under a script, its replica, and what the test knows about it.
struct Run<'a> {
    memories: [&'a Memory; 2],
    disks: [Blk; 2],
    place: Place,
    selected: u32,
    /// Requests that were not completed, those that were forgotten included.
    out: BTreeMap<u64, Out>,
    next_id: u64,
    completed: u64,
    seen: &'a mut Seen,
}

impl Run<'_> {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Start { features, queue } => self.start(*features, *queue),
            Step::Write { offset, bytes } => self.write(*offset, bytes),
            Step::Read { offset, length } => {
                let before = self.disks[0].state();
                self.both(|disk, _| {
                    let mut data = vec![0xaa; *length];
                    disk.read(*offset, &mut data);
                    data
                });
                assert_eq!(self.disks[0].state(), before, "reading changes nothing");
            }
            Step::Descriptor { index, address, length, flags, next } => {
                let table = self.place.descriptors().start;
                self.put_descriptor(table, *index, *address, *length, *flags, *next);
            }
            Step::Offer { heads } => self.offer(heads),
            Step::Ask { first, indirect, at, kind, sector, data, from } => {
                self.ask(*first, *indirect, *at, (*kind, *sector), data, *from);
            }
            Step::Poke { address, value } => self.put(*address, &value.to_le_bytes()),
            Step::Take => self.take(),
            Step::Complete { ends } => self.complete(ends),
            Step::Transfer => {
                let state = self.disks[0].state();
                self.disks[1] = Blk::from_state(&state).expect("a state that was");
                assert_eq!(self.disks[1].state(), state);
                self.seen.transfers_in_flight += u64::from(!self.in_flight().is_empty());
            }
        }
        self.check();
    }

    /// What holds whenever the guest can look.
    fn check(&mut self) {
        let edge = self.both(|disk, _| disk.take_edge());
        let status = self.read32(VIRTIO_MMIO_STATUS);
        let misused = self.disks[0].misuse().is_some();
        assert_eq!(status & VIRTIO_CONFIG_S_NEEDS_RESET != 0, misused, "told of exactly when it is so");
        assert!(!edge || self.read32(VIRTIO_MMIO_INTERRUPT_STATUS) != 0, "an interrupt says what for");
        let counters = self.disks[0].counters();
        assert_eq!(
            counters.done + counters.failed + counters.forgotten,
            self.completed,
            "every completion counts once"
        );
        let in_flight = self.in_flight();
        assert!(in_flight.len() <= 256 && in_flight.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert!(in_flight.iter().all(|request| self.out.contains_key(&request.id)), "the world knows of all of them");
    }

    fn in_flight(&mut self) -> Requests {
        self.both(|disk, memory| disk.in_flight(memory))
    }

    /// Does the same with the disk and its replica, which must give the same.
    fn both<T: PartialEq + std::fmt::Debug>(&mut self, act: impl Fn(&mut Blk, &Memory) -> T) -> T {
        let first = act(&mut self.disks[0], self.memories[0]);
        assert_eq!(act(&mut self.disks[1], self.memories[1]), first);
        first
    }

    fn read32(&mut self, register: u32) -> u32 {
        self.both(|disk, _| {
            let mut data = [0; 4];
            disk.read(register.into(), &mut data);
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

    fn offer(&mut self, heads: &[u16]) {
        let mut index = [0; 2];
        let at = self.place.avail().start.wrapping_add(2);
        if self.place.size == 0 || self.memories[0].read_slice(&mut index, GuestAddress(at)).is_err() {
            return;
        }
        let mut index = u16::from_le_bytes(index);
        for head in heads {
            let slot = u64::from(u32::from(index) % self.place.size);
            self.put(at.wrapping_add(2 + 2 * slot), &head.to_le_bytes());
            index = index.wrapping_add(1);
        }
        self.put(at, &index.to_le_bytes());
    }

    fn ask(
        &mut self,
        first: u16,
        indirect: Option<u64>,
        at: u64,
        (kind, sector): (u32, u64),
        data: &[(u64, u32)],
        from: usize,
    ) {
        self.put(at, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        // A segment for those that need one.
        if let (Some(&(address, 16)), true) = (data.first(), sector < SECTORS) {
            self.put(address, &[&sector.to_le_bytes()[..], &[2, 0, 0, 0], &[(kind & 1) as u8, 0, 0, 0]].concat());
        }
        let mut chain = vec![(at, 16, 0)];
        chain.extend(data.iter().enumerate().map(|(i, &(at, length))| (at, length, if i < from { 0 } else { WRITE })));
        chain.push((at.wrapping_add(16), 1, WRITE));
        let size = self.place.size.clamp(1, 256) as u16;
        let head = first % size;
        let table = self.place.descriptors().start;
        let (table, first, wrap) = match indirect {
            Some(indirect) => {
                self.put_descriptor(table, head, indirect, 16 * chain.len() as u32, TABLE, 0);
                (indirect, 0, 256)
            }
            None => (table, head, size.max(5)),
        };
        for (i, &(address, length, flags)) in chain.iter().enumerate() {
            let index = first + i as u16;
            let next = if i + 1 < chain.len() { NEXT } else { 0 };
            self.put_descriptor(table, index % wrap, address, length, flags | next, (index + 1) % wrap);
        }
        self.offer(&[head]);
    }

    fn write32(&mut self, register: u32, value: u32) {
        self.write(register.into(), &value.to_le_bytes());
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let ready = self.read32(VIRTIO_MMIO_QUEUE_READY) == 1;
        let before_start = self.read32(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK == 0;
        let allowed = [self.place.used()];
        changing(self.memories[0], &allowed, || {
            self.both(|disk, memory| disk.write(offset, bytes, memory));
        });
        let started = before_start && self.read32(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        assert!(started || last_changed().is_empty(), "a register write writes to memory only at the start");
        let Ok(value) = <[u8; 4]>::try_from(bytes).map(u32::from_le_bytes) else { return };
        let Ok(register) = u32::try_from(offset) else { return };
        match register {
            VIRTIO_MMIO_STATUS if value == 0 => {
                (self.place, self.selected) = Default::default();
                assert!(self.in_flight().is_empty(), "a reset forgets");
            }
            VIRTIO_MMIO_QUEUE_SEL => self.selected = value,
            _ => {}
        }
        if self.selected == 0 && !ready {
            self.place.set(register, value);
        }
    }

    fn start(&mut self, features: u64, (size, descriptors, avail, used): Parts) {
        self.write32(VIRTIO_MMIO_STATUS, 0);
        for (address, length) in [(descriptors, 1024), (avail, 512), (used, 512)] {
            self.put(address, &vec![0; length]);
        }
        self.write32(VIRTIO_MMIO_STATUS, 3);
        for (selector, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write32(VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
            self.write32(VIRTIO_MMIO_DRIVER_FEATURES, word);
        }
        self.write32(VIRTIO_MMIO_STATUS, 11);
        self.write32(VIRTIO_MMIO_QUEUE_SEL, 0);
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
        self.write32(VIRTIO_MMIO_STATUS, 15);
    }

    fn take(&mut self) {
        let named = self.place.named_to_write(self.memories[0]);
        match &named {
            Some(allowed) => changing(self.memories[0], allowed, || self.take_all(&named)),
            None => self.take_all(&None),
        }
    }

    fn take_all(&mut self, named: &Option<Vec<Range<u64>>>) {
        for _ in 0..CALLS {
            let requests = self.both(|disk, memory| {
                let mut requests = Requests::new();
                let answered = disk.take_requests(memory, &mut requests);
                (answered, requests)
            });
            let (_, requests) = requests;
            if requests.is_empty() {
                return;
            }
            self.check_batch(&requests);
            for request in requests {
                self.seen.asked += 1;
                self.seen.written += u64::from(matches!(request.ask, Ask::Write { .. }));
                assert_eq!(request.id, self.next_id, "every number once, and in order");
                self.next_id += 1;
                self.out.insert(request.id, Out { ask: request.ask, named: named.clone() });
            }
        }
        panic!("the disk asks on and on");
    }

    /// What the world may rely on.
    fn check_batch(&self, requests: &Requests) {
        assert!(requests.len() <= MAX_COUNT);
        let mut bytes = 0;
        for request in requests {
            assert!(bytes < MAX_BYTES);
            match &request.ask {
                Ask::Read { bytes, .. } => assert!((1..=MAX_REQUEST as u32).contains(bytes)),
                Ask::Write { data, .. } => {
                    assert!((1..=MAX_REQUEST).contains(&data.len()));
                    bytes += data.len();
                }
                Ask::Flush => continue,
                Ask::Discard { sectors, .. } | Ask::WriteZeroes { sectors, .. } => assert!(*sectors > 0),
            }
            let (at, length) = request.ask.extent().expect("all but a flush");
            assert!(at.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR) && at + length <= SECTORS * SECTOR);
        }
    }

    fn complete(&mut self, ends: &[(usize, End)]) {
        let (mut completions, mut allowed) = (Vec::new(), Some(vec![self.place.used()]));
        for &(which, end) in ends {
            let (id, outcome) = match end {
                End::Unknown(id) => (id.saturating_add(self.next_id), Outcome::Done),
                End::Well | End::Failed | End::Wrong => {
                    let count = self.out.len();
                    let Some(id) = self.out.keys().nth(which % count.max(1)).copied() else { continue };
                    let out = self.out.remove(&id).expect("it is there");
                    match (&mut allowed, out.named) {
                        (Some(allowed), Some(named)) => allowed.extend(named),
                        _ => allowed = None,
                    }
                    let outcome = match (end, out.ask) {
                        (End::Well, Ask::Read { bytes, .. }) => {
                            Outcome::Read((0..bytes).map(|i| (i + id as u32) as u8).collect())
                        }
                        (End::Well, _) => Outcome::Done,
                        (End::Failed, _) => Outcome::Failed,
                        (_, Ask::Read { .. }) => Outcome::Done,
                        (_, _) => Outcome::Read(vec![1; 512]),
                    };
                    (id, outcome)
                }
            };
            completions.push(Completion { id, outcome });
        }
        self.completed += completions.len() as u64;
        let complete = |run: &mut Self| {
            run.both(|disk, memory| disk.complete_requests(memory, completions.clone()));
        };
        match allowed {
            Some(allowed) => {
                changing(self.memories[0], &allowed, || complete(self));
                self.seen.checked_completions += u64::from(!last_changed().is_empty());
            }
            None => complete(self),
        }
    }
}

/// Runs a script in zeroed memories.
fn run(script: &[Step], memories: [&Memory; 2], seen: &mut Seen) {
    for memory in memories {
        memory.write_slice(&[0; SIZE as usize], GuestAddress(0)).expect("all of memory");
    }
    let disks = [Blk::new(DISK), Blk::new(DISK)];
    let (place, out) = (Place::default(), BTreeMap::new());
    let mut run = Run { memories, disks, place, selected: 0, out, next_id: 0, completed: 0, seen };
    for step in script {
        run.step(step);
    }
    assert_eq!(run.disks[0].state(), run.disks[1].state());
    let all = memories.map(|memory| {
        let mut bytes = Vec::new();
        read_all(memory, &mut bytes);
        bytes
    });
    assert!(all[0] == all[1], "the same script, the same memory");

    run.seen.scripts += 1;
    if let Some(misuse) = run.disks[0].misuse() {
        run.seen.misused += 1;
        *run.seen.kinds.entry(format!("{misuse:?}")).or_default() += 1;
    }
    let counters = run.disks[0].counters();
    run.seen.done += counters.done;
    run.seen.failed += counters.failed;
    run.seen.refused += counters.refused;
    run.seen.forgotten += counters.forgotten;
    let tried = (run.seen.asked, run.seen.transfers_in_flight);
    // Whatever was done to it, after a reset it works, and the numbers have gone on.
    run.start(ALL, (4, 0x1000, 0x1100, 0x1200));
    run.ask(0, Some(0x2000), 0x3000, (VIRTIO_BLK_T_IN, 5), &[(0x4000, 1024)], 0);
    let id = run.next_id;
    run.step(&Step::Take);
    assert_eq!(run.next_id, id + 1);
    let read = Completion { id, outcome: Outcome::Read(vec![0x77; 1024]) };
    run.both(|disk, memory| disk.complete_requests(memory, vec![read.clone()]));
    let mut bytes = [0; 1024];
    memories[0].read_slice(&mut bytes, GuestAddress(0x4000)).expect("in memory");
    assert!(bytes == [0x77; 1024] && run.disks[0].counters().done == counters.done + 1, "after a reset it works");
    (run.seen.asked, run.seen.transfers_in_flight) = tried;
}

/// Kinds of [`Misuse`](lockstep::devices::virtio::misuse::Misuse).
const KINDS: usize = 12;

/// The scripts to be tried; `PROPTEST_CASES` says otherwise.
const SCRIPTS: u32 = 20_000;

#[test]
fn whatever_the_guest_writes_and_the_log_says() {
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
        [
            seen.asked,
            seen.written,
            seen.done,
            seen.failed,
            seen.refused,
            seen.forgotten,
            seen.misused,
            seen.scripts - seen.misused,
            seen.checked_completions,
            seen.transfers_in_flight
        ]
        .into_iter()
        .all(|times| times >= often),
        "too little was tried: {seen:?}"
    );
    assert!(cases < 10_000 || seen.kinds.len() == KINDS, "not every kind of misuse: {:?}", seen.kinds);
}
