//! Promise: who watches over ZooKeeper with its four-letter words (monitoring agents, load balancers, kazoo's `server_version`) finds
//! with our arbiters the same lines, with numbers that mean the same. What ZooKeeper says is written down here, format for format,
//! with `#` for a number; what the numbers are, is held against what clients have done.
#![allow(clippy::disallowed_methods, reason = "tests watch the world's time; nothing of the machine depends on it")]

mod common;

use std::collections::BTreeMap;

use common::eventually;
use common::zookeeper::{Kind, Settings, ZooKeeper, four_letters};
use zookeeper_client::{Acls, Client, CreateMode};

/// The version's line, and numbers, put aside: `Latency min/avg/max: #/#/#`.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for line in text.split_inclusive('\n') {
        if let Some((name, _)) = line.split_once("ersion") {
            shape += &format!("{name}ersion *\n");
            continue;
        }
        let mut rest = line;
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let (before, number) = rest.split_at(start);
            let is_hex = number.strip_prefix("0x");
            let end = match is_hex {
                Some(digits) => 2 + digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len()),
                None => number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len()),
            };
            shape += before.strip_suffix('-').unwrap_or(before);
            shape += if is_hex.is_some() { "0x#" } else { "#" };
            rest = &number[end..];
        }
        shape += rest;
    }
    shape
}

/// From `Latency` on, for a server that is this. Our log has no proposals of its own whose sizes it could tell.
fn statistics(kind: Kind, mode: &str) -> String {
    let leader = if mode == "leader" && kind == Kind::Debian { "Proposal sizes last/min/max: #/#/#\n" } else { "" };
    format!(
        "Latency min/avg/max: #/#/#\nReceived: #\nSent: #\nConnections: #\nOutstanding: #\nZxid: 0x#\nMode: {mode}\nNode count: #\n{leader}"
    )
}

/// What a program finds that reads `mntr`, whoever it is; all are numbers.
const MONITORED: &[&str] = &[
    "zk_approximate_data_size",
    "zk_avg_latency",
    "zk_ephemerals_count",
    "zk_global_sessions",
    "zk_max_latency",
    "zk_min_latency",
    "zk_num_alive_connections",
    "zk_outstanding_requests",
    "zk_packets_received",
    "zk_packets_sent",
    "zk_watch_count",
    "zk_znode_count",
];

/// What ZooKeeper says besides, which tools read where it is. (There are some hundred more, about the inside of its processors.)
const MONITORED_JAVA: &[&str] =
    &["zk_local_sessions", "zk_max_file_descriptor_count", "zk_open_file_descriptor_count", "zk_uptime"];

/// What only the leader of an ensemble has to say.
const MONITORED_LEADER: &[&str] = &["zk_learners", "zk_synced_followers"];

/// What is set: the names in `conf`.
const SET: &[&str] = &["clientPort", "maxClientCnxns", "minSessionTimeout", "maxSessionTimeout", "serverId"];

/// The same, of ZooKeeper only.
const SET_JAVA: &[&str] =
    &["secureClientPort", "dataDir", "dataDirSize", "dataLogDir", "dataLogSize", "tickTime", "clientPortListenBacklog"];

fn pairs(text: &str, separator: char) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(separator)).collect()
}

#[track_caller]
fn number(values: &BTreeMap<&str, &str>, name: &str) -> f64 {
    let text = values.get(name).unwrap_or_else(|| panic!("mntr does not say {name}: {values:?}"));
    text.parse().unwrap_or_else(|_| panic!("{name} is no number, but {text:?}"))
}

struct Server<'a> {
    kind: Kind,
    address: String,
    mode: &'a str,
}

impl Server<'_> {
    #[track_caller]
    fn says(&self, word: &str) -> String {
        four_letters(&self.address, word).unwrap_or_else(|| panic!("{} does not answer {word}", self.address))
    }

    /// Formats, of a server by itself.
    fn judge(&self, alone: bool) {
        assert_eq!(self.says("ruok"), "imok");
        assert_eq!(self.says("isro"), "rw");
        let version = "Zookeeper version *\n";
        assert_eq!(shape(&self.says("srvr")), format!("{version}{}", statistics(self.kind, self.mode)));
        let stat = shape(&self.says("stat"));
        let (clients, rest) = stat.split_once("\n\n").expect("an empty line after the clients");
        let mut lines = clients.lines();
        assert_eq!((lines.next(), lines.next()), (Some(version.trim_end()), Some("Clients:")));
        for client in lines {
            match self.kind {
                Kind::Debian => assert_eq!(client, " /#:#[#](queued=#,recved=#,sent=#)"),
                Kind::Lockstep => assert!(client.starts_with(" /#"), "{client}"),
            }
        }
        assert_eq!(rest, statistics(self.kind, self.mode));
        let said = self.says("mntr");
        assert!(said.lines().all(|line| line.starts_with("zk_") && line.matches('\t').count() == 1), "{said}");
        let values = pairs(&said, '\t');
        assert!(said.starts_with("zk_version\t"), "{said}");
        assert_eq!(values["zk_server_state"], self.mode);
        if !alone && self.kind == Kind::Debian {
            let state = if self.mode == "leader" { "leading - broadcast" } else { "following - broadcast" };
            assert_eq!(values["zk_peer_state"], state);
        }
        // A size that was never there is -1.
        let java: &[&str] = if self.kind == Kind::Debian { MONITORED_JAVA } else { &[] };
        MONITORED.iter().chain(java).for_each(|name| assert!(number(&values, name) >= -1.0, "{name}"));
        for name in MONITORED_LEADER {
            assert_eq!(values.contains_key(name), self.mode == "leader", "{name}");
        }
        let said = self.says("conf");
        let set = pairs(&said, '=');
        let java: &[&str] = if self.kind == Kind::Debian { SET_JAVA } else { &[] };
        SET.iter().chain(java).for_each(|name| assert!(set.contains_key(name), "conf does not say {name}: {said}"));
        assert_eq!(set["clientPort"], self.address.rsplit(':').next().expect("a port"));
        // What kazoo looks for when it asks for the version.
        let said = self.says("envi");
        let (first, rest) = said.split_once('\n').expect("lines");
        assert_eq!(first, "Environment:");
        let version = pairs(rest, '=')["zookeeper.version"].to_owned();
        let digits = version.split(['-', ',']).next().expect("a first part");
        assert_eq!(digits.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{version}");
        // A word is one as the first thing on a connection, written as it is.
        assert_eq!(self.says("RUOK"), "");
        assert_eq!(self.says("nope"), "");
        if self.kind == Kind::Lockstep {
            // Words that ours do not know are none.
            ["wchs", "srst", "cons", "dump"].iter().for_each(|word| assert_eq!(self.says(word), "", "{word}"));
            return;
        }
        assert_eq!(shape(&self.says("wchs")), "# connections watching # paths\nTotal watches:#\n");
        assert_eq!(self.says("srst"), "Server stats reset.\n");
    }
}

/// The number of a line of `srvr`.
fn line_number(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no number {name} in {text}"))
}

/// What the numbers are: before and after some clients have done what is known.
async fn numbers(server: &Server<'_>) {
    let before = server.says("mntr");
    let before = pairs(&before, '\t');
    let client = Client::connect(&server.address).await.expect("a session");
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.create("/words", b"12345", &open).await.expect("a node");
    client.create("/words/e", b"", &CreateMode::Ephemeral.with_acls(Acls::anyone_all())).await.expect("a node");
    let data = client.get_and_watch_data("/words").await.expect("its data");
    let children = client.list_and_watch_children("/words").await.expect("its children");
    let none = client.check_and_watch_stat("/words/none").await.expect("none");
    let said = server.says("mntr");
    let after = pairs(&said, '\t');
    let grown = |name: &str| number(&after, name) - number(&before, name);
    assert_eq!(grown("zk_znode_count"), 2.0);
    assert_eq!(grown("zk_ephemerals_count"), 1.0);
    assert_eq!(grown("zk_watch_count"), 3.0);
    assert_eq!(grown("zk_global_sessions"), 1.0);
    // Names and data of the two.
    assert_eq!(grown("zk_approximate_data_size"), ("/words".len() + 5 + "/words/e".len()) as f64);
    assert_eq!(grown("zk_num_alive_connections"), 1.0);
    assert!(grown("zk_packets_received") >= 5.0 && grown("zk_packets_sent") >= 5.0, "{said}");
    let srvr = server.says("srvr");
    assert_eq!(line_number(&srvr, "Node count") as f64, number(&after, "zk_znode_count"));
    assert_eq!(line_number(&srvr, "Connections") as f64, number(&after, "zk_num_alive_connections"));
    if server.kind == Kind::Debian {
        // Those for data and existence; the ones for children are not told.
        assert_eq!(server.says("wchs"), "1 connections watching 2 paths\nTotal watches:2\n");
    }
    // The session is in the list of clients; with ZooKeeper, so is whoever asks.
    let listed = server.says("stat").lines().filter(|line| line.starts_with(" /")).count();
    assert_eq!(listed, if server.kind == Kind::Debian { 2 } else { 1 });
    drop((data, children, none));
    client.delete("/words/e", None).await.expect("it goes");
    client.delete("/words", None).await.expect("it goes");
    // Its end is told to the server by a task of the runtime.
    let mut state = client.state_watcher();
    drop(client);
    while !state.changed().await.is_terminated() {}
    let said = server.says("mntr");
    let now = pairs(&said, '\t');
    for name in ["zk_global_sessions", "zk_znode_count", "zk_watch_count", "zk_ephemerals_count"] {
        assert_eq!(number(&now, name), number(&before, name), "{name} after the session's end");
    }
}

fn servers_say(kind: Kind, count: usize) {
    let servers = ZooKeeper::start_set(kind, count, Settings { sync: false, patient: true, ..Settings::default() });
    let leader = servers.leader();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for index in 0..count {
        let mode = if count == 1 {
            "standalone"
        } else if index == leader {
            "leader"
        } else {
            "follower"
        };
        let server = Server { kind, address: servers.address(index), mode };
        server.judge(count == 1);
        // It may be a moment behind the member before it, whose session has ended.
        eventually("nobody is there", || {
            let said = server.says("mntr");
            (number(&pairs(&said, '\t'), "zk_global_sessions") == 0.0).then_some(())
        });
        runtime.block_on(numbers(&server));
    }
}

#[test]
fn zookeeper_says_this_alone() {
    servers_say(Kind::Debian, 1);
}

#[test]
fn zookeeper_says_this_in_an_ensemble() {
    servers_say(Kind::Debian, 3);
}

#[test]
fn an_arbiter_says_this_alone() {
    servers_say(Kind::Lockstep, 1);
}

#[test]
fn arbiters_say_this_in_an_ensemble() {
    servers_say(Kind::Lockstep, 3);
}
