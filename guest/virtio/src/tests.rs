//! The queue against a device written from the specification, sharing memory with it as a real one would.

use super::*;

const SIZE: usize = 8;

/// The device's end of the queue.
struct Device<'a> {
    shared: &'a Shared<SIZE>,
    /// Index of the next buffer it takes up.
    next: u16,
    /// Index of the next buffer it gives back.
    used: u16,
    event_index: bool,
}

impl Device<'_> {
    /// Takes up what is offered: (buffer, address, length, whether it may write).
    fn take_up(&mut self) -> Vec<(u16, u64, u32, bool)> {
        let mut taken = Vec::new();
        while self.next != self.shared.available.index.load(Acquire) {
            let buffer = self.shared.available.ring[usize::from(self.next) % SIZE].load(Relaxed);
            let descriptor = &self.shared.descriptors[usize::from(buffer)];
            let flags = descriptor.flags.load(Relaxed);
            assert_eq!(flags & !WRITE, 0, "neither a chain nor indirect");
            taken.push((buffer, descriptor.address.load(Relaxed), descriptor.length.load(Relaxed), flags & WRITE != 0));
            self.next = self.next.wrapping_add(1);
        }
        // Wants to be told about the next.
        self.shared.used.available_event.store(self.next, Release);
        taken
    }

    /// Gives a buffer back. Whether it interrupts.
    fn give_back(&mut self, buffer: u32, length: u32) -> bool {
        let element = &self.shared.used.ring[usize::from(self.used) % SIZE];
        element.descriptor.store(buffer, Relaxed);
        element.length.store(length, Relaxed);
        let old = self.used;
        self.used = old.wrapping_add(1);
        self.shared.used.index.store(self.used, Release);
        if self.event_index {
            // The specification's formula, written out.
            let event = self.shared.available.used_event.load(Acquire);
            self.used.wrapping_sub(event).wrapping_sub(1) < self.used.wrapping_sub(old)
        } else {
            self.shared.available.flags.load(Acquire) & NO_NOTIFICATION == 0
        }
    }
}

fn pair(event_index: bool) -> (Queue<SIZE>, Device<'static>) {
    let queue = Queue::new(event_index);
    let device = Device { shared: queue.shared, next: 0, used: 0, event_index };
    (queue, device)
}

/// Offers a buffer that lies nowhere: this device never touches it.
fn offer(queue: &mut Queue<SIZE>, buffer: u16, device_writes: bool) {
    // SAFETY: the tests take before they offer again, and the memory is not used at all.
    unsafe { queue.offer(buffer, 0x1000 * u64::from(buffer), 100 + u32::from(buffer), device_writes) };
}

#[test]
fn parts_are_aligned_and_laid_out_as_the_specification_says() {
    let (queue, _) = pair(true);
    let parts = queue.addresses();
    assert_eq!((parts.descriptors % 16, parts.available % 2, parts.used % 4), (0, 0, 0));
    assert_eq!(size_of::<Descriptor>(), 16);
    assert_eq!(size_of::<Available<SIZE>>(), 6 + 2 * SIZE);
    assert_eq!(core::mem::offset_of!(Available<SIZE>, used_event), 4 + 2 * SIZE);
    assert_eq!(core::mem::offset_of!(Used<SIZE>, available_event), 4 + 8 * SIZE);
}

#[test]
fn buffers_go_around_in_whatever_order_beyond_the_wrap_of_the_index() {
    let (mut queue, mut device) = pair(true);
    let mut free: Vec<u16> = (0..SIZE as u16).collect();
    for round in 0..3 * (1 << 16) / 3 {
        for _ in 0..3 {
            offer(&mut queue, free.remove(0), round % 2 == 0);
        }
        assert_eq!(queue.outstanding(), 3);
        let mut there = device.take_up();
        assert!(there.iter().all(|&(buffer, address, length, writes)| {
            (address, length, writes) == (0x1000 * u64::from(buffer), 100 + u32::from(buffer), round % 2 == 0)
        }));
        assert!(!queue.has_used());
        assert_eq!(queue.take(), None);
        there.rotate_left(round % 3);
        for &(buffer, ..) in &there {
            device.give_back(buffer.into(), 7 + u32::from(buffer));
        }
        for &(buffer, ..) in &there {
            assert_eq!(queue.take(), Some(Taken { buffer, length: 7 + u32::from(buffer) }));
            free.push(buffer);
        }
        assert_eq!(queue.take(), None);
        assert_eq!(queue.outstanding(), 0);
    }
}

#[test]
fn the_device_is_told_once_for_a_batch_whatever_the_index() {
    for event_index in [true, false] {
        let (mut queue, mut device) = pair(event_index);
        // Seven do not divide 65,536: a batch lies across the wrap.
        for _ in 0..(1 << 16) / 7 + 10 {
            assert!(!queue.must_notify(), "nothing is new");
            (0..7).for_each(|buffer| offer(&mut queue, buffer, true));
            assert!(queue.must_notify());
            assert!(!queue.must_notify(), "told already");
            for (buffer, ..) in device.take_up() {
                device.give_back(buffer.into(), 1);
            }
            while queue.take().is_some() {}
        }
    }
}

#[test]
fn a_device_that_is_at_it_is_not_told() {
    let (mut queue, mut device) = pair(true);
    offer(&mut queue, 0, true);
    assert!(queue.must_notify());
    // It has not taken that one up yet: its event still names it.
    offer(&mut queue, 1, true);
    assert!(!queue.must_notify());
    assert_eq!(device.take_up().len(), 2);
    offer(&mut queue, 2, true);
    assert!(queue.must_notify());

    let (mut queue, device) = pair(false);
    device.shared.used.flags.store(NO_NOTIFICATION, Relaxed);
    offer(&mut queue, 0, true);
    assert!(!queue.must_notify());
}

#[test]
fn interrupts_come_only_when_asked_for() {
    for event_index in [true, false] {
        let (mut queue, mut device) = pair(event_index);
        queue.ask_for_no_interrupt();
        for turn in 0..(1 << 16) + 100 {
            offer(&mut queue, 0, true);
            device.take_up();
            if turn % 5 == 0 {
                assert!(!queue.ask_for_interrupt(1), "nothing has come back");
                assert!(device.give_back(0, 1), "turn {turn}");
                queue.ask_for_no_interrupt();
            } else {
                assert!(!device.give_back(0, 1), "turn {turn}");
            }
            assert!(queue.take().is_some());
            queue.ask_for_no_interrupt();
        }
    }
}

#[test]
fn an_interrupt_can_wait_for_several_buffers() {
    let (mut queue, mut device) = pair(true);
    (0..4).for_each(|buffer| offer(&mut queue, buffer, true));
    device.take_up();
    assert!(!queue.ask_for_interrupt(3));
    assert_eq!([0, 1, 2, 3].map(|buffer| device.give_back(buffer, 1)), [false, false, true, false]);
}

/// What came back before the driver asked might not interrupt: it is told.
#[test]
fn asking_too_late_is_noticed() {
    let (mut queue, mut device) = pair(true);
    queue.ask_for_no_interrupt();
    offer(&mut queue, 0, true);
    device.take_up();
    assert!(!device.give_back(0, 1));
    assert!(!queue.ask_for_interrupt(2));
    assert!(queue.ask_for_interrupt(1));
}

#[test]
fn a_buffer_that_the_device_invents_is_not_handed_out() {
    let (mut queue, mut device) = pair(true);
    for invented in [SIZE as u32, 1 << 16, u32::MAX] {
        device.give_back(invented, 1);
        assert!(queue.has_used());
        assert_eq!(queue.take(), None);
        assert!(!queue.has_used());
    }
}

/// Sum of 16-bit words, by the book (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 =
        bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&low| low.into())).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// What a device does to a frame whose checksum was left to it.
fn complete(header: &[u8; net_header::BYTES], frame: &mut [u8]) {
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (start, offset) = (word(6), word(6) + word(8));
    let checksum = !checksum(&frame[start..]);
    frame[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// An IPv4 packet from 10.9.0.2 to 192.168.255.1 in a frame.
fn frame(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xee; 12];
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend((20 + transport.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 9, 0, 2, 192, 168, 255, 1]);
    frame.extend(transport);
    frame
}

#[test]
fn a_checksum_left_to_the_device_comes_out_right() {
    for (protocol, header_bytes) in [(6, 20), (6, 32), (17, 8)] {
        // 13,873: where adding the carry of the pseudo header's sum gives a carry once more.
        for data in [0, 1, 2, 999, 13_873, 60_000] {
            let mut transport: Vec<u8> = (0..header_bytes + data).map(|at| (at * 7) as u8).collect();
            if protocol == 6 {
                transport[12] = (header_bytes as u8 / 4) << 4;
            }
            let mut frame = frame(protocol, &transport);
            let mut header = [0xff; net_header::BYTES];
            let segment = core::num::NonZero::new(1448).filter(|_| data > 1448);
            net_header::delegate(&mut header, &mut frame, segment);
            assert!(net_header::vouched_for(&header));
            let gso =
                if segment.is_some() && protocol == 6 { [1, 34 + header_bytes as u8, 0, 0xa8, 5] } else { [0; 5] };
            assert_eq!(header[1..6], gso, "{protocol} {header_bytes} {data}");
            complete(&header, &mut frame);
            // As the receiver checks it: pseudo header and all sum up to ones.
            let mut checked = frame[26..34].to_vec();
            checked.extend([0, protocol]);
            checked.extend((transport.len() as u16).to_be_bytes());
            checked.extend(&frame[34..]);
            assert_eq!(checksum(&checked), 0xffff, "{protocol} {header_bytes} {data}");
        }
    }
}

#[test]
fn other_frames_stay_as_they_are() {
    let mut arp = frame(6, &[0; 40]);
    arp[13] = 6;
    let mut options = frame(6, &[0; 40]);
    options[14] = 0x46;
    for other in [frame(1, &[7; 40]), frame(6, &[7; 19]), frame(17, &[7; 7]), arp, options, vec![8; 20], Vec::new()] {
        let (mut header, mut sent) = ([0xff; net_header::BYTES], other.clone());
        net_header::delegate(&mut header, &mut sent, None);
        assert_eq!((header, sent), ([0; net_header::BYTES], other));
    }
    assert!(!net_header::vouched_for(&[0; net_header::BYTES]));
}
