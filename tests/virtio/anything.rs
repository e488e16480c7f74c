//! Addresses, lengths, queues and register writes as an arbitrary guest chooses them: mostly sensible, now and then anything at all.

use std::cell::RefCell;
use std::ops::Range;

use lockstep::machine::memory::{self, Memory};
use proptest::prelude::*;
use virtio_bindings::bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};

use super::{TABLE, WRITE};

/// Bytes of the guest's memory. Few, so that much can be tried; and rings and buffers meet.
pub const SIZE: u64 = 32 << 10;

pub fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => (0..SIZE / 16).prop_map(|n| n * 16),
        2 => 0..SIZE,
        2 => SIZE - 2100..SIZE + 20,
        1 => (0u64..1 << 20).prop_map(|n| u64::MAX - n),
        1 => any::<u64>(),
    ]
}

pub fn length() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 1u32..1600, 2 => 0u32..40, 1 => (0u32..10).prop_map(|n| n * 16), 1 => any::<u32>()]
}

pub fn queue_place() -> impl Strategy<Value = (u16, u64, u64, u64)> {
    let size =
        prop_oneof![8 => (0u32..5).prop_map(|n| 1 << n), 1 => (5u32..10).prop_map(|n| 1 << n), 1 => any::<u16>()];
    let page = || (1..SIZE / 256).prop_map(|n| n * 256);
    let apart = (0..SIZE / 2048 - 1).prop_map(|n| (n * 2048, n * 2048 + 1024, n * 2048 + 1536));
    let place = prop_oneof![8 => apart, 2 => (page(), page(), page()), 1 => (address(), address(), address())];
    (size, place).prop_map(|(size, (descriptors, avail, used))| (size, descriptors, avail, used))
}

/// A write of one of these values to `register`: (offset, bytes).
pub fn written(register: u32, values: Vec<u32>) -> impl Strategy<Value = (u64, Vec<u8>)> {
    prop::sample::select(values).prop_map(move |value| (register.into(), value.to_le_bytes().to_vec()))
}

/// Where a queue's registers say that it is. Kept by the test: it knows what it wrote.
#[derive(Clone, Copy, Default)]
pub struct Place {
    pub size: u32,
    pub parts: [u64; 3],
}

impl Place {
    pub fn descriptors(&self) -> Range<u64> {
        self.part(0, 16 * u64::from(self.size))
    }

    pub fn avail(&self) -> Range<u64> {
        self.part(1, 6 + 2 * u64::from(self.size))
    }

    pub fn used(&self) -> Range<u64> {
        self.part(2, 6 + 8 * u64::from(self.size))
    }

    pub fn part(&self, part: usize, length: u64) -> Range<u64> {
        self.parts[part]..self.parts[part].saturating_add(length)
    }

    /// The driver writes to a register of the queue while it is not ready.
    pub fn set(&mut self, register: u32, value: u32) {
        let low = |part: &mut u64| *part = *part & !0xffff_ffff | u64::from(value);
        let high = |part: &mut u64| *part = *part & 0xffff_ffff | u64::from(value) << 32;
        match register {
            VIRTIO_MMIO_QUEUE_NUM => self.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => low(&mut self.parts[0]),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => high(&mut self.parts[0]),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => low(&mut self.parts[1]),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => high(&mut self.parts[1]),
            VIRTIO_MMIO_QUEUE_USED_LOW => low(&mut self.parts[2]),
            VIRTIO_MMIO_QUEUE_USED_HIGH => high(&mut self.parts[2]),
            _ => {}
        }
    }

    /// All that the queue allows to be written. `None` if that includes what says so: then there is no telling beforehand.
    pub fn named_to_write(&self, memory: &Memory) -> Option<Vec<Range<u64>>> {
        let mut named = vec![self.used()];
        let mut tables = vec![self.descriptors(), self.avail()];
        let size = u64::from(self.size).min(256);
        let mut entries: Vec<u64> = (0..size).map(|i| self.descriptors().start.wrapping_add(16 * i)).collect();
        let mut at = 0;
        while at < entries.len() {
            let mut bytes = [0; 16];
            if memory.read_slice(&mut bytes, GuestAddress(entries[at])).is_ok() {
                let address = u64::from_le_bytes(bytes[..8].try_into().expect("eight"));
                let length = u32::from_le_bytes(bytes[8..12].try_into().expect("four"));
                let flags = u16::from_le_bytes(bytes[12..14].try_into().expect("two"));
                let range = address..address.saturating_add(length.into());
                if flags & TABLE != 0 && at < size as usize {
                    entries.extend((0..u64::from(length / 16).min(SIZE / 16)).map(|i| address.wrapping_add(16 * i)));
                    tables.push(range.clone());
                }
                if flags & WRITE != 0 {
                    named.push(range);
                }
            }
            at += 1;
        }
        (!named.iter().any(|name| tables.iter().any(|table| meet(name, table)))).then_some(named)
    }
}

/// Whether two ranges have an address in common.
pub fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Puts a descriptor into a table, if that is in memory.
pub fn put_descriptor(memory: &Memory, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    let _ = memory.write_slice(&bytes, GuestAddress(table.wrapping_add(16 * u64::from(index))));
}

thread_local! {
    /// Memory before and after a step.
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Runs `act`, which may change nothing in `memory` but the `allowed` addresses, and what it changes is marked.
pub fn changing(memory: &Memory, allowed: &[Range<u64>], act: impl FnOnce()) {
    SCRATCH.with_borrow_mut(|(before, _)| read_all(memory, before));
    memory::take_written(memory);
    act();
    let marked = memory::take_written(memory);
    SCRATCH.with_borrow_mut(|(before, after)| {
        read_all(memory, after);
        if before == after {
            return;
        }
        for (address, _) in before.iter().zip(&*after).enumerate().filter(|(_, (before, after))| before != after) {
            assert!(
                allowed.iter().any(|range| range.contains(&(address as u64))),
                "{address:#x} is not the device's to write"
            );
            assert!(marked[0] >> (address >> 12) & 1 == 1, "{address:#x} was written and is not marked");
        }
    });
}

/// What the last [`changing`] changed: the addresses.
pub fn last_changed() -> Vec<usize> {
    SCRATCH.with_borrow(|(before, after)| {
        if before == after {
            return Vec::new();
        }
        (0..before.len()).filter(|&address| before[address] != after[address]).collect()
    })
}

/// All of a small memory.
pub fn read_all(memory: &Memory, bytes: &mut Vec<u8>) {
    bytes.resize(SIZE as usize, 0);
    memory.read_slice(bytes, GuestAddress(0)).expect("all of memory");
}
