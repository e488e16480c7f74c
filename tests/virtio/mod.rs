//! A guest's side of a virtio device, in guest memory and through its registers: an honest driver, with hands free to misbehave. Here what all
//! devices have in common, and the network card; the disk is in `disk.rs`.

#![allow(dead_code, reason = "each test uses a part")]

pub mod anything;
pub mod disk;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use lockstep::devices::virtio::Device;
use lockstep::devices::virtio::net::Nic;
use lockstep::machine::memory::Memory;
use lockstep::machine::packets::{HEADER, Packets};
use lockstep::machine::snapshot::NicConfig;
use virtio_bindings::bindings::virtio_config::*;
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_bindings::bindings::virtio_net::*;
use virtio_bindings::bindings::virtio_ring::*;
use vm_memory::{Bytes, GuestAddress};

pub const RX: usize = 0;
pub const TX: usize = 1;

pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
pub const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
pub const MAC: u64 = 1 << VIRTIO_NET_F_MAC;
pub const MTU: u64 = 1 << VIRTIO_NET_F_MTU;
pub const STATUS: u64 = 1 << VIRTIO_NET_F_STATUS;
pub const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
pub const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
pub const GUEST_TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
pub const USUAL: u64 = VERSION_1 | EVENT_IDX | INDIRECT | MAC | MTU | STATUS;

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const TABLE: u16 = VRING_DESC_F_INDIRECT as u16;

pub const CONFIG: NicConfig = NicConfig { mac: [2, 0, 0, 1, 2, 3], mtu: 1500, offloads: false };
pub const WITH_OFFLOADS: NicConfig = NicConfig { offloads: true, ..CONFIG };

/// One queue as its driver sees it.
#[derive(Clone)]
pub struct Queue {
    pub size: u16,
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
    pub next_avail: u16,
    pub next_used: u16,
    free: VecDeque<u16>,
}

impl Queue {
    /// A queue of `size` entries, its three parts in the four pages from `base`.
    pub fn at(base: u64, size: u16) -> Self {
        Queue {
            size,
            descriptors: base,
            avail: base + 0x1000,
            used: base + 0x2000,
            next_avail: 0,
            next_used: 0,
            free: (0..size).collect(),
        }
    }

    fn used_event(&self) -> u64 {
        self.avail + 4 + 2 * u64::from(self.size)
    }

    fn avail_event(&self) -> u64 {
        self.used + 4 + 8 * u64::from(self.size)
    }
}

/// A device of `QUEUES` queues and its driver.
pub struct Driver<D = Nic, const QUEUES: usize = 2> {
    pub memory: Memory,
    pub device: D,
    pub queues: [Queue; QUEUES],
}

impl Driver {
    /// A driver that has done nothing yet, with queues of `size` entries in the first 8 pages from 64 KiB.
    pub fn new(config: NicConfig, size: u16) -> Self {
        Driver::of(Nic::new(config), size)
    }

    /// A driver that has agreed on `features` and started, without receive buffers yet.
    pub fn started(config: NicConfig, features: u64) -> Self {
        let mut driver = Driver::new(config, 256);
        driver.start(features);
        driver
    }

    /// Makes a chain of `buffers` (address, length) available; gives its head.
    pub fn offer(&mut self, queue: usize, buffers: &[(u64, u32)]) -> u16 {
        let flags = if queue == RX { WRITE } else { 0 };
        self.offer_chain(queue, buffers.iter().map(|&(address, length)| (address, length, flags)))
    }

    /// All that the card sends now.
    pub fn transmit(&mut self) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        let mut packets = Packets::new();
        loop {
            packets.clear();
            self.device.transmit(&self.memory, &mut packets);
            if packets.is_empty() {
                return sent;
            }
            sent.extend(packets.iter().map(<[u8]>::to_vec));
        }
    }

    pub fn receive(&mut self, packets: &[Vec<u8>]) {
        self.device.receive(&self.memory, &batch(packets));
    }
}

impl<D: Device, const QUEUES: usize> Driver<D, QUEUES> {
    /// A driver that has done nothing yet, with queues of `size` entries, each in 4 pages, from 64 KiB on.
    pub fn of(device: D, size: u16) -> Self {
        Driver {
            memory: Memory::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("memory"),
            device,
            queues: std::array::from_fn(|i| Queue::at(0x1_0000 + 0x4000 * i as u64, size)),
        }
    }

    pub fn read32(&mut self, register: u32) -> u32 {
        let mut data = [0xaa; 4];
        self.device.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write32(&mut self, register: u32, value: u32) -> bool {
        self.device.write(register.into(), &value.to_le_bytes(), &self.memory)
    }

    pub fn status(&mut self) -> u32 {
        self.read32(VIRTIO_MMIO_STATUS)
    }

    pub fn add_status(&mut self, bits: u32) {
        let status = self.status();
        self.write32(VIRTIO_MMIO_STATUS, status | bits);
    }

    pub fn needs_reset(&mut self) -> bool {
        self.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }

    /// Reset, and both queues empty.
    pub fn reset(&mut self) {
        self.write32(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
        let places = self.queues.each_ref().map(|queue| (queue.descriptors, queue.size));
        self.queues = places.map(|(base, size)| Queue::at(base, size));
        for queue in self.queues.clone() {
            self.memory.write_slice(&[0; 0x3000], GuestAddress(queue.descriptors)).expect("in memory");
        }
    }

    /// Up to FEATURES_OK; whether the card agreed.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.add_status(VIRTIO_CONFIG_S_DRIVER);
        for (selector, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write32(VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
            self.write32(VIRTIO_MMIO_DRIVER_FEATURES, word);
        }
        self.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    pub fn set_up_queue(&mut self, index: usize) {
        let Queue { size, descriptors, avail, used, .. } = self.queues[index];
        self.write32(VIRTIO_MMIO_QUEUE_SEL, index as u32);
        assert_eq!(self.read32(VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
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

    /// From reset to DRIVER_OK.
    pub fn start(&mut self, features: u64) {
        self.reset();
        assert!(self.negotiate(features));
        for index in 0..QUEUES {
            self.set_up_queue(index);
            assert_eq!(self.read32(VIRTIO_MMIO_QUEUE_READY), 1);
        }
        self.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        assert_eq!(self.status(), 0xf);
    }

    pub fn put16(&self, address: u64, value: u16) {
        self.memory.store(value.to_le(), GuestAddress(address), Ordering::Release).expect("in memory");
    }

    pub fn get16(&self, address: u64) -> u16 {
        u16::from_le(self.memory.load(GuestAddress(address), Ordering::Acquire).expect("in memory"))
    }

    pub fn get32(&self, address: u64) -> u32 {
        u32::from_le(self.memory.load(GuestAddress(address), Ordering::Acquire).expect("in memory"))
    }

    pub fn put_descriptor(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(table + 16 * u64::from(index))).expect("in memory");
    }

    /// Makes a chain of `buffers` (address, length, flags but for those that link them) available; gives its head.
    pub fn offer_chain(&mut self, queue: usize, buffers: impl ExactSizeIterator<Item = (u64, u32, u16)>) -> u16 {
        let chain: Vec<u16> = self.queues[queue].free.drain(..buffers.len()).collect();
        let table = self.queues[queue].descriptors;
        for (i, (address, length, flags)) in buffers.enumerate() {
            let next = chain.get(i + 1);
            let flags = flags | next.map_or(0, |_| NEXT);
            self.put_descriptor(table, chain[i], address, length, flags, next.copied().unwrap_or(0));
        }
        self.make_available(queue, chain[0]);
        chain[0]
    }

    pub fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.queues[queue];
        let slot = ring.avail + 4 + 2 * u64::from(ring.next_avail % ring.size);
        ring.next_avail = ring.next_avail.wrapping_add(1);
        let (index, at) = (ring.next_avail, ring.avail + 2);
        self.put16(slot, head);
        self.put16(at, index);
    }

    /// The next chain given back: its head and how much was written. Its descriptors are free again.
    pub fn take_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let Queue { size, descriptors, used, next_used, .. } = self.queues[queue];
        if self.get16(used + 2) == next_used {
            return None;
        }
        let element = used + 4 + 8 * u64::from(next_used % size);
        let (head, written) = (self.get32(element) as u16, self.get32(element + 4));
        self.queues[queue].next_used = next_used.wrapping_add(1);
        let mut index = head;
        loop {
            self.queues[queue].free.push_back(index);
            let flags = self.get16(descriptors + 16 * u64::from(index) + 12);
            if flags & NEXT == 0 {
                return Some((head, written));
            }
            index = self.get16(descriptors + 16 * u64::from(index) + 14);
        }
    }

    /// Whether an honest driver with event indexes would notify after having made chains available since `old`.
    pub fn would_notify(&self, queue: usize, old: u16) -> bool {
        let queue = &self.queues[queue];
        let event = self.get16(queue.avail_event());
        queue.next_avail.wrapping_sub(event).wrapping_sub(1) < queue.next_avail.wrapping_sub(old)
    }

    /// Asks for an interrupt when the used index passes `index`.
    pub fn want_interrupt_after(&self, queue: usize, index: u16) {
        self.put16(self.queues[queue].used_event(), index);
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("in memory");
        bytes
    }

    pub fn put_bytes(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("in memory");
    }
}

pub fn batch(packets: &[Vec<u8>]) -> Packets {
    let mut batch = Packets::new();
    for packet in packets {
        assert!(batch.push(packet), "a packet that fits");
    }
    batch
}

/// A packet with an empty header and a frame of `length` bytes that `seed` is seen in.
pub fn packet(seed: u32, length: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet.extend((0..length).map(|i| (seed.wrapping_mul(0x9e37_79b9).rotate_left(i as u32 % 32) as usize + i) as u8));
    packet
}
