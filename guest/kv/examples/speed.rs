//! Nanoseconds per command, with nothing but the crate: `cargo run --release -p lockstep-kv --example speed`.

use lockstep_kv::{Connection, Settings, Store};

const REQUESTS: usize = 1_000_000;
const KEYS: usize = 100_000;

fn request(args: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n{arg}\r\n", arg.len()).as_bytes());
    }
    bytes
}

/// The thread's time on a processor so far: what others do on the machine counts less than by the clock.
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    stat.split(' ').next().and_then(|first| first.parse().ok()).expect("a number")
}

/// Runs `requests` of a kind, so many per call of the connection, and prints the time of one.
fn measure(name: &str, store: &mut Store, per_call: usize, requests: usize, make: impl Fn(usize) -> Vec<u8>) {
    let mut connection = Connection::open(store, String::new(), 0);
    // Requests are prepared before, in the order in which they come.
    let prepared: Vec<Vec<u8>> = (0..requests.min(KEYS) / per_call)
        .map(|call| (0..per_call).flat_map(|number| make(call * per_call + number)).collect())
        .collect();
    let mut out = Vec::with_capacity(1 << 20);
    let begin = cpu_ns();
    let mut done = 0;
    while done < requests {
        for input in &prepared {
            out.clear();
            let served = connection.serve(store, 1, input, &mut out);
            assert_eq!(served.consumed, input.len());
        }
        done += prepared.len() * per_call;
    }
    println!("{name:24} {per_call:3} per call {:8.1} ns", (cpu_ns() - begin) as f64 / done as f64);
    assert!(!out.starts_with(b"-"), "{}", String::from_utf8_lossy(&out));
    connection.close(store);
}

fn main() {
    // Scattered as redis-benchmark's random keys are.
    let scattered = |number: usize| number.wrapping_mul(0x9e37_79b9) % KEYS;
    let key = move |number: usize| format!("key:{:012}", scattered(number));
    for per_call in [1, 16] {
        let mut store = Store::new(Settings { seed: 1, high_water_bytes: 1 << 30, ..Settings::default() });
        let store = &mut store;
        let mut run = |name: &str, requests: usize, make: &dyn Fn(usize) -> Vec<u8>| {
            measure(name, store, per_call, requests, make)
        };
        run("PING", REQUESTS, &|_| request(&["PING"]));
        run("SET (new)", KEYS, &|n| request(&["SET", &key(n), "xxx"]));
        run("SET", REQUESTS, &|n| request(&["SET", &key(n), "xxx"]));
        run("SET 1 KiB", REQUESTS, &|n| request(&["SET", &key(n), &"x".repeat(1024)]));
        run("GET 1 KiB", REQUESTS, &|n| request(&["GET", &key(n)]));
        run("SET EX", REQUESTS, &|n| request(&["SET", &key(n), "xxx", "EX", "100"]));
        run("GET", REQUESTS, &|n| request(&["GET", &key(n)]));
        run("GET (none)", REQUESTS, &|n| request(&["GET", &format!("none:{n}")]));
        run("INCR", REQUESTS, &|n| request(&["INCR", &format!("counter:{:012}", scattered(n))]));
        run("LPUSH", REQUESTS, &|_| request(&["LPUSH", "mylist", "xxx"]));
        run("RPUSH", REQUESTS, &|_| request(&["RPUSH", "mylist", "xxx"]));
        run("LRANGE_100", REQUESTS / 100, &|_| request(&["LRANGE", "mylist", "0", "99"]));
        run("LRANGE_600", REQUESTS / 100, &|_| request(&["LRANGE", "mylist", "0", "599"]));
        run("LPOP", REQUESTS, &|_| request(&["LPOP", "mylist"]));
        run("RPOP", REQUESTS, &|_| request(&["RPOP", "mylist"]));
        run("SADD", REQUESTS, &|n| request(&["SADD", "myset", &format!("element:{:012}", scattered(n))]));
        run("SPOP", KEYS, &|_| request(&["SPOP", "myset"]));
        run("HSET", REQUESTS, &|n| request(&["HSET", "myhash", &format!("element:{:012}", scattered(n)), "xxx"]));
        run("ZADD", REQUESTS, &|n| request(&["ZADD", "myzset", "0", &format!("element:{:012}", scattered(n))]));
        run("ZPOPMIN", KEYS, &|_| request(&["ZPOPMIN", "myzset"]));
        run("MSET (10 keys)", REQUESTS / 10, &|n| {
            let keys: Vec<String> = (0..10).map(|at| key(n * 10 + at)).collect();
            let mut args = vec!["MSET"];
            keys.iter().for_each(|key| args.extend([key.as_str(), "xxx"]));
            request(&args)
        });
    }
}
