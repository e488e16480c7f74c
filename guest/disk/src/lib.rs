//! A guest's disk: a virtio block device behind an MMIO transport, in whatever slot.
//!
//! [`Disk::submit`] and [`Disk::poll`] work on many requests at a time; [`Disk::read`] and its like ask one thing and wait for it. Requests go into
//! the ring and come out of it without a device register being touched. On a lockstep machine the disk looks at its queue whenever the guest
//! [waits](Disk::idle), syncs or halts; elsewhere it is notified where it asks for it, and interrupts when something comes back. A guest that waits for a
//! network as well waits as that does: whatever happens ends the wait, and both are to be polled then.
#![no_std]

extern crate alloc;

use alloc::collections::VecDeque;
use alloc::vec;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use lockstep_abi::{port, virtio};
use lockstep_runtime::{console, gate, nucleus, pv, safepoint};
use lockstep_virtio::block::{QUEUE_SIZE, Requests};
use virtio_drivers::transport::mmio::{MmioTransport, MmioVersion, VirtIOHeader};
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

pub use lockstep_virtio::block::{Ask, DiskError, Done, SECTOR, SLOTS, Shape};

const REQUESTS: u16 = 0;

/// The most bytes of one read or write: what a lockstep machine takes.
pub const MOST_BYTES: u32 = 256 << 10;

/// The feature bits that the driver knows (virtio 1.2, sections 5.2.3 and 6).
mod feature {
    pub(super) const SIZE_MAX: u64 = 1 << 1;
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
    pub(super) const EVENT_INDEX: u64 = 1 << 29;
    pub(super) const VERSION_1: u64 = 1 << 32;

    /// All of them.
    pub(super) const KNOWN: u64 =
        SIZE_MAX | SEG_MAX | READ_ONLY | FLUSH | DISCARD | WRITE_ZEROES | EVENT_INDEX | VERSION_1;
}

/// Offsets in the device's configuration (section 5.2.4).
mod config {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const MAX_WRITE_ZEROES_SECTORS: usize = 48;
}

/// The disk.
pub struct Disk {
    transport: ManuallyDrop<MmioTransport<'static>>,
    requests: Requests,
    /// Requests that have come to their end while another was waited for.
    done: VecDeque<Done>,
    /// The machine is a lockstep machine: no notifications, no interrupts.
    paravirtual: bool,
}

impl Disk {
    /// The first disk, ready to use; `None` if there is none.
    pub fn find() -> Option<Self> {
        (0..virtio::SLOTS).find_map(|slot| {
            let header = NonNull::new((virtio::MMIO_BASE + slot * virtio::MMIO_STRIDE) as *mut VirtIOHeader)?;
            // SAFETY: a slot's registers, or a hole where reads give all ones or zeros, which is not the magic number. Of another device's slot, only
            // constant registers are read.
            let transport = unsafe { MmioTransport::new(header, virtio::MMIO_STRIDE as usize) }.ok()?;
            // Dropping it would reset the device, which may be another driver's.
            let transport = ManuallyDrop::new(transport);
            let is_disk = transport.device_type() == DeviceType::Block && transport.version() == MmioVersion::Modern;
            is_disk.then(|| Self::start(transport)).flatten()
        })
    }

    /// The initialisation of virtio 1.2, section 3.1.1. `None` for a disk that refuses what the driver needs.
    fn start(mut transport: ManuallyDrop<MmioTransport<'static>>) -> Option<Self> {
        let known = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(DeviceStatus::empty());
        transport.set_status(known);
        let features = transport.read_device_features() & feature::KNOWN;
        transport.write_driver_features(features);
        transport.set_status(known | DeviceStatus::FEATURES_OK);
        if features & feature::VERSION_1 == 0 || !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return None;
        }
        let shape = shape(&transport, features)?;
        let mut requests = Requests::new(shape, features & feature::EVENT_INDEX != 0);
        if transport.max_queue_size(REQUESTS) < QUEUE_SIZE.into() {
            return None;
        }
        let parts = requests.addresses();
        transport.queue_set(REQUESTS, QUEUE_SIZE.into(), parts.descriptors, parts.available, parts.used);
        transport.set_status(known | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
        requests.queue.ask_for_no_interrupt();
        Some(Disk { transport, requests, done: VecDeque::new(), paravirtual: pv::present() })
    }

    /// What the disk is like.
    pub fn shape(&self) -> Shape {
        *self.requests.shape()
    }

    /// Requests that have been submitted and not been taken out by [`poll`](Self::poll).
    pub fn in_flight(&self) -> usize {
        self.requests.in_flight() + self.done.len()
    }

    /// Requests that may be submitted now.
    pub fn room(&self) -> usize {
        self.requests.room()
    }

    /// Puts a request into the ring; gives the number that its end will name. The disk sees it at the next [`sync`](Self::sync) or wait. On an error the
    /// request comes back, with its buffer.
    pub fn submit(&mut self, ask: Ask) -> Result<u64, (DiskError, Ask)> {
        self.requests.submit(ask)
    }

    /// Lets the disk see what was submitted.
    pub fn sync(&mut self) {
        if self.paravirtual {
            gate::outb(port::VIRTIO_SYNC, 0);
        } else if self.requests.queue.must_notify() {
            self.transport.notify(REQUESTS);
        }
    }

    /// Whether [`poll`](Self::poll) has something.
    pub fn has_done(&self) -> bool {
        !self.done.is_empty() || self.requests.queue.has_used()
    }

    /// The next request that has come to its end, in whatever order they do.
    pub fn poll(&mut self) -> Option<Done> {
        self.done.pop_front().or_else(|| self.requests.take())
    }

    /// For a guest that is about to sleep by itself: the disk sees what was submitted, and its next completion ends the sleep. Whether there is one
    /// already. On a lockstep machine the wait has the disk look, and what is completed ends it, so nothing is asked for; the answer holds until the
    /// next safepoint or exit.
    #[must_use]
    pub fn before_sleep(&mut self) -> bool {
        if self.paravirtual {
            // Said again now and then: it is a place in the ring that comes round.
            self.requests.queue.ask_for_no_interrupt();
            return self.has_done();
        }
        self.sync();
        // The line is a level that the last interrupt may have left up; lowered before the ring is looked at once more.
        self.transport.ack_interrupt();
        let ready = self.requests.queue.ask_for_interrupt(1);
        ready || self.has_done()
    }

    /// Sleeps until something happens, unless there has been an interrupt since [`nucleus::interrupts`] was `seen` or a request has come to its end.
    /// The disk sees what was submitted.
    pub fn idle(&mut self, seen: u64) {
        console::flush();
        if self.before_sleep() {
            return;
        }
        if self.paravirtual { gate::wait(seen) } else { gate::idle(seen) }
    }

    /// Carries out one request, and waits until it has come to its end.
    pub fn carry_out(&mut self, ask: Ask) -> Result<Ask, DiskError> {
        while self.room() == 0 {
            self.rest();
        }
        let number = self.submit(ask).map_err(|(error, _)| error)?;
        loop {
            while let Some(done) = self.requests.take() {
                if done.number == number {
                    return done.result.map(|()| done.ask);
                }
                self.done.push_back(done);
            }
            self.rest();
        }
    }

    /// Waits for anything, and keeps what has come to its end.
    fn rest(&mut self) {
        safepoint();
        let seen = nucleus::interrupts();
        if !self.requests.queue.has_used() {
            // What was kept does not end this wait: it is somebody else's.
            let kept = core::mem::take(&mut self.done);
            self.idle(seen);
            self.done = kept;
        }
        if self.requests.room() == 0
            && let Some(done) = self.requests.take()
        {
            self.done.push_back(done);
        }
    }

    /// Reads `buffer.len()` bytes, any number of whole sectors.
    pub fn read(&mut self, mut sector: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        for piece in buffer.chunks_mut(self.shape().most_bytes as usize) {
            let asked = Ask::Read { sector, buffer: vec![0; piece.len()] };
            if let Ask::Read { buffer, .. } = self.carry_out(asked)? {
                piece.copy_from_slice(&buffer);
            }
            sector += (piece.len() / SECTOR) as u64;
        }
        Ok(())
    }

    /// Writes any number of whole sectors. Not on stable storage before a [`flush`](Self::flush).
    pub fn write(&mut self, mut sector: u64, bytes: &[u8]) -> Result<(), DiskError> {
        for piece in bytes.chunks(self.shape().most_bytes as usize) {
            self.carry_out(Ask::Write { sector, buffer: piece.to_vec() })?;
            sector += (piece.len() / SECTOR) as u64;
        }
        Ok(())
    }

    /// Whatever was completed before is on stable storage when this returns.
    pub fn flush(&mut self) -> Result<(), DiskError> {
        if !self.shape().flush {
            return Ok(());
        }
        self.carry_out(Ask::Flush).map(|_| ())
    }

    /// These sectors are of no use any more.
    pub fn discard(&mut self, sector: u64, sectors: u32) -> Result<(), DiskError> {
        self.carry_out(Ask::Discard { sector, sectors }).map(|_| ())
    }

    /// These sectors shall read as zeros; with `may_unmap`, the disk may give their room back.
    pub fn write_zeroes(&mut self, sector: u64, sectors: u32, may_unmap: bool) -> Result<(), DiskError> {
        self.carry_out(Ask::WriteZeroes { sector, sectors, may_unmap }).map(|_| ())
    }
}

/// Reads the configuration. `None` for one that cannot be read, or a disk that takes less than a sector at a time.
fn shape(transport: &MmioTransport<'static>, features: u64) -> Option<Shape> {
    let has = |feature| features & feature != 0;
    let word = |offset: usize| transport.read_config_space::<u32>(offset).ok();
    // The size may change between the two halves: section 2.5.3.
    let sectors = loop {
        let before = transport.read_config_generation();
        let low = word(config::CAPACITY)?;
        let high = word(config::CAPACITY + 4)?;
        if transport.read_config_generation() == before {
            break u64::from(high) << 32 | u64::from(low);
        }
    };
    // A request's data are one buffer, so its size bounds the request; there is always room for one (`SEG_MAX` is at least 1).
    let size_max = if has(feature::SIZE_MAX) { word(config::SIZE_MAX)? } else { MOST_BYTES };
    let most_bytes = size_max.min(MOST_BYTES) / SECTOR as u32 * SECTOR as u32;
    Some(Shape {
        sectors,
        read_only: has(feature::READ_ONLY),
        flush: has(feature::FLUSH),
        most_bytes,
        most_discard: if has(feature::DISCARD) { word(config::MAX_DISCARD_SECTORS)? } else { 0 },
        most_zeroes: if has(feature::WRITE_ZEROES) { word(config::MAX_WRITE_ZEROES_SECTORS)? } else { 0 },
    })
    .filter(|shape| shape.most_bytes > 0)
}
