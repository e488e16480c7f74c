//! What the codec promises, on chosen entries: these bytes and no others, small where it matters, and an
//! error by name that leaves everything as it was. (Random entries and random bytes: `tests/bad_input_log.rs`.)

use super::codec::{CodecError, Decoder, Encoder, Field};
use super::entry::{Body, Entry};
use crate::machine::blocks::{Ask, Completion, MAX_COUNT, MAX_REQUEST, Outcome, Request};
use crate::machine::digest::{Digest, PageCheck};
use crate::machine::doors::{ConsoleInput, Control, EndReason};
use crate::machine::instant::Instant;
use crate::machine::packets::{HEADER, Packets};

fn entry(exits: u64, polls: u64, body: Body) -> Entry {
    Entry { at: Instant::new(exits, polls), body }
}

fn console(session: u64, offset: u64, bytes: &[u8]) -> Body {
    Body::Console(ConsoleInput { session, offset, bytes: bytes.to_vec() })
}

/// A header that says something where there is a digit, and a frame of so many bytes.
fn batch(frames: &[(u8, &[u8])]) -> Packets {
    let mut packets = Packets::new();
    for (last, frame) in frames {
        let mut header = [0; HEADER];
        header[HEADER - 1] = *last;
        assert!(packets.push_frame(&header, frame));
    }
    packets
}

fn completion(id: u64, outcome: Outcome) -> Completion {
    Completion { id, outcome }
}

fn digest(pages: Vec<PageCheck>) -> Digest {
    Digest { memory: 0x77, registers: [0; 18], system: 0, fpu: 0, devices: 0, pages }
}

fn pages(numbers: impl IntoIterator<Item = u32>) -> Vec<PageCheck> {
    numbers.into_iter().map(|page| PageCheck { page, check: 0xcafe }).collect()
}

/// The bytes of each entry.
fn encoded(entries: &[Entry]) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new();
    let mut encode = |entry: &Entry| {
        let mut bytes = Vec::new();
        encoder.encode(entry, &mut bytes).unwrap();
        bytes
    };
    entries.iter().map(&mut encode).collect()
}

/// What decoding `bytes` behind `before` fails with; checks that it changes nothing.
fn refused(before: &[Entry], bytes: &[u8]) -> CodecError {
    let mut decoder = Decoder::new();
    let encoded = encoded(before).concat();
    let mut rest = &encoded[..];
    for entry in before {
        assert_eq!(decoder.decode(&mut rest).as_ref(), Ok(entry));
    }
    let mut rest = bytes;
    let error = decoder.decode(&mut rest).unwrap_err();
    assert_eq!(rest, bytes, "a refused entry was consumed");
    assert_eq!(Encoder::continuing(&decoder).entries(), before.len() as u64);
    assert_eq!(decoder.decode(&mut rest), Err(error), "a refused entry changed the decoder");
    error
}

/// What encoding the last entry fails with; checks that it changes nothing.
fn unencodable(entries: &[Entry]) -> CodecError {
    let (last, before) = entries.split_last().unwrap();
    let (mut encoder, mut bytes) = (Encoder::new(), Vec::new());
    before.iter().for_each(|entry| encoder.encode(entry, &mut bytes).unwrap());
    let (state, length) = (format!("{encoder:?}"), bytes.len());
    let error = encoder.encode(last, &mut bytes).unwrap_err();
    assert_eq!((format!("{encoder:?}"), bytes.len()), (state, length), "a refused entry left a trace");
    error
}

/// The examples of `docs/log-format.md`, in order, with their bytes.
fn documented() -> Vec<(Entry, &'static [u8])> {
    let mut one = digest(pages([2, 3, 300]));
    one.registers[16] = 0x1000;
    one.fpu = 5;
    let mut two = one.clone();
    (two.registers[16], two.pages) = (0x1003, Vec::new());
    let memory = &[0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let with_memory = |tag: &[u8], rest: &[u8]| -> &'static [u8] { [tag, memory, rest].concat().leak() };
    vec![
        (entry(0, 1_000_000, Body::Tick), &[0x62, 0x40, 0x42, 0x0f]),
        (entry(1, 1_000_000, Body::Clock(10_000)), &[0x08, 0x42, 0x9c]),
        (entry(2, 1_000_300, Body::Clock(10_063)), &[0x48, 0x2c, 0x01, 0x7f]),
        (entry(9, 1_000_300, Body::Entropy(0x0102)), &[0x11, 7, 2, 1, 0, 0, 0, 0, 0, 0]),
        (entry(9, 1_000_300, console(0xa1, 0, b"ls")), &[0x03, 0x01, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0x01, b'l', b's']),
        (entry(9, 1_000_301, console(0xa1, 2, b"\r")), &[0x23, 1, 0x40, b'\r']),
        (entry(409, 1_000_301, Body::Output { length: 5, check: 0x0403_0201 }), &[0x1c, 0x42, 0x06, 0x0b, 1, 2, 3, 4]),
        (
            entry(409, 1_000_301, Body::Digest(Box::new(one))),
            with_memory(&[0x05], &[0, 0, 9, 2, 0x40, 0x0b, 7, 5, 0xfe, 0xca, 1, 0xfe, 0xca, 0xa2, 4, 0xfe, 0xca]),
        ),
        (entry(409, 1_000_301, Body::Digest(Box::new(two))), with_memory(&[0x05], &[0, 0, 1, 7, 1])),
        (entry(410, 0, Body::Tick), &[0xea, 0, 0, 0, 0, 0, 0, 0, 0]),
        (
            entry(411, 0, Body::Packets(batch(&[(0, b"ABCDEFGHIJKLMN"), (1, b"abcdefghijklmn")]))),
            b"\x0f\0\x05\x39ABCDEFGHIJKLMN\x3b\0\0\0\0\0\0\0\0\0\0\0\x01abcdefghijklmn",
        ),
        (
            entry(411, 0, Body::Sent { packets: 2, bytes: 80, check: 0x0403_0201 }),
            &[0x07, 0x01, 0x05, 0xa1, 1, 2, 3, 4],
        ),
        (entry(412, 0, Body::HostName(u64::from_le_bytes(*b"alpha\0\0\0"))), b"\x0f\x02alpha\0\0\0"),
        (
            entry(412, 0, Body::Asked { requests: 2, bytes: 512, check: 0x0403_0201 }),
            &[0x07, 0x03, 0x05, 0x02, 0x08, 1, 2, 3, 4],
        ),
        (
            entry(
                413,
                0,
                Body::Disk(vec![
                    completion(1, Outcome::Done),
                    completion(0, Outcome::Read(b"sector".to_vec())),
                    completion(2, Outcome::Failed),
                    completion(40, Outcome::ReadElsewhere { bytes: 512, check: 0x0807_0605_0403_0201 }),
                ]),
            ),
            b"\x0f\x04\x09\x09\x03\x0dsector\x17\x8a\x02\x02\x08\x01\x02\x03\x04\x05\x06\x07\x08",
        ),
        (entry(413, 0, Body::Control(Control::Pause)), &[0x07, 0x05, 0]),
        (entry(413, 0, Body::Control(Control::Switch)), &[0x07, 0x05, 3]),
        (entry(413, 0, Body::End(EndReason::Exit(3))), &[0x06, 0, 3]),
    ]
}

#[test]
fn the_documented_examples_are_these_bytes() {
    let (entries, bytes): (Vec<_>, Vec<_>) = documented().into_iter().unzip();
    for ((entry, found), expected) in entries.iter().zip(encoded(&entries)).zip(bytes) {
        assert_eq!(found, expected, "{entry:?}: {found:02x?}");
    }
}

#[test]
fn the_documentation_shows_these_bytes() {
    let document = include_str!("../../docs/log-format.md");
    let (_, section) = document.split_once("\n## Examples\n").unwrap();
    let rows = section.lines().take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| "));
    let examples: Vec<&str> = rows.skip(2).collect();
    assert_eq!(examples.len(), documented().len());
    for (line, (entry, bytes)) in examples.into_iter().zip(documented()) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert!(cells[1].starts_with(&format!("{} ", entry.at)), "{line}");
        let digits: String = cells[2].chars().filter(char::is_ascii_hexdigit).collect();
        let expected: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digits, expected, "{line}");
    }
}

#[test]
fn a_cut_entry_is_cut_short_at_every_length_and_decodes_once_it_is_whole() {
    let mut decoder = Decoder::new();
    for (entry, bytes) in documented() {
        for length in 0..bytes.len() {
            let mut rest = &bytes[..length];
            assert_eq!(decoder.decode(&mut rest), Err(CodecError::CutShort), "{entry:?} cut to {length}");
            assert_eq!(rest.len(), length);
        }
        let mut rest = bytes;
        assert_eq!(decoder.decode(&mut rest), Ok(entry));
        assert!(rest.is_empty());
    }
}

#[test]
fn what_a_computing_guest_logs_is_small() {
    for polls in [10_000, 1_000_000, 10_000_000, (1 << 24) - 1] {
        let bytes = encoded(&[entry(7, 1 << 50, Body::Tick), entry(7, (1 << 50) + polls, Body::Tick)]);
        assert!(bytes[1].len() <= 4, "tick: {}", bytes[1].len());
    }
    let bytes =
        encoded(&[entry(1, 50_000, Body::Clock(1 << 50)), entry(2, 90_000, Body::Clock((1 << 50) + 2_000_000))]);
    assert!(bytes[1].len() <= 6, "clock: {}", bytes[1].len());
    let bytes = encoded(&[entry(3, 200, Body::Output { length: 40, check: u32::MAX })]);
    assert!(bytes[0].len() <= 8, "output: {}", bytes[0].len());
}

#[test]
fn an_encoder_goes_on_where_a_decoder_stands() {
    let (entries, bytes): (Vec<_>, Vec<_>) = documented().into_iter().unzip();
    for split in 0..entries.len() {
        let (mut decoder, joined) = (Decoder::new(), bytes[..split].concat());
        let mut rest = &joined[..];
        while !rest.is_empty() {
            decoder.decode(&mut rest).unwrap();
        }
        let (mut encoder, mut out) = (Encoder::continuing(&decoder), Vec::new());
        entries[split..].iter().for_each(|entry| encoder.encode(entry, &mut out).unwrap());
        assert_eq!(out, bytes[split..].concat());
    }
}

/// The greatest number that a disk request can have.
const LAST_ID: u64 = (1 << 61) - 1;

/// So many packets of so many bytes each, every other one with a header that says something.
fn many(count: usize, bytes: usize) -> Packets {
    let frames: Vec<Vec<u8>> = (0..count).map(|i| vec![i as u8; bytes - HEADER]).collect();
    let parts: Vec<(u8, &[u8])> = frames.iter().enumerate().map(|(i, frame)| (i as u8 & 1, &frame[..])).collect();
    let packets = batch(&parts);
    assert_eq!(packets.bytes().len(), count * bytes);
    packets
}

#[test]
fn the_extremes_come_back() {
    let max = u64::MAX;
    let mut full = digest(pages(0..1023));
    full.pages.push(PageCheck { page: u32::MAX, check: 1 });
    (full.memory, full.registers) = (u128::MAX, [max; 18]);
    (full.system, full.fpu, full.devices) = (max, max, max);
    let entries = [
        entry(0, max, Body::Clock(max)),
        entry(1, 0, Body::Entropy(max)),
        entry(max - 1, max, console(max, max, &[0xff; 64])),
        entry(max - 1, max, console(max, 63, &[0; 1])),
        entry(max, max - 1, Body::Output { length: u32::MAX, check: 0 }),
        entry(max, max - 1, Body::Digest(Box::new(full))),
        entry(max, max, Body::Packets(many(Packets::MAX_COUNT, Packets::MIN_PACKET))),
        entry(max, max, Body::Packets(many(Packets::MAX_BYTES / Packets::MAX_PACKET, Packets::MAX_PACKET))),
        entry(max, max, Body::Packets(many(Packets::MAX_COUNT, Packets::MAX_BYTES / Packets::MAX_COUNT))),
        entry(max, max, Body::Sent { packets: 1, bytes: Packets::MIN_PACKET as u32, check: u32::MAX }),
        entry(max, max, Body::Sent { packets: 256, bytes: Packets::MAX_BYTES as u32, check: 0 }),
        entry(max, max, Body::HostName(max)),
        entry(max, max, Body::Asked { requests: 256, bytes: u32::MAX, check: u32::MAX }),
        entry(max, max, Body::Asked { requests: 1, bytes: 0, check: 0 }),
        entry(max, max, Body::Disk(vec![completion(LAST_ID, Outcome::Read(vec![9; MAX_REQUEST]))])),
        entry(max, max, Body::Disk((0..256).map(|i| completion(LAST_ID - i, Outcome::Read(vec![1; 1024]))).collect())),
        entry(
            max,
            max,
            Body::Disk(vec![
                completion(0, Outcome::ReadElsewhere { bytes: MAX_REQUEST as u32, check: max });
                MAX_COUNT
            ]),
        ),
        entry(max, max, Body::Control(Control::Reset)),
        entry(max, max, Body::End(EndReason::CannotExecute(max))),
    ];
    let bytes = encoded(&entries).concat();
    let (mut decoder, mut rest) = (Decoder::new(), &bytes[..]);
    for entry in &entries {
        assert_eq!(decoder.decode(&mut rest).as_ref(), Ok(entry));
    }
    assert!(rest.is_empty());
}

#[test]
fn bytes_that_are_no_entry_are_refused_by_name() {
    use CodecError::{AfterEnd, InstantBackwards, NotCanonical, Overflow, PageCount, UnknownEnd, UnknownKind};
    let max = u64::MAX;
    let far = [entry(max, max, Body::Clock(max))];
    let (tick, clock, console, output, digest, end) = (2, 0, 3, 4, 5, 6);
    let (exits_1, exits_byte, exits_varint) = (1 << 3, 2 << 3, 3 << 3);
    let polls = |class: u8| class << 5;
    let digest_with = |rest: &[u8]| [&[digest], &[0; 16][..], rest].concat();

    assert_eq!(refused(&[], &[7, 6]), UnknownKind(6));
    assert_eq!(refused(&[], &[7, 255]), UnknownKind(255));
    assert_eq!(refused(&[], &[end, 6]), UnknownEnd(6));
    assert_eq!(refused(&[entry(0, 0, Body::End(EndReason::Stopped))], &[tick]), AfterEnd);
    for small in [0, 1] {
        assert_eq!(refused(&[], &[tick | exits_byte, small]), NotCanonical(Field::Exits));
    }
    assert_eq!(refused(&[], &[tick | exits_varint, 0xfe, 0x03]), NotCanonical(Field::Exits));
    assert_eq!(refused(&[], &[tick | exits_varint, 0x02, 0x00]), NotCanonical(Field::Exits));
    assert_eq!(refused(&far, &[tick | exits_1]), Overflow(Field::Exits));
    assert_eq!(refused(&[], &[tick | polls(1), 0]), NotCanonical(Field::Polls));
    assert_eq!(refused(&[], &[tick | polls(3), 0xff, 0xff, 0]), NotCanonical(Field::Polls));
    assert_eq!(refused(&[], &[tick | polls(6), 1, 1, 1, 1, 1, 0, 0, 0]), NotCanonical(Field::Polls));
    assert_eq!(refused(&far, &[tick | polls(1), 1]), Overflow(Field::Polls));
    let at_five = [entry(0, 5, Body::Tick)];
    assert_eq!(
        refused(&at_five, &[tick | exits_1 | polls(7), 5, 0, 0, 0, 0, 0, 0, 0]),
        NotCanonical(Field::Polls),
        "a count that did not fall"
    );
    assert_eq!(
        refused(&at_five, &[tick | polls(7), 4, 0, 0, 0, 0, 0, 0, 0]),
        InstantBackwards { last: Instant::new(0, 5), at: Instant::new(0, 4) }
    );
    assert_eq!(refused(&far, &[clock, 0x03]), Overflow(Field::Clock));
    assert_eq!(refused(&[], &[clock, 0x02, 0x00]), NotCanonical(Field::Clock));
    assert_eq!(refused(&[], &[console, 0x80]), NotCanonical(Field::Console));
    let in_place = [console, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, b'x'];
    assert_eq!(refused(&[], &in_place), NotCanonical(Field::Console), "it goes on where the one before ended");
    assert_eq!(refused(&[], &[output, 0, 0, 0, 0, 0, 0, 0, 0, 1]), Overflow(Field::OutputLength));
    assert_eq!(refused(&[], &digest_with(&[0, 0, 0x20])), NotCanonical(Field::Registers));
    assert_eq!(refused(&[], &digest_with(&[1, 0, 0, 0x01])), NotCanonical(Field::Registers), "no difference");
    assert_eq!(refused(&[], &digest_with(&[0, 0, 0, 0x06, 0x10])), PageCount(1025));
    let last_page = [0, 0, 0, 0x05, 0xf0, 0xff, 0xff, 0xff, 0x1f, 0, 0];
    let beyond = [&last_page[..], &[0x01, 0, 0]].concat();
    assert_eq!(refused(&[], &digest_with(&beyond)), Overflow(Field::Pages));
}

#[test]
fn packets_that_are_none_are_refused_by_name_and_before_they_are_waited_for() {
    use CodecError::{CutShort, NotCanonical, Overflow, PacketCount, PacketLength, SentBytes};
    let (packets, sent) = ([7, 0], [7, 1]);
    let with = |kind: [u8; 2], rest: &[u8]| [&kind, rest].concat();
    // Counts and lengths: varint n is `2n + 1` in one byte, `4n + 2` in two, `8n + 4` in three, `16n + 8` in four.
    assert_eq!(refused(&[], &with(packets, &[0x01])), PacketCount(0));
    assert_eq!(refused(&[], &with(packets, &[0x06, 0x04])), PacketCount(257));
    assert_eq!(refused(&[], &with(packets, &[0x02, 0x04])), CutShort, "256 are possible");
    assert_eq!(refused(&[], &with(packets, &[0x06, 0x00])), NotCanonical(Field::PacketCount));
    let frame = |bytes: u64, says: u64| (((bytes << 1 | says) << 4) | 8) as u32;
    let long = |bytes, says| with(packets, &[&[0x03], &frame(bytes, says).to_le_bytes()[..]].concat());
    assert_eq!(refused(&[], &with(packets, &[0x03, 13 << 2 | 1])), PacketLength(13), "no Ethernet header");
    assert_eq!(refused(&[], &long(65_550, 0)), NotCanonical(Field::PacketLength), "three bytes would do");
    assert_eq!(refused(&[], &long(2_000_000, 0)), PacketLength(2_000_000));
    assert_eq!(
        refused(&[], &with(packets, &[0x03, 0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        PacketLength((1 << 55) - 1)
    );
    let plain = [&[0x03, 14 << 2 | 3][..], &[0; HEADER + 14]].concat();
    assert_eq!(refused(&[], &with(packets, &plain)), NotCanonical(Field::PacketHeader), "it says nothing");
    // Three frames of the longest fit into a batch, a fourth of 64 KiB does not: said before its bytes are there.
    let longest = Packets::MAX_PACKET - HEADER;
    let word = ((longest << 1) << 3 | 4).to_le_bytes();
    let one = [&word[..3], &vec![0; longest]].concat();
    let four = [&[0x09][..], &one, &one, &one, &word[..3]].concat();
    assert_eq!(refused(&[], &with(packets, &four)), PacketLength(longest as u64));
    assert_eq!(refused(&[], &with(sent, &[0x01])), PacketCount(0));
    assert_eq!(refused(&[], &with(sent, &[0x06, 0x04])), PacketCount(257));
    assert_eq!(refused(&[], &with(sent, &[0x03, 25 << 1 | 1])), SentBytes(25));
    assert_eq!(refused(&[], &with(sent, &[0x05, 51 << 1 | 1])), SentBytes(51));
    let too_many = ((Packets::MAX_BYTES + 1) << 3 | 4).to_le_bytes();
    assert_eq!(refused(&[], &with(sent, &[&[0x02, 0x04], &too_many[..3]].concat())), SentBytes(262_145));
    assert_eq!(refused(&[], &with(sent, &[0x03, 0, 0, 0, 0, 0, 0, 0, 0, 1])), Overflow(Field::PacketLength));
}

#[test]
fn disk_entries_that_are_none_are_refused_by_name_and_before_they_are_waited_for() {
    use CodecError::{CutShort, NotCanonical, Overflow, ReadLength, RequestCount, UnknownControl};
    let with = |kind: u8, rest: &[u8]| [&[7, kind], rest].concat();
    let (asked, disk, control) = (3, 4, 5);
    // Counts and lengths are varints, as above.
    for kind in [asked, disk] {
        assert_eq!(refused(&[], &with(kind, &[0x01])), RequestCount(0));
        assert_eq!(refused(&[], &with(kind, &[0x06, 0x04])), RequestCount(257));
        assert_eq!(refused(&[], &with(kind, &[0x02, 0x04])), CutShort, "256 are possible");
        assert_eq!(refused(&[], &with(kind, &[0x06, 0x00])), NotCanonical(Field::Request));
    }
    assert_eq!(refused(&[], &with(asked, &[0, 0, 0, 0, 0, 0, 0, 0, 1])), Overflow(Field::Request));
    assert_eq!(refused(&[], &with(asked, &[0x03, 0, 0, 0, 0, 0, 0, 0, 0, 1])), Overflow(Field::Request));
    let (read, elsewhere) = (1 << 1 | 1, 2 << 1 | 1);
    let long = |length: u64| ((length << 3 | 4) as u32).to_le_bytes()[..3].to_vec();
    for way in [read, elsewhere] {
        let of = |length: &[u8]| with(disk, &[&[0x03, way], length].concat());
        assert_eq!(refused(&[], &of(&[0x01])), ReadLength(0));
        assert_eq!(refused(&[], &of(&long(MAX_REQUEST as u64 + 1))), ReadLength(MAX_REQUEST as u64 + 1));
        assert_eq!(refused(&[], &of(&long(MAX_REQUEST as u64))), CutShort);
        assert_eq!(refused(&[], &of(&long(1000))), NotCanonical(Field::ReadLength), "two bytes would do");
    }
    // 256 KiB in all: a byte more is said before it is there. Bytes that were read elsewhere are none here.
    let most = [&[0x05, read][..], &long(MAX_REQUEST as u64), &vec![0; MAX_REQUEST]].concat();
    assert_eq!(refused(&[], &with(disk, &[&most[..], &[read, 0x03]].concat())), ReadLength(1));
    assert_eq!(refused(&[], &with(disk, &[&most[..], &[elsewhere, 0x03]].concat())), CutShort);
    // The two highest bits of a number have no room beside how it ended; the third has none in a log of this format.
    let id = |word: u64| with(disk, &[&[0x03, 0][..], &word.to_le_bytes()].concat());
    assert_eq!(refused(&[], &id(1 << 63)), Overflow(Field::Request));
    assert_eq!(refused(&[], &with(disk, &[0x03, 0x02, 0x01])), NotCanonical(Field::Request));
    for unknown in [4, 255] {
        assert_eq!(refused(&[], &with(control, &[unknown])), UnknownControl(unknown));
    }

    for (completions, error) in [
        (vec![], RequestCount(0)),
        (vec![completion(0, Outcome::Done); 257], RequestCount(257)),
        (vec![completion(LAST_ID + 1, Outcome::Done)], Overflow(Field::Request)),
        (vec![completion(0, Outcome::Read(Vec::new()))], ReadLength(0)),
        (vec![completion(0, Outcome::Read(vec![0; MAX_REQUEST + 1]))], ReadLength(MAX_REQUEST as u64 + 1)),
        (vec![completion(0, Outcome::Read(vec![0; MAX_REQUEST / 2 + 1])); 2], ReadLength(MAX_REQUEST as u64 / 2 + 1)),
        (vec![completion(0, Outcome::ReadElsewhere { bytes: 0, check: 0 })], ReadLength(0)),
        (vec![completion(0, Outcome::ReadElsewhere { bytes: 262_145, check: 0 })], ReadLength(262_145)),
    ] {
        assert_eq!(unencodable(&[entry(2, 0, Body::Disk(completions))]), error);
    }
    for requests in [0, 257] {
        let body = Body::Asked { requests, bytes: 512, check: 0 };
        assert_eq!(unencodable(&[entry(2, 0, body)]), RequestCount(requests.into()));
    }
}

/// What holds a replay's requests against those of the log.
#[test]
fn requests_that_differ_in_anything_have_another_entry() {
    let write = |sector, data: &[u8]| Ask::Write { sector, data: data.to_vec() };
    let zeroes = |sector, sectors, may_unmap| Ask::WriteZeroes { sector, sectors, may_unmap };
    let asks = [
        Ask::Read { sector: 1, bytes: 512 },
        Ask::Read { sector: 2, bytes: 512 },
        Ask::Read { sector: 1, bytes: 1024 },
        write(1, &[0; 512]),
        write(1, &[1; 512]),
        write(2, &[0; 512]),
        write(1, &[0; 1024]),
        Ask::Flush,
        Ask::Discard { sector: 1, sectors: 1 },
        Ask::Discard { sector: 1, sectors: 2 },
        zeroes(1, 1, false),
        zeroes(1, 1, true),
        zeroes(1, 2, false),
    ];
    let mut seen = Vec::new();
    for id in [0, 1] {
        for ask in &asks {
            let request = Request { id, ask: ask.clone() };
            seen.push(Body::asked(std::slice::from_ref(&request)));
            seen.push(Body::asked(&[request.clone(), request]));
        }
    }
    for (i, one) in seen.iter().enumerate() {
        assert!(!seen[..i].contains(one), "{one:?} is seen twice");
    }
    let Body::Asked { requests, bytes, .. } = Body::asked(&[
        Request { id: 0, ask: write(1, &[0; 512]) },
        Request { id: 1, ask: Ask::Flush },
        Request { id: 2, ask: write(1, &[0; 1024]) },
    ]) else {
        panic!("another kind")
    };
    assert_eq!((requests, bytes), (3, 1536));
}

#[test]
fn entries_that_may_not_follow_are_refused_by_name() {
    let five = entry(1, 5, Body::Clock(50));
    for at in [Instant::new(1, 4), Instant::new(0, 9)] {
        let back = Entry { at, body: Body::Tick };
        let last = Instant::new(1, 5);
        assert_eq!(unencodable(&[five.clone(), back]), CodecError::InstantBackwards { last, at });
    }
    let back = entry(1, 5, Body::Clock(49));
    assert_eq!(unencodable(&[five.clone(), back]), CodecError::ClockBackwards { last_ns: 50, ns: 49 });
    for length in [0, 65] {
        let body = console(1, 1, &vec![b'x'; length]);
        assert_eq!(unencodable(&[five.clone(), entry(2, 0, body)]), CodecError::ConsoleLength(length));
    }
    for (numbers, error) in [
        ((0..1025).collect(), CodecError::PageCount(1025)),
        (vec![3, 3], CodecError::PageOrder(3)),
        (vec![5, 4], CodecError::PageOrder(4)),
    ] {
        let body = Body::Digest(Box::new(digest(pages(numbers))));
        assert_eq!(unencodable(&[five.clone(), entry(2, 0, body)]), error);
    }
    assert_eq!(unencodable(&[five.clone(), entry(2, 0, Body::Packets(Packets::new()))]), CodecError::PacketCount(0));
    for (packets, bytes, error) in [
        (0, 0, CodecError::PacketCount(0)),
        (257, 257 * 60, CodecError::PacketCount(257)),
        (2, 51, CodecError::SentBytes(51)),
        (9, Packets::MAX_BYTES as u32 + 1, CodecError::SentBytes(Packets::MAX_BYTES as u32 + 1)),
        (1, Packets::MAX_PACKET as u32 + 1, CodecError::SentBytes(Packets::MAX_PACKET as u32 + 1)),
    ] {
        let body = Body::Sent { packets, bytes, check: 0 };
        assert_eq!(unencodable(&[five.clone(), entry(2, 0, body)]), error);
    }
    let end = entry(2, 0, Body::End(EndReason::TripleFault));
    assert_eq!(unencodable(&[end, entry(3, 0, Body::Tick)]), CodecError::AfterEnd);
}
