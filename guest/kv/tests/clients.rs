//! The clients that people use, against the crate behind a TCP port.

mod support;

use std::process::Command;

use lockstep_kv::Settings;
use support::Server;

/// Runs a program to its end; what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn redis_benchmark_runs_its_default_tests() {
    let server = Server::start(Settings::default(), "127.0.0.1:0");
    let port = server.address.port().to_string();
    for pipeline in ["1", "16"] {
        let text =
            run("redis-benchmark", &["-p", &port, "-n", "2000", "-r", "1000", "-c", "20", "-P", pipeline, "--csv"]);
        let tests = [
            "PING_INLINE",
            "PING_MBULK",
            "SET",
            "GET",
            "INCR",
            "LPUSH",
            "RPUSH",
            "LPOP",
            "RPOP",
            "SADD",
            "HSET",
            "SPOP",
            "ZADD",
            "ZPOPMIN",
            "LPUSH (needed to benchmark LRANGE)",
            "LRANGE_100 (first 100 elements)",
            "LRANGE_300 (first 300 elements)",
            "LRANGE_500 (first 500 elements)",
            "LRANGE_600 (first 600 elements)",
            "MSET (10 keys)",
        ];
        for test in tests {
            assert!(text.contains(&format!("\"{test}\"")), "{test} in {text}");
        }
        assert!(!text.to_lowercase().contains("error") && !text.contains("WARNING"), "{text}");
    }
}

#[test]
fn redis_cli_talks() {
    let server = Server::start(Settings::default(), "127.0.0.1:0");
    let port = server.address.port().to_string();
    let cli = |args: &[&str]| run("redis-cli", &[&["-p", &port], args].concat());
    assert_eq!(cli(&["set", "k", "some text"]), "OK\n");
    assert_eq!(cli(&["get", "k"]), "some text\n");
    assert_eq!(cli(&["--scan"]), "k\n");
    assert!(cli(&["info", "keyspace"]).contains("db0:keys=1,expires=0"));
    assert!(cli(&["command", "docs"]).contains("zpopmin"));
    assert!(cli(&["client", "list"]).contains("cmd=client|list"));
    assert!(cli(&["--bigkeys"]).contains("Biggest string found"));
    // The other protocol is refused, and the client goes on with this one.
    assert!(cli(&["-3", "get", "k"]).contains("some text"));
}

const PYTHON: &str = r#"
import sys, redis
r = redis.Redis(host="127.0.0.1", port=int(sys.argv[1]), client_name="py", decode_responses=True)
assert r.ping() and r.set("k", "v", ex=100) and r.get("k") == "v" and 0 < r.ttl("k") <= 100
assert r.set("k", "w", nx=True) is None and r.incr("n", 5) == 5 and r.incrbyfloat("n", 0.5) == 5.5
assert r.hset("h", mapping={"a": 1, "b": 2}) == 2 and r.hgetall("h") == {"a": "1", "b": "2"}
assert r.rpush("l", *range(200)) == 200 and r.lrange("l", 0, 1) == ["0", "1"] and r.lpop("l", 2) == ["0", "1"]
assert r.sadd("s", "x", "y") == 2 and r.smembers("s") == {"x", "y"}
assert r.zadd("z", {"one": 1, "two": 2}) == 2 and r.zrange("z", 0, -1, withscores=True) == [("one", 1.0), ("two", 2.0)]
assert set(r.scan_iter(match="*")) == {"k", "n", "h", "l", "s", "z"}
with r.pipeline() as p:
    p.set("a", 1); p.incr("a"); p.get("a")
    assert p.execute() == [True, 2, "2"]
def change(p):
    value = int(p.get("a")); p.multi(); p.set("a", value + 1)
assert r.transaction(change, "a") == [True] and r.get("a") == "3"
with r.pipeline() as p:
    p.watch("a"); r.set("a", 9); p.multi(); p.set("a", 0)
    try:
        p.execute(); assert False
    except redis.WatchError:
        pass
assert r.info()["redis_version"] and r.config_get("maxmemory") and r.dbsize() == 7 and r.client_getname() == "py"
assert any(client["name"] == "py" for client in r.client_list()) and r.command_count() > 100
lock = r.set("lock", "me", nx=True, px=10000)
assert lock and r.delete("lock") == 1 and r.flushall() and r.dbsize() == 0
try:
    r.lpush("k", 1); r.get("k"); assert False
except redis.ResponseError as error:
    assert "wrong kind" in str(error)
print("done")
"#;

#[test]
fn redis_py_talks() {
    let server = Server::start(Settings::default(), "127.0.0.1:0");
    assert_eq!(run("/usr/bin/python3", &["-c", PYTHON, &server.address.port().to_string()]), "done\n");
}
