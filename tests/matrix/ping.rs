//! A client that asks all the time and waits for nothing: an ICMP echo every few milliseconds. From when on the guest was not there for its clients, and from when
//! on it was again, is what it shows; a TCP client would add the pauses of its own retransmissions.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use crate::common::console::enter;

/// Time between two questions.
pub const EVERY: Duration = Duration::from_millis(5);

/// An answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// When it was asked for.
    pub asked: Instant,
    /// When it came.
    pub at: Instant,
}

/// Somebody who asks.
pub struct Pinger {
    answers: Arc<Mutex<Vec<Answer>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pinger {
    /// Begins to ask `guest` from a namespace.
    pub fn start(namespace: &str, guest: Ipv4Addr) -> Pinger {
        let (answers, over) = (Arc::<Mutex<Vec<Answer>>>::default(), Arc::<AtomicBool>::default());
        let (told, stop, namespace) = (answers.clone(), over.clone(), namespace.to_owned());
        let thread = std::thread::spawn(move || {
            enter(&namespace);
            ask(guest, &told, &stop);
        });
        Pinger { answers, over, thread: Some(thread) }
    }

    /// All answers so far, in the order in which they came.
    pub fn answers(&self) -> Vec<Answer> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether something that was asked after `since` was answered.
    pub fn answered_since(&self, since: Instant) -> bool {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().any(|answer| answer.asked > since)
    }

    /// The longest time without an answer between these two moments.
    pub fn pause(&self, from: Instant, to: Instant) -> Duration {
        let (mut longest, mut last) = (Duration::ZERO, from);
        for at in self.answers().iter().map(|answer| answer.at).filter(|at| *at > from && *at <= to) {
            longest = longest.max(at - last);
            last = at;
        }
        longest.max(to - last)
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let failed = thread.join().is_err();
            assert!(!failed || std::thread::panicking(), "asking panicked");
        }
    }
}

/// The sum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn ask(guest: Ipv4Addr, answers: &Mutex<Vec<Answer>>, over: &AtomicBool) {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)
        .expect("root may ask for echoes");
    connect(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(guest, 0))).expect("an address");
    let identifier = (std::process::id() as u16).to_be_bytes();
    let mut asked: Vec<Instant> = Vec::new();
    let mut next = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= next {
            next = now + EVERY;
            let number = (asked.len() as u16).to_be_bytes();
            let mut echo = [8, 0, 0, 0, identifier[0], identifier[1], number[0], number[1]];
            let sum = checksum(&echo).to_be_bytes();
            echo[2..4].copy_from_slice(&sum);
            asked.push(now);
            // Where nobody has the guest's address now, the kernel says so, now and then.
            let _ = send(socket.as_raw_fd(), &echo, MsgFlags::empty());
        }
        let wait = next.saturating_duration_since(Instant::now()).max(Duration::from_micros(100));
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, wait.as_micros() as i64)).expect("an option");
        let mut packet = [0; 128];
        // An error is a time-out, or the same as above.
        let Ok(length) = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) else { continue };
        let header = usize::from(packet[0] & 15) * 4;
        let Some(reply) = packet[..length].get(header..header + 8) else { continue };
        if (reply[0], &reply[4..6]) != (0, &identifier[..]) {
            continue;
        }
        // Which of the questions whose number ends so: the newest.
        let low = usize::from(u16::from_be_bytes([reply[6], reply[7]]));
        let Some(newest) = asked.len().checked_sub(1).filter(|newest| *newest >= low) else { continue };
        let index = newest - ((newest - low) & 0xffff);
        let answer = Answer { asked: asked[index], at: Instant::now() };
        answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    }
}
