//! Ears on the switch: every frame that comes out of the guest's card, in the order in which the ports took them in.
//!
//! One packet socket listens on all ports, so the kernel itself brings the frames of all hosts into one order.

use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::site::{MAC, Site, within};

/// A frame of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// From host a (0), b (1), ….
    pub side: usize,
    /// When the listener had it.
    pub at: Instant,
    /// Its Ethernet type.
    pub kind: u16,
}

/// Ethernet types of ARP and RARP.
pub const ANNOUNCEMENTS: [u16; 2] = [0x0806, 0x8035];

/// The listener.
pub struct Capture {
    heard: Arc<Mutex<Vec<Heard>>>,
    over: Arc<AtomicBool>,
    socket: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Lets through the frames that come from [`MAC`], and of them the first bytes only.
fn filter_for_the_guest(socket: &OwnedFd) {
    let word = |bytes: &[u8]| bytes.iter().fold(0, |word, &byte| word << 8 | u32::from(byte));
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Load bytes 6 to 9 and 10 to 11 of the frame, compare each, return the length to keep.
    let mut program = [
        step(0x20, 0, 0, 6),
        step(0x15, 0, 3, word(&MAC[..4])),
        step(0x28, 0, 0, 10),
        step(0x15, 0, 1, word(&MAC[4..])),
        step(0x06, 0, 0, 64),
        step(0x06, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads a `sock_fprog` of the length named, and the program that it points to; both live here.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    assert_eq!(result, 0, "a packet filter: {}", std::io::Error::last_os_error());
}

/// Frames that found no room in the socket's buffer.
fn missed(socket: &OwnedFd) -> u32 {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as u32;
    // SAFETY: the kernel writes at most `length` bytes, the size of what the pointer points to.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "a packet socket's statistics: {}", std::io::Error::last_os_error());
    statistics.tp_drops
}

impl Capture {
    /// Listens from now on.
    #[track_caller]
    pub fn on(site: &Site) -> Capture {
        Self::at(&site.switch(), &[Site::guest_port(0), Site::guest_port(1)])
    }

    /// The same at any switch: a namespace, and the ports of the hosts in their order.
    #[track_caller]
    pub fn at(switch: &str, ports: &[&str]) -> Capture {
        let (socket, ports) = within(switch, || {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                .expect("root may listen to packets");
            let port = |port: &&str| nix::net::if_::if_nametoindex(*port).expect("the switch has its ports");
            (socket, ports.iter().map(port).collect::<Vec<_>>())
        });
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).expect("root may have a large buffer");
        // So that the listener notices the end.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).expect("a socket takes options");
        filter_for_the_guest(&socket);
        let (heard, over, socket) =
            (Arc::<Mutex<Vec<Heard>>>::default(), Arc::<AtomicBool>::default(), Arc::new(socket));
        let listening = (heard.clone(), over.clone(), socket.clone());
        let thread = std::thread::spawn(move || {
            let (heard, over, socket) = listening;
            let mut frame = [0; 64];
            // One more look after the end, for what came just before it.
            let mut last = false;
            while !last {
                last = over.load(Ordering::Acquire);
                while let Ok((length, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
                    let side = ports.iter().position(|&port| port as usize == from.ifindex());
                    let outgoing = from.pkttype() == libc::PACKET_OUTGOING;
                    if let (Some(side), false, 14..) = (side, outgoing, length) {
                        let kind = u16::from_be_bytes([frame[12], frame[13]]);
                        lock(&heard).push(Heard { side, at: Instant::now(), kind });
                    }
                }
            }
        });
        Capture { heard, over, socket, thread: Some(thread) }
    }

    /// What was heard so far.
    pub fn heard(&self) -> Vec<Heard> {
        lock(&self.heard).clone()
    }

    /// How many frames were heard from a side so far.
    pub fn count(&self, side: usize) -> usize {
        lock(&self.heard).iter().filter(|heard| heard.side == side).count()
    }

    /// Ends listening: no frame was missed, and once `b` has spoken `a` was never heard again. Returns all frames.
    #[track_caller]
    pub fn one_after_the_other(self) -> Vec<Heard> {
        let heard = self.everything();
        let first_of_b = heard.iter().position(|heard| heard.side == 1).unwrap_or(heard.len());
        let late: Vec<String> = heard[first_of_b..]
            .iter()
            .filter(|late| late.side == 0)
            .map(|late| format!("{:?} later, type {:04x}", late.at - heard[first_of_b].at, late.kind))
            .collect();
        assert!(late.is_empty(), "{} frames from a after the first one from b: {late:?}", late.len());
        heard
    }

    /// Ends listening: all frames, and none was missed.
    #[track_caller]
    pub fn everything(mut self) -> Vec<Heard> {
        self.end();
        assert_eq!(missed(&self.socket), 0, "frames were missed");
        self.heard()
    }

    fn end(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("listening does not panic");
        }
    }
}

/// From the last frame of a to the first one of b.
pub fn silence(heard: &[Heard]) -> Option<Duration> {
    let first = heard.iter().position(|heard| heard.side == 1)?;
    let last = heard[..first].last()?;
    Some(heard[first].at - last.at)
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(heard: &Mutex<Vec<Heard>>) -> MutexGuard<'_, Vec<Heard>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}
