//! Promise: a backup whose execution is not its primary's finds out by itself, says where, keeps the log that shows it, and stops; the
//! primary goes on unprotected, and whoever talks to the guest notices nothing. Shown with a forger in the logging channel that changes
//! one output's check, and makes every checksum right again.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use lockstep::log::codec::Encoder;
use lockstep::log::entry::Body;
use lockstep::log::frame::{self, FrameKind};
use lockstep::log::stream::EntryStream;
use lockstep::replication::message::ENTRIES_HEAD;

use common::console::{Console, status};
use common::eventually;
use common::process::Side;

/// The output that is forged.
const FORGED: u64 = 12;

/// Passes everything on, but for one output.
fn forge(mut from: TcpStream, mut to: TcpStream) {
    let (mut stream, mut encoder, mut outputs) = (EntryStream::new(), Encoder::new(), 0);
    let (mut inbox, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        inbox.extend_from_slice(&chunk[..read]);
        let (mut used, mut out) = (0, Vec::new());
        while let Some((frame, length)) = frame::parse(&inbox[used..]).expect("the primary sends frames") {
            let mut payload = frame.payload.to_vec();
            if frame.kind == FrameKind::Entries {
                let (head, mut rest) = frame.payload.split_at(ENTRIES_HEAD);
                payload = head.to_vec();
                stream.begin(frame.number, frame.count).expect("the entries follow each other");
                while let Some(mut entry) = stream.next(&mut rest).expect("the primary sends entries") {
                    if let Body::Output { check, .. } = &mut entry.body {
                        outputs += 1;
                        *check ^= u32::from(outputs == FORGED);
                    }
                    encoder.encode(&entry, &mut payload).expect("an entry");
                }
            }
            frame::encode(frame.kind, frame.number, frame.count, &payload, &mut out).expect("a frame");
            used += length;
        }
        inbox.drain(..used);
        if to.write_all(&out).is_err() {
            break;
        }
    }
    // Whoever is left notices the end of the connection.
    let _ = to.shutdown(Shutdown::Both);
}

/// Passes everything on.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_backup_that_diverges_stops_and_keeps_the_log_and_the_primary_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let arbiter = directory.path().display();
    let addresses = "--control 127.0.0.1:0 --name forged";
    let arguments =
        format!("primary --arbiter {arbiter} {addresses} --channel 127.0.0.1:0 --timeout 1000 --guest transcript");
    let primary = Side::spawn("primary", &[], &words(&arguments));
    let (channel, console) = (primary.address("channel"), primary.address("console"));

    let forger = TcpListener::bind("127.0.0.1:0").expect("a port");
    let forged = forger.local_addr().expect("bound");
    let relay = thread::spawn(move || {
        let (backup, _) = forger.accept().expect("the backup comes");
        let primary = TcpStream::connect(channel).expect("the primary listens");
        let (there, back) = (primary.try_clone().expect("a descriptor"), backup.try_clone().expect("a descriptor"));
        let acknowledgements = thread::spawn(move || pass(back, there));
        forge(primary, backup);
        acknowledgements.join().expect("no panic");
    });
    let mut backup =
        Side::spawn("backup", &[], &words(&format!("backup --arbiter {arbiter} {addresses} --primary {forged}")));

    let client = Console::attach(std::slice::from_ref(&console), None);
    client.shows("transcript\r\n");
    for _ in 0..FORGED {
        client.type_bytes(b"a line\r");
    }
    assert_eq!(backup.ends().code(), Some(3), "{:?}", backup.said());
    backup.hears("what differs", |line| line.contains("diverged at entry").then_some(()));
    let log = backup.hears("where the log is", |line| Some(line.split_once("lockstep replay ")?.1.to_owned()));
    let replayed = Command::new(env!("CARGO_BIN_EXE_lockstep")).args(["replay", &log]).output().expect("lockstep");
    assert_eq!(replayed.status.code(), Some(3), "{replayed:?}");
    assert!(String::from_utf8_lossy(&replayed.stdout).starts_with("diverged at entry "), "{replayed:?}");
    std::fs::remove_file(&log).expect("the log was kept");

    eventually("the primary is unprotected", || {
        (status(&console, None)?.role == lockstep::console::status::Role::Unprotected).then_some(())
    });
    client.type_bytes(b"after it\r");
    client.shows("after it sum=");
    relay.join().expect("the forger does not panic");
}
