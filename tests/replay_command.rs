//! Promise: the log file is all that a replay needs. Another process with another memory layout replays it; a log whose
//! writer was killed replays to its end and is called incomplete; a log of a guest whose processor this host cannot
//! offer is refused with the leaf named; and `--json` says for programs what the text says for people.

mod recording;

use lockstep::log::entry::Body;
use lockstep::machine::doors::EndReason;
use nix::sys::signal::Signal;
use recording::machine::{Recording, boot, digests, read_log, record, write_log};
use recording::process::{LOCKSTEP, Process, lockstep, path, text, until};
use std::process::Command;

fn json(output: &std::process::Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

/// Through the program on both sides, and once more without address space randomisation.
#[test]
fn another_process_replays_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("mix.log");
    let arguments = ["record", "--detached", "--digest-interval", "10", "--log", path(&file), "--guest", "mix"];
    let output = lockstep(&[&arguments[..], &["--memory", "48", "--", "9", "4", "hz=1000"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    let (_, entries) = read_log(&file);
    assert_eq!(entries.last().map(|entry| &entry.body), Some(&Body::End(EndReason::Exit(0))));
    let events = entries.iter().filter(|entry| matches!(entry.body, Body::Tick | Body::Clock(_) | Body::Entropy(_)));
    let (events, digests) = (events.count() as u64, digests(&entries));
    assert!(events > 100 && digests > 5, "{events} events, {digests} digests");

    let output = lockstep(&["replay", path(&file)]);
    assert!(output.status.success(), "{}", text(&output));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.starts_with(&format!("equivalent, {events} events, {digests} digests")), "{}", text(&output));
    assert_eq!(told.lines().nth(1), Some("the guest ended with code 0"), "{}", text(&output));

    let mut command = Command::new("setarch");
    command.args(["--addr-no-randomize", LOCKSTEP, "replay", "--json", path(&file)]);
    let output = Process::spawn(command).wait();
    assert!(output.status.success(), "{}", text(&output));
    let told = json(&output);
    assert_eq!((&told["equivalent"], &told["complete"]), (&true.into(), &true.into()), "{told}");
    assert_eq!((&told["events"], &told["digests"]), (&events.into(), &digests.into()), "{told}");
    assert_eq!(told["end"], "the guest ended with code 0", "{told}");
    assert!(told["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{told}");

    let output = lockstep(&["replay", "--show", path(&file)]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains("mix end "), "{}", text(&output));
}

#[test]
fn the_log_of_a_killed_recorder_replays_to_its_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("killed.log");
    let arguments = ["record", "--detached", "--digest-interval", "5", "--log", path(&file), "--guest", "mix"];
    let recorder = Process::start(&[&arguments[..], &["--", "11", "1000000", "hz=1000"]].concat());
    let boot_bytes = lockstep::guest::IMAGE.len() as u64;
    until("the log to grow", || std::fs::metadata(&file).ok().filter(|file| file.len() > boot_bytes + (16 << 10)));
    recorder.signal(Signal::SIGKILL);
    let output = recorder.wait();
    assert_eq!(output.status.code(), None, "killed: {}", text(&output));

    // Also with its last frame cut, as a full disk or a lost machine leaves it.
    let bytes = std::fs::read(&file).expect("the log");
    let cut = directory.path().join("cut.log");
    std::fs::write(&cut, &bytes[..bytes.len() - 7]).expect("a file");
    for file in [&file, &cut] {
        let output = lockstep(&["replay", path(file)]);
        assert!(output.status.success(), "{}", text(&output));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.starts_with("equivalent, ") && !told.starts_with("equivalent, 0 events"), "{}", text(&output));
        assert!(told.contains("the log is incomplete"), "{}", text(&output));

        let output = lockstep(&["replay", "--json", path(file)]);
        let told = json(&output);
        assert_eq!((&told["equivalent"], &told["complete"]), (&true.into(), &false.into()), "{told}");
        assert!(told["end"].is_null() && told["digests"].as_u64() > Some(0), "{told}");
    }
}

#[test]
fn a_processor_that_this_host_cannot_offer_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("log");
    record(&boot("mix 1 1"), &file, Recording::default());
    let (boot, entries) = read_log(&file);
    type Change = fn(u32) -> u32;
    let change: [(u32, usize, Change, &str); 4] = [
        (0, 1, |_| u32::from_le_bytes(*b"Nobo"), "leaf 0x0, ebx"),
        (1, 0, |signature| signature ^ 0x10, "leaf 0x1, eax"),
        (1, 3, |features| features | 1 << 20, "leaf 0x1, edx"), // reserved: no processor has it
        (0x8000_0001, 3, |features| features | 1 << 10, "leaf 0x80000001, edx"), // reserved, too
    ];
    for (leaf, register, change, named) in change {
        let mut foreign = boot.clone();
        let entry = foreign.cpuid.iter_mut().find(|entry| entry.leaf == leaf).expect("a leaf of the template");
        entry.registers[register] = change(entry.registers[register]);
        write_log(&file, &foreign, &entries);
        let output = lockstep(&["replay", path(&file)]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(named) && told.lines().count() == 1, "{}", text(&output));
    }
}
