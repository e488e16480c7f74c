//! The disk: virtio-blk (virtio 1.2, section 5.2) with one request queue. The device carries nothing out by itself:
//!
//! ```text
//!   notification, sync, wait, hlt            the world                    an event
//!   chain ──► request, numbered ──► output door ──► image ──► input door ──► bytes, status, used ring, interrupt
//!      └───► refused, or the disk's name: answered at once ─────────────────────────────┘
//! ```
//!
//! Between the two doors a request is *in flight*, and its data is not in guest memory: what the guest writes is copied out when the
//! request is taken, and what it reads comes in with the event that completes it, the same on every replay (the paper's bounce
//! buffers, section 3.2). So the world may do its part whenever and in whatever order it likes.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, GuestAddress};

use super::buffers::{self, Buffer};
use super::misuse::{Misuse, StateError};
use super::mmio::{Identity, Request as Asked, Transport, TransportState};
use super::reach::Reach;
use super::ring::{Direction, MAX_SIZE};
use crate::machine::blocks::{Ask, Completions, MAX_BYTES, MAX_COUNT, MAX_REQUEST, Outcome, Request, Requests, SECTOR};
use crate::machine::memory::Memory;
use crate::machine::snapshot::DiskConfig;
use request::{Kind, Parts, Verdict};

mod request;

/// Kind of device: a disk.
const DEVICE_ID: u32 = 2;
/// The request queue.
const QUEUE: usize = 0;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const READ_ONLY: u64 = 1 << VIRTIO_BLK_F_RO;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// The most segments of a request, and the most bytes of each. A driver keeps to both and to nothing else, so together they must not be more
/// than [`MAX_REQUEST`]; one long segment is what costs a driver with buffers in one piece the least. The device itself takes any cut.
const MAX_SEGMENTS: u32 = 1;
const MAX_SEGMENT: u32 = MAX_REQUEST as u32 / MAX_SEGMENTS;
/// The most sectors of one discard: 1 GiB.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// The most sectors of one write of zeros: 16 MiB, which an image that knows no holes must write out.
const MAX_ZEROES_SECTORS: u32 = 1 << 15;
/// What a discard should be aligned to, in sectors: 4 KiB, the block of most file systems.
const DISCARD_ALIGNMENT: u32 = 8;

/// Version of [`BlkState`].
const STATE_VERSION: u32 = 1;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;

/// The disk.
pub struct Blk {
    config: DiskConfig,
    transport: Transport<1>,
    /// Number of the next request. It goes on counting whatever the driver does: no number ever means two requests.
    next_id: u64,
    /// What the world has not answered yet, by number. Its chains are the driver's to wait for; none is there twice, so there are never more than the queue has
    /// entries. Empty unless the queue is ready.
    in_flight: BTreeMap<u64, InFlight>,
    /// Which chains are in flight: a bit for each head.
    heads: Heads,
    counters: Counters,
    /// The buffers of the chain at hand: kept for its memory.
    buffers: Vec<Buffer>,
}

/// A request in flight.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct InFlight {
    /// What its chain is given back by.
    head: u16,
    kind: Kind,
    /// Guest-physical address of the status byte.
    status: u64,
}

/// The disk's state, for digests and snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BlkState {
    version: u32,
    config: DiskConfig,
    transport: TransportState<1>,
    next_id: u64,
    in_flight: BTreeMap<u64, InFlight>,
    counters: Counters,
}

/// What the disk has done since power-on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Counters {
    /// Requests that came to a good end.
    pub done: u64,
    /// Requests that ended in an I/O error of the world.
    pub failed: u64,
    /// Requests that the device refused: out of range, of a wrong length, not known.
    pub refused: u64,
    /// Completions that nobody waits for any more, since the driver has reset the device.
    pub forgotten: u64,
}

/// A set of chains, by their heads.
#[derive(Clone, Copy, Debug, Default)]
struct Heads([u64; MAX_SIZE as usize / 64]);

impl Heads {
    fn has(&self, head: u16) -> bool {
        self.0.get(usize::from(head / 64)).is_some_and(|word| word >> (head % 64) & 1 == 1)
    }

    /// Puts `head` in. False if it was there, or can be no head.
    fn insert(&mut self, head: u16) -> bool {
        let new = head < MAX_SIZE && !self.has(head);
        if new {
            self.0[usize::from(head / 64)] |= 1 << (head % 64);
        }
        new
    }

    fn remove(&mut self, head: u16) {
        if let Some(word) = self.0.get_mut(usize::from(head / 64)) {
            *word &= !(1 << (head % 64));
        }
    }
}

/// What [`Blk::take_chains`] has done.
#[derive(Default)]
struct Taken {
    /// Requests were answered at once.
    answered: bool,
    /// The driver wants an interrupt for them.
    interrupt: bool,
}

impl BlkState {
    /// The disk that it is a state of.
    pub fn config(&self) -> DiskConfig {
        self.config
    }
}

impl Blk {
    /// A disk as after power-on.
    pub fn new(config: DiskConfig) -> Self {
        Blk {
            config,
            transport: Transport::new(identity(&config)),
            next_id: 0,
            in_flight: BTreeMap::new(),
            heads: Heads::default(),
            counters: Counters::default(),
            buffers: Vec::with_capacity(MAX_SIZE.into()),
        }
    }

    /// The disk in `state`. The world does not know of its requests in flight: see [`in_flight`](Self::in_flight).
    pub fn from_state(state: &BlkState) -> Result<Self, StateError> {
        if state.version != STATE_VERSION {
            return Err(StateError::Version(state.version));
        }
        let transport = Transport::from_state(identity(&state.config), &state.transport)?;
        let mut heads = Heads::default();
        for (&id, request) in &state.in_flight {
            let possible = id < state.next_id
                && transport.ring(QUEUE).ready()
                && heads.insert(request.head)
                && request.kind.can_be(state.config.sectors);
            if !possible {
                return Err(StateError::InFlight(id));
            }
        }
        Ok(Blk {
            transport,
            next_id: state.next_id,
            in_flight: state.in_flight.clone(),
            heads,
            counters: state.counters,
            ..Blk::new(state.config)
        })
    }

    /// The state.
    pub fn state(&self) -> BlkState {
        BlkState {
            version: STATE_VERSION,
            config: self.config,
            transport: self.transport.state(),
            next_id: self.next_id,
            in_flight: self.in_flight.clone(),
            counters: self.counters,
        }
    }

    /// As after power-on, but that the numbers go on: the world may still answer what was asked before.
    pub fn power_on_again(&mut self) {
        *self = Blk { next_id: self.next_id, ..Blk::new(self.config) };
    }

    /// The guest reads at `offset` in the disk's slot.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.read(offset, data);
    }

    /// The guest writes at `offset` in the disk's slot. True: it has notified the queue, and [`take_requests`](Self::take_requests) is due.
    pub fn write(&mut self, offset: u64, data: &[u8], memory: &Memory) -> bool {
        let memory = &Reach::new(memory);
        let notified = match self.transport.write(offset, data, memory) {
            None => false,
            Some(Asked::Look(_)) => true,
            Some(Asked::Start) => {
                if let Err(misuse) = self.transport.ring_mut(QUEUE).ask_for_notification(memory) {
                    self.transport.fail(misuse);
                }
                false
            }
        };
        if !self.transport.ring(QUEUE).ready() {
            // The chains and their buffers are the driver's again.
            self.in_flight.clear();
            self.heads = Heads::default();
        }
        notified
    }

    /// Takes what the guest asks for, as far as it fits into `requests`, which is empty before. Call again until it stays empty. True:
    /// some were answered at once.
    pub fn take_requests(&mut self, memory: &Memory, requests: &mut Requests) -> bool {
        if !self.transport.live() {
            return false;
        }
        match self.take_chains(&Reach::new(memory), requests) {
            Ok(taken) => {
                if taken.interrupt {
                    self.transport.interrupt();
                }
                taken.answered
            }
            Err(misuse) => {
                self.transport.fail(misuse);
                false
            }
        }
    }

    /// Requests have come to their end. Those of numbers that nobody waits for (any more) come to nothing.
    pub fn complete_requests(&mut self, memory: &Memory, completions: Completions) {
        let memory = &Reach::new(memory);
        let mut given_back = false;
        for completion in completions {
            let Some(request) = self.in_flight.remove(&completion.id) else {
                self.counters.forgotten += 1;
                continue;
            };
            self.heads.remove(request.head);
            if !self.transport.live() {
                self.counters.forgotten += 1;
            } else if let Err(misuse) = self.finish(memory, &request, &completion.outcome) {
                self.transport.fail(misuse);
            } else {
                given_back = true;
            }
        }
        if given_back && self.transport.live() {
            match self.transport.ring_mut(QUEUE).interrupt_wanted(memory) {
                Ok(false) => {}
                Ok(true) => self.transport.interrupt(),
                Err(misuse) => self.transport.fail(misuse),
            }
        }
    }

    /// The requests in flight, in the order in which they were made: what a host must carry out (again) when it goes on with a machine that was
    /// made from a state. What they write is read from guest memory again, where the driver leaves it alone until it is told.
    pub fn in_flight(&self, memory: &Memory) -> Requests {
        let memory = &Reach::new(memory);
        // A request whose buffers are not in memory is in no state that a device was in.
        let again = |(&id, request): (&u64, &InFlight)| Some(Request { id, ask: request.kind.ask(memory).ok()? });
        self.in_flight.iter().filter_map(again).collect()
    }

    /// Whether the interrupt line has pulsed since the last call.
    pub fn take_edge(&mut self) -> bool {
        self.transport.take_edge()
    }

    /// Why the disk needs a reset, if it does.
    pub fn misuse(&self) -> Option<Misuse> {
        self.transport.misuse()
    }

    /// What the disk has done.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn take_chains(&mut self, memory: &Reach, requests: &mut Requests) -> Result<Taken, Misuse> {
        let features = self.transport.negotiated();
        let ring = self.transport.ring_mut(QUEUE);
        let (mut taken, mut bytes) = (None, 0);
        // Bounded, even if the guest laid its rings such that giving a chain back makes another one available.
        for _ in 0..MAX_SIZE {
            if requests.len() >= MAX_COUNT || bytes >= MAX_BYTES {
                break;
            }
            let Some(chain) = ring.pop(memory, Direction::Both, &mut self.buffers)? else { break };
            let taken = taken.get_or_insert_with(Taken::default);
            if self.heads.has(chain.head) {
                return Err(Misuse::InFlight);
            }
            let mut parts = Parts::of(memory, &self.buffers, chain.readable)?;
            let (status, written) = match parts.judge(memory, self.config.sectors, self.config.read_only, features)? {
                Verdict::Carry(kind) => {
                    self.heads.insert(chain.head);
                    let (id, ask) = (self.next_id, kind.ask(memory)?);
                    if let Ask::Write { data, .. } = &ask {
                        bytes += data.len();
                    }
                    self.next_id += 1;
                    self.in_flight.insert(id, InFlight { head: chain.head, kind, status: parts.status });
                    requests.push(Request { id, ask });
                    continue;
                }
                Verdict::Name => {
                    buffers::scatter(memory, &parts.into, &[&self.config.serial])?;
                    (OK, self.config.serial.len())
                }
                Verdict::Refuse(status) => {
                    self.counters.refused += 1;
                    (status, 0)
                }
            };
            let whole = written == buffers::length(&parts.into);
            memory.write_obj(status, GuestAddress(parts.status)).map_err(|_| Misuse::Buffer)?;
            ring.complete(memory, chain.head, written + usize::from(whole))?;
            taken.answered = true;
        }
        let Some(mut taken) = taken else { return Ok(Taken::default()) };
        ring.ask_for_notification(memory)?;
        taken.interrupt = taken.answered && ring.interrupt_wanted(memory)?;
        Ok(taken)
    }

    /// Gives a chain back with what has become of it.
    fn finish(&mut self, memory: &Reach, request: &InFlight, outcome: &Outcome) -> Result<(), Misuse> {
        let room = if let Kind::Read { into, .. } = &request.kind { buffers::length(into) } else { 0 };
        let (status, written) = match (&request.kind, outcome) {
            (Kind::Read { into, .. }, Outcome::Read(bytes)) if bytes.len() == room => {
                buffers::scatter(memory, into, &[bytes])?;
                (OK, room)
            }
            (Kind::Write { .. } | Kind::Flush | Kind::Discard { .. } | Kind::WriteZeroes { .. }, Outcome::Done) => {
                (OK, 0)
            }
            // The disk's error; or something that nobody should have said of this request.
            (_, Outcome::Failed | Outcome::Done | Outcome::Read(_) | Outcome::ReadElsewhere { .. }) => (IO_ERROR, 0),
        };
        match status {
            OK => self.counters.done += 1,
            _ => self.counters.failed += 1,
        }
        memory.write_obj(status, GuestAddress(request.status)).map_err(|_| Misuse::Buffer)?;
        // The length in the used ring counts from the first byte on, without a gap (virtio 1.2, 2.7.8.2).
        let whole = written == room;
        self.transport.ring_mut(QUEUE).complete(memory, request.head, written + usize::from(whole))
    }
}

fn identity(config: &DiskConfig) -> Identity {
    let mut features = VERSION_1
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | 1 << VIRTIO_BLK_F_SIZE_MAX
        | 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | FLUSH;
    features |= if config.read_only { READ_ONLY } else { DISCARD | WRITE_ZEROES };
    // struct virtio_blk_config (5.2.4). There is no geometry, no topology, one queue.
    let mut bytes = config.sectors.to_le_bytes().to_vec();
    bytes.extend(MAX_SEGMENT.to_le_bytes());
    bytes.extend(MAX_SEGMENTS.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((SECTOR as u32).to_le_bytes());
    // topology, writeback, an unused byte, num_queues
    bytes.extend([0; 12]);
    let one_segment = 1u32;
    for limit in [MAX_DISCARD_SECTORS, one_segment, DISCARD_ALIGNMENT, MAX_ZEROES_SECTORS, one_segment] {
        bytes.extend(limit.to_le_bytes());
    }
    // write_zeroes_may_unmap and three unused bytes
    bytes.extend([1, 0, 0, 0]);
    // Without FLUSH a driver may take every write for stable once it is done (5.2.6.2), and here it would not be.
    let needs: &[(u64, u64)] = if config.read_only { &[] } else { &[(VERSION_1, FLUSH)] };
    Identity { device_id: DEVICE_ID, features, needs, config: bytes }
}
