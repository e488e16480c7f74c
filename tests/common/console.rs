//! A console client that remembers everything it saw, and when.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep::console::client::{Client, Options, What};
use lockstep::console::control;
use lockstep::console::status::Status;
use tokio::sync::mpsc;

use super::eventually;

/// An attachment to a host.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// When the client had it.
    pub at: Instant,
    /// The host's console port.
    pub address: String,
    /// Its generation.
    pub generation: u64,
    /// Position of the output that followed.
    pub position: u64,
}

/// What a client has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The guest's console from its first byte on.
    pub output: Vec<u8>,
    /// When which part of it was there: time, and the position behind it.
    pub pieces: Vec<(Instant, u64)>,
    /// The attachments.
    pub attached: Vec<Attachment>,
    /// The losses of a host: time, address, reason.
    pub lost: Vec<(Instant, String, String)>,
    /// Reason and code of the guest's end.
    pub ended: Option<(String, u8)>,
    /// What no client may see: gaps, output out of place, the end of all hosts.
    pub troubles: Vec<String>,
}

impl Seen {
    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// When the first output arrived that was not there at `since` and came in `generation`.
    pub fn first_output_in(&self, generation: u64) -> Option<Instant> {
        let attached = self.attached.iter().find(|attachment| attachment.generation == generation)?;
        self.pieces.iter().find(|(at, end)| *at >= attached.at && *end > attached.position).map(|(at, _)| *at)
    }
}

/// A client on a thread of its own.
pub struct Console {
    seen: Arc<Mutex<Seen>>,
    keys: Option<mpsc::UnboundedSender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Takes the calling thread into a network namespace.
pub fn enter(namespace: &str) {
    let path = format!("/run/netns/{namespace}");
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("cannot open {path}: {error}"));
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may change its network namespace");
}

impl Console {
    /// Attaches to whichever of `addresses` runs the machine, from the first byte of output on.
    pub fn attach(addresses: &[String], namespace: Option<&str>) -> Console {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let (keys, mut typed) = mpsc::unbounded_channel::<Vec<u8>>();
        let mut options = Options::new(addresses);
        options.first_attach = None;
        let (account, namespace) = (seen.clone(), namespace.map(str::to_owned));
        let thread = std::thread::spawn(move || {
            if let Some(namespace) = namespace {
                enter(&namespace);
            }
            runtime().block_on(async {
                let mut client = Client::start(options).expect("a client starts");
                let keyboard = client.keyboard();
                let mut typing = tokio::spawn(async move {
                    while let Some(bytes) = typed.recv().await {
                        if keyboard.send(&bytes).await.is_err() {
                            // The client has ended: typing goes nowhere, and the test drops its end of it.
                            while typed.recv().await.is_some() {}
                        }
                    }
                });
                loop {
                    tokio::select! {
                        biased;
                        // The test has let go of the keyboard.
                        _ = &mut typing => return,
                        event = client.next() => match event {
                            Some(event) => note(&mut lock(&account), event.at, event.what),
                            None => { let _ = typing.await; return }
                        },
                    }
                }
            });
        });
        Console { seen, keys: Some(keys), thread: Some(thread) }
    }

    /// Types.
    pub fn type_bytes(&self, bytes: &[u8]) {
        let keys = self.keys.as_ref().expect("taken away only by drop");
        assert!(keys.send(bytes.to_vec()).is_ok(), "the client's thread is gone");
    }

    /// What it has seen, while nothing is added.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// Waits until what it has seen is enough.
    #[track_caller]
    pub fn sees<T>(&self, what: &str, mut enough: impl FnMut(&Seen) -> Option<T>) -> T {
        eventually(what, || {
            let seen = self.seen();
            assert!(seen.troubles.is_empty(), "while waiting for {what}: {:?}\n{}", seen.troubles, seen.text());
            enough(&seen)
        })
    }

    /// Waits until `text` is in the output.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        self.sees(&format!("the console shows {text:?}"), |seen| seen.text().contains(text).then_some(()));
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        drop(self.keys.take());
        if let Some(thread) = self.thread.take() {
            let failed = thread.join().is_err();
            assert!(!failed || std::thread::panicking(), "the client panicked");
        }
        if std::thread::panicking() {
            let seen = self.seen();
            let tail = seen.output.len().saturating_sub(2000);
            eprintln!("---- a console saw {} bytes, the last of them:", seen.output.len());
            eprintln!("{}", String::from_utf8_lossy(&seen.output[tail..]));
            eprintln!("---- attached {:?}\nlost {:?}\nended {:?}", seen.attached, seen.lost, seen.ended);
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(seen: &mut Seen, at: Instant, what: What) {
    match what {
        What::Attached { address, generation, position, .. } => {
            seen.attached.push(Attachment { at, address, generation, position });
        }
        What::Lost { address, reason } => seen.lost.push((at, address, reason.to_string())),
        What::Waiting { .. } | What::Unusable { .. } => {}
        What::Output { position, bytes } => {
            if position != seen.output.len() as u64 {
                seen.troubles.push(format!("output at {position}, {} was next", seen.output.len()));
            }
            seen.output.extend(bytes);
            let end = seen.output.len() as u64;
            seen.pieces.push((at, end));
        }
        What::Gap { from, to } => seen.troubles.push(format!("output from {from} to {to} is gone")),
        What::Ended(ended) => seen.ended = Some((ended.reason, ended.code)),
        What::Failed(error) => seen.troubles.push(error.to_string()),
    }
}

/// The status of the host at `address`; `None` if it gives none.
pub fn status(address: &str, namespace: Option<&str>) -> Option<Status> {
    let ask = || runtime().block_on(control::status(address, Duration::from_secs(5))).ok();
    match namespace {
        None => ask(),
        Some(namespace) => std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                enter(namespace);
                ask()
            });
            asking.join().expect("asking does not panic")
        }),
    }
}
