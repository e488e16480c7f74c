//! Promise: the guest's driver works with somebody else's virtio disk; the torture finds a disk that is wrong, and what was flushed is there after
//! the machine has been killed, the key-value server's acknowledged writes among it.

mod common;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use common::PATIENCE;
use common::qemu::Qemu;

/// An empty raw image.
fn image(directory: &tempfile::TempDir, bytes: u64) -> PathBuf {
    let path = directory.path().join("disk.raw");
    File::create(&path).expect("a file").set_len(bytes).expect("a sparse file");
    path
}

#[test]
fn the_torture_finds_every_sector_as_it_left_it_and_one_that_was_changed() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = image(&directory, 16 << 20);
    let (said, code) = Qemu::with_disk("disk operations=4000 seed=7 depth=40", &disk, None).finish();
    assert!(said.contains("disk: 4000 operations, ok"), "{said}");
    assert!(said.contains("disk: the end, ok"), "{said}");
    assert_eq!(code, 0);
    let (said, code) = Qemu::with_disk("disk verify seed=7", &disk, None).finish();
    assert!(said.contains("disk: verified 4000 operations, ok"), "{said}");
    assert_eq!(code, 0);

    // One bit of a sector that a write has left, found by the mark at its beginning.
    let mut file = File::options().read(true).write(true).open(&disk).expect("the image");
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).expect("the image is read");
    let mark = (u64::from_le_bytes(*b"torture1") ^ 7).to_le_bytes();
    let written =
        (16..bytes.len() / 512).rev().find(|&at| bytes[at * 512..].starts_with(&mark)).expect("a written sector");
    file.write_all_at(&[bytes[written * 512 + 300] ^ 1], written as u64 * 512 + 300).expect("the image is written");
    let (said, code) = Qemu::with_disk("disk verify seed=7", &disk, None).finish();
    assert!(said.contains(&format!("disk: WRONG: sector {} should be", written - 16)), "{said}");
    assert_eq!(code, 3);
}

#[test]
fn what_was_flushed_is_there_after_the_machine_was_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = image(&directory, 16 << 20);
    for round in 1..=4 {
        let mut qemu = Qemu::with_disk(&format!("disk operations=0 seed={round} report=500"), &disk, None);
        qemu.expect(&format!("disk: {} operations, ok", round * 1500));
        qemu.kill();
        let (said, code) = Qemu::with_disk(&format!("disk verify seed={round}"), &disk, None).finish();
        assert!(said.contains("disk: verified"), "{said}");
        assert_eq!(code, 0);
    }
}

/// A client of the server; each call is a request and its reply of one line.
struct Client(TcpStream);

impl Client {
    fn connect() -> Self {
        let stream =
            TcpStream::connect_timeout(&SocketAddr::from(([10, 9, 0, 2], 6379)), PATIENCE).expect("the guest accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        stream.set_nodelay(true).expect("a socket option");
        Client(stream)
    }

    fn ask(&mut self, line: &str) -> String {
        self.0.write_all(format!("{line}\r\n").as_bytes()).expect("sent");
        let mut reply = Vec::new();
        while !reply.ends_with(b"\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).expect("a reply");
            reply.push(byte[0]);
        }
        String::from_utf8(reply).expect("text").trim_end().into()
    }
}

#[test]
fn acknowledged_writes_survive_the_machine() {
    assert!(nix::unistd::geteuid().is_root(), "this test makes a network namespace and needs root");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    for arguments in ["tuntap add dev tap0 mode tap", "address add 10.9.0.1/24 dev tap0", "link set tap0 up"] {
        let done = Command::new("ip").args(arguments.split(' ')).status().expect("`ip` runs (iproute2)");
        assert!(done.success(), "ip {arguments}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    // Small: the log is rewritten on the way.
    let disk = image(&directory, 4 << 20);
    let boot = || {
        let command_line = "kv persist=1 ip=10.9.0.2/24 gw=10.9.0.1";
        Qemu::with_disk(command_line, &disk, Some("tap,ifname=tap0,script=no,downscript=no,vnet_hdr=on"))
    };
    let mut acknowledged = 0_u32;
    for round in 0..4 {
        let mut qemu = boot();
        qemu.expect("kv: recovered ");
        qemu.expect("kv: listening on port 6379");
        let mut client = Client::connect();
        if round > 0 {
            assert_eq!(client.ask("INCRBY counter 0"), format!(":{acknowledged}"), "round {round}");
        }
        let filling = "x".repeat(2700);
        for _ in 0..200 {
            let reply = client.ask("INCR counter");
            acknowledged += 1;
            assert_eq!(reply, format!(":{acknowledged}"), "round {round}");
            assert_eq!(client.ask(&format!("SET filling {filling}")), "+OK");
        }
        // One that is not waited for, so that there is something under way.
        client.0.write_all(b"SET last 1\r\n").expect("sent");
        qemu.kill();
    }
    let (said, code) = Qemu::with_disk(
        "kv persist=1 fsync=now ip=10.9.0.2/24",
        &disk,
        Some("tap,ifname=tap0,script=no,downscript=no,vnet_hdr=on"),
    )
    .finish();
    assert!(said.contains("kv: fsync=now: neither always nor everysec nor no"), "{said}");
    assert_eq!(code, 2);
}
