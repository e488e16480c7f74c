//! Promise: whatever stands in a log file or arrives in a frame, reading it gives valid entries, then at
//! most one named error; it never panics, and never allocates much more than there are bytes. And: whatever
//! is logged comes back.
//!
//! Runs are the same every time; `PROPTEST_RNG_SEED=N` explores others, `PROPTEST_CASES=N` more.

use lockstep::log::codec::{CodecError, Decoder, Encoder};
use lockstep::log::entry::{Body, Entry};
use lockstep::log::file::{Ending, LogError, LogReader, LogWriter};
use lockstep::log::frame::{self, FrameKind, HEADER_BYTES};
use lockstep::machine::blocks::{Completion, Completions, MAX_REQUEST, Outcome};
use lockstep::machine::digest::{Digest, PageCheck};
use lockstep::machine::doors::{ConsoleInput, Control, EndReason};
use lockstep::machine::instant::Instant;
use lockstep::machine::packets::{HEADER, Packets};
use lockstep::machine::snapshot::{Boot, CpuidLeaf};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which also notes each thread's largest allocation.
struct Watched;

#[global_allocator]
static ALLOCATOR: Watched = Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(bytes: usize) {
    // Nothing is noted while a thread is torn down.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: every method passes its arguments on to `System` as they are; `note` does not allocate (a `Cell`
// with a constant initial value and no destructor).
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        note(new_bytes);
        // SAFETY: the caller's promises are the same.
        unsafe { System.realloc(block, layout, new_bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(block, layout) }
    }
}

/// The largest single allocation made while `work` runs, in bytes, and its result.
fn watched<T>(work: impl FnOnce() -> T) -> (usize, T) {
    LARGEST.set(0);
    let result = work();
    (LARGEST.get(), result)
}

/// The most that reading `bytes` of input may allocate at once: the reader's own buffer and the least
/// limit of a boot record, or a few times what is there.
fn allowed(bytes: usize) -> usize {
    (128 << 10) + 16 * bytes
}

fn cases(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let rng_seed = if default.rng_seed == RngSeed::Random { RngSeed::Fixed(1) } else { default.rng_seed };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases };
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..default }
}

/// Numbers of every magnitude, the edges of each included.
fn number() -> impl Strategy<Value = u64> {
    (0..64u32, any::<u64>(), 0..8u8).prop_map(|(shift, value, form)| match form {
        0 => 0,
        1 => (1 << shift) - 1,
        2 => 1 << shift,
        3 => u64::MAX >> shift,
        _ => value >> shift,
    })
}

fn digest() -> impl Strategy<Value = Digest> {
    let pages = vec((number(), any::<u16>()), 0..6);
    (any::<u128>(), [number(), number(), number(), number()], vec((0..18usize, number()), 0..4), pages).prop_map(
        |(memory, [first, system, fpu, devices], registers, pages)| {
            let mut digest = Digest { memory, registers: [first; 18], system, fpu, devices, pages: Vec::new() };
            registers.into_iter().for_each(|(register, value)| digest.registers[register] = value);
            digest.pages = pages.into_iter().map(|(page, check)| PageCheck { page: page as u32, check }).collect();
            digest.pages.sort_by_key(|page| page.page);
            digest.pages.dedup_by_key(|page| page.page);
            digest
        },
    )
}

/// Few packets with contents, or very many; some with headers that say something.
fn packets() -> impl Strategy<Value = Packets> {
    let header = prop_oneof![3 => Just([0; HEADER]), 1 => any::<[u8; HEADER]>()];
    let frames = prop_oneof![
        8 => vec((header.clone(), vec(any::<u8>(), 14..40)), 1..5),
        1 => vec((header.clone(), Just(vec![7; 14])), 1..=Packets::MAX_COUNT),
        1 => vec((header, (14..1600usize).prop_map(|length| vec![7; length])), 1..20),
    ];
    frames.prop_map(|frames| {
        let mut packets = Packets::new();
        frames.iter().for_each(|(header, frame)| assert!(packets.push_frame(header, frame)));
        packets
    })
}

fn sent() -> impl Strategy<Value = Body> {
    let bytes = |packets: u32| {
        let most = (packets as usize * Packets::MAX_PACKET).min(Packets::MAX_BYTES) as u32;
        packets * Packets::MIN_PACKET as u32..=most
    };
    let counts = (1..=Packets::MAX_COUNT as u32).prop_flat_map(move |packets| (Just(packets), bytes(packets)));
    (counts, any::<u32>()).prop_map(|((packets, bytes), check)| Body::Sent { packets, bytes, check })
}

fn completions() -> impl Strategy<Value = Completions> {
    let outcome = prop_oneof![
        Just(Outcome::Done),
        Just(Outcome::Failed),
        vec(any::<u8>(), 1..600).prop_map(Outcome::Read),
        (1..=MAX_REQUEST as u32, any::<u64>()).prop_map(|(bytes, check)| Outcome::ReadElsewhere { bytes, check }),
    ];
    vec((number(), outcome).prop_map(|(id, outcome)| Completion { id: id >> 3, outcome }), 1..5)
}

fn body() -> impl Strategy<Value = Body> {
    let input = (0..3u64, number(), vec(any::<u8>(), 1..=ConsoleInput::MAX.min(8)));
    prop_oneof![
        4 => number().prop_map(Body::Clock),
        1 => number().prop_map(Body::Entropy),
        4 => Just(Body::Tick),
        2 => input.prop_map(|(session, offset, bytes)| Body::Console(ConsoleInput { session, offset, bytes })),
        2 => (any::<u32>(), any::<u32>()).prop_map(|(length, check)| Body::Output { length, check }),
        2 => packets().prop_map(Body::Packets),
        1 => sent(),
        1 => number().prop_map(Body::HostName),
        1 => (1..=256u32, any::<u32>(), any::<u32>())
            .prop_map(|(requests, bytes, check)| Body::Asked { requests, bytes, check }),
        2 => completions().prop_map(Body::Disk),
        1 => prop_oneof![Just(Control::Pause), Just(Control::Resume), Just(Control::Reset), Just(Control::Switch)]
            .prop_map(Body::Control),
        1 => digest().prop_map(|digest| Body::Digest(Box::new(digest))),
    ]
}

fn end() -> impl Strategy<Value = EndReason> {
    prop_oneof![
        any::<u8>().prop_map(EndReason::Exit),
        Just(EndReason::Stopped),
        Just(EndReason::HaltedForever),
        Just(EndReason::TripleFault),
        number().prop_map(EndReason::CannotExecute),
    ]
}

/// A log's entries: what is random goes forward in steps of every magnitude, and stops short of overflow.
fn log() -> impl Strategy<Value = Vec<Entry>> {
    (vec(((prop_oneof![Just(0), Just(0), number()], number()), body()), 0..8), proptest::option::of(end())).prop_map(
        |(steps, end)| {
            let (mut at, mut clock_ns, mut streams) = (Instant::BOOT, 0u64, [0u64; 3]);
            let mut entries = Vec::new();
            for ((exits, polls), mut body) in steps {
                let last_exits = at.exits;
                at.exits = at.exits.saturating_add(exits);
                // A guest that counts anew is allowed to, behind an exit.
                let anew = at.exits > last_exits && polls % 5 == 0;
                at.polls = if anew { polls } else { at.polls.saturating_add(polls) };
                match &mut body {
                    Body::Clock(ns) => {
                        clock_ns = clock_ns.saturating_add(*ns);
                        *ns = clock_ns;
                    }
                    Body::Console(input) => {
                        // Mostly the stream goes on; sometimes the offset is any.
                        let stream = &mut streams[input.session as usize];
                        if input.offset % 3 > 0 {
                            input.offset = *stream;
                        }
                        *stream = input.offset.wrapping_add(input.bytes.len() as u64);
                    }
                    Body::Entropy(_)
                    | Body::Tick
                    | Body::Output { .. }
                    | Body::Packets(_)
                    | Body::Sent { .. }
                    | Body::HostName(_)
                    | Body::Asked { .. }
                    | Body::Disk(_)
                    | Body::Control(_)
                    | Body::Digest(_)
                    | Body::End(_) => {}
                }
                entries.push(Entry { at, body });
            }
            entries.extend(end.map(|reason| Entry { at, body: Body::End(reason) }));
            entries
        },
    )
}

fn boot() -> Boot {
    let leaf = CpuidLeaf { leaf: 1, subleaf: Some(2), registers: [3; 4] };
    let (name, command_line) = ("vm".into(), "mix".into());
    Boot {
        name,
        memory_bytes: 64 << 20,
        command_line,
        boot_time_ns: 5,
        net: None,

        disk: None,
        cpuid: vec![leaf],
        image: vec![6; 20],
    }
}

/// The log as a file, flushed after every `frame` entries.
fn written(entries: &[Entry], frame: usize, close: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = LogWriter::new(&mut bytes, &boot()).unwrap();
    for (number, entry) in entries.iter().enumerate() {
        assert_eq!(writer.append(entry).unwrap(), number as u64);
        if number % frame == frame - 1 {
            writer.flush().unwrap();
        }
    }
    if close {
        writer.close().unwrap();
    } else {
        drop(writer);
    }
    bytes
}

/// Reads all there is; entries that came before an error count.
fn read(bytes: &[u8]) -> (Vec<Entry>, Result<Ending, LogError>) {
    let mut reader = match LogReader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut entries = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, Ok(reader.ending().unwrap())),
            Err(error) => return (entries, Err(error)),
        }
    }
}

/// What was done to good bytes.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Swap(Index, Index, usize),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let at = any::<Index>;
    let one = prop_oneof![
        (at(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        at().prop_map(Damage::Cut),
        (at(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), 1..40usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        (at(), at(), 1..60usize).prop_map(|(from, to, count)| Damage::Swap(from, to, count)),
    ];
    vec(one, 1..4)
}

fn apply(damage: &[Damage], bytes: &mut Vec<u8>) {
    for damage in damage {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match damage {
            Damage::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Damage::Set(at, byte) => bytes[at.index(length)] = *byte,
            Damage::Cut(at) => bytes.truncate(at.index(length)),
            Damage::Insert(at, new) => {
                let at = at.index(length);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove(at, count) => {
                let at = at.index(length);
                bytes.drain(at..length.min(at + count));
            }
            Damage::Swap(from, to, count) => {
                let from = from.index(length);
                let piece = bytes[from..length.min(from + count)].to_vec();
                let to = to.index(length);
                bytes.splice(to..length.min(to + piece.len()), piece);
            }
        }
    }
}

/// Makes the checksums of every frame right, as far as the frames go, so that damage gets past them.
fn forge(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER_BYTES) {
        let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        if let Some(payload) = bytes.get(at + HEADER_BYTES..at + HEADER_BYTES + length) {
            let crc = crc32fast::hash(payload).to_le_bytes();
            bytes[at + 24..at + 28].copy_from_slice(&crc);
        }
        let crc = crc32fast::hash(&bytes[at..at + 28]).to_le_bytes();
        bytes[at + 28..at + 32].copy_from_slice(&crc);
        at += HEADER_BYTES + length;
    }
}

/// Decodes as much as can be, checks the accounting, and encodes it again: what was decoded must be the
/// only way to write those entries.
fn decode(bytes: &[u8]) -> Result<(Vec<Entry>, CodecError), TestCaseError> {
    let (mut decoder, mut rest, mut entries) = (Decoder::new(), bytes, Vec::new());
    let error = loop {
        let before = rest;
        match decoder.decode(&mut rest) {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                prop_assert_eq!(rest, before, "a refused entry was consumed");
                break error;
            }
        }
    };
    let (mut encoder, mut again) = (Encoder::new(), Vec::new());
    for entry in &entries {
        encoder.encode(entry, &mut again)?;
    }
    prop_assert_eq!(&again[..], &bytes[..bytes.len() - rest.len()], "two encodings of {:?}", entries);
    Ok((entries, error))
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn entries_of_every_kind_come_back(entries in log(), frame in 1..5usize, close: bool) {
        let bytes = written(&entries, frame, close);
        let (found, ending) = read(&bytes);
        prop_assert_eq!(found, entries);
        prop_assert_eq!(ending.unwrap(), if close { Ending::Closed } else { Ending::Incomplete { cut_bytes: 0 } });
    }

    #[test]
    fn a_cut_file_gives_the_beginning_of_its_entries(entries in log(), frame in 1..5usize, at: Index) {
        let bytes = written(&entries, frame, true);
        let length = at.index(bytes.len());
        let (found, ending) = read(&bytes[..length]);
        prop_assert!(entries.starts_with(&found));
        match ending {
            Ok(Ending::Incomplete { cut_bytes }) => prop_assert!(cut_bytes <= length as u64),
            Err(LogError::CutBoot(bytes)) => prop_assert_eq!(bytes, length as u64),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_damaged_file_gives_the_beginning_of_its_entries(
        entries in log(), frame in 1..5usize, damage in damage()
    ) {
        let mut bytes = written(&entries, frame, true);
        let good = bytes.clone();
        apply(&damage, &mut bytes);
        let (largest, (found, ending)) = watched(|| read(&bytes));
        prop_assert!(entries.starts_with(&found), "{:?}", found);
        prop_assert!(bytes == good || !matches!(ending, Ok(Ending::Closed)), "damaged, and complete");
        prop_assert!(largest <= allowed(bytes.len()), "{} bytes at once", largest);
    }
}

proptest! {
    #![proptest_config(cases(20_000))]

    /// Damage with checksums that are right: the work of a bad peer, or of a bug of ours.
    #[test]
    fn a_forged_file_gives_entries_or_a_named_error(
        entries in log(), frame in 1..5usize, damage in damage(), close: bool
    ) {
        let mut bytes = written(&entries, frame, close);
        apply(&damage, &mut bytes);
        forge(&mut bytes);
        let (largest, (found, _)) = watched(|| read(&bytes));
        prop_assert!(largest <= allowed(bytes.len()), "{} bytes at once", largest);
        let rising = |pair: &[Entry]| pair[0].at <= pair[1].at && !matches!(pair[0].body, Body::End(_));
        prop_assert!(found.windows(2).all(rising), "{:?}", found);
    }

    #[test]
    fn damaged_entries_give_entries_that_have_no_other_encoding(entries in log(), damage in damage()) {
        let (mut encoder, mut bytes) = (Encoder::new(), Vec::new());
        for entry in &entries {
            encoder.encode(entry, &mut bytes)?;
        }
        apply(&damage, &mut bytes);
        let (largest, decoded) = watched(|| decode(&bytes));
        decoded?;
        prop_assert!(largest <= allowed(bytes.len()), "{} bytes at once", largest);
    }

    #[test]
    fn random_bytes_are_no_file_and_no_frame(bytes in vec(any::<u8>(), 0..100), with_magic: bool) {
        let mut bytes = bytes;
        if with_magic {
            bytes.splice(0..0, *b"lkst\x01\0");
        }
        let (largest, (found, ending)) = watched(|| read(&bytes));
        prop_assert!(found.is_empty() && ending.is_err());
        prop_assert!(largest <= allowed(bytes.len()), "{} bytes at once", largest);
        prop_assert!(!matches!(frame::parse(&bytes), Ok(Some(_))));
    }

    #[test]
    fn random_bytes_as_entries_give_entries_that_have_no_other_encoding(bytes in vec(any::<u8>(), 0..64)) {
        let (largest, decoded) = watched(|| decode(&bytes));
        decoded?;
        prop_assert!(largest <= allowed(bytes.len()), "{} bytes at once", largest);
    }

    /// The parser of a connection: frames arrive in pieces, then damaged ones.
    #[test]
    fn frames_in_pieces_come_back_and_damaged_ones_do_not(
        frames in vec((0..FrameKind::ALL.len(), number(), any::<u32>(), vec(any::<u8>(), 0..20)), 1..4),
        piece in 1..50usize,
        damage in damage(),
    ) {
        let mut bytes = Vec::new();
        for (kind, number, count, payload) in &frames {
            frame::encode(FrameKind::ALL[*kind], *number, *count, payload, &mut bytes)?;
        }
        let (found, error) = arrive(&bytes, piece);
        let sent = frames.iter().map(|(kind, number, count, payload)| (FrameKind::ALL[*kind], *number, *count, payload.clone()));
        let sent: Vec<Owned> = sent.collect();
        prop_assert_eq!(&found, &sent);
        prop_assert_eq!(error, None);

        // Frames that are cut out whole, or doubled, are for the continuity of numbers to notice. What may
        // never come out is a frame that did not go in.
        apply(&damage, &mut bytes);
        let (largest, (found, _)) = watched(|| arrive(&bytes, piece));
        prop_assert!(found.iter().all(|frame| sent.contains(frame)), "{:?}", found);
        prop_assert!(largest <= allowed(bytes.len()), "{} bytes at once", largest);

        forge(&mut bytes);
        let (largest, _) = watched(|| arrive(&bytes, piece));
        prop_assert!(largest <= allowed(bytes.len()), "{} bytes at once", largest);
    }
}

type Owned = (FrameKind, u64, u32, Vec<u8>);

/// Parses what arrives in pieces of this size, as a connection does.
fn arrive(bytes: &[u8], piece: usize) -> (Vec<Owned>, Option<frame::FrameError>) {
    let (mut buffer, mut frames) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            let consumed = match frame::parse(&buffer) {
                Ok(Some((frame, consumed))) => {
                    frames.push((frame.kind, frame.number, frame.count, frame.payload.to_vec()));
                    consumed
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            };
            buffer.drain(..consumed);
        }
    }
    (frames, None)
}

/// The allocator does watch: otherwise every bound above would hold by itself.
#[test]
fn a_large_allocation_is_noticed() {
    let (largest, block) = watched(|| vec![1u8; 3 << 20]);
    assert_eq!(largest, block.len());
}

/// Claims of the largest possible lengths, in good headers, with next to nothing behind them.
#[test]
fn claimed_lengths_are_not_believed() {
    for kind in FrameKind::ALL {
        let mut bytes = Vec::new();
        frame::encode(kind, 0, u32::MAX, &vec![0; kind.max_payload()], &mut bytes).unwrap();
        let (largest, (found, ending)) = watched(|| read(&bytes[..HEADER_BYTES + 10]));
        assert!(found.is_empty() && ending.is_err());
        assert!(largest <= allowed(HEADER_BYTES + 10), "{kind:?}: {largest} bytes at once");
    }
    // A boot record whose name, command line, CPUID list or image claims to be huge.
    let good = {
        let mut bytes = Vec::new();
        drop(LogWriter::new(&mut bytes, &boot()).unwrap());
        bytes
    };
    for at in HEADER_BYTES..good.len() - 8 {
        for claim in [1u64 << 20, 60 << 20, 1 << 40, u64::MAX] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&claim.to_le_bytes());
            forge(&mut bytes);
            let (largest, _) = watched(|| read(&bytes));
            assert!(largest <= allowed(bytes.len()), "byte {at}, claim {claim}: {largest} bytes at once");
        }
    }
}
