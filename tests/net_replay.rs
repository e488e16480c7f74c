//! Promise: a replay is the same execution also of a guest on the network. `kv` serves `redis-benchmark` while it is recorded; the replay,
//! which sees no network, comes to the same digests, packet for packet. Short: three loads. `LOCKSTEP_LOADS=n` runs n,
//! and `LOCKSTEP_REQUESTS=n` one more of that many requests (`scripts/campaign-net`).
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;
mod net;
mod recording;

use std::path::Path;
use std::time::Instant;

use common::pair::{needs_kvm, turn};
use common::process::Side;
use common::{Random, count_from, eventually, seed};
use lockstep::log::entry::Body;
use lockstep::machine::packets::{HEADER, Packets};
use net::pair::{lockstep_in, net_option};
use net::resp::{Connection, Reply};
use net::site::{GUEST, SERVER, Site};
use net::tool::Tool;
use recording::machine::{read_log, write_log};
use recording::process::LOCKSTEP;

/// A recording that runs.
struct Recorder {
    side: Side,
    site: Site,
}

impl Recorder {
    #[track_caller]
    fn start(log: &Path) -> Recorder {
        needs_kvm();
        let site = Site::up();
        let words = ["record", "--detached", "--digest-interval", "100", "--memory", "256", "--guest", "kv", "--log"]
            .map(str::to_owned);
        let rest = [log.display().to_string(), "--net".into(), net_option()];
        let side = Side::spawn("recorder", &lockstep_in(&site.host(0)), &[&words[..], &rest[..]].concat());
        eventually("the guest's server answers", || {
            let mut connection = Connection::open(SERVER, &site.client()).ok()?;
            (connection.ask(&["PING"]).ok()? == Reply::Simple("PONG".into())).then_some(())
        });
        Recorder { side, site }
    }

    #[track_caller]
    fn benchmark(&self, words: &[&str]) -> String {
        let all = [&["redis-benchmark", "-h", GUEST, "-q"], words].concat();
        Tool::start(&self.site.client(), &all).succeeds_at_last()
    }

    #[track_caller]
    fn stop(mut self) {
        let console = self.side.address("console");
        Tool::start(&self.site.host(0), &[LOCKSTEP, "stop", &console]).succeeds();
        self.side.ends();
        let said = self.side.said();
        assert!(said.iter().any(|line| line.contains("recorded ")), "{said:?}");
    }
}

/// Runs the log again; entries of packets in it, packets, and digests.
#[track_caller]
fn replays(log: &Path, what: &str) {
    let (_, entries) = read_log(log);
    let (mut events, mut received, mut sent, mut digests) = (0, 0, 0, 0);
    for entry in &entries {
        match &entry.body {
            Body::Packets(batch) => {
                events += 1;
                received += batch.len();
            }
            Body::Sent { packets, .. } => sent += *packets as usize,
            Body::Digest(_) => digests += 1,
            _ => {}
        }
    }
    let length = std::fs::metadata(log).expect("the log").len();
    let begun = Instant::now();
    let output = std::process::Command::new(LOCKSTEP).args(["replay", "--json"]).arg(log).output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let replayed: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
    let kept = format!("lockstep replay {}", log.display());
    if !(output.status.success() && replayed["equivalent"] == true && replayed["complete"] == true) {
        // A failing replay keeps its log.
        let keep = std::env::temp_dir().join(format!("net-replay-{}.log", std::process::id()));
        std::fs::copy(log, &keep).expect("a copy");
        panic!("{what}: {kept} (kept as {}): {told}{}", keep.display(), String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(replayed["digests"], digests, "{told}");
    assert!(received > 100 && sent > 100 && digests > 3, "{received} in, {sent} out, {digests} digests");
    println!(
        "{what}: {received} packets in {events} events, {sent} sent, {digests} digests, log {:.1} MB, replayed in {:.1} s",
        length as f64 / 1e6,
        begun.elapsed().as_secs_f64()
    );
}

/// A load of some 20,000 requests, another one each time.
fn load(random: &mut Random, number: u64) -> Vec<String> {
    let tests =
        ["set,get", "incr,lpush,rpush,lpop,rpop", "sadd,hset,spop,zadd,zpopmin", "ping,mset", "lpush,lrange_100"];
    let tests = tests[number as usize % tests.len()];
    let count = 20_000 / (tests.split(',').count() as u64 + u64::from(tests.contains("lrange")) * 6);
    let clients = *random.pick(&[1, 8, 20, 50]);
    let pipeline = *random.pick(&[1, 4, 16]);
    let bytes = *random.pick(&[3, 64, 700, 4000]);
    let keys = *random.pick(&[1, 100, 10_000]);
    format!("-t {tests} -n {count} -c {clients} -P {pipeline} -d {bytes} -r {keys}")
        .split(' ')
        .map(Into::into)
        .collect()
}

#[test]
fn a_recorded_server_replays_with_all_digests_equal() {
    let seed = seed();
    let mut random = Random::new(seed);
    let _turn = turn();
    let directory = tempfile::tempdir().expect("a directory");
    let loads = count_from("LOCKSTEP_LOADS", 3);
    for number in 0..loads {
        let log = directory.path().join("kv.log");
        let options = load(&mut random, number);
        let what = format!("seed {seed} load {number}: {}", options.join(" "));
        println!("{what}");
        let recorder = Recorder::start(&log);
        recorder.benchmark(&options.iter().map(String::as_str).collect::<Vec<_>>());
        recorder.stop();
        replays(&log, &what);
    }
    let requests = count_from("LOCKSTEP_REQUESTS", 0);
    if requests > 0 {
        let log = directory.path().join("kv.log");
        let recorder = Recorder::start(&log);
        let each = (requests / 2).to_string();
        let said =
            recorder.benchmark(&["-t", "set,get", "-n", &each, "-c", "50", "-P", "16", "-d", "16", "-r", "10000"]);
        // The last report of each test.
        said.split(['\r', '\n'])
            .filter(|line| line.contains("requests per second"))
            .for_each(|line| println!("{line}"));
        recorder.stop();
        replays(&log, &format!("{requests} requests"));
    }
    println!("{loads} loads replayed with all digests equal");
}

/// The same, from machine to machine: with packets in its rings, and while it waits for more, the state is all there is of it.
#[test]
fn a_recorded_server_goes_on_in_another_machine() {
    let _turn = turn();
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("kv.log");
    let recorder = Recorder::start(&log);
    recorder.benchmark(&["-t", "set,get,lpush", "-n", "3000", "-c", "8", "-d", "300", "-r", "1000"]);
    recorder.stop();
    let (_, entries) = read_log(&log);
    let seed = seed();
    let (end, moves, tally, _) = recording::moving::replay_moving(&log, seed, 100);
    println!("seed {seed}: {moves:?}, {} digests", tally.digests);
    assert!(matches!(end, Ok(lockstep::machine::doors::EndReason::Stopped)), "seed {seed}: {end:?}");
    assert_eq!(tally.digests, recording::machine::digests(&entries));
    // How many instants there are depends on how the requests came together; dozens of moves are usual.
    assert!(moves.moves >= 5 && moves.waiting > 0, "{moves:?}");
}

/// That the promise can be broken at all: one byte of the received requests is another one. Their first byte, so that the answer is another
/// one, too: a value with another byte in it is stored, and may be overwritten before the next digest looks.
#[test]
fn another_packet_is_another_execution() {
    let _turn = turn();
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("kv.log");
    let recorder = Recorder::start(&log);
    recorder.benchmark(&["-t", "set", "-n", "2000", "-c", "4", "-d", "100"]);
    recorder.stop();
    let (boot, mut entries) = read_log(&log);
    let batches = entries.iter_mut().filter_map(|entry| match &mut entry.body {
        Body::Packets(batch) if batch.iter().any(|packet| packet.len() > 150) => Some(batch),
        _ => None,
    });
    let batch = batches.take(100).last().expect("packets with requests in them");
    let mut changed = Packets::new();
    for packet in batch.iter() {
        let mut packet = packet.to_vec();
        if packet.len() > 150 {
            // Behind virtio-net header, Ethernet, IPv4 and TCP, whose length stands in its thirteenth byte.
            const TCP: usize = HEADER + 14 + 20;
            let request = TCP + usize::from(packet[TCP + 12] >> 4) * 4;
            assert_eq!(packet[request], b'*', "a request in the Redis protocol");
            packet[request] = b'+';
        }
        changed.push(&packet);
    }
    *batch = changed;
    write_log(&log, &boot, &entries);
    let output = std::process::Command::new(LOCKSTEP).arg("replay").arg(&log).output().expect("it starts");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stdout));
}
