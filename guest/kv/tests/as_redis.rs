//! Whatever is asked, the answers are Redis' own: the same requests go to Debian's `redis-server`.

mod support;

use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;

use lockstep_kv::{Connection, Next, Settings, Store};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::requests::{Request, requests};
use support::{Redis, Reply, now_ms, request};

/// Replies to these come in no particular order; the number says how many belong together.
fn unordered(command: &[u8]) -> Option<usize> {
    match command {
        b"KEYS" | b"HKEYS" | b"HVALS" | b"SMEMBERS" | b"SPOP" | b"SRANDMEMBER" | b"SUNION" | b"SINTER" | b"SDIFF"
        | b"CONFIG" => Some(1),
        b"HGETALL" => Some(2),
        _ => None,
    }
}

fn sorted(reply: Reply, together: usize) -> Reply {
    match reply {
        Reply::Array(Some(items)) => {
            let mut groups: Vec<Vec<Reply>> = items.chunks(together).map(<[Reply]>::to_vec).collect();
            groups.sort();
            Reply::Array(Some(groups.concat()))
        }
        other => other,
    }
}

/// The reply with everything in order that has none of its own.
fn in_order(args: &[Vec<u8>], reply: Reply) -> Reply {
    match args[0].as_slice() {
        b"SCAN" | b"SSCAN" => scan_in_order(reply, 1),
        b"HSCAN" | b"ZSCAN" => scan_in_order(reply, 2),
        b"HRANDFIELD" | b"ZRANDMEMBER" => sorted(reply, if args.len() == 4 { 2 } else { 1 }),
        b"HELLO" => without_id(reply),
        command => unordered(command).map_or(reply.clone(), |together| sorted(reply, together)),
    }
}

/// `HELLO`'s reply without the client's number.
fn without_id(reply: Reply) -> Reply {
    match reply {
        Reply::Array(Some(mut fields)) => {
            fields.remove(7);
            Reply::Array(Some(fields))
        }
        other => other,
    }
}

fn scan_in_order(reply: Reply, together: usize) -> Reply {
    match reply {
        Reply::Array(Some(parts)) => match <[Reply; 2]>::try_from(parts) {
            Ok([cursor, items]) => Reply::Array(Some(vec![cursor, sorted(items, together)])),
            Err(parts) => Reply::Array(Some(parts)),
        },
        other => other,
    }
}

/// Both servers, with two clients each.
struct Pair {
    redis: [BufReader<UnixStream>; 2],
    store: Store,
    ours: [Connection; 2],
}

impl Pair {
    fn new(server: &Redis, seed: u64) -> Pair {
        let mut store = Store::new(Settings { seed, ..Settings::default() });
        let ours = [1, 2].map(|number| Connection::open(&mut store, format!("127.0.0.1:{number}"), now_ms()));
        let mut pair = Pair { redis: [server.connect(), server.connect()], store, ours };
        pair.ask(0, &[b"FLUSHALL".to_vec()]);
        pair
    }

    /// Redis' reply and ours.
    fn ask(&mut self, client: usize, args: &[Vec<u8>]) -> (Reply, Reply) {
        let bytes = request(args);
        self.redis[client].get_mut().write_all(&bytes).unwrap();
        let theirs = Reply::read(&mut self.redis[client]).unwrap();
        let mut out = Vec::new();
        let served = self.ours[client].serve(&mut self.store, now_ms(), &bytes, &mut out);
        assert_eq!((served.consumed, served.next), (bytes.len(), Next::Read));
        let mut rest = out.as_slice();
        let ours = Reply::read(&mut rest).unwrap();
        assert!(rest.is_empty(), "one reply to one request");
        (in_order(args, theirs), in_order(args, ours))
    }
}

fn number(reply: &Reply) -> f64 {
    match reply {
        Reply::Bulk(Some(text)) => std::str::from_utf8(text).unwrap().parse().unwrap(),
        other => panic!("not a number: {other:?}"),
    }
}

#[test]
fn sums_of_decimals_are_as_near_as_theirs() {
    let redis = Redis::start();
    let mut runner = TestRunner::new(Config { cases: 50, failure_persistence: None, ..Config::default() });
    let decimals = prop::collection::vec((-1_000_000..1_000_000i64, 0..7usize), 1..20);
    let result = runner.run(&decimals, |decimals| {
        let mut pair = Pair::new(&redis, 0);
        for (value, places) in decimals {
            let text = format!("{:.places$}", value as f64 / 1000.0);
            for args in [vec!["INCRBYFLOAT", "a", &text], vec!["HINCRBYFLOAT", "h", "f", &text]] {
                let (theirs, ours) = pair.ask(0, &args.iter().map(|arg| arg.as_bytes().to_vec()).collect::<Vec<_>>());
                // Theirs have the noise of a long double in the last digits; ours are exact.
                let (ours, theirs) = (number(&ours), number(&theirs));
                prop_assert!((ours - theirs).abs() < 1e-9, "{} and {} with {}", ours, theirs, text);
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn the_same_requests_get_the_same_replies() {
    let redis = Redis::start();
    let cases = std::env::var("LOCKSTEP_KV_CASES").map_or(1500, |cases| cases.parse().unwrap());
    let mut runner =
        TestRunner::new(Config { cases, max_shrink_iters: 100_000, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(any::<u64>(), requests()), |(seed, requests)| {
        let mut pair = Pair::new(&redis, seed);
        // Commands whose replies inside of EXEC need putting in order, by client.
        let mut queued: [Vec<Vec<Vec<u8>>>; 2] = Default::default();
        for Request { client, args } in requests {
            let (theirs, ours) = pair.ask(client, &args);
            let (theirs, ours) = if args[0] == b"EXEC" {
                let order = |reply| match reply {
                    Reply::Array(Some(replies)) => Reply::Array(Some(
                        replies.into_iter().zip(&queued[client]).map(|(reply, args)| in_order(args, reply)).collect(),
                    )),
                    other => other,
                };
                (order(theirs), order(ours))
            } else {
                (theirs, ours)
            };
            match &theirs {
                Reply::Simple(text) if text == "QUEUED" => queued[client].push(args.clone()),
                Reply::Simple(text) if text == "OK" && [&b"MULTI"[..], b"DISCARD"].contains(&args[0].as_slice()) => {
                    queued[client].clear()
                }
                _ if args[0] == b"EXEC" => queued[client].clear(),
                _ => {}
            }
            prop_assert_eq!(ours, theirs, "ours, and Redis' reply to {:?}", Request { client, args });
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
