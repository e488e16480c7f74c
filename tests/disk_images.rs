//! Promise: images that `qemu-img` makes can be used, what is written to them `qemu-img` finds there, and what is no image, or not the kind of image that it was said to be, is refused
//! by name and left as it was.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

#[path = "disk/guest.rs"]
mod guest;
#[path = "disk/host.rs"]
mod host;

use std::path::Path;
use std::process::Command;

use guest::{Guest, SECTORS};
use host::Host;
use lockstep::console::hub::Protection;
use lockstep::disk::DiskError;
use lockstep::doors::Disk;

fn qemu_img(arguments: &[&str], path: &Path) {
    let output = Command::new("qemu-img").args(arguments).arg(path).output().expect("qemu-img: install qemu-utils");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Random requests on the image; what it has to hold at the end.
fn exercise(path: &Path, settings: &str, seed: u64) -> Vec<u8> {
    let disk = Host::open(path, settings).unwrap();
    disk.port.go_live(1, Protection::Unprotected).unwrap();
    let mut guest = Guest::new(seed);
    while guest.completed < 1500 || guest.in_flight() > 0 {
        if guest.completed < 1500 && guest.in_flight() < 40 && guest.dice().below(3) > 0 {
            let requests = guest.ask();
            disk.port.submit(0, requests);
        } else if guest.in_flight() > 0 {
            guest.hear(&disk.wait());
        }
    }
    disk.port.ended().unwrap();
    guest.contents()
}

#[test]
fn a_raw_image_of_qemu_img() {
    let directory = host::directory();
    for options in [&[][..], &["-o", "preallocation=full"][..]] {
        let path = directory.path().join("raw.img");
        let size = (SECTORS * 512).to_string();
        let output =
            Command::new("qemu-img").args(["create", "-q", "-f", "raw"]).args(options).arg(&path).arg(&size).output();
        assert!(output.unwrap().status.success());
        let contents = exercise(&path, ",cache=writeback", 1);
        assert!(std::fs::read(&path).unwrap() == contents);
    }
}

#[test]
fn a_qcow2_image_of_qemu_img() {
    let directory = host::directory();
    for (seed, options) in
        [(1, "compat=1.1"), (2, "compat=0.10"), (3, "cluster_size=4096"), (4, "compat=1.1,lazy_refcounts=on")]
    {
        let path = directory.path().join(format!("{seed}.qcow2"));
        let size = (SECTORS * 512).to_string();
        let made =
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-o", options]).arg(&path).arg(size).output();
        assert!(made.unwrap().status.success());
        let contents = exercise(&path, ",mode=separate,format=qcow2", seed);
        qemu_img(&["check", "-q"], &path);
        let raw = directory.path().join("raw.img");
        let converted = Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&path, &raw]).output().unwrap();
        assert!(converted.status.success());
        assert!(std::fs::read(&raw).unwrap() == contents, "{options}: what qemu-img finds");
        let again = Host::open(&path, ",mode=separate,format=qcow2").unwrap();
        assert_eq!(again.port.config().sectors, SECTORS);
    }
}

#[test]
fn what_is_no_image_is_refused_and_left_alone() {
    let directory = host::directory();
    let qcow2 = directory.path().join("a.qcow2");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&qcow2).arg("1M").output();
    assert!(made.unwrap().status.success());
    let before = std::fs::read(&qcow2).unwrap();
    let error = |path: &Path, settings: &str| Host::open(path, settings).err().expect("refused");
    assert!(matches!(error(&qcow2, ""), DiskError::Format { looks_like: "a qcow2 image", .. }));
    assert!(matches!(error(&qcow2, ",mode=separate"), DiskError::Format { .. }));
    assert_eq!(std::fs::read(&qcow2).unwrap(), before);
    // The operator may know better.
    let looks_so = host::image(directory.path(), "looks.img", 64);
    let mut bytes = vec![0; 64 * 512];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    std::fs::write(&looks_so, bytes).unwrap();
    assert!(matches!(error(&looks_so, ""), DiskError::Format { .. }));
    drop(Host::open(&looks_so, ",cache=writeback,format=raw").unwrap());
    let raw = host::image(directory.path(), "raw.img", 64);
    assert!(matches!(error(&raw, ",mode=separate,format=qcow2"), DiskError::Qcow2 { .. }));
    let odd = host::image(directory.path(), "odd.img", 64);
    std::fs::File::options().write(true).open(&odd).unwrap().set_len(1000).unwrap();
    assert!(matches!(error(&odd, ",cache=writeback"), DiskError::Size { size: 1000, .. }));
    assert!(matches!(error(&host::image(directory.path(), "empty", 0), ""), DiskError::Size { size: 0, .. }));
    assert!(matches!(error(&directory.path().join("none"), ""), DiskError::Image { what: "open", .. }));
    assert!(matches!(error(directory.path(), ""), DiskError::Image { .. }));
    assert!(matches!(error(Path::new("/dev/null"), ""), DiskError::Image { .. } | DiskError::Stamp(_)));
    // One that stands on another.
    let over = directory.path().join("over.qcow2");
    let backing =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).args([&raw, &over]).output();
    assert!(backing.unwrap().status.success());
    assert!(matches!(error(&over, ",mode=separate,format=qcow2"), DiskError::Qcow2 { .. }));
}
