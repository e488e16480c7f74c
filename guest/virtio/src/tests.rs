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
        for _ in 0..(1 << 16) / 3 + 10 {
            assert!(!queue.must_notify(), "nothing is new");
            (0..3).for_each(|buffer| offer(&mut queue, buffer, true));
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
