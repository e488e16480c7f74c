//! A relay in the logging channel: the backup connects to it, and it to the primary. It understands frames, keeps an
//! [`Account`] of them, and is the bad network on demand: it delays or withholds acknowledgements, freezes, slows down, cuts.
//!
//! Per connection and direction one thread reads frames into a queue and one writes them on; all share one lock.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockstep::log::frame::{self, Frame, FrameKind};

use super::account::Account;
use super::eventually;

/// Where a frame travels to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Entries, horizons.
    Backup = 0,
    /// Acknowledgements.
    Primary = 1,
}

/// What a queue may hold before its reader waits: like a socket's buffer.
const QUEUE_BYTES: usize = 256 << 10;

/// What the network does.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Nothing is passed on in this direction.
    pub frozen: [bool; 2],
    /// Acknowledgements wait; all else passes.
    pub withhold_acks: bool,
    /// Acknowledgements arrive this much later.
    pub delay_acks: Duration,
    /// Bytes a second in each direction; 0: no limit.
    pub bytes_per_second: u64,
    /// Connections are not taken.
    pub refuse: bool,
    /// After this many more frames in a direction, both directions freeze.
    pub freeze_after: Option<(To, u64)>,
}

struct Queued {
    came: Instant,
    kind: FrameKind,
    bytes: Vec<u8>,
}

struct State {
    rules: Rules,
    account: Account,
    /// The connections of now; a cut makes the threads of older ones end.
    epoch: u64,
    closed: bool,
    /// Both ends of the connections of this epoch.
    sockets: Vec<TcpStream>,
    /// What travels on them, and where to.
    lanes: Vec<(To, Arc<Mutex<Lane>>)>,
    /// Frames passed on, in each direction.
    passed: [u64; 2],
    trouble: Option<String>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The relay.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Relay {
    /// A relay to the primary's logging channel at `target`.
    pub fn to(target: &str) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = State {
            rules: Rules::default(),
            account: Account::default(),
            epoch: 0,
            closed: false,
            sockets: Vec::new(),
            lanes: Vec::new(),
            passed: [0; 2],
            trouble: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (accepting, target) = (shared.clone(), target.to_owned());
        let acceptor = std::thread::spawn(move || {
            for backup in listener.incoming().map_while(Result::ok) {
                if accepting.lock().closed {
                    return;
                }
                connect(&accepting, backup, &target);
            }
        });
        Relay { address, shared, acceptor: Some(acceptor) }
    }

    /// Where the backup connects to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Changes what the network does.
    pub fn rule(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.shared.lock().rules);
        self.shared.changed.notify_all();
    }

    /// Freezes or thaws both directions.
    pub fn freeze(&self, frozen: bool) {
        self.rule(|rules| rules.frozen = [frozen; 2]);
    }

    /// Waits until [`Rules::freeze_after`] has struck.
    #[track_caller]
    pub fn froze(&self) {
        eventually("the relay freezes", || (self.shared.lock().rules.frozen == [true; 2]).then_some(()));
    }

    /// Cuts all connections: both sides see them close, and what was under way is lost. `refuse`: no new ones.
    pub fn cut(&self, refuse: bool) {
        let mut state = self.shared.lock();
        state.rules.refuse = refuse;
        state.epoch += 1;
        for socket in state.sockets.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        state.lanes.clear();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Puts a frame on the way that nobody has sent, behind what is on the way.
    pub fn inject(&self, to: To, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode_into(&mut bytes).expect("a frame");
        let state = self.shared.lock();
        let (_, lane) = state.lanes.iter().rfind(|(towards, _)| *towards == to).expect("a connection");
        let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
        lane.bytes += bytes.len();
        lane.frames.push_back(Queued { came: Instant::now(), kind: frame.kind, bytes });
        drop(lane);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Reads the account of what was sent.
    pub fn account<T>(&self, read: impl FnOnce(&Account) -> T) -> T {
        let state = self.shared.lock();
        assert_eq!(state.trouble, None, "the relay is in trouble");
        read(&state.account)
    }

    /// Frames passed on so far.
    pub fn passed(&self, to: To) -> u64 {
        self.shared.lock().passed[to as usize]
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.cut(true);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn connect(shared: &Arc<Shared>, backup: TcpStream, target: &str) {
    let refuse = shared.lock().rules.refuse;
    let Some(primary) = (!refuse).then(|| TcpStream::connect(target).ok()).flatten() else { return };
    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor for a socket");
    for stream in [&backup, &primary] {
        stream.set_nodelay(true).expect("a socket takes options");
    }
    let mut state = shared.lock();
    let epoch = state.epoch;
    state.sockets.extend([clone(&backup), clone(&primary)]);
    drop(state);
    pump(shared.clone(), epoch, clone(&primary), clone(&backup), To::Backup);
    pump(shared.clone(), epoch, backup, primary, To::Primary);
}

/// One direction of one connection.
struct Lane {
    frames: VecDeque<Queued>,
    bytes: usize,
    ended: bool,
}

fn pump(shared: Arc<Shared>, epoch: u64, from: TcpStream, onto: TcpStream, to: To) {
    let lane = Arc::new(Mutex::new(Lane { frames: VecDeque::new(), bytes: 0, ended: false }));
    {
        let mut state = shared.lock();
        if state.epoch == epoch {
            state.lanes.push((to, lane.clone()));
        }
    }
    let (reading, filled) = (shared.clone(), lane.clone());
    std::thread::spawn(move || {
        let result = read_frames(&reading, epoch, from, to, &filled);
        let mut state = reading.lock();
        if let Err(trouble) = result {
            state.trouble.get_or_insert(trouble);
        }
        filled.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        drop(state);
        reading.changed.notify_all();
    });
    std::thread::spawn(move || write_frames(&shared, epoch, onto, to, &lane));
}

fn read_frames(shared: &Shared, epoch: u64, mut from: TcpStream, to: To, lane: &Mutex<Lane>) -> Result<(), String> {
    let mut buffer = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let read = match from.read(&mut chunk) {
            // What stood in the sockets of a killed process may come or not: both are the end.
            Ok(0) | Err(_) => return Ok(()),
            Ok(read) => read,
        };
        buffer.extend_from_slice(&chunk[..read]);
        let mut used = 0;
        while let Some((frame, length)) = frame::parse(&buffer[used..]).map_err(|error| error.to_string())? {
            let mut state = shared.lock();
            if state.epoch != epoch {
                return Ok(());
            }
            if to == To::Backup {
                state.account.sent(&frame);
            }
            {
                let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
                let bytes = buffer[used..used + length].to_vec();
                lane.bytes += bytes.len();
                lane.frames.push_back(Queued { came: Instant::now(), kind: frame.kind, bytes });
            }
            shared.changed.notify_all();
            let full = |state: &mut State| {
                let bytes = lane.lock().unwrap_or_else(PoisonError::into_inner).bytes;
                state.epoch == epoch && bytes > QUEUE_BYTES
            };
            drop(shared.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner));
            used += length;
        }
        buffer.drain(..used);
    }
}

/// The next frame that may travel now; an acknowledgement that waits holds up other acknowledgements only. Otherwise how long to wait.
fn next(lane: &mut Lane, rules: &Rules, to: To) -> Result<Queued, Option<Duration>> {
    let mut wait = None;
    if !rules.frozen[to as usize] {
        let mut ack_waits = rules.withhold_acks;
        for index in 0..lane.frames.len() {
            let queued = &lane.frames[index];
            if queued.kind == FrameKind::Ack {
                let rest = rules.delay_acks.saturating_sub(queued.came.elapsed());
                if !ack_waits && !rest.is_zero() {
                    wait = Some(rest);
                    ack_waits = true;
                }
                if ack_waits {
                    continue;
                }
            }
            let queued = lane.frames.remove(index).expect("the index is inside");
            lane.bytes -= queued.bytes.len();
            return Ok(queued);
        }
    }
    Err(wait)
}

fn write_frames(shared: &Shared, epoch: u64, mut onto: TcpStream, to: To, lane: &Mutex<Lane>) {
    let mut state = shared.lock();
    while state.epoch == epoch {
        let (got, over) = {
            let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
            let got = next(&mut lane, &state.rules, to);
            (got, lane.ended && lane.frames.is_empty())
        };
        match got {
            Ok(queued) => {
                if let Some((direction, left)) = &mut state.rules.freeze_after
                    && *direction == to
                {
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        state.rules.freeze_after = None;
                        state.rules.frozen = [true; 2];
                    }
                }
                state.passed[to as usize] += 1;
                if to == To::Primary {
                    let (frame, _) = frame::parse(&queued.bytes).ok().flatten().expect("it was a frame when it came");
                    let frame: Frame<'_> = frame;
                    state.account.passed(&frame);
                }
                let rate = state.rules.bytes_per_second;
                drop(state);
                shared.changed.notify_all();
                let sent = send(&mut onto, &queued.bytes, rate);
                state = shared.lock();
                if sent.is_err() {
                    break;
                }
            }
            Err(_) if over => break,
            Err(wait) => {
                let wait = wait.unwrap_or(Duration::from_secs(1));
                state = shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
    drop(state);
    let _ = onto.shutdown(Shutdown::Both);
}

/// Sends in pieces as a link of this speed would.
fn send(onto: &mut TcpStream, bytes: &[u8], rate: u64) -> std::io::Result<()> {
    if rate == 0 {
        return onto.write_all(bytes);
    }
    for piece in bytes.chunks(1024) {
        std::thread::sleep(Duration::from_nanos(piece.len() as u64 * 1_000_000_000 / rate));
        onto.write_all(piece)?;
    }
    Ok(())
}
