//! What a network service of a guest is: a state machine that is given the bytes of a connection and leaves its answers, no
//! I/O. `lockstep-net`'s server runs one; tests run it on the host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// A service on one or more TCP ports, with any number of connections.
pub trait Service {
    /// What it remembers of a connection.
    type Connection;

    /// The most bytes that may wait for the rest of a message; a client whose message is longer is cut off.
    const INPUT_MAX: usize;

    /// A client has connected to `port`.
    fn open(&mut self, port: u16) -> Self::Connection;

    /// Bytes have come. Returns how many at the front it has dealt with; the others come again, with more behind them or, if it
    /// stopped because the output [is full](Output::is_full), when there is room again. To stop for any other reason than these
    /// two is to wait for ever.
    fn receive(&mut self, connection: &mut Self::Connection, input: &[u8], output: &mut Output) -> usize;

    /// There is room for output: the chance for a service that speaks without being asked.
    fn fill(&mut self, _connection: &mut Self::Connection, _output: &mut Output) {}

    /// The client sends no more; what it still reads may be answered.
    fn end(&mut self, _connection: &mut Self::Connection, output: &mut Output) {
        output.close();
    }

    /// The connection is gone.
    fn closed(&mut self, _connection: Self::Connection) {}

    /// Called at each turn of the server's loop, after at most one tick of the timer.
    fn turn(&mut self, _now: Now) {}

    /// Called at each turn when every connection has been served: the time to begin what all of them together have made necessary.
    fn served(&mut self) {}

    /// Called before the server sleeps. Whether there is something to do already, and it shall not; if not, whatever there will be to do must end
    /// the sleep. No event reaches the guest between this and the sleep.
    fn before_sleep(&mut self) -> bool {
        false
    }

    /// What was [held](Output::hold) for this ticket or one below may leave.
    fn released(&self) -> u64 {
        u64::MAX
    }
}

/// The time, as a service may know it without any cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Milliseconds since boot, in steps of the timer's ticks.
    pub since_boot_ms: u64,
}

/// What a service has to say on a connection, until the connection takes it.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    /// What is before this has been taken.
    start: usize,
    closing: bool,
    /// Where something ends that waits for a ticket, in order: its end in `bytes`, and the ticket.
    held: VecDeque<(usize, u64)>,
    /// What is behind this may not leave yet.
    free: usize,
}

impl Output {
    /// From here on a service shall stop to take input: answers to a client that sends without reading must not pile up.
    pub const FULL: usize = 64 << 10;

    /// Whether there is too much of it to take more input. What is written nevertheless is kept.
    pub fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// Bytes until it is full.
    pub fn room(&self) -> usize {
        Self::FULL.saturating_sub(self.pending_bytes())
    }

    /// Says this.
    pub fn write(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What has been said since the last call shall not leave before the ticket is [released](Self::release), and so not what is said later. Tickets do
    /// not go down.
    pub fn hold(&mut self, ticket: u64) {
        let begin = self.held.back().map_or(self.free.max(self.start), |&(end, _)| end);
        if begin == self.bytes.len() {
            return;
        }
        if self.held.is_empty() {
            self.free = begin;
        }
        match self.held.back_mut() {
            Some((end, last)) if *last == ticket => *end = self.bytes.len(),
            _ => self.held.push_back((self.bytes.len(), ticket)),
        }
    }

    /// What waits for this ticket or one below may leave.
    pub fn release(&mut self, ticket: u64) {
        while let Some(&(end, waits_for)) = self.held.front()
            && waits_for <= ticket
        {
            self.free = end;
            self.held.pop_front();
        }
    }

    /// Bytes that have not been taken yet, held or not.
    pub fn pending_bytes(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// What has not been taken yet, for whoever appends in other ways than [`write`](Self::write).
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.forget_taken();
        &mut self.bytes
    }

    /// Ends the connection once all is sent; no more input is taken.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Whether [`close`](Self::close) has been called.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// What has not been taken yet and may leave.
    pub fn waiting(&self) -> &[u8] {
        let end = if self.held.is_empty() { self.bytes.len() } else { self.free };
        &self.bytes[self.start..end.max(self.start)]
    }

    /// Takes what has been taken out of the buffer.
    fn forget_taken(&mut self) {
        self.bytes.drain(..self.start);
        self.free = self.free.saturating_sub(self.start);
        self.held.iter_mut().for_each(|(end, _)| *end -= self.start);
        self.start = 0;
    }

    /// The connection has taken this many bytes.
    pub fn taken(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.bytes.len() {
            self.start = 0;
            self.free = 0;
            self.bytes.clear();
            // A single long answer shall not hold its memory for ever.
            self.bytes.shrink_to(2 * Self::FULL);
        } else if self.start > Self::FULL {
            self.forget_taken();
        }
    }
}

impl core::fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the sizes of what is said and taken, it comes out whole and in order, and its memory does not grow for ever.
    /// Nothing leaves before its ticket is released, all leaves afterwards, and what was never held and is not behind such leaves at once.
    #[test]
    fn what_is_held_leaves_when_its_ticket_is_released() {
        let mut output = Output::default();
        // What was said, with the ticket that it waits for; how many have been taken.
        let (mut said, mut taken, mut released, mut ticket) = (Vec::new(), 0, 0, 0);
        let mut random = 1_u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        for step in 0..20_000_u64 {
            match below(5) {
                0 | 1 => {
                    let bytes: Vec<u8> = (0..below(300)).map(|at| (step + at) as u8).collect();
                    output.buffer().extend_from_slice(&bytes);
                    ticket += below(2);
                    let held = below(3) > 0;
                    if held {
                        output.hold(ticket);
                    }
                    said.extend(bytes.iter().map(|&byte| (byte, None)));
                    if held {
                        // What was said before without being held is held with it.
                        for (_, waits_for) in said[taken..].iter_mut().rev().take_while(|(_, held)| held.is_none()) {
                            *waits_for = Some(ticket);
                        }
                    }
                }
                2 => released = (released + below(3)).min(ticket),
                3 => output.release(released),
                _ => {}
            }
            output.release(released);
            let most = said[taken..].iter().take_while(|(_, held)| held.is_none_or(|held| held <= released)).count();
            assert_eq!(output.pending_bytes(), said.len() - taken, "step {step}");
            let waiting = output.waiting();
            assert_eq!(waiting.len(), most, "step {step}");
            assert!(waiting.iter().zip(&said[taken..]).all(|(byte, (said, _))| byte == said), "step {step}");
            let take = most.min(below(400) as usize);
            output.taken(take);
            taken += take;
        }
        assert!(taken > 100_000);
    }

    #[test]
    fn output_comes_out_as_it_was_said() {
        let mut output = Output::default();
        let (mut said, mut taken) = (0_usize, 0_usize);
        for step in 0..5000 {
            let bytes: Vec<u8> = (0..step * 7 % 3001).map(|at| ((said + at) % 251) as u8).collect();
            if step % 2 == 0 {
                output.write(&bytes)
            } else {
                output.buffer().extend_from_slice(&bytes)
            }
            said += bytes.len();
            assert_eq!(output.waiting().len(), said - taken);
            assert_eq!(output.room(), Output::FULL.saturating_sub(said - taken));
            assert_eq!(output.is_full(), said - taken >= Output::FULL);
            let take = if output.is_full() { said - taken } else { (step * 11 % 2003).min(said - taken) };
            assert!((0..take).all(|at| output.waiting()[at] == ((taken + at) % 251) as u8), "step {step}");
            output.taken(take);
            taken += take;
            assert!(output.bytes.len() <= 2 * Output::FULL + 3001, "step {step}");
        }
        output.write(&[0; 10 * Output::FULL]);
        output.taken(output.waiting().len());
        assert!(output.bytes.capacity() <= 2 * Output::FULL);
    }
}
