//! A client's end of a console, which outlives its connections: how much output it has shown, and
//! what it has typed that is not yet safe. Pure, so that the tests can drive it through any schedule.

use super::wire::{Attach, Attached, Start};
use std::collections::VecDeque;

/// A client's end of a console.
#[derive(Debug)]
pub struct Session {
    id: u64,
    start: Start,
    /// Position of the next output byte to show; `None` until a server has named the first.
    position: Option<u64>,
    /// No log entry below this carries anything of this session; `u64::MAX` until a server has said.
    born: u64,
    /// Searches for a host so far.
    searches: u64,
    /// The highest generation this client was attached to; it never goes back to a lower one.
    generation: u64,
    /// Typed bytes from `unacknowledged` on.
    typed: VecDeque<u8>,
    unacknowledged: u64,
    /// The next offset to send on the present connection.
    next: u64,
    /// Nothing from here on was ever sent on any connection.
    sent: u64,
}

/// What a server said that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Output is missing.
    #[error("output jumps from position {expected} to {found}")]
    OutputJumps {
        /// The position that should have come.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// The server wants or acknowledges input that was never typed, or that is gone.
    #[error("offset {offset} is outside what was typed ({first} to {end})")]
    NotTyped {
        /// The server's offset.
        offset: u64,
        /// The first kept offset.
        first: u64,
        /// The offset behind the last typed byte.
        end: u64,
    },
    /// The server lives in an older generation than one seen before.
    #[error("generation {found} is older than {seen}, which this client has seen")]
    OldGeneration {
        /// The server's generation.
        found: u64,
        /// The highest one seen.
        seen: u64,
    },
}

impl Session {
    /// Typed bytes kept until they are safe; beyond that the keyboard is not read.
    pub const TYPED_MAX: usize = 64 << 10;

    /// A new session. `id` is a random number.
    pub fn new(id: u64, start: Start) -> Self {
        Session {
            id,
            start,
            position: None,
            born: u64::MAX,
            searches: 0,
            generation: 0,
            typed: VecDeque::new(),
            unacknowledged: 0,
            next: 0,
            sent: 0,
        }
    }

    /// What to say when attaching, in a search that begins now.
    pub fn attach(&mut self) -> Attach {
        self.searches += 1;
        Attach {
            session: self.id,
            start: self.position.map_or(self.start, Start::At),
            unacknowledged: self.unacknowledged,
            sent: self.sent,
            born: self.born,
            search: self.searches,
            generation: self.generation,
        }
    }

    /// A server has attached this session; typed input goes on from the offset it names.
    pub fn attached(&mut self, attached: &Attached) -> Result<(), SessionError> {
        if attached.generation < self.generation {
            return Err(SessionError::OldGeneration { found: attached.generation, seen: self.generation });
        }
        let expected = self.position.unwrap_or(attached.output_position);
        if attached.output_position != expected {
            return Err(SessionError::OutputJumps { expected, found: attached.output_position });
        }
        self.check_typed(attached.input_offset)?;
        self.position = Some(expected);
        self.generation = attached.generation;
        self.born = self.born.min(attached.entries);
        self.next = attached.input_offset;
        Ok(())
    }

    /// Output has come: the part of it that was not seen before, and its position.
    pub fn output<'a>(&mut self, position: u64, bytes: &'a [u8]) -> Result<(u64, &'a [u8]), SessionError> {
        let expected = self.position.unwrap_or(position);
        if position > expected {
            return Err(SessionError::OutputJumps { expected, found: position });
        }
        let seen = (expected - position).min(bytes.len() as u64) as usize;
        let fresh = &bytes[seen..];
        self.position = Some(expected + fresh.len() as u64);
        Ok((expected, fresh))
    }

    /// Output up to `to` is no longer kept by the server: the gap, unless it was seen before.
    pub fn gap(&mut self, to: u64) -> Option<(u64, u64)> {
        let from = self.position.unwrap_or(to);
        self.position = Some(from.max(to));
        (to > from).then_some((from, to))
    }

    /// Bytes were typed. The caller asks [`room`](Self::room) first.
    pub fn typed(&mut self, bytes: &[u8]) {
        self.typed.extend(bytes);
    }

    /// How many more bytes may be typed before some are safe.
    pub fn room(&self) -> usize {
        Self::TYPED_MAX.saturating_sub(self.typed.len())
    }

    /// The next input to send on this connection, at most `max` bytes, and its offset.
    pub fn next_input(&mut self, max: usize) -> Option<(u64, Vec<u8>)> {
        let first = (self.next - self.unacknowledged) as usize;
        let bytes: Vec<u8> = self.typed.range(first..self.typed.len().min(first + max)).copied().collect();
        let offset = self.next;
        self.next += bytes.len() as u64;
        self.sent = self.sent.max(self.next);
        (!bytes.is_empty()).then_some((offset, bytes))
    }

    /// Input below `offset` is safe and can be forgotten.
    pub fn input_safe(&mut self, offset: u64) -> Result<(), SessionError> {
        if offset > self.next {
            return Err(SessionError::NotTyped { offset, first: self.unacknowledged, end: self.next });
        }
        // A new connection may repeat what an old one said.
        let safe = offset.saturating_sub(self.unacknowledged);
        self.typed.drain(..safe as usize);
        self.unacknowledged += safe;
        Ok(())
    }

    /// Offset below which all input is safe.
    pub fn safe_offset(&self) -> u64 {
        self.unacknowledged
    }

    /// Position of the next output byte.
    pub fn position(&self) -> u64 {
        self.position.unwrap_or(0)
    }

    /// The highest generation this client was attached to.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn check_typed(&self, offset: u64) -> Result<(), SessionError> {
        let end = self.unacknowledged + self.typed.len() as u64;
        if (self.unacknowledged..=end).contains(&offset) {
            return Ok(());
        }
        Err(SessionError::NotTyped { offset, first: self.unacknowledged, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached(output_position: u64, input_offset: u64, generation: u64) -> Attached {
        let (vm, host) = (String::new(), String::new());
        Attached { vm, host, generation, output_position, input_offset, entries: 9, peer: None }
    }

    #[test]
    fn output_seen_before_is_not_shown_again() {
        let mut session = Session::new(1, Start::Tail(10));
        session.attached(&attached(100, 0, 1)).unwrap();
        assert_eq!(session.output(100, b"abc"), Ok((100, &b"abc"[..])));
        assert_eq!(session.output(101, b"bcde"), Ok((103, &b"de"[..])));
        assert_eq!(session.output(100, b"abc"), Ok((105, &b""[..])));
        assert_eq!(session.output(106, b"x"), Err(SessionError::OutputJumps { expected: 105, found: 106 }));
        assert_eq!((session.gap(104), session.gap(110)), (None, Some((105, 110))));
        assert_eq!(session.attach().start, Start::At(110));
    }

    #[test]
    fn input_is_sent_again_from_where_the_new_host_stands() {
        let mut session = Session::new(1, Start::At(0));
        let Attach { unacknowledged, sent, born, search, .. } = session.attach();
        assert_eq!((unacknowledged, sent, born, search), (0, 0, u64::MAX, 1));
        session.attached(&attached(0, 0, 1)).unwrap();
        session.typed(b"abcdef");
        assert_eq!(session.next_input(4), Some((0, b"abcd".to_vec())));
        session.input_safe(1).unwrap();
        let Attach { unacknowledged, sent, born, search, .. } = session.attach();
        assert_eq!((unacknowledged, sent, born, search), (1, 4, 9, 2));
        session.attached(&attached(0, 3, 2)).unwrap();
        assert_eq!(session.next_input(64), Some((3, b"def".to_vec())));
        assert_eq!(session.next_input(64), None);
        session.input_safe(6).unwrap();
        session.input_safe(5).unwrap();
        assert_eq!((session.safe_offset(), session.room()), (6, Session::TYPED_MAX));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let mut session = Session::new(1, Start::At(0));
        session.attached(&attached(0, 0, 5)).unwrap();
        session.typed(b"ab");
        let old = session.attached(&attached(0, 0, 4));
        assert_eq!(old, Err(SessionError::OldGeneration { found: 4, seen: 5 }));
        let unknown = session.attached(&attached(0, 3, 5));
        assert_eq!(unknown, Err(SessionError::NotTyped { offset: 3, first: 0, end: 2 }));
        let elsewhere = session.attached(&attached(7, 0, 5));
        assert_eq!(elsewhere, Err(SessionError::OutputJumps { expected: 0, found: 7 }));
        assert_eq!(session.input_safe(1), Err(SessionError::NotTyped { offset: 1, first: 0, end: 0 }));
    }
}
