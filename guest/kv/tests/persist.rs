//! Promise: what the journal notes is what happened. Carried out again, the records of any requests make the same store; so does a snapshot. And
//! on a log, whatever a power failure leaves of the disk, the store comes back as it was after some of the requests, among them all whose records
//! were durable.

#[path = "../../aof/tests/disk/mod.rs"]
mod disk;
mod support;

use disk::{Disk, Trouble};
use lockstep_aof::{Io, Log, RewriteError, Sync};
use lockstep_kv::{Connection, JournalTrouble, Replay, Settings, Store};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::requests::{Request, TEMPLATES, requests_like};
use support::{Reply, request};

/// What there is beside the templates: expiries that are over soon, and draws.
const MORE: &[&str] = &[
    "SETEX k 1 s",
    "PSETEX k 300 s",
    "SET k s EX 1",
    "SET k s PX 700 NX|XX",
    "SET k s KEEPTTL",
    "PEXPIRE k 400",
    "EXPIRE k 1 NX|XX|GT|LT",
    "GETEX k PX 250",
    "GETEX k PERSIST",
    "SPOP k",
    "SPOP k 2",
    "SADD k x y z w 10",
    "MULTI",
    "EXEC",
    "INCRBYFLOAT k f",
    "HINCRBYFLOAT k m f",
];

fn any_requests() -> impl Strategy<Value = Vec<Request>> {
    let all: Vec<&'static str> = TEMPLATES.iter().chain(MORE).chain(MORE).copied().collect();
    requests_like(all.leak())
}

/// A time on which the templates' absolute ones have not been.
const BEGIN_MS: u64 = 1_700_000_000_000;

fn ask(store: &mut Store, connection: &mut Connection, now_ms: u64, args: &[impl AsRef<[u8]>]) -> Reply {
    let mut out = Vec::new();
    let bytes = request(args);
    let served = connection.serve(store, now_ms, &bytes, &mut out);
    assert_eq!(served.consumed, bytes.len());
    Reply::read(&mut out.as_slice()).unwrap()
}

/// All that a store holds, in order.
fn dump(store: &mut Store, now_ms: u64) -> Vec<(Vec<u8>, Reply, Reply)> {
    let mut connection = Connection::open(store, String::new(), now_ms);
    let mut say = |args: &[&[u8]]| ask(store, &mut connection, now_ms, args);
    let sorted = |reply| match reply {
        Reply::Array(Some(mut items)) => {
            items.sort();
            Reply::Array(Some(items))
        }
        other => other,
    };
    let paired = |reply| match reply {
        Reply::Array(Some(items)) => {
            let mut pairs: Vec<Vec<Reply>> = items.chunks(2).map(<[Reply]>::to_vec).collect();
            pairs.sort();
            Reply::Array(Some(pairs.concat()))
        }
        other => other,
    };
    let Reply::Array(Some(keys)) = sorted(say(&[b"KEYS", b"*"])) else { panic!("no keys") };
    let mut all = Vec::new();
    for key in keys {
        let Reply::Bulk(Some(key)) = key else { panic!("a key") };
        let Reply::Simple(kind) = say(&[b"TYPE", &key]) else { panic!("no type") };
        let value = match kind.as_str() {
            "string" => say(&[b"GET", &key]),
            "list" => say(&[b"LRANGE", &key, b"0", b"-1"]),
            "set" => sorted(say(&[b"SMEMBERS", &key])),
            "hash" => paired(say(&[b"HGETALL", &key])),
            "zset" => say(&[b"ZRANGE", &key, b"0", b"-1", b"WITHSCORES"]),
            other => panic!("{other}"),
        };
        let expiry = say(&[b"PEXPIRETIME", &key]);
        all.push((key, value, expiry));
    }
    connection.close(store);
    all
}

/// A store that was made by these records.
fn replayed(seed: u64, records: &[(u64, Vec<u8>)]) -> Store {
    let mut store = Store::new(Settings { seed, ..Settings::default() });
    let mut replay = Replay::begin(&mut store);
    for (time_ms, record) in records {
        if let Err(error) = replay.apply(&mut store, *time_ms, record) {
            panic!("{error}: {}", record.escape_ascii());
        }
    }
    replay.end(&mut store);
    store
}

/// A store in use, with what its requests have noted.
struct Live {
    store: Store,
    connections: [Connection; 2],
    now_ms: u64,
    records: Vec<(u64, Vec<u8>)>,
}

impl Live {
    fn new(mut store: Store, now_ms: u64) -> Live {
        let connections = [1, 2].map(|_| Connection::open(&mut store, String::new(), now_ms));
        store.begin_journal();
        store.set_journal_room(1 << 20, None);
        Live { store, connections, now_ms, records: Vec::new() }
    }

    /// Carries out a request a while later; the records that it has noted.
    fn ask(&mut self, number: usize, asked: &Request) -> usize {
        self.now_ms += [0, 0, 7, 101, 350][number % 5];
        if number.is_multiple_of(11) {
            self.store.expire_some(self.now_ms);
        }
        ask(&mut self.store, &mut self.connections[asked.client], self.now_ms, &asked.args);
        self.store.take_journal(|record| self.records.push((self.now_ms, record.to_vec())))
    }
}

#[test]
fn carried_out_again_records_and_snapshots_make_the_same_store() {
    let mut runner = TestRunner::new(Config { cases: 1500, failure_persistence: None, ..Config::default() });
    let noted = std::cell::Cell::new(0);
    let result = runner.run(&(any::<u64>(), any_requests()), |(seed, requests)| {
        let mut live = Live::new(Store::new(Settings { seed, ..Settings::default() }), BEGIN_MS);
        for (number, asked) in requests.iter().enumerate() {
            prop_assert!(live.ask(number, asked) <= 1, "one request, one record");
        }
        noted.set(noted.get() + live.records.len());
        let mut snapshot = Vec::new();
        live.store
            .snapshot(live.now_ms, |piece| {
                snapshot.push((live.now_ms, piece.to_vec()));
                Ok::<(), ()>(())
            })
            .unwrap();
        let expected = dump(&mut live.store, live.now_ms);
        prop_assert_eq!(dump(&mut replayed(seed ^ 1, &live.records), live.now_ms), expected.clone(), "records");
        prop_assert_eq!(dump(&mut replayed(seed ^ 1, &snapshot), live.now_ms), expected, "snapshot");
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(noted.get() > 10_000, "hardly anything was noted");
}

/// As the guest does it: a batch at a time, now and then a rewriting.
fn work(live: &mut Live, log: &mut Log, disk: &mut Disk, times: usize) -> Result<(), Trouble> {
    for _ in 0..times {
        let Some(io) = log.next_io() else { break };
        let result = match &io {
            Io::Write { sector, bytes } => lockstep_aof::Storage::write(disk, *sector, bytes),
            Io::Flush => lockstep_aof::Storage::flush(disk),
        };
        result?;
        log.io_ended(true);
    }
    let (used, base) = log.used();
    if log.is_at_rest() && used > 2 * base + 3000 {
        let (store, now_ms) = (&live.store, live.now_ms);
        match log.rewrite(disk, now_ms, |put| store.snapshot(now_ms, put)) {
            Ok(()) => {}
            Err(RewriteError::Storage(trouble)) => return Err(trouble),
            Err(full) => panic!("{full}"),
        }
    }
    Ok(())
}

fn open(disk: &mut Disk, seed: u64) -> Result<(Log, Store), Trouble> {
    let mut store = Store::new(Settings { seed, ..Settings::default() });
    let mut replay = Replay::begin(&mut store);
    let opened = Log::open(disk, Sync::Always, false, |time_ms, record| replay.apply(&mut store, time_ms, record));
    replay.end(&mut store);
    match opened {
        Ok((log, _)) => Ok((log, store)),
        Err(lockstep_aof::OpenError::Storage(trouble)) => Err(trouble),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn after_a_power_failure_all_that_was_durable_is_there() {
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let recovered = std::cell::Cell::new(0);
    let lives = prop::collection::vec((any_requests(), 0..150_usize), 1..4);
    let result = runner.run(&(any::<u64>(), lives), |(seed, lives)| {
        let mut disk = Disk::new(16 + 2 * 512, seed);
        let mut now_ms = BEGIN_MS;
        // The records since the beginning that the last life knew, of which so many were durable.
        let (mut records, mut durable): (Vec<(u64, Vec<u8>)>, usize) = (Vec::new(), 0);
        for (life, (requests, power)) in lives.iter().map(Some).chain([None]).enumerate().map(|(life, lived)| {
            (life, lived.map_or((&[][..], usize::MAX), |(requests, power)| (requests.as_slice(), *power)))
        }) {
            disk.power = power;
            let opened = open(&mut disk, seed ^ life as u64).or_else(|_| {
                disk.fail();
                open(&mut disk, seed)
            });
            let (mut log, mut store) = opened.expect("power");
            let found = dump(&mut store, now_ms);
            let prefix =
                (durable..=records.len()).rev().find(|&end| dump(&mut replayed(1, &records[..end]), now_ms) == found);
            prop_assert!(
                prefix.is_some(),
                "life {}: {:?} after none of {} to {} records",
                life,
                found,
                durable,
                records.len()
            );
            records.truncate(prefix.unwrap());
            recovered.set(recovered.get() + records.len());
            durable = records.len();
            let mut live = Live::new(store, now_ms);
            let mut appended = Vec::new();
            for (number, asked) in requests.iter().enumerate() {
                let before = live.records.len();
                live.ask(number, asked);
                for (time_ms, record) in &live.records[before..] {
                    appended.push(log.append(*time_ms, record));
                }
                if work(&mut live, &mut log, &mut disk, number % 3).is_err() {
                    break;
                }
            }
            durable += appended.iter().filter(|&&sequence| sequence <= log.durable()).count();
            records.extend(live.records);
            now_ms = live.now_ms;
            disk.fail();
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(recovered.get() > 2000, "hardly anything was recovered: {}", recovered.get());
}

/// What has no room is refused, and changes nothing; what gives room back is not.
#[test]
fn without_room_nothing_is_changed() {
    let mut live = Live::new(Store::new(Settings::default()), BEGIN_MS);
    let say = |live: &mut Live, words: &str| {
        let args: Vec<&str> = words.split(' ').collect();
        let Live { store, connections: [first, _], now_ms, .. } = live;
        ask(store, first, *now_ms, &args)
    };
    let ok = Reply::Simple("OK".into());
    assert_eq!(say(&mut live, "SET a 1"), ok);
    live.store.set_journal_room(60 << 10, None);
    let full = "MISCONF Errors writing to the AOF file: No space left on device";
    assert_eq!(say(&mut live, "SET a 2"), Reply::Error(full.into()));
    assert_eq!(say(&mut live, "MULTI"), ok);
    assert_eq!(say(&mut live, "GET a"), Reply::Simple("QUEUED".into()));
    assert_eq!(say(&mut live, "EXEC"), Reply::Array(Some(vec![Reply::Bulk(Some(b"1".into()))])));
    live.store.set_journal_room(1 << 20, None);
    assert_eq!(say(&mut live, "MULTI"), ok);
    assert_eq!(say(&mut live, "SET a 3"), Reply::Simple("QUEUED".into()));
    live.store.set_journal_room(60 << 10, None);
    assert_eq!(say(&mut live, "EXEC"), Reply::Error(format!("EXECABORT Transaction discarded because of: {full}")));
    assert_eq!(say(&mut live, "GET a"), Reply::Bulk(Some(b"1".into())));
    assert_eq!(say(&mut live, "DEL a"), Reply::Int(1));
    live.store.set_journal_room(1 << 20, Some(JournalTrouble::Io));
    let failed = "MISCONF Errors writing to the AOF file: Input/output error";
    assert_eq!(say(&mut live, "FLUSHALL"), Reply::Error(failed.into()));
    let mut noted = Vec::new();
    live.store.take_journal(|record| noted.push(record.escape_ascii().to_string()));
    assert_eq!(noted, [r"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n", r"*2\r\n$3\r\nDEL\r\n$1\r\na\r\n",]);
}
