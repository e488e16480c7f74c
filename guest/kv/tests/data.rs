//! The data types against std's, at sizes where tables split, nodes fill and runs divide.

mod support;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_kv::{Connection, Settings, Store};
use proptest::prelude::*;
use support::{Reply, request};

struct Client {
    store: Store,
    connection: Connection,
}

impl Client {
    fn new(settings: Settings) -> Client {
        let mut store = Store::new(settings);
        let connection = Connection::open(&mut store, "test".into(), 0);
        Client { store, connection }
    }

    fn at(&mut self, now_ms: u64, args: &[&str]) -> Reply {
        let mut out = Vec::new();
        self.connection.serve(&mut self.store, now_ms, &request(args), &mut out);
        Reply::read(&mut out.as_slice()).unwrap()
    }

    fn ask(&mut self, args: &[&str]) -> Reply {
        self.at(1, args)
    }

    fn texts(&mut self, args: &[&str]) -> Vec<String> {
        texts(self.ask(args))
    }
}

fn text(reply: Reply) -> Option<String> {
    match reply {
        Reply::Bulk(bytes) => bytes.map(|bytes| String::from_utf8(bytes).unwrap()),
        other => panic!("not a string: {other:?}"),
    }
}

fn texts(reply: Reply) -> Vec<String> {
    match reply {
        Reply::Array(Some(items)) => items.into_iter().map(|item| text(item).unwrap()).collect(),
        other => panic!("not an array: {other:?}"),
    }
}

fn bulk(text: Option<&String>) -> Reply {
    Reply::Bulk(text.map(|text| text.clone().into_bytes()))
}

/// Steps that first make a collection large and then small again.
fn steps() -> impl Strategy<Value = Vec<(u8, u32)>> {
    (1..3000usize, any::<u64>()).prop_map(|(many, seed)| {
        let mut state = seed;
        let mut draw = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        let growing = (0..many).map(|_| 0).collect::<Vec<u8>>();
        let mixed = (0..many).map(|_| 1);
        let shrinking = (0..2 * many).map(|_| 2);
        let phases: Vec<u8> = growing.into_iter().chain(mixed).chain(shrinking).collect();
        phases.into_iter().map(|phase| (if draw() % 4 == 0 { 1 } else { phase }, draw())).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keys_and_hashes_are_maps(steps in steps(), seed in any::<u64>()) {
        let mut client = Client::new(Settings { seed, ..Settings::default() });
        let mut model = BTreeMap::new();
        for (step, draw) in steps {
            let key = format!("{}", draw % 4096);
            if step == 0 || step == 1 && draw % 8192 < 4096 {
                let new = model.insert(key.clone(), format!("value {draw}")).is_none();
                let value = &model[&key];
                prop_assert_eq!(client.ask(&["SET", &key, value]), Reply::Simple("OK".into()));
                prop_assert_eq!(client.ask(&["HSET", "{hash}", &key, value]), Reply::Int(new.into()));
            } else {
                let old = model.remove(&key);
                prop_assert_eq!(client.ask(&["GETDEL", &key]), bulk(old.as_ref()));
                prop_assert_eq!(client.ask(&["HDEL", "{hash}", &key]), Reply::Int(old.is_some().into()));
            }
            let other = format!("{}", draw / 4096 % 4096);
            prop_assert_eq!(client.ask(&["GET", &other]), bulk(model.get(&other)));
            prop_assert_eq!(client.ask(&["HGET", "{hash}", &other]), bulk(model.get(&other)));
        }
        let found: BTreeSet<String> = client.texts(&["KEYS", "[0-9]*"]).into_iter().collect();
        prop_assert_eq!(found, model.keys().cloned().collect::<BTreeSet<_>>());
        let pairs: BTreeMap<String, String> = client.texts(&["HGETALL", "{hash}"]).chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        prop_assert_eq!(pairs, model);
    }

    #[test]
    fn sorted_sets_are_in_order(steps in steps(), seed in any::<u64>()) {
        let mut client = Client::new(Settings { seed, ..Settings::default() });
        let mut model: BTreeMap<String, i32> = BTreeMap::new();
        for (step, draw) in steps {
            let member = format!("member {}", draw % 4096);
            let score = (draw / 4096 % 64) as i32 - 32;
            if step == 0 || step == 1 && draw % 8192 < 4096 {
                let new = model.insert(member.clone(), score).is_none();
                prop_assert_eq!(client.ask(&["ZADD", "z", &score.to_string(), &member]), Reply::Int(new.into()));
            } else if draw % 16 == 0 {
                let least = model.iter().map(|(member, score)| (*score, member.clone())).min();
                let popped = client.texts(&["ZPOPMIN", "z"]);
                prop_assert_eq!(popped, least.iter().flat_map(|(score, member)| [member.clone(), score.to_string()]).collect::<Vec<_>>());
                least.map(|(_, member)| model.remove(&member));
            } else {
                let held = model.remove(&member).is_some();
                prop_assert_eq!(client.ask(&["ZREM", "z", &member]), Reply::Int(held.into()));
            }
            if draw % 64 == 0 {
                let mut order: Vec<(i32, &String)> = model.iter().map(|(member, score)| (*score, member)).collect();
                order.sort();
                let rank = order.iter().position(|&(_, other)| *other == member);
                let rank = rank.map_or(Reply::Bulk(None), |rank| Reply::Int(rank as i64));
                prop_assert_eq!(client.ask(&["ZRANK", "z", &member]), rank);
                let within = order.iter().filter(|&&(score, _)| (-5..=5).contains(&score)).count();
                prop_assert_eq!(client.ask(&["ZCOUNT", "z", "-5", "5"]), Reply::Int(within as i64));
                let reversed: Vec<String> = order.iter().rev().map(|(_, member)| (*member).clone()).collect();
                prop_assert_eq!(client.texts(&["ZREVRANGE", "z", "0", "-1"]), reversed);
            }
        }
        let mut order: Vec<(i32, String)> = model.into_iter().map(|(member, score)| (score, member)).collect();
        order.sort();
        prop_assert_eq!(client.texts(&["ZRANGE", "z", "0", "-1"]), order.into_iter().map(|(_, member)| member).collect::<Vec<_>>());
    }

    #[test]
    fn lists_are_deques(steps in steps()) {
        let mut client = Client::new(Settings::default());
        let mut model: VecDeque<String> = VecDeque::new();
        for (step, draw) in steps {
            let element = format!("{}", draw % 100);
            let at = draw as usize % (model.len() + 1);
            match (step, draw / 128 % 8) {
                (0, 0..4) => {
                    model.push_front(element.clone());
                    client.ask(&["LPUSH", "l", &element]);
                }
                (0, _) => {
                    model.push_back(element.clone());
                    client.ask(&["RPUSH", "l", &element]);
                }
                (1, 0..4) => {
                    if let Some(place) = model.iter().position(|other| *other == element) {
                        model.insert(place, "pivot".into());
                    }
                    client.ask(&["LINSERT", "l", "BEFORE", &element, "pivot"]);
                }
                (1, 4) => {
                    let mut left = 3;
                    model.retain(|other| left == 0 || *other != element || { left -= 1; false });
                    client.ask(&["LREM", "l", "3", &element]);
                }
                (1, _) => {
                    if let Some(held) = model.get_mut(at) {
                        *held = "set".into();
                    }
                    client.ask(&["LSET", "l", &at.to_string(), "set"]);
                }
                (_, 0..4) => prop_assert_eq!(client.ask(&["LPOP", "l"]), bulk(model.pop_front().as_ref())),
                _ => prop_assert_eq!(client.ask(&["RPOP", "l"]), bulk(model.pop_back().as_ref())),
            }
            prop_assert_eq!(client.ask(&["LINDEX", "l", &at.to_string()]), bulk(model.get(at)));
            prop_assert_eq!(client.ask(&["LLEN", "l"]), Reply::Int(model.len() as i64));
            if draw % 64 == 0 {
                let part: Vec<String> = model.iter().skip(at).take(200).cloned().collect();
                prop_assert_eq!(client.texts(&["LRANGE", "l", &at.to_string(), &(at + 199).to_string()]), part);
            }
        }
        prop_assert_eq!(client.texts(&["LRANGE", "l", "0", "-1"]), Vec::from(model));
    }

    #[test]
    fn a_scan_meets_everything_that_stays(stay in 1..400usize, steps in prop::collection::vec((any::<bool>(), 0..400u32), 1..600), count in 1..20usize) {
        let mut client = Client::new(Settings::default());
        for key in 0..stay {
            client.ask(&["SET", &format!("comes and goes {key}"), ""]);
            client.ask(&["SET", &format!("stays {key}"), ""]);
        }
        let mut steps = steps.into_iter();
        let (mut cursor, mut met) = (String::from("0"), BTreeSet::new());
        loop {
            let Reply::Array(Some(parts)) = client.ask(&["SCAN", &cursor, "COUNT", &count.to_string()]) else { panic!() };
            cursor = text(parts[0].clone()).unwrap();
            met.extend(texts(parts[1].clone()));
            if cursor == "0" {
                break;
            }
            // The keyspace grows and shrinks between the calls.
            for (set, key) in steps.by_ref().take(7) {
                let key = format!("comes and goes {key}");
                if set { client.ask(&["SET", &key, ""]) } else { client.ask(&["DEL", &key]) };
            }
        }
        for key in 0..stay {
            let key = format!("stays {key}");
            prop_assert!(met.contains(&key), "{}", key);
        }
    }

    #[test]
    fn keys_go_when_their_time_has_passed(times in prop::collection::vec(1..5000u64, 1..2000)) {
        let mut client = Client::new(Settings::default());
        for (key, time) in times.iter().enumerate() {
            client.at(0, &["SET", &key.to_string(), "", "PX", &time.to_string()]);
        }
        client.at(0, &["SET", "stays", ""]);
        for now_ms in [0, 1, 700, 2500, 4999, 5001] {
            let alive = times.iter().filter(|&&time| time >= now_ms).count();
            // Looked at before they are freed, and after.
            prop_assert_eq!(texts(client.at(now_ms, &["KEYS", "*"])).len(), alive + 1);
            if let Some(&time) = times.first() {
                let left = if time >= now_ms { (time - now_ms) as i64 } else { -2 };
                prop_assert_eq!(client.at(now_ms, &["PTTL", "0"]), Reply::Int(left));
            }
            while client.store.expire_some(now_ms).is_some_and(|next_ms| next_ms <= now_ms) {}
            prop_assert_eq!(client.store.len(), alive + 1);
        }
        prop_assert_eq!(client.store.expire_some(5001), None);
    }
}

#[test]
fn the_same_calls_give_the_same_bytes() {
    let run = |seed| {
        let mut client = Client::new(Settings { seed, ..Settings::default() });
        let mut all = Vec::new();
        for number in 0..500 {
            client.ask(&["SADD", "s", &number.to_string()]);
            all.push(client.ask(&["SRANDMEMBER", "s", "3"]));
        }
        all.push(client.ask(&["SPOP", "s", "100"]));
        all.push(client.ask(&["SMEMBERS", "s"]));
        all.push(client.ask(&["RANDOMKEY"]));
        all
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
