//! Promise: an execution that is not the one in the log is caught at the first check after the place where it left it,
//! and the report names the entry, the instant and what differs. Shown with logs in which one thing was changed: what
//! replays then is a machine to which something else happened than to the recorded one.

mod recording;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use lockstep::guest;
use lockstep::log::entry::{Body, Entry};
use lockstep::machine::digest::Digest;
use lockstep::machine::divergence::Difference;
use lockstep::machine::doors::EndReason;
use lockstep::machine::instant::Instant;
use lockstep::machine::snapshot::Boot;
use recording::machine::{Ran, Recording, boot, read_log, record, replay, write_log};
use recording::process::{lockstep, path, text};

/// A recording, to be changed in many ways.
struct Recorded {
    boot: Boot,
    entries: Vec<Entry>,
}

fn recorded(command_line: &str, typist: Option<u64>) -> Recorded {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("log");
    let how = Recording { digest_every: Duration::from_millis(4), typist, ..Recording::default() };
    let ran = record(&boot(command_line), &file, how);
    assert_eq!(ran.end.expect("the guest ends"), EndReason::Exit(0));
    assert_eq!(replay(&file).end.expect("unchanged, the log replays"), EndReason::Exit(0));
    let (boot, entries) = read_log(&file);
    Recorded { boot, entries }
}

/// A guest that does the same whatever happens to it: an event leaves its traces in memory alone, where only a digest finds them.
fn computing() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| recorded("compute 10 hz=1000", None))
}

/// A guest for which whatever happens decides what it does next.
fn mixing() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| recorded("mix 7 4 hz=1000", Some(77)))
}

struct Changed {
    _directory: tempfile::TempDir,
    file: PathBuf,
}

impl Changed {
    fn file(&self) -> &Path {
        &self.file
    }

    fn replay(&self) -> Ran {
        replay(&self.file)
    }
}

impl Recorded {
    /// The recording with a change.
    fn changed(&self, change: impl FnOnce(&mut Boot, &mut Vec<Entry>)) -> Changed {
        let (mut boot, mut entries) = (self.boot.clone(), self.entries.clone());
        change(&mut boot, &mut entries);
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("changed.log");
        write_log(&file, &boot, &entries);
        Changed { _directory: directory, file }
    }

    /// The first entry that is `wanted`, from a quarter of the log on, with a digest still to come.
    fn find(&self, wanted: impl Fn(usize, &Entry) -> bool) -> usize {
        let last = self.entries.iter().rposition(|entry| matches!(entry.body, Body::Digest(_))).expect("a digest");
        (self.entries.len() / 4..last).find(|&i| wanted(i, &self.entries[i])).expect("the recording has such an entry")
    }

    /// The first entry at or after `from` that checks the whole machine.
    fn next_digest(&self, from: usize) -> usize {
        let digest = |&i: &usize| matches!(self.entries[i].body, Body::Digest(_));
        (from..self.entries.len()).find(digest).expect("a digest follows")
    }

    /// A tick at a safepoint whose neighbours leave it room to move, and after which a digest comes before any output.
    fn movable_tick(&self) -> usize {
        self.find(|i, entry| {
            let (before, after) = (self.entries[i - 1].at, self.entries[i + 1].at);
            let room = before.exits == entry.at.exits
                && before.polls + 1 < entry.at.polls
                && after.exits == entry.at.exits
                && entry.at.polls + 2 < after.polls;
            matches!(entry.body, Body::Tick) && room && self.digest_comes_first(i)
        })
    }

    fn digest_comes_first(&self, from: usize) -> bool {
        let check = |entry: &&Entry| matches!(entry.body, Body::Digest(_) | Body::Output { .. } | Body::End(_));
        let next = self.entries[from + 1..].iter().find(check);
        next.is_some_and(|entry| matches!(entry.body, Body::Digest(_)))
    }
}

/// Checks that the replay left the log behind entry `changed`, and was caught at entry `digest` at the latest.
fn assert_caught_in_time(ran: &Ran, changed: usize, digest: usize) {
    let divergence = ran.divergence();
    assert!((changed as u64..=digest as u64).contains(&divergence.entry), "{changed} to {digest}: {divergence}");
}

/// Checks that the replay ended at entry `number` of the changed log, with digests that differ; gives the report.
fn assert_caught_by_digest(ran: &Ran, number: usize) -> String {
    let divergence = ran.divergence();
    assert_eq!(divergence.entry, number as u64, "{divergence}");
    assert!(matches!(divergence.difference, Difference::Digest { .. }), "{divergence}");
    let report = divergence.to_string();
    assert!(report.starts_with(&format!("diverged at entry {number}, instant {}: ", divergence.at)), "{report}");
    report
}

#[test]
fn a_tick_one_safepoint_early_or_late() {
    let recorded = computing();
    let tick = recorded.movable_tick();
    for step in [-1, 1] {
        let log = recorded.changed(|_, entries| {
            let at = entries[tick].at;
            entries[tick].at = Instant::new(at.exits, at.polls.strict_add_signed(step));
        });
        let report = assert_caught_by_digest(&log.replay(), recorded.next_digest(tick));
        assert!(report.contains("memory: first differing page 0x"), "{report}");
    }
}

#[test]
fn a_tick_at_an_instant_that_the_guest_does_not_pass() {
    let recorded = mixing();
    let exit = recorded.find(|i, entry| {
        matches!(entry.body, Body::Clock(_)) && recorded.entries[i - 1].at.exits < entry.at.exits && i > 0
    });
    let log = recorded.changed(|_, entries| {
        let at = entries[exit].at;
        // Behind the last safepoint before this exit, and still before the exit.
        let never = Entry { at: Instant::new(at.exits - 1, at.polls + 1), body: Body::Tick };
        entries.insert(exit, never);
    });
    let ran = log.replay();
    assert_eq!(ran.divergence().entry, exit as u64, "{}", ran.divergence());
    assert!(matches!(ran.divergence().difference, Difference::Kind { .. }), "{}", ran.divergence());
}

#[test]
fn a_dropped_entry() {
    // One that found the guest computing: of ticks that find interrupts off, several are one.
    let recorded = computing();
    let tick = recorded.movable_tick();
    let log = recorded.changed(|_, entries| drop(entries.remove(tick)));
    assert_caught_by_digest(&log.replay(), recorded.next_digest(tick) - 1);

    let recorded = mixing();
    let input = recorded.find(|_, entry| matches!(entry.body, Body::Console(_)));
    let log = recorded.changed(|_, entries| drop(entries.remove(input)));
    assert_caught_in_time(&log.replay(), input, recorded.next_digest(input) - 1);

    // What the guest asks for and what it says is missed where it happens.
    for answer in [
        recorded.find(|_, entry| matches!(entry.body, Body::Clock(_))),
        recorded.find(|_, entry| matches!(entry.body, Body::Entropy(_))),
        recorded.find(|_, entry| matches!(entry.body, Body::Output { .. })),
    ] {
        let log = recorded.changed(|_, entries| drop(entries.remove(answer)));
        let ran = log.replay();
        let divergence = ran.divergence();
        assert_eq!(divergence.entry, answer as u64, "{divergence}");
        assert_eq!(divergence.at, recorded.entries[answer].at, "{divergence}");
        assert!(matches!(divergence.difference, Difference::Kind { .. }), "{divergence}");
    }
}

#[test]
fn an_entry_too_many() {
    let recorded = computing();
    let tick = recorded.movable_tick();
    let log = recorded.changed(|_, entries| {
        let at = entries[tick].at;
        entries.insert(tick + 1, Entry { at: Instant::new(at.exits, at.polls + 1), body: Body::Tick });
    });
    assert_caught_by_digest(&log.replay(), recorded.next_digest(tick) + 1);
}

#[test]
fn a_changed_answer() {
    let recorded = mixing();
    let clock = recorded.find(|_, entry| matches!(entry.body, Body::Clock(_)));
    let log = recorded.changed(|_, entries| {
        let Body::Clock(value) = &mut entries[clock].body else { unreachable!() };
        *value += 1;
    });
    assert_caught_in_time(&log.replay(), clock + 1, recorded.next_digest(clock));

    let entropy = recorded.find(|_, entry| matches!(entry.body, Body::Entropy(_)));
    let log = recorded.changed(|_, entries| {
        let Body::Entropy(value) = &mut entries[entropy].body else { unreachable!() };
        *value ^= 1 << 63;
    });
    assert_caught_in_time(&log.replay(), entropy + 1, recorded.next_digest(entropy));

    let input = recorded.find(|_, entry| matches!(entry.body, Body::Console(_)));
    let log = recorded.changed(|_, entries| {
        let Body::Console(input) = &mut entries[input].body else { unreachable!() };
        input.bytes[0] ^= 1;
    });
    assert_caught_in_time(&log.replay(), input + 1, recorded.next_digest(input));
}

#[test]
fn another_output_or_another_end() {
    let recorded = mixing();
    let output = recorded.find(|_, entry| matches!(entry.body, Body::Output { .. }));
    let log = recorded.changed(|_, entries| {
        let Body::Output { check, .. } = &mut entries[output].body else { unreachable!() };
        *check ^= 1;
    });
    assert_eq!(log.replay().divergence().entry, output as u64);

    let end = recorded.entries.len() - 1;
    let log = recorded.changed(|_, entries| entries[end].body = Body::End(EndReason::Exit(1)));
    assert_eq!(log.replay().divergence().entry, end as u64);
}

/// The guest-physical address at which the image's byte `offset` is loaded (ELF64 program headers).
fn loaded_at(image: &[u8], offset: usize) -> u64 {
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| u16::from_le_bytes(image[at..at + 2].try_into().expect("two bytes")) as usize;
    let (table, entry_bytes, entries) = (word(32) as usize, half(54), half(56));
    (0..entries)
        .map(|i| table + i * entry_bytes)
        .filter(|&header| image[header..header + 4] == [1, 0, 0, 0]) // PT_LOAD
        .find_map(|header| {
            let (start, physical, bytes) = (word(header + 8) as usize, word(header + 24), word(header + 32) as usize);
            (start..start + bytes).contains(&offset).then(|| physical + (offset - start) as u64)
        })
        .expect("a loaded byte")
}

/// One byte that nothing ever reads: only the digest of memory can notice, and it must say where.
#[test]
fn one_byte_of_memory() {
    let text = b"no application `";
    let offset = guest::IMAGE.windows(text.len()).position(|bytes| bytes == text).expect("a text of the image");
    let recorded = computing();
    let log = recorded.changed(|boot, _| boot.image[offset] ^= 0x20);
    let first = recorded.entries.iter().position(|entry| matches!(entry.body, Body::Digest(_))).expect("a digest");
    let report = assert_caught_by_digest(&log.replay(), first);
    let page = loaded_at(guest::IMAGE, offset) >> 12;
    let wanted = format!("memory: first differing page {page:#x} (address {:#x})", page << 12);
    assert!(report.ends_with(&wanted) && report.matches(';').count() == 0, "{report}\nwanted: {wanted}");
}

#[test]
fn one_bit_of_every_part_of_a_digest() {
    let recorded = computing();
    let digest = recorded.next_digest(recorded.entries.len() / 2);
    type Change = fn(&mut Digest);
    let change: [(&str, Change); 7] = [
        ("rax is 0x", |digest| digest.registers[0] ^= 1),
        ("rflags is 0x", |digest| digest.registers[17] ^= 1 << 10),
        ("system registers differ", |digest| digest.system ^= 1),
        ("x87/SSE/AVX registers differ", |digest| digest.fpu ^= 1),
        ("device state differ", |digest| digest.devices ^= 1),
        ("memory: first differing page 0x", |digest| {
            digest.memory ^= 1;
            digest.pages[0].check ^= 1;
        }),
        ("memory differs in a page that the digest does not list", |digest| digest.memory ^= 1),
    ];
    for (wanted, change) in change {
        let log = recorded.changed(|_, entries| {
            let Body::Digest(digest) = &mut entries[digest].body else { unreachable!() };
            change(digest);
        });
        let report = assert_caught_by_digest(&log.replay(), digest);
        assert!(report.contains(wanted), "{report}\nwanted: {wanted}");
    }
}

/// The program says the same, for people and for programs, and ends with the status that means it.
#[test]
fn the_command_reports_it_with_status_3() {
    let recorded = computing();
    let tick = recorded.movable_tick();
    let digest = recorded.next_digest(tick);
    let log = recorded.changed(|_, entries| entries[tick].at.polls += 1);

    let output = lockstep(&["replay", path(log.file())]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.starts_with(&format!("diverged at entry {digest}, instant ")), "{}", text(&output));
    assert!(told.contains("first differing page 0x") && told.lines().count() == 1, "{}", text(&output));

    let output = lockstep(&["replay", "--json", path(log.file())]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&told["equivalent"], &told["entry"]), (&false.into(), &digest.into()), "{told}");
    assert_eq!(told["exits"], recorded.entries[digest].at.exits, "{told}");
    assert!(told["difference"].as_str().is_some_and(|text| text.contains("first differing page 0x")), "{told}");
}
