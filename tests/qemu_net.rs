//! Promise: the guest's network is a standard one. On somebody else's virtio network card, with Linux at the other end, it takes an
//! address, answers ping, and serves TCP and UDP: nothing is lost or altered, many clients may come at once, one that
//! does not read is not buffered without bound, and misuse is answered.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Barrier;

use common::qemu::Qemu;
use common::{PATIENCE, Random, seed};

/// Settings for a guest at 10.9.0.2.
const ADDRESS: &str = "ip=10.9.0.2/24 gw=10.9.0.1";

/// Moves this thread, and what it starts, into a network of its own: only a TAP device `tap0` with address 10.9.0.1. It goes away with
/// the last who is in it.
fn own_network() {
    assert!(nix::unistd::geteuid().is_root(), "this test makes a network namespace and needs root");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    for arguments in ["tuntap add dev tap0 mode tap", "address add 10.9.0.1/24 dev tap0", "link set tap0 up"] {
        let done = Command::new("ip").args(arguments.split(' ')).status().expect("`ip` runs (iproute2)");
        assert!(done.success(), "ip {arguments}");
    }
}

/// A card that leaves nothing of the checksums and the segmentation to the other side.
const PLAIN: &[&str] = &["csum=off", "guest_csum=off", "guest_tso4=off", "host_tso4=off"];
/// A card that leaves to the other side what it can.
const OFFLOADING: &[&str] = &["csum=on", "guest_csum=on", "guest_tso4=on", "host_tso4=on"];

/// A guest with a plain card in a network of its own, where it has said `ready`.
fn guest(command_line: &str, ready: &str) -> Qemu {
    guest_with(PLAIN, command_line, ready)
}

/// A guest with a card that has these options in a network of its own, where it has said `ready`.
fn guest_with(card: &[&str], command_line: &str, ready: &str) -> Qemu {
    own_network();
    let tap = "tap,ifname=tap0,script=no,downscript=no,vnet_hdr=on";
    let mut qemu = Qemu::networked(&format!("{command_line} {ADDRESS}"), tap, card);
    qemu.expect("net: 10.9.0.2/24 gateway 10.9.0.1 mac 52-54-00-12-34-56\r\n");
    qemu.expect(ready);
    qemu
}

#[track_caller]
fn connect(port: u16) -> TcpStream {
    try_connect(port).expect("the guest accepts")
}

fn try_connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from(([10, 9, 0, 2], port)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn bytes(length: usize) -> Vec<u8> {
    let mut random = Random::new(seed());
    (0..length).map(|_| random.below(256) as u8).collect()
}

/// Sends `bytes` and reads as many, at the same time.
fn exchange(stream: &TcpStream, bytes: &[u8]) -> Vec<u8> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = stream;
            stream.write_all(bytes).expect("the guest takes what is sent");
        });
        let (mut back, mut stream) = (vec![0; bytes.len()], stream);
        stream.read_exact(&mut back).expect("the guest sends it back");
        back
    })
}

#[test]
fn echo_sends_back_what_comes() {
    echo_sends_back(PLAIN);
}

#[test]
fn echo_sends_back_what_comes_with_offloads() {
    echo_sends_back(OFFLOADING);
}

fn echo_sends_back(card: &[&str]) {
    let _qemu = guest_with(card, "echo", "echo: answering datagrams on port 7\r\n");
    for size in ["56", "1400"] {
        // One at a time: once a `ping` has had an answer, it waits for the others for two round trips only.
        for _ in 0..3 {
            let ping = Command::new("ping").args(["-c", "1", "-W", "20", "-s", size, "10.9.0.2"]).output();
            let ping = ping.expect("`ping` runs (iputils-ping)");
            let said = String::from_utf8_lossy(&ping.stdout).into_owned();
            assert!(said.contains("1 packets transmitted, 1 received"), "{said}");
        }
    }

    let stream = connect(7);
    let sent = bytes(8 << 20);
    assert!(exchange(&stream, &sent) == sent, "8 MiB come back altered");
    for length in [1, 1459, 1460, 1461, 65_535, 65_536, 65_537] {
        assert!(exchange(&stream, &sent[..length]) == sent[..length], "{length} bytes come back altered");
    }
    // The client says that it is done; so does the guest.
    stream.shutdown(Shutdown::Write).expect("the connection is there");
    assert_eq!((&stream).read(&mut [0]).expect("an orderly end"), 0);

    let socket = UdpSocket::bind("10.9.0.1:0").expect("a UDP socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    socket.connect("10.9.0.2:7").expect("a UDP socket");
    for length in [0, 1, 1472] {
        socket.send(&sent[..length]).expect("sent");
        let mut back = [0; 2000];
        let received = socket.recv(&mut back).expect("a datagram comes back");
        assert_eq!((received, &back[..received]), (length, &sent[..length]));
    }
}

/// Far more than listen at any moment, all at the same time: nobody is refused, and everybody is served.
#[test]
fn many_clients_come_at_once() {
    const CLIENTS: usize = 200;
    let _qemu = guest("echo port=1007", "echo: listening on port 1007\r\n");
    let (start, connected) = (Barrier::new(CLIENTS), Barrier::new(CLIENTS));
    for _round in 0..2 {
        std::thread::scope(|scope| {
            for number in 0..CLIENTS {
                let (start, connected) = (&start, &connected);
                scope.spawn(move || {
                    start.wait();
                    let stream = try_connect(1007);
                    // Also those who fail, or the others would wait for them for ever.
                    connected.wait();
                    let stream = stream.expect("the guest accepts");
                    let said = format!("client {number} ").repeat(500);
                    assert!(exchange(&stream, said.as_bytes()) == said.as_bytes(), "client {number}");
                });
            }
        });
    }
    // And more in a row than there can be at once, whichever side closes first.
    for number in 0..400 {
        let stream = connect(1007);
        assert_eq!(exchange(&stream, b"once"), b"once");
        if number % 2 == 0 {
            stream.shutdown(Shutdown::Write).expect("the connection is there");
            assert_eq!((&stream).read(&mut [0]).expect("an orderly end"), 0);
        }
    }
}

/// More clients than the guest takes: those who are too many are not refused, but have their turn when others have gone.
#[test]
fn who_is_too_much_waits_for_a_place() {
    let _qemu = guest("stream", "stream: listening on port 5002\r\n");
    std::thread::scope(|scope| {
        for number in 0..40 {
            scope.spawn(move || {
                let mut sink = connect(5001);
                sink.write_all(&[0; 1000]).expect("the guest takes it");
                sink.shutdown(Shutdown::Write).expect("the connection is there");
                let mut said = String::new();
                sink.read_to_string(&mut said).expect("an orderly end");
                assert_eq!(said, "1000 bytes\n", "client {number}");
            });
        }
    });
}

/// Without a timer nothing but the card's interrupts wakes the guest: one that is lost, in either direction, is waited for in vain.
#[test]
fn the_card_wakes_the_guest() {
    let mut qemu = guest("stream hz=0 bytes=20000000", "stream: listening on port 5001\r\n");
    qemu.expect("stream: listening on port 5002\r\n");
    for round in 0..300 {
        let mut sink = connect(5001);
        sink.write_all(b"four").expect("the guest takes it");
        sink.shutdown(Shutdown::Write).expect("the connection is there");
        let mut said = String::new();
        sink.read_to_string(&mut said).expect("an orderly end");
        assert_eq!(said, "4 bytes\n", "round {round}");
    }
    // More than the ring holds: the guest has to wait for room.
    let mut given = Vec::new();
    connect(5002).read_to_end(&mut given).expect("an orderly end");
    assert_eq!(given.len(), 20_000_000);
}

/// A client that only sends is made to wait; when it reads at last, nothing is missing.
#[test]
fn who_does_not_read_has_to_wait() {
    let _qemu = guest("echo", "echo: listening on port 7\r\n");
    let stream = connect(7);
    let sent = bytes(16 << 20);
    stream.set_nonblocking(true).expect("a socket option");
    let mut written = 0;
    // Full when the socket stays so while another client is served a hundred times.
    loop {
        match (&stream).write(&sent[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let other = connect(7);
                (0..100).for_each(|_| assert_eq!(exchange(&other, b"tick"), b"tick"));
                match (&stream).write(&sent[written..]) {
                    Ok(length) => written += length,
                    Err(_) => break,
                }
            }
            Err(error) => panic!("{error}"),
        }
        assert!(written < sent.len(), "the guest takes {written} bytes from a client that reads nothing");
    }
    stream.set_nonblocking(false).expect("a socket option");
    let mut back = vec![0; written];
    (&stream).read_exact(&mut back).expect("what was taken comes back");
    assert!(back == sent[..written], "it comes back altered");
}

/// An answer's status, head and body.
fn read_answer(reader: &mut impl BufRead) -> (String, String, Vec<u8>) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).expect("an answer") > 0, "the answer ends in its head: {head:?}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    reader.read_exact(&mut body).expect("the body");
    let status = head.lines().next().expect("a status line").to_owned();
    (status, head, body)
}

#[test]
fn http_keeps_connections_and_answers_misuse() {
    let _qemu = guest("http", "http: listening on port 80\r\n");
    let stream = connect(80);
    let mut reader = BufReader::new(&stream);
    for count in 1..=50 {
        (&stream).write_all(b"GET /counter HTTP/1.1\r\nHost: guest\r\n\r\n").expect("sent");
        let (status, _, body) = read_answer(&mut reader);
        assert_eq!(status, "HTTP/1.1 200 OK");
        let start = format!(r#"{{"counter":{count},"connections":1,"#);
        assert!(body.starts_with(start.as_bytes()), "{}", String::from_utf8_lossy(&body));
    }
    // Many requests in one write.
    (&stream).write_all("GET / HTTP/1.1\r\nHost: guest\r\n\r\n".repeat(100).as_bytes()).expect("sent");
    for _ in 0..100 {
        let (status, _, body) = read_answer(&mut reader);
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(body.ends_with(b"</html>\n"));
    }
    (&stream).write_all(b"GET /nothing HTTP/1.1\r\nHost: guest\r\n\r\n").expect("sent");
    assert_eq!(read_answer(&mut reader).0, "HTTP/1.1 404 Not Found");
    (&stream).write_all(b"PUT / HTTP/1.1\r\nHost: guest\r\nContent-Length: 3\r\n\r\nabc").expect("sent");
    assert_eq!(read_answer(&mut reader).0, "HTTP/1.1 405 Method Not Allowed");

    let endless = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 10_000]].concat();
    for (misuse, status) in [
        (b"this is not HTTP\r\n\r\n".as_slice(), "HTTP/1.1 400 Bad Request"),
        (&endless, "HTTP/1.1 431 Request Header Fields Too Large"),
    ] {
        let stream = connect(80);
        (&stream).write_all(misuse).expect("sent");
        let mut reader = BufReader::new(&stream);
        assert_eq!(read_answer(&mut reader).0, status);
        assert_eq!(reader.read(&mut [0]).expect("an orderly end"), 0);
    }
    // Others are not disturbed.
    (&stream).write_all(b"GET /counter HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n").expect("sent");
    assert_eq!(read_answer(&mut reader).0, "HTTP/1.1 200 OK");
    assert_eq!(reader.read(&mut [0]).expect("an orderly end"), 0);
}

#[test]
fn stream_takes_and_gives_bulk_data() {
    stream_takes_and_gives(PLAIN);
}

/// And it comes and goes in packets larger than the wire's.
#[test]
fn stream_takes_and_gives_bulk_data_with_offloads() {
    stream_takes_and_gives(OFFLOADING);
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev").expect("the network's counters");
    let counters = devices.lines().find_map(|line| line.trim().strip_prefix("tap0:")).expect("the TAP device's");
    let counters: Vec<u64> = counters.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    // Bytes and packets: from the guest, to the guest.
    for (bytes, packets) in [(counters[0], counters[1]), (counters[8], counters[9])] {
        assert!(bytes > 20_000_000 && bytes / packets > 3000, "{bytes} bytes in {packets} packets");
    }
}

fn stream_takes_and_gives(card: &[&str]) {
    const BYTES: usize = 20_000_001;
    let mut qemu = guest_with(card, &format!("stream bytes={BYTES}"), "stream: listening on port 5001\r\n");
    qemu.expect("stream: listening on port 5002\r\n");
    let mut sink = connect(5001);
    sink.write_all(&bytes(BYTES)).expect("the guest takes it");
    sink.shutdown(Shutdown::Write).expect("the connection is there");
    let mut said = String::new();
    sink.read_to_string(&mut said).expect("an orderly end");
    assert_eq!(said, format!("{BYTES} bytes\n"));

    let mut given = Vec::new();
    connect(5002).read_to_end(&mut given).expect("an orderly end");
    assert_eq!(given.len(), BYTES);
    assert!(given.iter().enumerate().all(|(at, &byte)| byte == (at % 251) as u8), "altered");
}

#[test]
fn an_address_by_dhcp() {
    let mut qemu = Qemu::networked("echo", "user", &[]);
    qemu.expect("net: asking for an address, mac 52-54-00-12-34-56\r\n");
    qemu.expect("net: 10.0.2.15/24 gateway 10.0.2.2 mac 52-54-00-12-34-56\r\n");
}

#[test]
fn what_cannot_be_is_said() {
    for (settings, complaint, code) in [
        ("ip=10.9.0.2", "echo: ip=10.9.0.2: neither `dhcp` nor an address like 10.9.0.2/24", 2),
        ("ip=10.9.0.2/33", "echo: ip=10.9.0.2/33: neither `dhcp` nor an address like 10.9.0.2/24", 2),
        ("ip=10.9.0.2/24 gw=there", "echo: gw=there: not an address like 10.9.0.1", 2),
        ("port=0", "echo: port=0: not a number from 1 to 65535", 2),
        ("hz=0", "echo: an address by DHCP needs the timer (hz=0 turns it off)", 2),
        ("ip=10.9.0.2/24", "echo: this machine has no network card", 1),
    ] {
        let (said, ended) = Qemu::builtin(&format!("echo {settings}")).finish();
        assert!(said.contains(&format!("{complaint}\r\n")), "{settings}:\n{said}");
        assert_eq!(ended, code, "{settings}");
    }
}
