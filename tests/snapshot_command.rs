//! Promise: `lockstep snapshot` takes the state of a running guest without harm to it, `run --from` and `record --from` go on from there, what they
//! record replays by itself, and `replay --from-entry` starts at the nearest snapshot in a log.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod recording;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use lockstep::log::entry::Body;
use lockstep::log::file::LogReader;
use lockstep::machine::Tracking;
use lockstep::transfer::file;
use recording::machine::{digests, read_log};
use recording::process::{LOCKSTEP, Process, lockstep, path, text, until};

/// A detached guest, and the address of its console port.
struct Detached {
    process: Process,
    said: Arc<Mutex<String>>,
}

impl Detached {
    fn start(words: &[&str]) -> Detached {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = Command::new(LOCKSTEP);
        command.args(words).stdin(Stdio::null()).stderr(writer);
        let process = Process::spawn_as_is(command);
        let said = Arc::new(Mutex::new(String::new()));
        let kept = said.clone();
        thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                let mut said = kept.lock().expect("not poisoned");
                *said += &line;
                *said += "\n";
            }
        });
        Detached { process, said }
    }

    fn said(&self) -> String {
        self.said.lock().expect("not poisoned").clone()
    }

    fn address(&self) -> String {
        until("the console's address", || {
            let said = self.said();
            let alright = |line: &str| !line.starts_with("lockstep: ") || line.contains("runs detached");
            assert!(said.lines().all(alright), "it does not start: {said}");
            let (_, rest) = said.split_once("runs detached; console ")?;
            rest.split_once('\n').map(|(address, _)| address.to_string())
        })
    }

    fn status(&self) -> serde_json::Value {
        let output = lockstep(&["status", "--json", &self.address()]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    }

    /// Waits until the guest has made so many exits more.
    fn goes_on(&self, exits: u64) {
        let now = self.status()["instant_exits"].as_u64().expect("a number");
        until("the guest to go on", || {
            (self.status()["instant_exits"].as_u64().expect("a number") >= now + exits).then_some(())
        });
    }

    fn does(&self, what: &str) {
        let output = lockstep(&[what, &self.address()]);
        assert!(output.status.success(), "{what}: {}", text(&output));
    }

    fn stop(self) -> String {
        self.does("stop");
        let output = self.process.wait();
        let said = self.said.lock().expect("not poisoned").clone();
        assert!(output.status.code().is_some(), "{said}");
        said
    }
}

fn replayed(words: &[&str]) -> serde_json::Value {
    let output = lockstep(&[&["replay", "--json"], words].concat());
    let told: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    assert_eq!(told["equivalent"], true, "{}", text(&output));
    told
}

fn snapshot(of: &Detached, file: &Path) {
    let output = lockstep(&["snapshot", &of.address(), path(file)]);
    assert!(output.status.success(), "{}\n{}", text(&output), of.said());
    println!("{}", String::from_utf8_lossy(&output.stdout).trim());
}

#[test]
fn a_snapshot_of_a_running_guest_goes_on_is_recorded_and_replays() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    // Recorded all the while: that the snapshot does the running guest no harm, its replay shows.
    let (first, shot) = (at("first.log"), at("shot"));
    let words =
        ["record", "--detached", "--digest-interval", "20", "--guest", "mix", "--memory", "48", "--name", "one"];
    let guest = Detached::start(&[&words[..], &["--log", path(&first), "--", "3", "100000", "hz=1000"]].concat());
    guest.goes_on(50);
    for _ in 0..5 {
        snapshot(&guest, &shot);
    }
    guest.goes_on(50);
    guest.stop();
    assert!(replayed(&[path(&first)])["digests"].as_u64().expect("a number") > 3);

    // From the snapshot on, recorded, with snapshots on the way.
    let second = at("second.log");
    let words = ["record", "--detached", "--digest-interval", "20", "--snapshot-every", "1", "--from", path(&shot)];
    let guest = Detached::start(&[&words[..], &["--log", path(&second)]].concat());
    assert_eq!(guest.status()["vm"], "one");
    until("three snapshots in the log", || {
        let length = std::fs::metadata(&second).map_or(0, |metadata| metadata.len());
        (length > std::fs::metadata(&shot).expect("the snapshot").len() + (1 << 20)).then_some(())
    });
    guest.does("pause");
    guest.does("resume");
    guest.goes_on(2000);
    guest.stop();
    // Without the snapshot, which is in the log.
    std::fs::remove_file(&shot).expect("the snapshot goes");
    let whole = replayed(&[path(&second)]);
    assert_eq!(whole["complete"], true);
    let start = whole["from_entry"].as_u64().expect("a number");
    assert!(start > 50, "{whole}");
    let (_, entries) = read_log(&second);
    assert_eq!(whole["digests"], digests(&entries));
    // From the last entry on, and from those before the first snapshot.
    let last = start + entries.len() as u64 - 1;
    let late = replayed(&["--from-entry", &last.to_string(), path(&second)]);
    let begun = late["from_entry"].as_u64().expect("a number");
    assert!(begun > start && begun <= last, "{late}");
    let behind = &entries[(begun - start) as usize..];
    assert_eq!(late["digests"], digests(behind));
    assert!(digests(behind) > 0, "something was checked");
    let early = replayed(&["--from-entry", &(begun - 1).to_string(), path(&second)]);
    assert!(early["from_entry"].as_u64().expect("a number") < begun, "{early}");
    println!("{} entries from {start} on; the last snapshot before {begun}", entries.len());
    let listed = lockstep(&["log", path(&second)]);
    assert!(listed.status.success(), "{}", text(&listed));
    let listed = text(&listed);
    assert!(listed.contains("snapshot"), "{listed}");
}

#[test]
fn a_guest_that_is_not_recorded_is_snapshot_and_goes_on_too() {
    let directory = tempfile::tempdir().expect("a directory");
    let (shot, log) = (directory.path().join("shot"), directory.path().join("log"));
    let guest = Detached::start(&["run", "--detached", "--guest", "mix", "--", "4", "100000", "hz=1000"]);
    guest.goes_on(20);
    guest.does("pause");
    snapshot(&guest, &shot);
    assert_eq!(guest.status()["guest"], "paused");
    guest.does("resume");
    guest.goes_on(20);
    guest.stop();
    // It was paused, and so is what goes on from there.
    let guest = Detached::start(&["record", "--detached", "--from", path(&shot), "--log", path(&log)]);
    assert_eq!(guest.status()["guest"], "paused");
    guest.does("resume");
    guest.goes_on(20);
    guest.does("reset");
    guest.goes_on(100);
    guest.stop();
    replayed(&[path(&log)]);
    // And once more, without a log.
    let guest = Detached::start(&["run", "--detached", "--from", path(&shot)]);
    guest.does("resume");
    guest.goes_on(20);
    guest.stop();
}

/// The contents of a disk are the operator's to keep: here a copy made while the guest is paused. What was in flight is made once more.
#[test]
fn a_guest_with_a_disk_goes_on_with_a_copy_of_its_image() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let (image, copy, shot, log) = (at("image"), at("copy"), at("shot"), at("log"));
    std::fs::File::create(&image).expect("a file").set_len(8 << 20).expect("room");
    let words = ["record", "--detached", "--guest", "disk", "--digest-interval", "50", "--disk", path(&image)];
    let first = at("first.log");
    let guest = Detached::start(
        &[&words[..], &["--log", path(&first), "--", "seed=5", "operations=60000", "depth=16", "hz=250"]].concat(),
    );
    guest.goes_on(2000);
    guest.does("pause");
    until("the pause", || (guest.status()["guest"] == "paused").then_some(()));
    // What was under way at the image has come to its end, and the guest does not know of it.
    until("the image to come to rest", || {
        let before = std::fs::read(&image).expect("the image");
        thread::sleep(std::time::Duration::from_millis(50));
        (std::fs::read(&image).expect("the image") == before).then_some(())
    });
    let output = lockstep(&["snapshot", &guest.address(), path(&shot)]);
    assert!(output.status.success() && text(&output).contains("has a disk"), "{}", text(&output));
    std::fs::copy(&image, &copy).expect("a copy");
    // And of its stamp, by which it is known.
    std::fs::copy(at("image.lockstep"), at("copy.lockstep")).expect("a copy");
    guest.does("resume");
    guest.goes_on(500);
    guest.stop();
    // Without an image it does not go on.
    let output = lockstep(&["run", "--detached", "--from", path(&shot)]);
    assert!(output.status.code() == Some(1) && text(&output).contains("--disk"), "{}", text(&output));
    // The torture checks all that it reads.
    let words = ["record", "--detached", "--from", path(&shot), "--disk", path(&copy), "--log", path(&log)];
    let guest = Detached::start(&words);
    guest.does("resume");
    guest.goes_on(2000);
    guest.stop();
    // All that was in flight has come to its end.
    let (machine, _) =
        file::machine(&mut LogReader::open(&shot).expect("a snapshot"), Tracking::Off).expect("a machine");
    let (_, entries) = read_log(&log);
    let completed: BTreeSet<u64> = entries
        .iter()
        .filter_map(|entry| if let Body::Disk(completions) = &entry.body { Some(completions) } else { None })
        .flat_map(|completions| completions.iter().map(|completion| completion.id))
        .collect();
    let in_flight = machine.disk_in_flight();
    println!("{} requests in flight, {} completed", in_flight.len(), completed.len());
    assert!(in_flight.iter().all(|request| completed.contains(&request.id)), "{in_flight:?}");
    assert!(completed.len() > 100);
    let told = replayed(&[path(&log)]);
    assert_eq!(told["complete"], true);
    assert!(told["end"].as_str().expect("an end").contains("stopped"), "the guest found nothing wrong: {told}");
}

#[test]
fn what_is_no_snapshot_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let (shot, bad) = (directory.path().join("shot"), directory.path().join("bad"));
    let guest = Detached::start(&["run", "--detached", "--guest", "ticker"]);
    guest.goes_on(5);
    snapshot(&guest, &shot);
    guest.stop();
    let whole = std::fs::read(&shot).expect("the snapshot");
    let refused = |words: &[&str], what: &str| {
        let output = lockstep(&[&["run", "--detached"], words, &["--from", path(&bad)]].concat());
        let told = text(&output);
        assert!(output.status.code() == Some(1) && told.contains(what) && told.lines().count() < 6, "{told}");
    };
    for cut in [10, 40, whole.len() / 2, whole.len() - 100] {
        std::fs::write(&bad, &whole[..cut]).expect("a file");
        refused(&[], "the log ends");
    }
    for place in [whole.len() / 3, whole.len() / 2, whole.len() - 200] {
        let mut damaged = whole.clone();
        damaged[place] ^= 1;
        std::fs::write(&bad, &damaged).expect("a file");
        refused(&[], "checksum");
    }
    std::fs::write(&bad, &whole).expect("a file");
    refused(&["--net", "tap=nonesuch"], "has no network card");
    // A log from a boot on is none.
    let log = directory.path().join("boot.log");
    let recorded = lockstep(&["record", "--detached", "--guest", "probe-unclaimed", "--log", path(&log)]);
    assert!(recorded.status.success(), "{}", text(&recorded));
    std::fs::copy(&log, &bad).expect("a copy");
    refused(&[], "is no snapshot");
    // Nobody is there: no file.
    let nowhere = directory.path().join("nowhere");
    let output = lockstep(&["snapshot", "127.0.0.1:1", path(&nowhere)]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 3, "shot, bad, boot.log");
}
