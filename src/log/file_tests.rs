//! What the log file promises: everything appended comes back, an unfinished file up to its last whole
//! frame, and a damaged one up to the damage, which is named.

use super::boot::tests::boot;
use super::codec::{CodecError, Encoder};
use super::entry::{Body, Entry};
use super::file::{EncodedWriter, Ending, LogError, LogReader, LogWriter};
use super::frame::{self, FrameError, FrameKind, HEADER_BYTES};
use super::stream::StreamError;
use crate::machine::instant::Instant;
use std::io::{self, Write};

fn entries(count: u64) -> Vec<Entry> {
    let body = |i| if i % 3 == 0 { Body::Clock(i * 1000) } else { Body::Entropy(i) };
    (0..count).map(|i| Entry { at: Instant::new(i, i * 100), body: body(i) }).collect()
}

/// A log of these entries, a frame for every 10 of them, closed.
fn log(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = LogWriter::new(&mut bytes, &boot(10)).unwrap();
    for (number, entry) in entries.iter().enumerate() {
        assert_eq!(writer.append(entry).unwrap(), number as u64);
        if number % 10 == 9 {
            writer.flush().unwrap();
        }
    }
    writer.close().unwrap();
    bytes
}

/// All entries up to the end or the first error, and that.
fn read(bytes: &[u8]) -> (Vec<Entry>, Result<Ending, LogError>) {
    let mut reader = match LogReader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    assert_eq!(reader.boot(), &boot(10));
    let mut entries = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => return (entries, Ok(reader.ending().unwrap())),
            Err(error) => {
                assert!(reader.next_entry().unwrap().is_none(), "it goes on behind an error");
                assert!(!reader.complete());
                return (entries, Err(error));
            }
        }
    }
}

/// Where the frames begin, and where the last ends.
fn frame_starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    while let Ok(Some((_, consumed))) = frame::parse(&bytes[starts[starts.len() - 1]..]) {
        starts.push(starts[starts.len() - 1] + consumed);
    }
    starts
}

#[test]
fn what_is_appended_comes_back_over_many_frames() {
    let entries = entries(40_000);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut writer = LogWriter::create(&path, &boot(100_000)).unwrap();
    entries.iter().for_each(|entry| assert!(writer.append(entry).is_ok()));
    assert_eq!(writer.entries(), entries.len() as u64);
    writer.close().unwrap();
    let mut reader = LogReader::open(&path).unwrap();
    assert_eq!(reader.boot(), &boot(100_000));
    let found: Vec<Entry> = reader.by_ref().collect::<Result<_, _>>().unwrap();
    assert!(found == entries);
    assert!(reader.complete());
    assert_eq!(reader.offset(), path.metadata().unwrap().len());
    let bytes = std::fs::read(&path).unwrap();
    assert!(frame_starts(&bytes).windows(2).skip(1).all(|pair| pair[1] - pair[0] <= HEADER_BYTES + (64 << 10)));
}

#[test]
fn entries_encoded_once_make_the_same_file() {
    let entries = entries(95);
    let mut bytes = Vec::new();
    let (mut writer, mut encoder) = (EncodedWriter::new(&mut bytes, &boot(10)).unwrap(), Encoder::new());
    for batch in entries.chunks(10) {
        let (first, mut encoded) = (encoder.entries(), Vec::new());
        batch.iter().for_each(|entry| encoder.encode(entry, &mut encoded).unwrap());
        writer.append(first, batch.len() as u32, &encoded).unwrap();
        if batch.len() == 10 {
            writer.flush().unwrap();
        }
    }
    assert!(matches!(writer.append(94, 1, &[2]), Err(LogError::Stream(StreamError::Gap { expected: 95, found: 94 }))));
    let huge = vec![0; (1 << 20) + 1];
    let refused = writer.append(95, 1, &huge);
    assert!(matches!(refused, Err(LogError::Frame { source: FrameError::TooLong { .. }, .. })));
    writer.close().unwrap();
    assert_eq!(bytes, log(&entries));
}

#[test]
fn a_cut_log_is_incomplete_and_reads_up_to_its_last_whole_frame() {
    let entries = entries(35);
    let bytes = log(&entries);
    let starts = frame_starts(&bytes);
    for length in 0..bytes.len() {
        let (found, ending) = read(&bytes[..length]);
        let whole = starts.iter().rposition(|start| *start <= length).unwrap();
        if whole == 0 {
            assert!(matches!(ending, Err(LogError::CutBoot(bytes)) if bytes == length as u64));
            continue;
        }
        assert_eq!(found, entries[..entries.len().min((whole - 1) * 10)]);
        assert_eq!(ending.unwrap(), Ending::Incomplete { cut_bytes: (length - starts[whole]) as u64 });
    }
    assert!(matches!(read(&bytes), (found, Ok(Ending::Closed)) if found == entries));
}

#[test]
fn a_recorder_that_gives_up_leaves_its_last_entries() {
    let entries = entries(5);
    let mut bytes = Vec::new();
    let mut writer = LogWriter::new(&mut bytes, &boot(10)).unwrap();
    entries.iter().for_each(|entry| assert!(writer.append(entry).is_ok()));
    drop(writer);
    assert!(matches!(read(&bytes), (found, Ok(Ending::Incomplete { cut_bytes: 0 })) if found == entries));
}

#[test]
fn every_flipped_bit_is_noticed_and_what_comes_before_is_read() {
    let entries = entries(35);
    let bytes = log(&entries);
    let starts = frame_starts(&bytes);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let hit = starts.iter().rposition(|start| *start <= bit / 8).unwrap();
        let (found, ending) = read(&damaged);
        assert!(matches!(ending, Err(LogError::Frame { offset, .. }) if offset == starts[hit] as u64), "bit {bit}");
        assert_eq!(found, entries[..entries.len().min(hit.saturating_sub(1) * 10)]);
    }
}

#[test]
fn frames_that_do_not_make_a_log_are_refused_by_name() {
    let whole = log(&entries(20));
    let starts = frame_starts(&whole);
    let frames: Vec<&[u8]> = starts.windows(2).map(|pair| &whole[pair[0]..pair[1]]).collect();
    let [boot, first, second, close] = frames[..] else { panic!("{} frames", frames.len()) };
    let made = |kind, number, count, payload: &[u8]| {
        let mut bytes = Vec::new();
        frame::encode(kind, number, count, payload, &mut bytes).unwrap();
        bytes
    };
    let error = |frames: &[&[u8]]| read(&frames.concat()).1.unwrap_err();
    use FrameKind::{Boot, Close, Entries, Hello};

    assert!(matches!(error(&[first]), LogError::Unexpected { offset: 0, kind: Entries }));
    assert!(matches!(error(&[b"\x7fELF\x02\x01"]), LogError::Frame { offset: 0, source: FrameError::Magic(_) }));
    assert!(matches!(error(&[&made(Boot, 0, 0, b"?")]), LogError::Boot(_)));
    assert!(matches!(error(&[boot, boot]), LogError::Unexpected { kind: Boot, .. }));
    assert!(matches!(error(&[boot, &made(Hello, 0, 0, b"")]), LogError::Unexpected { kind: Hello, .. }));
    let gap = |error, expected, found| {
        assert!(
            matches!(error, LogError::Stream(StreamError::Gap { expected: e, found: f }) if (e, f) == (expected, found))
        );
    };
    gap(error(&[boot, second]), 0, 10);
    gap(error(&[boot, first, first]), 10, 0);
    assert!(matches!(error(&[boot, &made(Entries, 0, 0, b"")]), LogError::Stream(StreamError::Empty(0))));
    let leftover = made(Entries, 0, 1, &[2, 2]);
    assert!(matches!(error(&[boot, &leftover]), LogError::Stream(StreamError::Leftover { number: 1, bytes: 1 })));
    let cut = made(Entries, 0, 2, &[2]);
    let source = CodecError::CutShort;
    assert!(
        matches!(error(&[boot, &cut]), LogError::Stream(StreamError::Entry { number: 1, source: s }) if s == source)
    );
    assert!(matches!(error(&[boot, first, close]), LogError::WrongTotal { claimed: 20, found: 10 }));
    assert!(matches!(error(&[boot, first, second, close, first]), LogError::Unexpected { kind: Entries, .. }));
    let loaded = made(Close, 0, 0, b"?");
    assert!(matches!(error(&[boot, &loaded]), LogError::Stream(StreamError::Leftover { .. })));
    assert!(matches!(error(&[&whole, b"?"]), LogError::Frame { source: FrameError::Magic(_), .. }));
    assert!(matches!(error(&[&whole, b"lk"]), LogError::Stream(StreamError::Leftover { bytes: 2, .. })));
}

/// A disk with room for so many bytes.
struct SmallDisk(Vec<u8>, usize);

impl Write for SmallDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.1 - self.0.len());
        self.0.extend_from_slice(&bytes[..taken]);
        if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn nothing_is_written_behind_a_write_that_failed() {
    let entries = entries(20);
    let room = frame_starts(&log(&entries))[2] + 40;
    let mut disk = SmallDisk(Vec::new(), room);
    let mut writer = LogWriter::new(&mut disk as &mut dyn Write, &boot(10)).unwrap();
    entries[..10].iter().for_each(|entry| assert!(writer.append(entry).is_ok()));
    writer.flush().unwrap();
    entries[10..].iter().for_each(|entry| assert!(writer.append(entry).is_ok()));
    assert!(matches!(writer.flush(), Err(LogError::Write(error)) if error.kind() == io::ErrorKind::StorageFull));
    assert!(matches!(writer.flush(), Err(LogError::Broken)));
    assert!(matches!(writer.close(), Err(LogError::Broken)));
    assert!(matches!(read(&disk.0), (found, Ok(Ending::Incomplete { cut_bytes: 40 })) if found == entries[..10]));
}

#[test]
fn an_entry_that_cannot_follow_leaves_the_log_as_it_was() {
    let entries = entries(3);
    let mut bytes = Vec::new();
    let mut writer = LogWriter::new(&mut bytes, &boot(10)).unwrap();
    assert!(writer.append(&entries[1]).is_ok());
    assert!(matches!(writer.append(&entries[0]), Err(LogError::Encode { number: 1, .. })));
    assert_eq!(writer.append(&entries[2]).unwrap(), 1);
    writer.close().unwrap();
    assert!(matches!(read(&bytes), (found, Ok(Ending::Closed)) if found == entries[1..]));
}
