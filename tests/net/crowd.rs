//! Clients that record every call: each has one connection for its whole life, and a reset, an error or an answer that makes no
//! sense is the end of the test. What they saw is judged by one order per key ([`super::linear`]).

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::linear::{Call, explain};
use super::object::{Ask, Items, Object, Told};
use super::resp::{Connection, Reply};
use crate::common::{PATIENCE, Random, eventually};

/// How many keys of each kind there are. Enough that each one's history stays short, few enough that clients meet.
const STRINGS: u64 = 48;
const COUNTERS: u64 = 8;
const LISTS: u64 = 6;

struct Shared {
    stop: AtomicBool,
    /// The connections were closed on purpose.
    given_up: AtomicBool,
    /// Answers that each client has.
    answers: Vec<AtomicU64>,
    /// What no client may see.
    troubles: Mutex<Vec<String>>,
    /// The keys' names begin with it.
    page: AtomicU64,
}

/// Calls on each key.
type History = BTreeMap<String, Vec<Call>>;

/// The clients.
pub struct Crowd {
    threads: Mutex<Vec<JoinHandle<History>>>,
    /// The clients' connections, to close them where all else fails.
    sockets: Vec<TcpStream>,
    server: SocketAddr,
    namespace: String,
    shared: Arc<Shared>,
    /// Connected from the beginning; reads everything at the end.
    auditor: Connection,
}

/// What clients have seen whose server is gone.
pub struct Orphans {
    history: History,
    /// Calls that the clients made.
    pub calls: usize,
    clients: usize,
    server: SocketAddr,
    namespace: String,
}

impl Orphans {
    /// A new client reads everything, as soon as a server answers again, and finds what is one with all that these were told.
    #[track_caller]
    pub fn find_everything(mut self) {
        let mut auditor = eventually("a server answers again", || {
            let mut connection = Connection::open(self.server, &self.namespace).ok()?;
            (connection.ask(&["PING"]).ok()? == Reply::Simple("PONG".into())).then_some(connection)
        });
        let found = audit(&mut auditor, self.clients, &mut self.history).and_then(|()| judge(&self.history));
        found.unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

/// What the clients have seen.
pub struct Seen {
    history: History,
    /// Calls that the clients made.
    pub calls: usize,
    clients: usize,
}

impl Crowd {
    /// Waits until the server answers, and connects `clients` clients and the auditor.
    #[track_caller]
    pub fn gather(server: SocketAddr, namespace: &str, clients: usize, random: &mut Random) -> Crowd {
        // Some call without a break, some think, and some are silent most of the time.
        let think_us: Vec<u64> = (0..clients).map(|client| [0, 0, 500, 3000, 20_000][client % 5]).collect();
        Self::gather_thinking(server, namespace, &think_us, 0, random)
    }

    /// The same; each client thinks between its calls, for up to so many microseconds. The keys are those of page `page`, which nobody has had before.
    #[track_caller]
    pub fn gather_thinking(
        server: SocketAddr,
        namespace: &str,
        think_us: &[u64],
        page: u64,
        random: &mut Random,
    ) -> Crowd {
        let clients = think_us.len();
        let auditor = eventually("the server answers", || {
            let mut connection = Connection::open(server, namespace).ok()?;
            (connection.ask(&["PING"]).ok()? == Reply::Simple("PONG".into())).then_some(connection)
        });
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            answers: (0..clients).map(|_| AtomicU64::new(0)).collect(),
            troubles: Mutex::default(),
            page: AtomicU64::new(page),
        });
        let mut crowd = Crowd {
            threads: Mutex::default(),
            sockets: Vec::new(),
            server,
            namespace: namespace.into(),
            shared: shared.clone(),
            auditor,
        };
        for (client, &think_us) in think_us.iter().enumerate() {
            let connection = Connection::open(server, namespace).expect("a client connects");
            crowd.sockets.push(connection.socket().expect("a descriptor for a socket"));
            let (shared, random) = (shared.clone(), Random::new(random.below(u64::MAX)));
            let thread = std::thread::spawn(move || live(client, connection, &shared, think_us, random));
            lock(&crowd.threads).push(thread);
        }
        crowd
    }

    #[track_caller]
    fn no_trouble(&self) {
        let troubles = lock(&self.shared.troubles);
        assert!(troubles.is_empty(), "clients saw what they may not see:\n{}", troubles.join("\n"));
    }

    /// Waits until every client has that many more answers.
    #[track_caller]
    pub fn goes_on(&self, answers: u64) {
        let now = |client: &AtomicU64| client.load(Ordering::Relaxed);
        let goals: Vec<u64> = self.shared.answers.iter().map(|client| now(client) + answers).collect();
        let begun = Instant::now();
        while self.shared.answers.iter().zip(&goals).any(|(client, &goal)| now(client) < goal) {
            self.no_trouble();
            assert!(begun.elapsed() < PATIENCE, "not every client goes on: {}", self.autopsy());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The server is gone for good, as it may be: what the clients have seen up to then, with calls that have no answer.
    #[track_caller]
    pub fn has_lost_its_server(self) -> Seen {
        self.no_trouble();
        let history = self.cut_off();
        let (calls, clients) = (history.values().map(Vec::len).sum(), self.sockets.len());
        Seen { history, calls, clients }
    }

    /// The server is gone, and comes back without their connections. Calls under way may have happened or not.
    pub fn gives_up(self) -> Orphans {
        let history = self.cut_off();
        let calls = history.values().map(Vec::len).sum();
        Orphans { history, calls, clients: self.sockets.len(), server: self.server, namespace: self.namespace.clone() }
    }

    /// Ends the clients, whatever they wait for.
    fn cut_off(&self) -> History {
        self.shared.given_up.store(true, Ordering::Relaxed);
        self.shared.stop.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            // Closed already by the other end: what is wanted.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.gathered()
    }

    /// What a new client makes of the clients' history, when they wait in vain.
    fn autopsy(&self) -> String {
        let mut history = self.cut_off();
        let found = Connection::open(self.server, &self.namespace)
            .map_err(|error| error.to_string())
            .and_then(|mut auditor| audit(&mut auditor, self.sockets.len(), &mut history));
        match found {
            Err(trouble) => format!("nor does a new one: {trouble}"),
            Ok(()) => judge(&history).err().unwrap_or_else(|| "a new one finds nothing wrong".into()),
        }
    }

    /// What the clients have seen, when they have ended.
    fn gathered(&self) -> History {
        let mut history = History::new();
        for thread in lock(&self.threads).drain(..) {
            for (key, calls) in thread.join().expect("a client does not panic") {
                history.entry(key).or_default().extend(calls);
            }
        }
        history
    }

    /// From now on the clients take other keys.
    pub fn turn_the_page(&self) {
        self.shared.page.fetch_add(1, Ordering::Relaxed);
    }

    /// Answers of all clients so far.
    pub fn answers(&self) -> u64 {
        self.shared.answers.iter().map(|client| client.load(Ordering::Relaxed)).sum()
    }

    /// Goes on for a while.
    #[track_caller]
    pub fn work_for(&self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(rest) = until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            self.no_trouble();
            std::thread::sleep(rest.min(Duration::from_millis(20)));
        }
    }

    /// Has every client finish its call, then reads everything that is there.
    #[track_caller]
    pub fn finish(mut self) -> Seen {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut history = self.gathered();
        self.no_trouble();
        let (calls, clients) = (history.values().map(Vec::len).sum(), self.sockets.len());
        audit(&mut self.auditor, clients, &mut history).unwrap_or_else(|trouble| panic!("auditor: {trouble}"));
        Seen { history, calls, clients }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // On failure the threads end by themselves, at the latest when their connections do.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    /// Holds every key's history against one server that does one thing after the other.
    #[track_caller]
    pub fn is_linearizable(&self) {
        judge(&self.history).unwrap_or_else(|wrong| panic!("{wrong}"));
    }

    /// The longest wait of each client for an answer that came after `since`; of a call before it, the time since then.
    pub fn pauses(&self, since: Instant) -> Vec<Duration> {
        self.pauses_between(since, None)
    }

    /// The same, for answers up to `until` if that is said.
    pub fn pauses_between(&self, since: Instant, until: Option<Instant>) -> Vec<Duration> {
        let mut pauses = vec![None; self.clients + 1];
        let counts = |at: &Instant| *at > since && until.is_none_or(|until| *at <= until);
        for call in self.history.values().flatten() {
            if let Some((at, _)) = call.answered.filter(|(at, _)| counts(at)) {
                let pause = &mut pauses[call.client];
                *pause = (*pause).max(Some(at - call.called.max(since)));
            }
        }
        pauses.truncate(self.clients);
        pauses.into_iter().flatten().collect()
    }

    /// Longest history of a key.
    pub fn longest(&self) -> usize {
        self.history.values().map(Vec::len).max().unwrap_or(0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads every key of a history, and notes what it says.
fn audit(auditor: &mut Connection, client: usize, history: &mut History) -> Result<(), String> {
    for (key, calls) in history {
        let ask = if calls.iter().any(|call| matches!(call.ask, Ask::Push(_))) { Ask::Range } else { Ask::Get };
        calls.push(call(auditor, client, key, ask)?);
    }
    Ok(())
}

/// Holds every key's history against a server that does one thing after the other.
fn judge(history: &History) -> Result<(), String> {
    history.iter().try_for_each(|(key, calls)| {
        explain(Object::Absent, calls).map_err(|wrong| format!("{key}, {} calls: {wrong}", calls.len()))
    })
}

fn live(client: usize, mut connection: Connection, shared: &Shared, think_us: u64, mut random: Random) -> History {
    let mut history = History::new();
    let mut values = (client as u64 + 1) << 32;
    while !shared.stop.load(Ordering::Relaxed) {
        values += 1;
        let page = shared.page.load(Ordering::Relaxed);
        let (key, ask) = match random.below(10) {
            0..3 => (format!("{page}:string:{}", random.below(STRINGS)), Ask::Set(values)),
            3..6 => (format!("{page}:string:{}", random.below(STRINGS)), Ask::Get),
            6..8 => (format!("{page}:counter:{}", random.below(COUNTERS)), Ask::Incr),
            _ => (format!("{page}:list:{}", random.below(LISTS)), Ask::Push(values)),
        };
        let called = Instant::now();
        match call(&mut connection, client, &key, ask) {
            Ok(call) => history.entry(key).or_default().push(call),
            Err(trouble) => {
                if !shared.given_up.load(Ordering::Relaxed) {
                    lock(&shared.troubles).push(format!("client {client}, {key} {ask:?}: {trouble}"));
                }
                // It may have happened or not.
                history.entry(key).or_default().push(Call { client, ask, called, answered: None });
                break;
            }
        }
        shared.answers[client].fetch_add(1, Ordering::Relaxed);
        if think_us > 0 {
            std::thread::sleep(Duration::from_micros(random.below(think_us)));
        }
    }
    history
}

/// One call and its answer.
fn call(connection: &mut Connection, client: usize, key: &str, ask: Ask) -> Result<Call, String> {
    let called = Instant::now();
    let reply = match ask {
        Ask::Get => connection.ask(&["GET", key]),
        Ask::Set(value) => connection.ask(&["SET", key, &value.to_string()]),
        Ask::Incr => connection.ask(&["INCR", key]),
        Ask::Push(item) => connection.ask(&["RPUSH", key, &item.to_string()]),
        Ask::Range => connection.ask(&["LRANGE", key, "0", "-1"]),
    };
    let at = Instant::now();
    let reply = reply.map_err(|error| format!("{error}, {:?} after the call", at - called))?;
    let told = understand(ask, &reply).ok_or_else(|| format!("{reply:?} is no answer to this"))?;
    Ok(Call { client, ask, called, answered: Some((at, told)) })
}

fn understand(ask: Ask, reply: &Reply) -> Option<Told> {
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok();
    Some(match (ask, reply) {
        (Ask::Get, Reply::Bulk(None)) => Told::Nothing,
        (Ask::Get, Reply::Bulk(Some(value))) => Told::Number(number(value)?),
        (Ask::Set(_), Reply::Simple(ok)) if ok == "OK" => Told::Done,
        (Ask::Incr | Ask::Push(_), Reply::Integer(value)) => Told::Number(u64::try_from(*value).ok()?),
        (Ask::Range, Reply::Array(items)) if items.is_empty() => Told::Nothing,
        (Ask::Range, Reply::Array(items)) => {
            let mut all = Items::default();
            for item in items {
                let Reply::Bulk(Some(item)) = item else { return None };
                all = all.with(number(item)?);
            }
            Told::Items(all)
        }
        _ => return None,
    })
}
