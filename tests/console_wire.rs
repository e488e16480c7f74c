//! Promise: a client that types and reads over real sockets, while hosts are killed and frozen under
//! it, types every byte once and sees every byte once; so does everybody who watches.

#[path = "console/cluster.rs"]
#[allow(dead_code, reason = "some of it is for other tests")]
mod cluster;

use cluster::{Guest, Host, Log, Random, Vcpu};
use lockstep::console::client::{Client, Keyboard, Options, What};
use lockstep::console::control;
use lockstep::console::hub::Protection;
use lockstep::console::status::Role;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Everything a client has seen, checked for position as it comes.
struct Screen {
    client: Client,
    seen: Vec<u8>,
    generations: Vec<u64>,
    ended: Option<u8>,
}

impl Screen {
    async fn attach(addresses: [&str; 2]) -> Screen {
        let options = Options { first_attach: None, ..Options::new(addresses) };
        let client = Client::start(options).unwrap();
        Screen { client, seen: Vec::new(), generations: Vec::new(), ended: None }
    }

    /// Reads until `enough`.
    async fn read(&mut self, mut enough: impl FnMut(&Screen) -> bool) {
        while !enough(self) {
            match self.client.next().await.expect("a client goes on until the guest ends").what {
                What::Output { position, bytes } => {
                    assert_eq!(position, self.seen.len() as u64, "each byte once, in order");
                    self.seen.extend_from_slice(&bytes);
                }
                What::Attached { generation, position, .. } => {
                    assert_eq!(position, self.seen.len() as u64);
                    self.generations.push(generation);
                }
                What::Gap { from, to } => panic!("lost output from {from} to {to}"),
                What::Failed(error) => panic!("{error}"),
                What::Ended(ended) => self.ended = Some(ended.code),
                What::Lost { .. } | What::Waiting { .. } | What::Unusable { .. } => {}
            }
        }
    }
}

async fn type_bytes(keyboard: &Keyboard, random: &mut Random, typed: &mut Vec<u8>, n: usize) {
    let bytes: Vec<u8> = (0..n).map(|_| b'a' + random.below(26) as u8).collect();
    typed.extend_from_slice(&bytes);
    keyboard.send(&bytes).await.unwrap();
}

/// Plays `rounds` failovers; every `freeze_every`-th by a host that stops instead of dying.
async fn play(seed: u64, rounds: u64, freeze_every: u64) {
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let log = Arc::new(Mutex::new(Log::default()));
    let mut live = Host::start("a");
    let mut backup = Host::start("b");
    let mut vcpu = Vcpu::go_live(&live, &log, 1, seed);
    let (a, b) = (live.address(), backup.address());
    let (mut typist, mut watcher) = (Screen::attach([&a, &b]).await, Screen::attach([&b, &a]).await);
    let keyboard = typist.client.keyboard();
    let mut typed = Vec::new();
    for round in 0..rounds {
        // The host dies after some of what was typed has come back, with more on the way.
        let before = typist.seen.len();
        let n = 20 + random.below(300);
        type_bytes(&keyboard, &mut random, &mut typed, n).await;
        let until = before + random.below(n);
        typist.read(|screen| screen.seen.len() >= until).await;
        let frozen = (round % freeze_every == freeze_every - 1).then(|| live.freeze());
        vcpu.kill();
        log.lock().unwrap().cut(&mut random);
        let place = live.place.clone();
        match frozen {
            None => drop(live),
            Some(thaw) => {
                // It wakes up when the other has long taken over, still thinks it is live, and serves.
                vcpu = Vcpu::go_live(&backup, &log, round + 2, seed + round);
                typist.read(|screen| screen.generations.last() == Some(&(round + 2))).await;
                watcher.read(|screen| screen.generations.last() == Some(&(round + 2))).await;
                drop(thaw);
                type_bytes(&keyboard, &mut random, &mut typed, 9).await;
                let whole = Guest::transcript(&typed).len();
                typist.read(|screen| screen.seen.len() >= whole).await;
                live.hub.not_live(Role::Retired);
                drop(live);
                live = backup;
                backup = Host::start_at("again", place);
                continue;
            }
        }
        vcpu = Vcpu::go_live(&backup, &log, round + 2, seed + round);
        live = backup;
        backup = Host::start_at("again", place);
    }
    keyboard.send(&[Guest::EOT]).await.unwrap();
    typist.read(|screen| screen.ended.is_some()).await;
    watcher.read(|screen| screen.ended.is_some()).await;
    let expected = Guest::transcript(&typed);
    assert!(typist.seen == expected, "seed {seed}: the typist saw {} bytes of {}", typist.seen.len(), expected.len());
    assert!(
        watcher.seen == expected,
        "seed {seed}: the watcher saw {} bytes of {}",
        watcher.seen.len(),
        expected.len()
    );
    assert_eq!((typist.ended, watcher.ended), (Some(Guest::CODE), Some(Guest::CODE)));
    vcpu.kill();
    drop((live, backup));
}

#[tokio::test]
async fn killed_hosts_lose_and_double_nothing() {
    for seed in [1, 77, 4242] {
        play(seed, 60, u64::MAX).await;
    }
}

#[tokio::test]
async fn a_frozen_host_is_left_and_cannot_win_the_client_back() {
    play(5, 6, 2).await;
}

#[tokio::test]
async fn a_waiting_host_attaches_its_callers_the_moment_it_goes_live() {
    let host = Host::start("a");
    let mut options = Options::new([&host.address()]);
    // Were the client to call again, it would be after this: the test would not end.
    options.timing.retry_min = Duration::from_secs(3600);
    options.timing.retry_max = Duration::from_secs(3600);
    let mut client = Client::start(options).unwrap();
    assert!(matches!(client.next().await.unwrap().what, What::Waiting { role: Role::Backup, .. }));
    host.hub.go_live(3, Protection::Unprotected);
    host.hub.output(0, b"hello");
    assert!(matches!(client.next().await.unwrap().what, What::Attached { generation: 3, .. }));
    assert!(matches!(client.next().await.unwrap().what, What::Output { position: 0, bytes } if bytes == b"hello"));
}

/// Round trips to the server's thread and back: whatever was going to leave has left, and arrived.
async fn settle(host: &Host) {
    // Every connection looks again for something to send.
    host.hub.set_peer(None);
    for _ in 0..5 {
        control::status(&host.address(), Duration::from_secs(10)).await.unwrap();
    }
}

#[tokio::test]
async fn no_byte_leaves_before_it_is_released_and_input_is_safe_no_earlier() {
    let host = Host::start("a");
    host.hub.go_live(1, Protection::HeldFrom(0));
    let (woken, mut wakes) = tokio::sync::mpsc::unbounded_channel();
    host.hub.set_input_waker(Box::new(move || woken.send(()).unwrap_or_default()));
    let mut client = Client::connect(Options::new([&host.address()])).await.unwrap();
    let keyboard = client.keyboard();
    client.send(b"x").await.unwrap();
    wakes.recv().await.unwrap();
    let input = host.hub.take_input(64).unwrap();
    host.hub.input_logged(&input, 0);
    host.hub.output(1, b"held");
    host.hub.output(2, b"more");
    host.hub.ended(3, &lockstep::machine::doors::EndReason::Stopped);
    settle(&host).await;
    let status = control::status(&host.address(), Duration::from_secs(10)).await.unwrap();
    assert_eq!((status.console.held_bytes, status.console.outputs_held, status.entries), (8, 2, 5));
    assert!(tokio::time::timeout(Duration::ZERO, keyboard.safe()).await.is_err(), "no entry is released yet");
    host.hub.release(1);
    keyboard.safe().await.unwrap();
    for (below, position, expected) in [(2, 0, b"held"), (3, 4, b"more")] {
        settle(&host).await;
        let before = Instant::now().into_std();
        host.hub.release(below);
        let event = client.next().await.unwrap();
        assert!(event.at >= before, "{:?} has left before it was released", event.what);
        assert!(matches!(event.what, What::Output { position: p, bytes } if (p, &bytes[..]) == (position, expected)));
    }
    settle(&host).await;
    let before = Instant::now().into_std();
    host.hub.release(4);
    let event = client.next().await.unwrap();
    assert!(event.at >= before, "{:?} was told before it was released", event.what);
    assert!(matches!(event.what, What::Ended(ended) if ended.code == 0));
}

/// One host under two names: both calls wait, and when the host goes live they do not throw each other out.
#[tokio::test]
async fn a_host_of_two_names_is_attached_once() {
    let host = Host::start("a");
    let names = [host.address(), host.address().replace("127.0.0.1", "localhost")];
    let mut client = Client::start(Options::new(names)).unwrap();
    let mut waiting = 0;
    while waiting < 2 {
        waiting += usize::from(matches!(client.next().await.unwrap().what, What::Waiting { .. }));
    }
    host.hub.go_live(1, Protection::Unprotected);
    assert!(matches!(client.next().await.unwrap().what, What::Attached { .. }));
    settle(&host).await;
    host.hub.output(0, b"x");
    let event = client.next().await.unwrap();
    assert!(matches!(event.what, What::Output { .. }), "{:?}", event.what);
}

/// A guest that never stops writing can still be typed to.
#[tokio::test]
async fn a_flood_of_output_does_not_hold_back_the_keyboard() {
    const WINDOW: u64 = 512 << 10;
    const OUTPUTS: u64 = 40_000;
    let host = Host::start("a");
    host.hub.go_live(1, Protection::Unprotected);
    let mut client = Client::connect(Options::new([&host.address()])).await.unwrap();
    let (seen, hub) = (Arc::new(AtomicU64::new(0)), host.hub.clone());
    let shown = seen.clone();
    let (done, mut typed_to) = tokio::sync::oneshot::channel();
    let guest = std::thread::spawn(move || {
        let line = [b'.'; 1024];
        let typed_at = (0..OUTPUTS).find(|&entry| {
            hub.output(entry, &line);
            // Always something to read for the client, and never more than the host keeps.
            while entry * 1024 > shown.load(Ordering::Acquire) + WINDOW && hub.input_waiting() == 0 {
                std::thread::yield_now();
            }
            hub.input_waiting() > 0
        });
        done.send(typed_at).unwrap_or_default();
    });
    while seen.load(Ordering::Acquire) < WINDOW / 2 {
        if let What::Output { bytes, .. } = client.next().await.unwrap().what {
            seen.fetch_add(bytes.len() as u64, Ordering::Release);
        }
    }
    client.send(b"\x03").await.unwrap();
    let typed_at = loop {
        tokio::select! {
            typed_at = &mut typed_to => break typed_at.unwrap(),
            event = client.next() => if let What::Output { bytes, .. } = event.unwrap().what {
                seen.fetch_add(bytes.len() as u64, Ordering::Release);
            },
        }
    };
    assert!(typed_at.is_some(), "the guest wrote {OUTPUTS} lines before it was typed to");
    guest.join().unwrap();
}
