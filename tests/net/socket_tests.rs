//! The port on a stream socket, as of QEMU and passt.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use lockstep::console::hub::Protection;
use lockstep::doors::Network;
use lockstep::machine::packets::{HEADER, Packets};
use lockstep::net::NetError;
use lockstep::net::cable::CableError;
use lockstep::net::port::Port;
use lockstep::net::socket::SocketError;
use lockstep::net::spec::Backend;

use crate::common::{Random, eventually, seed};
use crate::outside::{Carried, OUTSIDE_MAC, batch, frame, number_of};

/// The listener, and its end of the connection.
struct Peer {
    listener: UnixListener,
    stream: UnixStream,
    /// What was read and is no whole frame yet.
    pending: Vec<u8>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

fn connected() -> (Peer, Carried) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let listener = UnixListener::bind(&path).unwrap();
    let carried = Carried::new(Port::open(&Backend::Socket(path.clone())).expect("somebody listens"));
    let stream = listener.accept().unwrap().0;
    let mut peer = Peer { listener, stream, pending: Vec::new(), path, _directory: directory };
    peer.use_stream();
    (peer, carried)
}

impl Peer {
    fn use_stream(&mut self) {
        self.stream.set_nonblocking(true).unwrap();
        self.pending.clear();
    }

    /// Waits until the port connects anew.
    fn accept_again(&mut self) {
        self.stream = self.listener.accept().unwrap().0;
        self.use_stream();
    }

    /// Sends these bytes in pieces of at most `piece`.
    fn send(&mut self, bytes: &[u8], piece: usize) {
        for part in bytes.chunks(piece) {
            let mut rest = part;
            eventually("it is read", || {
                match self.stream.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                rest.is_empty().then_some(())
            });
        }
    }

    /// Reads at most `most` bytes; `None` at the end of the connection.
    fn read(&mut self, most: usize) -> Option<usize> {
        let mut buffer = vec![0; most];
        match self.stream.read(&mut buffer) {
            Ok(0) => None,
            Ok(length) => {
                self.pending.extend_from_slice(&buffer[..length]);
                Some(length)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
            Err(error) => panic!("{error}"),
        }
    }

    /// The whole frames among what was read.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some((prefix, rest)) = self.pending.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*prefix) as usize;
            let Some(frame) = rest.get(..length) else { break };
            frames.push(frame.to_vec());
            self.pending.drain(..4 + length);
        }
        frames
    }

    /// The numbers of the frames up to number `last`, read in pieces.
    fn numbers_until(&mut self, last: u32, random: &mut Random) -> Vec<u32> {
        let mut numbers = Vec::new();
        eventually("the last frame comes", || {
            self.read(1 + random.below(100_000) as usize).expect("the connection stays");
            numbers.extend(self.frames().iter().filter_map(|frame| number_of(frame)));
            (numbers.last() == Some(&last)).then_some(())
        });
        numbers
    }
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

fn inbound(number: u32, length: usize) -> Vec<u8> {
    framed(&frame(OUTSIDE_MAC, number, length))
}

#[test]
fn frames_reach_the_guest_however_they_are_cut() {
    let mut random = Random::new(seed());
    for piece in [1, 3, 61, 5000, usize::MAX] {
        let (mut peer, carried) = connected();
        carried.port.go_live(Protection::Unprotected);
        // Also the longest frame, and one that is none, which is left out.
        let mut bytes: Vec<u8> = (0..60).flat_map(|n| inbound(n, 60 + random.below(1400) as usize)).collect();
        bytes.extend(framed(&[1, 2, 3]));
        bytes.extend(framed(&[]));
        bytes.extend(inbound(60, Packets::MAX_PACKET - HEADER));
        bytes.extend(inbound(61, 60));
        peer.send(&bytes, piece);
        assert_eq!(carried.numbers_until(61, 16), (0..62).collect::<Vec<_>>());
    }
}

#[test]
fn what_came_before_this_host_was_live_is_not_for_it() {
    let (mut peer, carried) = connected();
    let whole: Vec<u8> = (0..10).flat_map(|n| inbound(n, 300)).collect();
    // It ends within a frame.
    let cut = whole.len() - 100;
    peer.send(&whole[..cut], usize::MAX);
    carried.port.go_live(Protection::Unprotected);
    peer.send(&whole[cut..], usize::MAX);
    peer.send(&inbound(10, 60), usize::MAX);
    let numbers = carried.numbers_until(10, 256);
    assert!(numbers == [9, 10] || numbers == [10], "the frames stay frames: {numbers:?}");
}

#[test]
fn a_slow_reader_loses_nothing() {
    let mut random = Random::new(seed());
    let (mut peer, carried) = connected();
    carried.port.go_live(Protection::HeldFrom(0));
    for entry in 0..40 {
        carried.port.sent(entry, batch((0..50).map(|n| entry as u32 * 50 + n), 1514));
    }
    for below in [1, 2, 30, 40] {
        carried.port.release(below);
    }
    eventually("the socket is full", || {
        let counters = carried.port.counters();
        (counters.tx_held > 0 && counters.tx_held < 2000).then_some(())
    });
    assert_eq!(peer.numbers_until(1999, &mut random), (0..2000).collect::<Vec<_>>());
    let counters = carried.port.counters();
    assert_eq!((counters.tx_packets, counters.tx_bytes, counters.tx_dropped), (2000, 2000 * 1514, 0));
}

#[test]
fn what_waits_is_bounded() {
    let (_peer, carried) = connected();
    carried.port.go_live(Protection::HeldFrom(0));
    // 256 packets of 1,526 bytes are 0.37 MiB.
    for entry in 0..100 {
        carried.port.sent(entry, batch(0..160, 1514));
    }
    let counters = carried.port.counters();
    assert!(counters.tx_dropped > 0 && counters.tx_held * 1526 <= 16 << 20, "{counters:?}");
    assert_eq!(counters.tx_dropped + counters.tx_held, 16_000);
}

#[test]
fn a_hold_stops_what_was_released_and_not_taken() {
    let mut random = Random::new(seed());
    let (mut peer, carried) = connected();
    carried.port.go_live(Protection::HeldFrom(0));
    for entry in 0..20 {
        carried.port.sent(entry, batch((0..100).map(|n| entry as u32 * 100 + n), 1514));
    }
    carried.port.release(20);
    eventually("the socket is full", || {
        let before = carried.port.counters();
        (before.tx_held < 2000 && before == carried.port.counters()).then_some(())
    });
    carried.port.hold();
    let at_hold = carried.port.counters().tx_packets;
    let mut numbers = Vec::new();
    eventually("the socket is empty", || {
        let read = peer.read(10_000).expect("the connection stays");
        numbers.extend(peer.frames().iter().filter_map(|frame| number_of(frame)));
        // Read until nothing comes: whatever left before the hold is in the socket already.
        (read == 0).then_some(())
    });
    assert_eq!(numbers.len() as u64, at_hold, "nothing has left since");
    assert!(at_hold < 2000);
    carried.port.release(20);
    numbers.extend(peer.numbers_until(1999, &mut random));
    assert_eq!(numbers, (0..2000).collect::<Vec<_>>(), "and no frame is broken");
}

#[test]
fn a_machine_that_is_lost_within_a_frame_leaves_the_connection() {
    let (mut peer, carried) = connected();
    carried.port.go_live(Protection::Unprotected);
    // Longer than a socket takes at once.
    let mut long = Packets::new();
    let whole = frame(crate::outside::GUEST_MAC, 1, Packets::MAX_PACKET - HEADER);
    while long.push(&[&[0; HEADER][..], &whole].concat()) {}
    (0..10).for_each(|entry| carried.port.sent(entry, long.clone()));
    eventually("the socket is full", || (carried.port.counters().tx_packets > 0).then_some(()));
    carried.port.not_live();
    let mut read = 0;
    eventually("the connection ends", || match peer.read(100_000) {
        Some(length) => {
            read += length;
            None
        }
        None => Some(()),
    });
    assert!(peer.frames().len() < 30 && read > 0);
    peer.accept_again();
}

#[test]
fn a_connection_that_ends_is_made_anew() {
    let mut random = Random::new(seed());
    let (mut peer, carried) = connected();
    carried.port.go_live(Protection::Unprotected);
    carried.port.sent(0, batch([0], 100));
    assert_eq!(peer.numbers_until(0, &mut random), [0]);
    peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
    peer.accept_again();
    peer.send(&inbound(5, 60), 7);
    assert_eq!(carried.numbers_until(5, 256), [5]);
    carried.port.sent(1, batch([1], 100));
    assert_eq!(peer.numbers_until(1, &mut random), [1]);
}

#[test]
fn a_listener_that_comes_back_later_is_found() {
    let (mut peer, carried) = connected();
    carried.port.go_live(Protection::Unprotected);
    std::fs::remove_file(&peer.path).unwrap();
    peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
    carried.port.sent(0, batch([0], 100));
    eventually("the cable is out", || {
        carried.port.sent(0, batch([0], 100));
        (carried.port.counters().tx_dropped > 0).then_some(())
    });
    peer.listener = UnixListener::bind(&peer.path).unwrap();
    peer.accept_again();
    peer.send(&inbound(5, 60), 7);
    assert_eq!(carried.numbers_until(5, 256), [5]);
}

#[test]
fn an_impossible_length_ends_the_connection() {
    for length in [Packets::MAX_PACKET - HEADER + 1, u32::MAX as usize] {
        let (mut peer, carried) = connected();
        carried.port.go_live(Protection::Unprotected);
        peer.send(&[&inbound(1, 60)[..], &(length as u32).to_be_bytes()].concat(), usize::MAX);
        eventually("the connection ends", || peer.read(100).is_none().then_some(()));
        assert_eq!(carried.numbers_until(1, 256), [1], "what came before it counts");
        peer.accept_again();
    }
}

#[test]
fn nobody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net");
    let failed = || match Port::open(&Backend::Socket(path.clone())) {
        Err(NetError::Cable(CableError::Socket(error @ SocketError::Connect { .. }))) => error,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("nobody listens"),
    };
    assert!(failed().to_string().contains("start what listens there first"));
    drop(UnixListener::bind(&path).unwrap());
    failed();
}
