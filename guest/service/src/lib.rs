//! What a network service of a guest is: a state machine that is given the bytes of a connection and leaves its answers, no
//! I/O. `lockstep-net`'s server runs one; tests run it on the host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

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
        Self::FULL.saturating_sub(self.waiting().len())
    }

    /// Says this.
    pub fn write(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What has not been taken yet, for whoever appends in other ways than [`write`](Self::write).
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.start);
        self.start = 0;
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

    /// What has not been taken yet.
    pub fn waiting(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The connection has taken this many bytes.
    pub fn taken(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
            // A single long answer shall not hold its memory for ever.
            self.bytes.shrink_to(2 * Self::FULL);
        } else if self.start > Self::FULL {
            self.bytes.drain(..self.start);
            self.start = 0;
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
