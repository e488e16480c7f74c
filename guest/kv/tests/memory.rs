//! The heap: writes are refused before it is full, replies and requests are bounded, long loops let others in.
//!
//! One test, for the counting allocator sees the whole process.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use lockstep_kv::{Connection, Next, Settings, Store};
use support::{Reply, request};

struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);
static POLLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        HIGHEST.fetch_max(used, Ordering::Relaxed);
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as promised to us.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

const MIB: usize = 1 << 20;

fn used() -> usize {
    USED.load(Ordering::Relaxed)
}

struct Client {
    store: Store,
    connection: Connection,
}

impl Client {
    fn new(settings: Settings) -> Client {
        let mut store = Store::new(settings);
        let connection = Connection::open(&mut store, String::new(), 0);
        Client { store, connection }
    }

    fn ask(&mut self, args: &[&str]) -> (Reply, Next) {
        let mut out = Vec::new();
        let served = self.connection.serve(&mut self.store, 1, &request(args), &mut out);
        (Reply::read(&mut out.as_slice()).unwrap(), served.next)
    }
}

const FULL: &str = "OOM command not allowed when used memory > 'maxmemory'.";

/// Settings with so much memory from here on.
fn budget(bytes: usize) -> Settings {
    let maxmemory_bytes = used() + bytes;
    Settings { maxmemory_bytes, heap_bytes: maxmemory_bytes + 4 * MIB, heap_used: used, ..Settings::default() }
}

/// Writes until it is refused; the highest use of the heap meanwhile, above the bound.
fn fill(name: &str, write: impl Fn(usize) -> Vec<String>) -> usize {
    let settings = budget(8 * MIB);
    let mut client = Client::new(settings);
    HIGHEST.store(used(), Ordering::Relaxed);
    let refused = (0..1_000_000).find_map(|number| {
        let args = write(number);
        match client.ask(&args.iter().map(String::as_str).collect::<Vec<_>>()).0 {
            Reply::Error(text) => Some(text),
            _ => None,
        }
    });
    assert_eq!(refused.as_deref(), Some(FULL), "{name}");
    // What is there can be read and deleted.
    assert!(!matches!(client.ask(&["TYPE", "k"]).0, Reply::Error(_)));
    assert_eq!(client.ask(&["FLUSHALL"]).0, Reply::Simple("OK".into()));
    assert_eq!(client.ask(&["SET", "k", "v"]).0, Reply::Simple("OK".into()), "{name}");
    HIGHEST.load(Ordering::Relaxed).saturating_sub(settings.maxmemory_bytes)
}

#[test]
fn the_heap_is_never_used_up() {
    let long = "x".repeat(1000);
    let args = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<String>>();
    let mut over = vec![
        fill("SET", |number| args(&["SET", &number.to_string(), "v"])),
        fill("SET of 1000", |number| args(&["SET", &number.to_string(), &long])),
        fill("APPEND", |_| args(&["APPEND", "k", &long])),
        fill("SETRANGE", |number| args(&["SETRANGE", "k", &(number * 1000).to_string(), "x"])),
        fill("RPUSH", |_| args(&["RPUSH", "k", "element"])),
        fill("SADD", |number| args(&["SADD", "k", &number.to_string()])),
        fill("HSET", |number| args(&["HSET", "k", &number.to_string(), &long])),
        fill("ZADD", |number| args(&["ZADD", "k", "1", &number.to_string()])),
    ];
    over.push(fill("SADD of many, SUNIONSTORE", |number| {
        if number % 10 == 9 {
            return args(&["SUNIONSTORE", &format!("union {number}"), "a"]);
        }
        ["SADD".into(), "a".into()].into_iter().chain((0..300).map(|member| format!("{number} {member}"))).collect()
    }));
    over.push(fill("COPY", |number| match number {
        0..500 => args(&["RPUSH", "k", &long]),
        _ => args(&["COPY", "k", &number.to_string()]),
    }));
    // The bound is looked at before a command; arrays grow by pieces, so it is passed by little.
    assert!(over.iter().all(|&over| over < MIB / 2), "{over:?}");

    // A transaction is memory, too.
    let mut client = Client::new(budget(2 * MIB));
    client.ask(&["MULTI"]);
    assert!((0..4000).any(|_| client.ask(&["SET", "k", &long]).0 == Reply::Error(FULL.into())));
    assert!(matches!(client.ask(&["EXEC"]).0, Reply::Error(text) if text.starts_with("EXECABORT")));

    // An announced length takes nothing.
    let mut client = Client::new(budget(8 * MIB));
    let before = used();
    let mut out = Vec::new();
    let served = client.connection.serve(&mut client.store, 1, b"*1000000\r\n$16000000\r\n", &mut out);
    assert_eq!((served.next, out.len()), (Next::Read, 0));
    assert!(used() - before < 1000, "{} bytes for nothing", used() - before);

    // A reply that does not fit is an error and the end.
    let mut client = Client::new(Settings { reply_bytes: 10_000, ..Settings::default() });
    for _ in 0..20 {
        client.ask(&["RPUSH", "k", &long]);
    }
    let (reply, next) = client.ask(&["LRANGE", "k", "0", "4"]);
    assert!(matches!(reply, Reply::Array(Some(elements)) if elements.len() == 5));
    assert_eq!(next, Next::Read);
    let (reply, next) = client.ask(&["LRANGE", "k", "0", "-1"]);
    assert_eq!((reply, next), (Reply::Error("ERR reply of more than 10000 bytes".into()), Next::Close));
    let settings = Settings { heap_bytes: used() + MIB, heap_used: used, ..Settings::default() };
    let mut client = Client::new(settings);
    client.ask(&["SADD", "k", &long]);
    let (reply, next) = client.ask(&["SRANDMEMBER", "k", "-100000000"]);
    assert!(matches!(reply, Reply::Error(_)));
    assert_eq!(next, Next::Close);

    // Long loops call for others to be seen to: at least once for 256 elements.
    let poll = || {
        POLLS.fetch_add(1, Ordering::Relaxed);
    };
    let mut client = Client::new(Settings { poll, ..Settings::default() });
    const MANY: usize = 20_000;
    let mut polls = |args: &[&str]| {
        let before = POLLS.load(Ordering::Relaxed);
        let (reply, _) = client.ask(args);
        assert!(!matches!(reply, Reply::Error(_)), "{args:?}: {reply:?}");
        POLLS.load(Ordering::Relaxed) - before
    };
    let names: Vec<String> = (0..MANY).map(|number| number.to_string()).collect();
    let with = |first: &[&str], each: &[&str]| {
        let mut args: Vec<String> = first.iter().map(|arg| (*arg).to_owned()).collect();
        for name in &names {
            args.extend(each.iter().map(|arg| (*arg).to_owned()).chain([name.clone()]));
        }
        args
    };
    let mut few = Vec::new();
    let mut check = |args: &[String]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let polls = polls(&args);
        if polls < MANY / 256 {
            few.push(format!("{} {}: {polls}", args[0], args[1]));
        }
    };
    check(&with(&["RPUSH", "list"], &[]));
    check(&with(&["SADD", "set"], &[]));
    check(&with(&["SADD", "set2"], &[]));
    check(&with(&["HSET", "hash"], &["field"])[..]);
    check(&with(&["ZADD", "zset"], &["1"]));
    check(&with(&["MSET"], &["same"])[..]);
    let pairs = |first: &[&str]| -> Vec<String> {
        let names = names.iter().flat_map(|name| [name.clone(), name.clone()]);
        first.iter().map(|arg| (*arg).to_owned()).chain(names).collect()
    };
    check(&pairs(&["MSET"]));
    check(&pairs(&["HSET", "hash"]));
    for command in [
        "MGET @",
        "EXISTS @",
        "HMGET hash @",
        "SMISMEMBER set @",
        "ZMSCORE zset @",
        "HGETALL hash",
        "HKEYS hash",
        "SMEMBERS set",
        "LRANGE list 0 -1",
        "ZRANGE zset 0 -1",
        "KEYS *",
        "KEYS none",
        "SCAN 0 COUNT 100000",
        "SSCAN set 0 COUNT 100000",
        "SUNION set set2",
        "SINTER set set2",
        "SDIFF set set2",
        "SUNIONSTORE set3 set set2",
        "COPY list list2",
        "COPY set set4",
        "COPY zset zset2",
        "COPY hash hash2",
        "MEMORY USAGE set",
        "LPOS list none",
        "LINSERT list BEFORE none x",
        "LREM list 0 none",
        "SRANDMEMBER set 10000000",
        "HRANDFIELD hash -20000",
        "LTRIM list2 19999 -1",
        "LPOP list 100000",
        "SPOP set 100000",
        "ZREMRANGEBYRANK zset 0 -1",
        "ZPOPMIN zset2 100000",
        "DEL set2",
        "DEL hash2",
        "HDEL hash @",
        "DEL @",
        "FLUSHALL",
    ] {
        // `@` stands for all names.
        let words: Vec<&str> = command.split(' ').collect();
        match words.split_last() {
            Some((&"@", first)) => check(&with(first, &[])),
            _ => check(&words.into_iter().map(str::to_owned).collect::<Vec<_>>()),
        }
    }
    let (large, key, pattern) = ("x".repeat(8 * MIB), "a".repeat(3000), format!("*{}b", "a".repeat(1500)));
    for (args, least) in [
        (&["SET", "large", &large][..], 64),
        (&["GET", "large"], 64),
        (&["SET", &key, "v"], 0),
        (&["KEYS", &pattern], 1000),
    ] {
        let polls = polls(args);
        if polls < least {
            few.push(format!("{} of much: {polls}", args[0]));
        }
    }
    assert!(few.is_empty(), "too few calls: {few:?}");
}
