//! Promise: `lockstep log --pcap` gives the packets of a recorded run to other programs: received ones as they are in the log, sent
//! ones, which are not, out of a replay. Shown with a guest that answers an ARP request.

mod recording;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use recording::process::{Process, lockstep, path, text, until};

const GUEST: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const OURS: [u8; 6] = [0x52, 0x54, 0, 9, 9, 9];

/// "Who has 10.9.0.2?", asked by 10.9.0.1.
fn request() -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &OURS, &[8, 6]].concat();
    [&ethernet[..], &[0, 1, 8, 0, 6, 4, 0, 1], &OURS, &[10, 9, 0, 1], &[0; 6], &[10, 9, 0, 2]].concat()
}

fn is_reply(frame: &[u8]) -> bool {
    frame.len() >= 42 && frame[..6] == OURS && frame[6..12] == GUEST && frame[12..14] == [8, 6] && frame[21] == 2
}

/// Asks as a host does, again while nobody answers, and returns the answer.
fn ask(cable: &mut UnixStream) -> Vec<u8> {
    cable.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    let mut arrived = Vec::new();
    until("an answer", || {
        cable.write_all(&[&(request().len() as u32).to_be_bytes()[..], &request()].concat()).expect("the guest's side");
        let mut bytes = [0; 4096];
        loop {
            match cable.read(&mut bytes) {
                Ok(0) => panic!("the guest's side closed the cable"),
                Ok(count) => arrived.extend_from_slice(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Err(error) => panic!("{error}"),
            }
            while let Some(length) = arrived.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize) {
                if arrived.len() < 4 + length {
                    break;
                }
                let frame: Vec<u8> = arrived.drain(..4 + length).skip(4).collect();
                if is_reply(&frame) {
                    return Some(frame);
                }
            }
        }
    })
}

/// The frames of a capture, with their times in nanoseconds.
fn frames(file: &Path) -> Vec<(u64, Vec<u8>)> {
    let bytes = std::fs::read(file).expect("the capture");
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(20)), (0xa1b2_3c4d, 1), "nanoseconds, Ethernet");
    let (mut at, mut frames) = (24, Vec::new());
    while at < bytes.len() {
        let length = word(at + 8) as usize;
        let time_ns = u64::from(word(at)) * 1_000_000_000 + u64::from(word(at + 4));
        frames.push((time_ns, bytes[at + 16..at + 16 + length].to_vec()));
        at += 16 + length;
    }
    frames
}

#[test]
fn the_packets_of_a_recorded_run_are_extracted() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name| directory.path().join(name);
    let (cable, log, all, received) = (file("cable"), file("echo.log"), file("all.pcap"), file("received.pcap"));
    let listener = UnixListener::bind(&cable).expect("a socket");
    let net = format!("socket={},mac=52:54:00:01:02:03,ip=10.9.0.2/24", path(&cable));
    let recorder = Process::start(&["record", "--detached", "--log", path(&log), "--guest", "echo", "--net", &net]);
    let (mut stream, _) = listener.accept().expect("the guest's side");
    let reply = ask(&mut stream);
    recorder.signal(Signal::SIGTERM);
    let output = recorder.wait();
    assert!(output.status.code().is_some(), "{}", text(&output));

    let output = lockstep(&["log", path(&log), "--pcap", path(&all)]);
    assert!(output.status.success(), "{}", text(&output));
    let output = lockstep(&["log", path(&log), "--pcap", path(&received), "--pcap-received-only"]);
    assert!(output.status.success(), "{}", text(&output));

    let (all, received) = (frames(&all), frames(&received));
    let position = |what: &[u8]| all.iter().position(|(_, frame)| frame == what);
    let (asked, answered) = (position(&request()).expect("the request"), position(&reply).expect("the reply"));
    assert!(asked < answered);
    assert!(all.is_sorted_by_key(|(time_ns, _)| *time_ns));
    assert!(received.iter().all(|(_, frame)| *frame == request()), "{received:x?}");
    let requests = all.iter().filter(|(_, frame)| *frame == request()).count();
    assert_eq!(requests, received.len());

    let output = lockstep(&["log", path(&log), "--summary", "--json"]);
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let network = &summary["network"];
    assert_eq!(network["received"]["packets"], requests);
    assert_eq!(network["sent"]["packets"], all.len() - requests);
}
