//! The outside of a port: a network namespace with a TAP device, and a raw socket on the host's side of it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread::JoinHandle;

use lockstep::doors::Network;
use lockstep::machine::packets::{HEADER, Packets};
use lockstep::net::port::Port;
use lockstep::net::spec::Backend;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike};
use nix::sys::socket::{bind, recv, send, socket};

use crate::common::eventually;

pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0xbb, 0xcc];
/// Of whoever else is on the cable.
pub const OUTSIDE_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 1, 1];
pub const GUEST_IP: [u8; 4] = [10, 9, 0, 2];
/// The EtherType for experiments: nobody else's frames are taken for ours.
const OURS: [u8; 2] = [0x88, 0xb5];
const TAP: &str = "tap0";

/// A namespace with a TAP device; gone with the test.
pub struct Outside {
    name: String,
    raw: OwnedFd,
}

impl Outside {
    /// Makes it, with the device up.
    #[track_caller]
    pub fn new() -> Outside {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces and needs root");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("np-{}-{}", std::process::id(), COUNT.fetch_add(1, SeqCst));
        ip(&["netns", "add", &name]);
        let placeholder = std::fs::File::open("/dev/null").unwrap().into();
        let mut outside = Outside { name, raw: placeholder };
        // Nothing but what this test sends: no neighbour discovery.
        outside.within(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok());
        outside.ip(&["tuntap", "add", TAP, "mode", "tap"]);
        // What these tests send at once, the device can keep: what is lost is lost in the port.
        outside.ip(&["link", "set", TAP, "up", "txqueuelen", "5000"]);
        outside.raw = outside.within(raw_socket);
        outside
    }

    /// Runs `ip` there.
    #[track_caller]
    pub fn ip(&self, words: &[&str]) {
        ip(&[&["-n", &self.name], words].concat());
    }

    /// Runs `what` on a thread that is there.
    #[track_caller]
    pub fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let space = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&space, CloneFlags::CLONE_NEWNET).expect("root may enter its namespaces");
                what()
            });
            there.join().expect("what is done there does not panic")
        })
    }

    pub fn backend(&self) -> Backend {
        Backend::Tap(TAP.into())
    }

    /// A port on the device, carried by a thread of its own.
    #[track_caller]
    pub fn port(&self) -> Carried {
        let backend = self.backend();
        let port = self.within(move || Port::open(&backend)).expect("the device can be opened");
        self.wait_for_carrier();
        Carried::new(port)
    }

    /// The kernel takes a moment to notice that a device is in use, and throws away what is sent meanwhile. What does get through,
    /// another raw socket sees.
    #[track_caller]
    pub fn wait_for_carrier(&self) {
        let watcher = self.within(raw_socket);
        eventually("the device is in use", || {
            self.send(u32::MAX);
            recv(watcher.as_raw_fd(), &mut [0; 100], MsgFlags::MSG_DONTWAIT).ok()
        });
    }

    /// Listens to the device anew, after it was made anew.
    pub fn again(mut self) -> Outside {
        self.raw = self.within(raw_socket);
        self
    }

    /// Sends a frame with this number to the guest.
    #[track_caller]
    pub fn send(&self, number: u32) {
        let sent = send(self.raw.as_raw_fd(), &frame(OUTSIDE_MAC, number, 60), MsgFlags::empty())
            .expect("the interface takes it");
        assert_eq!(sent, 60);
    }

    /// The next frame that comes from the guest, if one is here.
    pub fn next(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 70_000];
        loop {
            let length = recv(self.raw.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).ok()?;
            // A raw socket sees what it sends itself, too.
            if buffer[6..12] == GUEST_MAC {
                buffer.truncate(length);
                return Some(buffer);
            }
        }
    }

    /// The numbers of the frames that come, until there is one with number `last`.
    #[track_caller]
    pub fn numbers_until(&self, last: u32) -> Vec<u32> {
        let mut numbers = Vec::new();
        eventually("the last frame comes", || {
            numbers.extend(std::iter::from_fn(|| self.next()).filter_map(|frame| number_of(&frame)));
            (numbers.last() == Some(&last)).then_some(())
        });
        numbers
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let done = Command::new("ip").args(["netns", "delete", &self.name]).status();
        assert!(std::thread::panicking() || done.is_ok_and(|status| status.success()));
    }
}

#[track_caller]
fn ip(words: &[&str]) {
    let done = Command::new("ip").args(words).output().expect("there is `ip`");
    assert!(done.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A raw socket on the device of the namespace that this thread is in.
fn raw_socket() -> OwnedFd {
    let kind = SockFlag::SOCK_CLOEXEC;
    let raw = socket(AddressFamily::Packet, SockType::Raw, kind, SockProtocol::EthAll).expect("root may have it");
    let index = nix::net::if_::if_nametoindex(TAP).expect("the device is there");
    // SAFETY: plain old data, for which all zero bytes are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let length = size_of_val(&address) as u32;
    // SAFETY: the pointer is to a whole address of the length that is told.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    bind(raw.as_raw_fd(), &address.expect("a link address")).expect("the device can be listened to");
    nix::sys::socket::setsockopt(&raw, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20)).expect("root may");
    raw
}

/// A frame of the test's own with a number in it.
pub fn frame(from: [u8; 6], number: u32, length: usize) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &from, &OURS, &number.to_be_bytes()].concat();
    frame.resize(length, 0);
    frame
}

/// The number of a frame of the test's own.
pub fn number_of(frame: &[u8]) -> Option<u32> {
    (frame[12..14] == OURS).then(|| u32::from_be_bytes(frame[14..18].try_into().expect("four bytes")))
}

/// A batch of such packets.
pub fn batch(numbers: impl IntoIterator<Item = u32>, length: usize) -> Packets {
    let mut batch = Packets::new();
    numbers
        .into_iter()
        .for_each(|number| assert!(batch.push(&[&[0; HEADER][..], &frame(GUEST_MAC, number, length)].concat())));
    batch
}

/// An ARP request as the guest asks for its gateway.
pub fn arp() -> Packets {
    let mut packet = [&[0; HEADER][..], &[0xff; 6], &GUEST_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &GUEST_MAC].concat();
    packet.extend([&GUEST_IP[..], &[0; 6], &[10, 9, 0, 1], &[0; 18]].concat());
    let mut packets = Packets::new();
    assert!(packets.push(&packet));
    packets
}

/// A port whose packets are carried until this is dropped.
pub struct Carried {
    pub port: Arc<Port>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Carried {
    pub fn new(port: Arc<Port>) -> Carried {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let run = port.clone().run();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = run => panic!("it carries for ever"),
                    _ = stopped => {}
                }
            });
        });
        Carried { port, stop: Some(stop), thread: Some(thread) }
    }

    /// The numbers of the frames that reach the guest, until there is one with number `last`; looks for `room` at a time.
    #[track_caller]
    pub fn numbers_until(&self, last: u32, room: usize) -> Vec<u32> {
        let mut numbers = Vec::new();
        eventually("the last frame comes", || {
            while let Some(packets) = self.port.take(room) {
                assert!(packets.len() <= room);
                assert!(packets.iter().all(|packet| packet[..HEADER] == [0; HEADER]), "no offload, no header");
                numbers.extend(packets.iter().filter_map(|packet| number_of(&packet[HEADER..])));
            }
            (numbers.last() == Some(&last)).then_some(())
        });
        numbers
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking());
        }
    }
}
