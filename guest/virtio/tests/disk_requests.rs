//! Promise: what the disk's driver puts into the ring is what virtio 1.2 (section 5.2.6) says, and what comes back is what the device said, in
//! whatever order it does. The device here is written from the specification and works on the same memory, as a real one would.

use std::collections::VecDeque;

use lockstep_virtio::Addresses;
use lockstep_virtio::block::{Ask, DiskError, Done, QUEUE_SIZE, Requests, SECTOR, SLOTS, Shape};

/// The device's end: ring and descriptors by their addresses, which are those of this process.
struct Device {
    ring: Addresses,
    next: u16,
    used: u16,
    disk: Vec<u8>,
    /// What has been taken up and not given back: head and descriptors.
    held: VecDeque<(u16, Vec<(u64, u32, bool)>)>,
    flushes: usize,
    /// The status of everything, if not as it should be.
    status: Option<u8>,
}

fn load<T: Copy>(address: u64) -> T {
    // SAFETY: the addresses are those of the queue, of its requests' frames or of their buffers, which live as long as the requests.
    unsafe { (address as *const T).read_volatile() }
}

fn store<T: Copy>(address: u64, value: T) {
    // SAFETY: as above, for parts that the driver lets the device write.
    unsafe { (address as *mut T).write_volatile(value) }
}

impl Device {
    fn new(requests: &Requests, sectors: usize) -> Self {
        let disk = vec![0; sectors * SECTOR];
        Device { ring: requests.addresses(), next: 0, used: 0, disk, held: VecDeque::new(), flushes: 0, status: None }
    }

    fn take_up(&mut self) {
        let size = u64::from(QUEUE_SIZE);
        while self.next != load::<u16>(self.ring.available + 2) {
            let head: u16 = load(self.ring.available + 4 + 2 * (u64::from(self.next) % size));
            let (mut chain, mut at) = (Vec::new(), head);
            loop {
                let descriptor = self.ring.descriptors + 16 * u64::from(at);
                let flags: u16 = load(descriptor + 12);
                chain.push((load(descriptor), load(descriptor + 8), flags & 2 != 0));
                assert!(chain.len() <= 3);
                if flags & 1 == 0 {
                    break;
                }
                at = load(descriptor + 14);
            }
            self.held.push_back((head, chain));
            self.next = self.next.wrapping_add(1);
        }
    }

    /// Carries out the request at this place among those held, and gives it back.
    fn give_back(&mut self, place: usize) {
        let (head, chain) = self.held.remove(place).expect("held");
        let (header, status) = (chain[0], *chain.last().unwrap());
        assert_eq!((header.1, header.2), (16, false), "the header is read");
        assert_eq!((status.1, status.2), (1, true), "the status is written");
        let at = load::<u64>(header.0 + 8) as usize * SECTOR;
        let data = (chain.len() == 3).then(|| chain[1]);
        let kind = load::<u32>(header.0);
        if self.status.is_none() {
            match (kind, data) {
                (0, Some((address, length, true))) => {
                    (0..length as usize).for_each(|byte| store(address + byte as u64, self.disk[at + byte]));
                }
                (1, Some((address, length, false))) => {
                    (0..length as usize).for_each(|byte| self.disk[at + byte] = load(address + byte as u64));
                }
                (4, None) => self.flushes += 1,
                (11 | 13, Some((address, 16, false))) => {
                    let (first, sectors) = (load::<u64>(address) as usize, load::<u32>(address + 8) as usize);
                    let fill = if kind == 13 { 0 } else { 0xdd };
                    self.disk[first * SECTOR..][..sectors * SECTOR].fill(fill);
                }
                other => panic!("no request: {other:?}"),
            }
        }
        store(status.0, self.status.unwrap_or(0));
        let element = self.ring.used + 4 + 8 * (u64::from(self.used) % u64::from(QUEUE_SIZE));
        store(element, u32::from(head));
        store(element + 4, 1_u32);
        self.used = self.used.wrapping_add(1);
        store(self.ring.used + 2, self.used);
    }
}

const SHAPE: Shape =
    Shape { sectors: 64, read_only: false, flush: true, most_bytes: 4096, most_discard: 16, most_zeroes: 8 };

fn pair(shape: Shape) -> (Requests, Device) {
    let requests = Requests::new(shape, true);
    let device = Device::new(&requests, shape.sectors as usize);
    (requests, device)
}

/// Submits one request and lets the device carry it out.
fn carry_out(requests: &mut Requests, device: &mut Device, ask: Ask) -> Done {
    let number = requests.submit(ask).expect("submitted");
    device.take_up();
    device.give_back(0);
    let done = requests.take().expect("given back");
    assert_eq!(done.number, number);
    done
}

#[test]
fn what_is_written_is_read_and_zeroed_and_discarded() {
    let (mut requests, mut device) = pair(SHAPE);
    let bytes: Vec<u8> = (0..4096).map(|at| (at % 251) as u8).collect();
    let done = carry_out(&mut requests, &mut device, Ask::Write { sector: 9, buffer: bytes.clone() });
    assert_eq!(done.result, Ok(()));
    assert_eq!(device.disk[9 * SECTOR..17 * SECTOR], bytes);
    carry_out(&mut requests, &mut device, Ask::WriteZeroes { sector: 10, sectors: 2, may_unmap: true });
    carry_out(&mut requests, &mut device, Ask::Discard { sector: 12, sectors: 1 });
    carry_out(&mut requests, &mut device, Ask::Flush);
    assert_eq!(device.flushes, 1);
    let done = carry_out(&mut requests, &mut device, Ask::Read { sector: 9, buffer: vec![1; 4096] });
    let Ask::Read { buffer, .. } = done.ask else { panic!("another request") };
    let mut expected = bytes;
    expected[SECTOR..3 * SECTOR].fill(0);
    expected[3 * SECTOR..4 * SECTOR].fill(0xdd);
    assert_eq!(buffer, expected);
}

/// As many as there may be, given back in any order, over and over beyond the wrap of the ring's index.
#[test]
fn many_are_in_flight_and_come_back_in_any_order() {
    let (mut requests, mut device) = pair(SHAPE);
    for round in 0..1000_u64 {
        let mut numbers = Vec::new();
        for at in 0..SLOTS as u64 {
            let buffer = vec![(round + at) as u8; SECTOR];
            numbers.push(requests.submit(Ask::Write { sector: at % 64, buffer }).expect("room"));
        }
        assert_eq!((requests.room(), requests.in_flight()), (0, SLOTS));
        let (error, ask) = requests.submit(Ask::Flush).expect_err("full");
        assert_eq!((error, ask), (DiskError::Full, Ask::Flush));
        device.take_up();
        assert_eq!(requests.take(), None);
        let mut back = Vec::new();
        while !device.held.is_empty() {
            device.give_back((round as usize * 7 + back.len() * 13) % device.held.len());
            let done = requests.take().expect("given back");
            let at = numbers.iter().position(|&number| number == done.number).expect("one of them") as u64;
            assert_eq!(done.ask, Ask::Write { sector: at % 64, buffer: vec![(round + at) as u8; SECTOR] });
            back.push(done.number);
        }
        back.sort();
        assert_eq!(back, numbers);
    }
}

#[test]
fn errors_have_names() {
    let (mut requests, mut device) = pair(SHAPE);
    for (status, error) in
        [(1, DiskError::Io), (2, DiskError::Unsupported), (7, DiskError::Status(7)), (0xff, DiskError::Status(0xff))]
    {
        device.status = Some(status);
        assert_eq!(carry_out(&mut requests, &mut device, Ask::Flush).result, Err(error));
    }
    let read = |sector, bytes| Ask::Read { sector, buffer: vec![0; bytes] };
    let mut refused = |ask| requests.submit(ask).expect_err("refused").0;
    assert_eq!(refused(read(0, 0)), DiskError::Length(0));
    assert_eq!(refused(read(0, 100)), DiskError::Length(100));
    assert_eq!(refused(read(0, 8192)), DiskError::TooLong(4096));
    assert_eq!(refused(read(64, 512)), DiskError::OutOfRange);
    assert_eq!(refused(read(u64::MAX, 512)), DiskError::OutOfRange);
    assert_eq!(refused(Ask::Discard { sector: 0, sectors: 17 }), DiskError::TooLong(16));
    assert_eq!(refused(Ask::WriteZeroes { sector: 60, sectors: 5, may_unmap: false }), DiskError::OutOfRange);
    let (mut requests, _) = pair(Shape { read_only: true, most_discard: 0, ..SHAPE });
    let write = Ask::Write { sector: 0, buffer: vec![0; 512] };
    assert_eq!(requests.submit(write).expect_err("refused").0, DiskError::ReadOnly);
    let (mut requests, _) = pair(Shape { most_discard: 0, ..SHAPE });
    let discard = Ask::Discard { sector: 0, sectors: 1 };
    assert_eq!(requests.submit(discard).expect_err("refused").0, DiskError::Unsupported);
}
