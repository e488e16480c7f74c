//! Two hosts in one process for tests: real hubs and servers, and between them a scripted guest with
//! a log. A host can be killed (its runtime is dropped, all sockets with it) and frozen (its thread
//! stops while its connections stay, like SIGSTOP).

use lockstep::console::hub::{Hub, Protection};
use lockstep::console::server::{ControlError, ControlHandler, Pending, Who, serve};
use lockstep::console::status::{Role, Status};
use lockstep::console::wire::Command;
use lockstep::machine::doors::{ConsoleInput, EndReason};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

/// xorshift64*: the same seed gives the same choices.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed | 1)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

/// What the log carries of the scripted guest.
pub enum Item {
    Input(ConsoleInput),
    Output(usize),
    End(EndReason),
}

impl Item {
    /// What was typed, if this is input.
    pub fn typed(&self) -> Vec<u8> {
        match self {
            Item::Input(input) => input.bytes.clone(),
            Item::Output(_) | Item::End(_) => Vec::new(),
        }
    }
}

/// The log, and how much of it the backup has acknowledged.
#[derive(Default)]
pub struct Log {
    pub items: Vec<Item>,
    pub acknowledged: usize,
}

impl Log {
    /// The live host is gone: what was acknowledged survives, and perhaps a little more.
    pub fn cut(&mut self, random: &mut Random) {
        let survives = self.acknowledged + random.below(20);
        self.items.truncate(survives);
    }
}

/// A guest whose output is a pure function of its input: echo, with an account every 16 bytes. It
/// ends at `EOT`.
#[derive(Default)]
pub struct Guest {
    count: u64,
    sum: u64,
    /// What it is about to do.
    to_do: VecDeque<Act>,
}

enum Act {
    Write(Vec<u8>),
    End,
}

impl Guest {
    pub const EOT: u8 = 4;
    pub const CODE: u8 = 7;

    fn feed(&mut self, byte: u8) {
        if byte == Self::EOT {
            return self.to_do.push_back(Act::End);
        }
        self.count += 1;
        self.sum = self.sum.wrapping_mul(31).wrapping_add(byte.into());
        let mut out = vec![byte];
        if self.count.is_multiple_of(16) {
            out.extend_from_slice(format!("<{}:{:x}>\n", self.count, self.sum).as_bytes());
        }
        self.to_do.push_back(Act::Write(out));
    }

    /// What a guest writes that is typed `bytes` and nothing else.
    pub fn transcript(bytes: &[u8]) -> Vec<u8> {
        let mut guest = Guest::default();
        bytes.iter().for_each(|&byte| guest.feed(byte));
        let written = guest.to_do.into_iter().map(|act| match act {
            Act::Write(out) => out,
            Act::End => Vec::new(),
        });
        written.flatten().collect()
    }
}

/// Runs a live guest on its own thread until it is stopped or ends.
pub struct Vcpu {
    stop: Arc<AtomicBool>,
    wake: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Goes live on `host`: replays what survived, then runs. `seed` decides how late acknowledgements are.
    pub fn go_live(host: &Host, log: &Arc<Mutex<Log>>, generation: u64, seed: u64) -> Vcpu {
        let mut guest = replay(&host.hub, &log.lock().unwrap());
        let entries = log.lock().unwrap().items.len();
        log.lock().unwrap().acknowledged = entries;
        let (wake, awake) = mpsc::channel();
        let waker = Mutex::new(wake.clone());
        host.hub.set_input_waker(Box::new(move || waker.lock().unwrap().send(()).unwrap_or_default()));
        host.hub.go_live(generation, Protection::HeldFrom(entries as u64));
        let stop = Arc::new(AtomicBool::new(false));
        let (hub, log, stopped) = (host.hub.clone(), log.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut random = Random::new(seed);
            while !stopped.load(Ordering::Acquire) {
                match guest.to_do.pop_front() {
                    Some(Act::Write(out)) => {
                        hub.output(append(&log, Item::Output(out.len())), &out);
                        if random.below(4) == 0 {
                            acknowledge(&hub, &log, random.below(12));
                        }
                        continue;
                    }
                    Some(Act::End) => {
                        let end = EndReason::Exit(Guest::CODE);
                        hub.ended(append(&log, Item::End(end.clone())), &end);
                        return acknowledge(&hub, &log, usize::MAX);
                    }
                    None => {}
                }
                match hub.take_input(1 + random.below(64)) {
                    Some(input) => {
                        hub.input_logged(&input, append(&log, Item::Input(input.clone())));
                        input.bytes.iter().for_each(|&byte| guest.feed(byte));
                    }
                    None => {
                        // An idle guest: the backup catches up.
                        acknowledge(&hub, &log, usize::MAX);
                        if awake.recv().is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Vcpu { stop, wake, thread: Some(thread) }
    }

    /// Stops wherever it stands.
    pub fn kill(mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.wake.send(());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the guest's thread does not panic");
        }
    }
}

fn append(log: &Mutex<Log>, item: Item) -> u64 {
    let mut log = log.lock().unwrap();
    log.items.push(item);
    log.items.len() as u64 - 1
}

fn acknowledge(hub: &Hub, log: &Mutex<Log>, more: usize) {
    let mut log = log.lock().unwrap();
    log.acknowledged = log.acknowledged.saturating_add(more).min(log.items.len());
    hub.release(log.acknowledged as u64);
}

/// The log may end between an input and its outputs: the guest still has those to do.
fn replay(hub: &Hub, log: &Log) -> Guest {
    let mut guest = Guest::default();
    for (entry, item) in log.items.iter().enumerate() {
        match item {
            Item::Input(input) => {
                hub.replayed_input(input, entry as u64).expect("the log has no gaps");
                input.bytes.iter().for_each(|&byte| guest.feed(byte));
            }
            Item::Output(length) => {
                let Some(Act::Write(out)) = guest.to_do.pop_front() else { panic!("entry {entry} is no output here") };
                assert_eq!(out.len(), *length, "the replay is not the recording");
                hub.replayed_output(entry as u64, &out);
            }
            Item::End(reason) => hub.ended(entry as u64, reason),
        }
    }
    guest
}

/// An address that stays reserved while hosts come and go on it.
pub struct Place {
    pub address: SocketAddr,
    /// Bound and never listening: nobody else is given the port meanwhile.
    _holder: TcpSocket,
}

impl Place {
    pub fn new() -> Place {
        let holder = TcpSocket::new_v4().unwrap();
        holder.set_reuseaddr(true).unwrap();
        holder.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Place { address: holder.local_addr().unwrap(), _holder: holder }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

enum Order {
    Freeze(mpsc::Receiver<()>),
}

/// A host: a hub and its server, in a runtime of its own.
pub struct Host {
    pub hub: Arc<Hub>,
    pub place: Arc<Place>,
    kill: Option<oneshot::Sender<()>>,
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Starts a host somewhere, as a backup.
    pub fn start(name: &str) -> Host {
        Host::start_at(name, Arc::new(Place::new()))
    }

    /// Starts a host at `place`, as a backup.
    pub fn start_at(name: &str, place: Arc<Place>) -> Host {
        let hub = Arc::new(Hub::new("vm", name, 1 << 20));
        let (kill, killed) = oneshot::channel::<()>();
        let (orders, mut to_obey) = tokio::sync::mpsc::unbounded_channel();
        let (ready, bound) = mpsc::channel();
        let (served, name, address) = (hub.clone(), name.to_owned(), place.address);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = TcpSocket::new_v4().unwrap();
                socket.set_reuseaddr(true).unwrap();
                socket.bind(address).expect("the port is ours");
                let listener = socket.listen(64).unwrap();
                ready.send(()).unwrap();
                let control = Arc::new(Owner(name));
                tokio::select! {
                    () = serve(listener, served, control, std::future::pending()) => {}
                    _ = killed => {}
                    // The whole thread stands still, and every connection with it.
                    () = async { while let Some(Order::Freeze(thaw)) = to_obey.recv().await { let _ = thaw.recv(); } } => {}
                }
            });
        });
        bound.recv().expect("the server starts");
        Host { hub, place, kill: Some(kill), orders, thread: Some(thread) }
    }

    /// Stops the host's thread until the returned sender is used or dropped.
    pub fn freeze(&self) -> mpsc::Sender<()> {
        let (thaw, thawed) = mpsc::channel();
        assert!(self.orders.send(Order::Freeze(thawed)).is_ok(), "the host runs");
        thaw
    }
}

impl Host {
    /// The console port.
    pub fn address(&self) -> String {
        self.place.to_string()
    }
}

/// Killed: all connections are cut.
impl Drop for Host {
    fn drop(&mut self) {
        drop(self.kill.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a server does not panic");
        }
    }
}

/// The owner of a scripted machine.
pub struct Owner(pub String);

impl ControlHandler for Owner {
    fn status(&self) -> Status {
        Status { vm: "vm".into(), host: self.0.clone(), role: Role::Backup, entries: 5, ..Status::default() }
    }

    fn command(&self, _command: Command, _who: &Who) -> Result<Pending, ControlError> {
        Err(ControlError::NotLive(None))
    }
}
