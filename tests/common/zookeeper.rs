//! A ZooKeeper ensemble on loopback, started by the test and ended with it: unique ports, its data in a directory of the test's.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::eventually;
use super::members::{Member, Port};
use super::valve::Valve;

/// What kind of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian's `zookeeper` package (Java).
    Debian,
}

/// The tick of Debian's servers, milliseconds. The shortest session is two of them; a follower leaves a silent leader after four. Now and then the others elect a leader
/// once more who has fallen silent, and then they wait for it for `initLimit` ticks, 5 s, perhaps twice.
pub const TICK_MS: u64 = 500;

/// An ensemble.
pub struct ZooKeeper {
    /// What its servers are.
    pub kind: Kind,
    members: Vec<Member>,
    clients: Vec<Port>,
    /// The servers' own ports.
    _between: Vec<[Port; 2]>,
    directory: TempDir,
}

/// Debian's jars, the log's first.
const JARS: [&str; 3] = ["slf4j-log4j12.jar", "log4j-1.2.jar", "zookeeper.jar"];

const LOG: &str = "log4j.rootLogger=WARN, OUT
log4j.appender.OUT=org.apache.log4j.ConsoleAppender
log4j.appender.OUT.layout=org.apache.log4j.PatternLayout
log4j.appender.OUT.layout.ConversionPattern=%d{ISO8601} %-5p %c{1}: %m%n
";

impl ZooKeeper {
    /// Starts an ensemble of `count` servers and waits until all of them serve.
    #[track_caller]
    pub fn start(kind: Kind, count: usize) -> ZooKeeper {
        Self::start_with(kind, count, |_| None, 4)
    }

    /// The same, and what server 0 hears from the others can be held up: it goes on serving what it knows. (The first server is not the
    /// first to be elected.)
    #[track_caller]
    pub fn start_with_a_straggler(kind: Kind, count: usize) -> (ZooKeeper, Vec<Valve>) {
        let mut valves = Vec::new();
        let ensemble = Self::start_with(
            kind,
            count,
            |port| {
                valves.push(Valve::before(port));
                valves.last().map(|valve| valve.port)
            },
            60,
        );
        assert_ne!(ensemble.leader(), 0, "the straggler leads");
        (ensemble, valves)
    }

    fn start_with(kind: Kind, count: usize, detour: impl FnMut(u16) -> Option<u16>, sync_limit: u64) -> ZooKeeper {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let clients: Vec<Port> = (0..count).map(|_| Port::reserve()).collect();
        let between: Vec<[Port; 2]> = (0..count).map(|_| [Port::reserve(), Port::reserve()]).collect();
        let members = match kind {
            Kind::Debian => debian(&directory, &clients, &between, detour, sync_limit),
        };
        let mut ensemble = ZooKeeper { kind, members, clients, _between: between, directory };
        ensemble.serves();
        ensemble
    }

    /// Waits until all its servers that run serve.
    #[track_caller]
    pub fn serves(&mut self) {
        for index in 0..self.members.len() {
            if self.members[index].is_there() {
                eventually("a server serves", || {
                    self.members[index].must_run();
                    self.mode(index)
                });
            }
        }
    }

    /// `HOST:PORT,HOST:PORT,…` of its servers.
    pub fn addresses(&self) -> String {
        self.clients.iter().map(Port::address).collect::<Vec<_>>().join(",")
    }

    /// `HOST:PORT` of one of them.
    pub fn address(&self, index: usize) -> String {
        self.clients[index].address()
    }

    /// The arbiter in it, as `--arbiter` takes it, under `path`.
    pub fn uri(&self, path: &str) -> String {
        format!("zk://{}{path}", self.addresses())
    }

    /// The same arbiter, whose server `first` is named first, and so asked first.
    pub fn uri_beginning_with(&self, first: usize, path: &str) -> String {
        let mut addresses: Vec<String> = self.clients.iter().map(Port::address).collect();
        addresses.rotate_left(first);
        format!("zk://{}{path}", addresses.join(","))
    }

    /// How many servers there are.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// One of the servers.
    pub fn member(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }

    /// What a server is at the moment: `leader`, `follower` or `standalone`; `None` while it does not serve.
    pub fn mode(&self, index: usize) -> Option<String> {
        let said = four_letters(&self.address(index), "srvr")?;
        said.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    }

    /// The server that leads: all the others that run follow. (One that was stopped may think for a moment that it still leads.)
    #[track_caller]
    pub fn leader(&self) -> usize {
        eventually("one leads and the others follow", || {
            let running = (0..self.count()).filter(|&index| self.members[index].is_there());
            let modes: Vec<(usize, String)> =
                running.map(|index| Some((index, self.mode(index)?))).collect::<Option<_>>()?;
            let (leaders, others): (Vec<_>, Vec<_>) =
                modes.into_iter().partition(|(_, mode)| mode == "leader" || mode == "standalone");
            let follow = others.iter().all(|(_, mode)| mode == "follower");
            match leaders[..] {
                [(leader, _)] if follow => Some(leader),
                _ => None,
            }
        })
    }

    /// A server that follows.
    #[track_caller]
    pub fn follower(&self) -> usize {
        let leader = self.leader();
        (0..self.count()).find(|&index| index != leader && self.members[index].is_there()).expect("a follower")
    }

    /// Where its data is.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}

/// A runtime that runs on a thread of its own until the test ends, so that sessions are kept open while nobody waits for them.
pub fn background() -> tokio::runtime::Handle {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
}

/// What a server answers to one of the four-letter words.
pub fn four_letters(address: &str, word: &str) -> Option<String> {
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address.parse().expect("an address"), patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(word.as_bytes()).ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    Some(said)
}

/// Debian's servers. `detour`: the port by which the first one reaches another's. `sync_limit`: ticks after which a silent one is given up.
fn debian(
    directory: &TempDir,
    clients: &[Port],
    between: &[[Port; 2]],
    mut detour: impl FnMut(u16) -> Option<u16>,
    sync_limit: u64,
) -> Vec<Member> {
    let jars = JARS.map(|jar| format!("/usr/share/java/{jar}"));
    for jar in &jars {
        assert!(std::path::Path::new(jar).exists(), "{jar} is missing: install Debian's `zookeeper`");
    }
    let log = directory.path().join("log4j.properties");
    std::fs::write(&log, LOG).expect("a file");
    let mut servers = |seen_by: usize| -> String {
        let server = |(index, [quorum, election]): (usize, &[Port; 2])| {
            let detour = if seen_by == 0 && index != 0 { detour(quorum.number) } else { None };
            let quorum = detour.unwrap_or(quorum.number);
            format!("server.{index}=127.0.0.1:{quorum}:{}\n", election.number)
        };
        between.iter().enumerate().map(server).collect()
    };
    let member = |(index, client): (usize, &Port)| {
        let data = directory.path().join(format!("data{index}"));
        std::fs::create_dir(&data).expect("a directory");
        std::fs::write(data.join("myid"), index.to_string()).expect("a file");
        let mut configuration = format!(
            "tickTime={TICK_MS}\ninitLimit=10\nsyncLimit={sync_limit}\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\n\
             admin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\nextendedTypesEnabled=true\n",
            data.display(),
            client.number
        );
        if between.len() > 1 {
            configuration += &servers(index);
        }
        let file = directory.path().join(format!("server{index}.cfg"));
        std::fs::write(&file, configuration).expect("a file");
        let (log, jars) = (format!("-Dlog4j.configuration=file:{}", log.display()), jars.join(":"));
        Member::start(&directory.path().join(format!("server{index}.out")), move || {
            let mut command = Command::new("java");
            // Small and quick to start: three of them share the machine with the test.
            command.args(["-Xmx64m", "-Xss512k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", &log, "-cp", &jars]);
            command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(&file);
            command
        })
    };
    clients.iter().enumerate().map(member).collect()
}
