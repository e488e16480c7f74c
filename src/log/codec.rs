//! The byte format of entries: one stream for file and logging channel, delta-coded against the
//! entries before, so that encoder and decoder carry the same state through the whole log.
//!
//! ```text
//! entry = tag, [exits delta], [polls delta], body
//! tag   = polls class (3 bits) | exits class (2 bits) | kind (3 bits)
//! ```
//!
//! A tick in a computing guest is a tag and three bytes. There is one encoding for one log: everything
//! that could be written shorter, or in another way, is refused, so equal logs are equal bytes.
//! `docs/log-format.md` says all of this exactly.

use super::bytes::{Bytes, Cut, Short, width};
use super::entry::{Body, Entry};
use crate::machine::digest::{Digest, PageCheck};
use crate::machine::doors::{ConsoleInput, Control, EndReason};
use crate::machine::instant::Instant;
use crate::machine::packets::Packets;

mod disk;
mod packets;

/// Why bytes are no entry, or an entry cannot follow those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end inside an entry. Nothing was consumed: the same call succeeds once the rest is there.
    #[error("the bytes end inside an entry")]
    CutShort,
    /// No kind of entry has this number behind the tag of the extended ones.
    #[error("unknown entry kind {EXTENDED}.{0}")]
    UnknownKind(u8),
    /// No reason for a guest's end has this number.
    #[error("unknown end reason {0}")]
    UnknownEnd(u8),
    /// The field is written in another way than the one the format prescribes for its value.
    #[error("{0} is not in its canonical form")]
    NotCanonical(Field),
    /// The instant lies before that of the entry before.
    #[error("instant {at} is before {last}, that of the entry before")]
    InstantBackwards {
        /// Instant of the entry before.
        last: Instant,
        /// The offending instant.
        at: Instant,
    },
    /// The clock, in nanoseconds, is less than at the read before.
    #[error("the clock goes back from {last_ns} ns to {ns} ns")]
    ClockBackwards {
        /// Value of the clock read before.
        last_ns: u64,
        /// The offending value.
        ns: u64,
    },
    /// A delta takes this field beyond its range.
    #[error("{0} overflows")]
    Overflow(Field),
    /// Console input of this many bytes; there are 1 to [`ConsoleInput::MAX`].
    #[error("console input of {0} bytes (1 to {max} are possible)", max = ConsoleInput::MAX)]
    ConsoleLength(usize),
    /// A batch of this many packets; there are 1 to [`Packets::MAX_COUNT`].
    #[error("{0} packets in one batch (1 to {max} are possible)", max = Packets::MAX_COUNT)]
    PacketCount(u64),
    /// A frame of this many bytes, or with so many more than a batch holds.
    #[error("a frame of {0} bytes is none, or has no room in its batch")]
    PacketLength(u64),
    /// Packets that were sent with this many bytes, headers included: fewer or more than so many packets have.
    #[error("{0} bytes are too few or too many for the packets that were sent")]
    SentBytes(u32),
    /// A batch of this many disk requests or completions; there are 1 to [`MAX_COUNT`](crate::machine::blocks::MAX_COUNT).
    #[error("{0} disk requests in one batch (1 to {max} are possible)", max = crate::machine::blocks::MAX_COUNT)]
    RequestCount(u64),
    /// A read of this many bytes, or with so many more than a batch of completions holds.
    #[error("a disk read of {0} bytes is none, or has no room in its batch")]
    ReadLength(u64),
    /// No operator's doing has this number.
    #[error("unknown control operation {0}")]
    UnknownControl(u8),
    /// A digest that lists this many pages, more than [`Digest::MAX_PAGES`].
    #[error("a digest with {0} pages (at most {max})", max = Digest::MAX_PAGES)]
    PageCount(u64),
    /// The pages of a digest are not in strictly ascending order; the offending page number.
    #[error("page {0:#x} of a digest is out of order")]
    PageOrder(u32),
    /// The guest has ended, and another entry follows.
    #[error("an entry after the guest's end")]
    AfterEnd,
}

impl From<Cut> for CodecError {
    fn from(_: Cut) -> Self {
        CodecError::CutShort
    }
}

/// The fields that [`CodecError`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named after what it is, and Display spells it out")]
pub enum Field {
    Exits,
    Polls,
    Clock,
    Console,
    ConsoleOffset,
    OutputLength,
    PacketCount,
    PacketLength,
    PacketHeader,
    Request,
    ReadLength,
    Registers,
    Pages,
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Field::Exits => "the exit count",
            Field::Polls => "the poll count",
            Field::Clock => "the clock",
            Field::Console => "the form of console input",
            Field::ConsoleOffset => "the offset of console input",
            Field::OutputLength => "the length of an output",
            Field::PacketCount => "the number of packets",
            Field::PacketLength => "the length of a packet",
            Field::PacketHeader => "the header of a packet",
            Field::Request => "a disk request",
            Field::ReadLength => "the length of a disk read",
            Field::Registers => "the register mask of a digest",
            Field::Pages => "the page list of a digest",
        })
    }
}

const CLOCK: u8 = 0;
const ENTROPY: u8 = 1;
const TICK: u8 = 2;
const CONSOLE: u8 = 3;
const OUTPUT: u8 = 4;
const DIGEST: u8 = 5;
const END: u8 = 6;
/// The kinds that do not fit into three bits: one byte more says which.
const EXTENDED: u8 = 7;
const PACKETS: u64 = 0;
const SENT: u64 = 1;
const HOST_NAME: u64 = 2;
const ASKED: u64 = 3;
const DISK: u64 = 4;
const CONTROL: u64 = 5;

/// The control operations, by the number that stands for each.
const CONTROLS: [Control; 4] = [Control::Pause, Control::Resume, Control::Reset, Control::Switch];

/// Exits delta of 2 to 255: one byte.
const EXITS_BYTE: u8 = 2;
/// Exits delta of 256 and more: a varint.
const EXITS_VARINT: u8 = 3;
/// Bytes of the polls delta by class; the last class is the count itself, for a count that fell.
const POLLS_WIDTH: [u32; 8] = [0, 1, 2, 3, 4, 5, 8, 8];
/// Polls delta of more than five bytes: all eight.
const POLLS_WIDE: u8 = 6;
/// The count itself: the guest started counting anew, which only an exit can have come between.
const POLLS_ABSOLUTE: u8 = 7;
/// Set in the first byte of console input that goes on where the one before ended.
const CONSOLE_CONTINUES: u8 = 0x40;

/// The words of a digest that are coded as differences: the registers, then system, fpu, devices.
const DIGEST_WORDS: usize = 21;

/// What an entry is coded against: all that encoder and decoder remember of the entries before.
#[derive(Clone, Debug, PartialEq, Eq, Default, bincode::Encode, bincode::Decode)]
struct State {
    at: Instant,
    clock_ns: u64,
    /// Session of the last console input, and where in its stream the next byte belongs.
    session: u64,
    offset: u64,
    words: [u64; DIGEST_WORDS],
    ended: bool,
    entries: u64,
}

impl State {
    fn after_console(&mut self, input: &ConsoleInput) {
        self.session = input.session;
        self.offset = input.offset.wrapping_add(input.bytes.len() as u64);
    }
}

fn words(digest: &Digest) -> [u64; DIGEST_WORDS] {
    let mut words = [0; DIGEST_WORDS];
    words[..18].copy_from_slice(&digest.registers);
    words[18..].copy_from_slice(&[digest.system, digest.fpu, digest.devices]);
    words
}

/// Turns entries into bytes, from the first entry of a log on.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Encoder {
    state: State,
}

impl Encoder {
    /// An encoder at the start of a log.
    pub fn new() -> Self {
        Self::default()
    }

    /// An encoder that goes on where `decoder` stands: for a backup that goes live.
    pub fn continuing(decoder: &Decoder) -> Self {
        Encoder { state: decoder.state.clone() }
    }

    /// The newest clock value that was encoded, nanoseconds since boot.
    pub fn clock_ns(&self) -> u64 {
        self.state.clock_ns
    }

    /// Entries encoded since the start of the log: the number of the next one.
    pub fn entries(&self) -> u64 {
        self.state.entries
    }

    /// Appends `entry` to `out`, which keeps its allocation: nothing else is allocated.
    ///
    /// Refuses an entry that may not follow the ones before (an instant or a clock that goes back, an
    /// entry after the end) or breaks the bounds of its kind; `out` and the encoder are then unchanged.
    #[inline]
    pub fn encode(&mut self, entry: &Entry, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let last = &self.state;
        if last.ended {
            return Err(CodecError::AfterEnd);
        }
        if entry.at < last.at {
            return Err(CodecError::InstantBackwards { last: last.at, at: entry.at });
        }
        let exits = entry.at.exits - last.at.exits;
        let (polls_class, polls) = match entry.at.polls.checked_sub(last.at.polls) {
            Some(delta) => (width(delta).min(u32::from(POLLS_WIDE)) as u8, delta),
            None => (POLLS_ABSOLUTE, entry.at.polls),
        };
        let exits_class = match exits {
            0 | 1 => exits as u8,
            2..=255 => EXITS_BYTE,
            _ => EXITS_VARINT,
        };
        let kind = match &entry.body {
            Body::Clock(_) => CLOCK,
            Body::Entropy(_) => ENTROPY,
            Body::Tick => TICK,
            Body::Console(_) => CONSOLE,
            Body::Output { .. } => OUTPUT,
            Body::Digest(_) => DIGEST,
            Body::End(_) => END,
            Body::Packets(_)
            | Body::Sent { .. }
            | Body::HostName(_)
            | Body::Asked { .. }
            | Body::Disk(_)
            | Body::Control(_) => EXTENDED,
        };
        let mut short = Short::new();
        short.put((kind | exits_class << 3 | polls_class << 5).into(), 1);
        match exits_class {
            EXITS_BYTE => short.put(exits, 1),
            EXITS_VARINT => short.varint(exits),
            _ => {}
        }
        short.put(polls, POLLS_WIDTH[usize::from(polls_class)]);
        match &entry.body {
            Body::Clock(ns) => {
                let last_ns = last.clock_ns;
                let delta = ns.checked_sub(last_ns).ok_or(CodecError::ClockBackwards { last_ns, ns: *ns })?;
                short.varint(delta);
                out.extend_from_slice(short.bytes());
                self.state.clock_ns = *ns;
            }
            Body::Entropy(value) => {
                short.put(*value, 8);
                out.extend_from_slice(short.bytes());
            }
            Body::Tick => out.extend_from_slice(short.bytes()),
            Body::Console(input) => self.encode_console(input, short, out)?,
            Body::Output { length, check } => {
                short.varint((*length).into());
                short.put((*check).into(), 4);
                out.extend_from_slice(short.bytes());
            }
            Body::Packets(batch) => {
                short.put(PACKETS, 1);
                packets::encode(batch, short, out)?;
            }
            Body::Sent { packets, bytes, check } => {
                packets::check_sent(*packets, *bytes)?;
                short.put(SENT, 1);
                short.varint((*packets).into());
                short.varint((*bytes).into());
                short.put((*check).into(), 4);
                out.extend_from_slice(short.bytes());
            }
            Body::HostName(word) => {
                short.put(HOST_NAME, 1);
                short.put(*word, 8);
                out.extend_from_slice(short.bytes());
            }
            Body::Asked { requests, bytes, check } => {
                disk::check_count((*requests).into())?;
                short.put(ASKED, 1);
                short.varint((*requests).into());
                short.varint((*bytes).into());
                short.put((*check).into(), 4);
                out.extend_from_slice(short.bytes());
            }
            Body::Disk(completions) => {
                short.put(DISK, 1);
                disk::encode(completions, short, out)?;
            }
            Body::Control(control) => {
                short.put(CONTROL, 1);
                short.put(CONTROLS.iter().position(|known| known == control).expect("all are listed") as u64, 1);
                out.extend_from_slice(short.bytes());
            }
            Body::Digest(digest) => self.encode_digest(digest, short, out)?,
            Body::End(reason) => {
                match *reason {
                    EndReason::Exit(code) => short.put(u64::from(code) << 8, 2),
                    EndReason::Stopped => short.put(1, 1),
                    EndReason::HaltedForever => short.put(2, 1),
                    EndReason::TripleFault => short.put(3, 1),
                    EndReason::SafepointsWentBack => short.put(5, 1),
                    EndReason::CannotExecute(rip) => {
                        short.put(4, 1);
                        short.put(rip, 8);
                    }
                }
                out.extend_from_slice(short.bytes());
                self.state.ended = true;
            }
        }
        self.state.at = entry.at;
        self.state.entries += 1;
        Ok(())
    }

    fn encode_console(&mut self, input: &ConsoleInput, mut short: Short, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let length = input.bytes.len();
        if length == 0 || length > ConsoleInput::MAX {
            return Err(CodecError::ConsoleLength(length));
        }
        if input.session == self.state.session && input.offset == self.state.offset {
            short.put((length - 1) as u64 | u64::from(CONSOLE_CONTINUES), 1);
        } else {
            short.put((length - 1) as u64, 1);
            short.put(input.session, 8);
            short.varint(input.offset);
        }
        out.extend_from_slice(short.bytes());
        out.extend_from_slice(&input.bytes);
        self.state.after_console(input);
        Ok(())
    }

    fn encode_digest(&mut self, digest: &Digest, short: Short, out: &mut Vec<u8>) -> Result<(), CodecError> {
        if digest.pages.len() > Digest::MAX_PAGES {
            return Err(CodecError::PageCount(digest.pages.len() as u64));
        }
        if let Some(pair) = digest.pages.windows(2).find(|pair| pair[0].page >= pair[1].page) {
            return Err(CodecError::PageOrder(pair[1].page));
        }
        out.extend_from_slice(short.bytes());
        out.extend_from_slice(&digest.memory.to_le_bytes());
        let words = words(digest);
        let mask = (0..DIGEST_WORDS).filter(|&i| words[i] != self.state.words[i]).fold(0u64, |m, i| m | 1 << i);
        let mut head = Short::new();
        head.put(mask, 3);
        out.extend_from_slice(head.bytes());
        for (new, last) in words.iter().zip(&self.state.words).filter(|(new, last)| new != last) {
            let mut word = Short::new();
            word.varint(new ^ last);
            out.extend_from_slice(word.bytes());
        }
        let mut head = Short::new();
        head.varint(digest.pages.len() as u64);
        out.extend_from_slice(head.bytes());
        let mut next = 0;
        for page in &digest.pages {
            let mut item = Short::new();
            item.varint(u64::from(page.page) - next);
            item.put(page.check.into(), 2);
            out.extend_from_slice(item.bytes());
            next = u64::from(page.page) + 1;
        }
        self.state.words = words;
        Ok(())
    }
}

/// Turns bytes back into entries, from the first entry of a log on.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    state: State,
}

impl Decoder {
    /// A decoder at the start of a log.
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder that goes on where `encoder` stands: for what another host adds to the log from there.
    pub fn continuing(encoder: &Encoder) -> Self {
        Decoder { state: encoder.state.clone() }
    }

    /// Entries decoded since the start of the log: the number of the next one.
    pub fn entries(&self) -> u64 {
        self.state.entries
    }

    /// Instant of the last entry decoded.
    pub fn at(&self) -> Instant {
        self.state.at
    }

    /// The guest's clock at its last read, in nanoseconds since boot: from here it goes on at go-live.
    pub fn clock_ns(&self) -> u64 {
        self.state.clock_ns
    }

    /// Takes one entry off the front of `input`. On an error neither `input` nor the decoder changes.
    ///
    /// [`CodecError::CutShort`] says that `input` may be the beginning of an entry (an empty one is); any
    /// other error, that no bytes after it could make it one.
    #[inline]
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Entry, CodecError> {
        let mut bytes = Bytes::new(input);
        let tag = bytes.take(1)? as u8;
        if self.state.ended {
            return Err(CodecError::AfterEnd);
        }
        let (kind, exits_class, polls_class) = (tag & 7, tag >> 3 & 3, tag >> 5);
        let at = self.decode_instant(&mut bytes, exits_class, polls_class)?;
        let body = match kind {
            CLOCK => {
                let delta = bytes.varint()?.ok_or(CodecError::NotCanonical(Field::Clock))?;
                Body::Clock(self.state.clock_ns.checked_add(delta).ok_or(CodecError::Overflow(Field::Clock))?)
            }
            ENTROPY => Body::Entropy(bytes.take(8)?),
            TICK => Body::Tick,
            CONSOLE => Body::Console(self.decode_console(&mut bytes)?),
            OUTPUT => {
                let length = decode_u32(&mut bytes, Field::OutputLength)?;
                Body::Output { length, check: bytes.take(4)? as u32 }
            }
            DIGEST => Body::Digest(Box::new(self.decode_digest(&mut bytes)?)),
            EXTENDED => match bytes.take(1)? {
                PACKETS => Body::Packets(packets::decode(&mut bytes)?),
                SENT => {
                    let packets = decode_u32(&mut bytes, Field::PacketCount)?;
                    packets::check_count(packets.into())?;
                    let length = decode_u32(&mut bytes, Field::PacketLength)?;
                    packets::check_sent(packets, length)?;
                    Body::Sent { packets, bytes: length, check: bytes.take(4)? as u32 }
                }
                HOST_NAME => Body::HostName(bytes.take(8)?),
                ASKED => {
                    let requests = decode_u32(&mut bytes, Field::Request)?;
                    disk::check_count(requests.into())?;
                    let length = decode_u32(&mut bytes, Field::Request)?;
                    Body::Asked { requests, bytes: length, check: bytes.take(4)? as u32 }
                }
                DISK => Body::Disk(disk::decode(&mut bytes)?),
                CONTROL => {
                    let number = bytes.take(1)? as u8;
                    let control = CONTROLS.get(usize::from(number)).ok_or(CodecError::UnknownControl(number))?;
                    Body::Control(*control)
                }
                other => return Err(CodecError::UnknownKind(other as u8)),
            },
            _ => Body::End(match bytes.take(1)? as u8 {
                0 => EndReason::Exit(bytes.take(1)? as u8),
                1 => EndReason::Stopped,
                2 => EndReason::HaltedForever,
                3 => EndReason::TripleFault,
                4 => EndReason::CannotExecute(bytes.take(8)?),
                5 => EndReason::SafepointsWentBack,
                other => return Err(CodecError::UnknownEnd(other)),
            }),
        };
        // Nothing fails from here on, so that a cut entry leaves the state as it was.
        match &body {
            Body::Clock(ns) => self.state.clock_ns = *ns,
            Body::Console(input) => self.state.after_console(input),
            Body::Digest(digest) => self.state.words = words(digest),
            Body::End(_) => self.state.ended = true,
            Body::Entropy(_)
            | Body::Tick
            | Body::Output { .. }
            | Body::Packets(_)
            | Body::Sent { .. }
            | Body::HostName(_)
            | Body::Asked { .. }
            | Body::Disk(_)
            | Body::Control(_) => {}
        }
        self.state.at = at;
        self.state.entries += 1;
        *input = bytes.rest();
        Ok(Entry { at, body })
    }

    #[inline]
    fn decode_instant(&self, bytes: &mut Bytes<'_>, exits: u8, polls: u8) -> Result<Instant, CodecError> {
        let last = self.state.at;
        let exits = match exits {
            EXITS_BYTE => match bytes.take(1)? {
                0 | 1 => return Err(CodecError::NotCanonical(Field::Exits)),
                delta => delta,
            },
            EXITS_VARINT => match bytes.varint()?.ok_or(CodecError::NotCanonical(Field::Exits))? {
                0..=255 => return Err(CodecError::NotCanonical(Field::Exits)),
                delta => delta,
            },
            small => small.into(),
        };
        let value = bytes.take(POLLS_WIDTH[usize::from(polls)])?;
        let polls = if polls == POLLS_ABSOLUTE {
            if value >= last.polls {
                return Err(CodecError::NotCanonical(Field::Polls));
            }
            value
        } else {
            if width(value).min(u32::from(POLLS_WIDE)) != u32::from(polls) {
                return Err(CodecError::NotCanonical(Field::Polls));
            }
            last.polls.checked_add(value).ok_or(CodecError::Overflow(Field::Polls))?
        };
        let at = Instant::new(last.exits.checked_add(exits).ok_or(CodecError::Overflow(Field::Exits))?, polls);
        if at < last {
            return Err(CodecError::InstantBackwards { last, at });
        }
        Ok(at)
    }

    fn decode_console(&self, bytes: &mut Bytes<'_>) -> Result<ConsoleInput, CodecError> {
        let first = bytes.take(1)? as u8;
        if first & 0x80 != 0 {
            return Err(CodecError::NotCanonical(Field::Console));
        }
        let (mut session, mut offset) = (self.state.session, self.state.offset);
        if first & CONSOLE_CONTINUES == 0 {
            (session, offset) =
                (bytes.take(8)?, bytes.varint()?.ok_or(CodecError::NotCanonical(Field::ConsoleOffset))?);
            if (session, offset) == (self.state.session, self.state.offset) {
                return Err(CodecError::NotCanonical(Field::Console));
            }
        }
        // At most ConsoleInput::MAX by the width of the field.
        let length = usize::from(first & 0x3f) + 1;
        Ok(ConsoleInput { session, offset, bytes: bytes.slice(length)?.to_vec() })
    }

    fn decode_digest(&self, bytes: &mut Bytes<'_>) -> Result<Digest, CodecError> {
        let memory = u128::from(bytes.take(8)?) | u128::from(bytes.take(8)?) << 64;
        let mask = bytes.take(3)?;
        if mask >> DIGEST_WORDS != 0 {
            return Err(CodecError::NotCanonical(Field::Registers));
        }
        let mut words = self.state.words;
        for word in (0..DIGEST_WORDS).filter(|i| mask >> i & 1 == 1) {
            match bytes.varint()?.ok_or(CodecError::NotCanonical(Field::Registers))? {
                0 => return Err(CodecError::NotCanonical(Field::Registers)),
                difference => words[word] ^= difference,
            }
        }
        let count = bytes.varint()?.ok_or(CodecError::NotCanonical(Field::Pages))?;
        if count > Digest::MAX_PAGES as u64 {
            return Err(CodecError::PageCount(count));
        }
        let mut pages = Vec::with_capacity(count as usize);
        let mut next = 0u64;
        for _ in 0..count {
            let skipped = bytes.varint()?.ok_or(CodecError::NotCanonical(Field::Pages))?;
            let page = next.checked_add(skipped).and_then(|page| u32::try_from(page).ok());
            let page = page.ok_or(CodecError::Overflow(Field::Pages))?;
            pages.push(PageCheck { page, check: bytes.take(2)? as u16 });
            next = u64::from(page) + 1;
        }
        let mut registers = [0; 18];
        registers.copy_from_slice(&words[..18]);
        Ok(Digest { memory, registers, system: words[18], fpu: words[19], devices: words[20], pages })
    }
}

fn decode_u32(bytes: &mut Bytes<'_>, field: Field) -> Result<u32, CodecError> {
    let value = bytes.varint()?.ok_or(CodecError::NotCanonical(field))?;
    u32::try_from(value).map_err(|_| CodecError::Overflow(field))
}
