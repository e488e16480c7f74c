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
    /// `lockstep arbiter`.
    Lockstep,
}

/// The tick of Debian's servers, milliseconds. The shortest session is two of them; a follower leaves a silent leader after four.
pub const TICK_MS: u64 = 500;

/// How long Debian's servers wait for one that they have elected. (Now and then they elect a leader once more who has fallen silent, and then wait in vain, perhaps
/// twice.)
const INIT_MS: u64 = 5000;

/// How servers are set, where a test wants it otherwise.
#[derive(Clone, Debug)]
pub struct Settings {
    /// ZooKeeper's tick, ms: how often it looks for sessions that have expired.
    pub tick_ms: u64,
    /// The shortest and the longest time-out of a session, ms.
    pub session_ms: [u64; 2],
    /// How often containers are looked for that can go, ms.
    pub container_ms: u64,
    /// Whether nodes with a time to live are allowed; ZooKeeper's own default is not.
    pub ttl: bool,
    /// Whether writes are on the disk before they are acknowledged; tests in which nothing loses its power do without.
    pub sync: bool,
    /// Ticks after which a follower that is silent is given up.
    pub sync_limit: u64,
    /// For tests that run a whole ensemble and many clients on few processors, and are about something else: members wait long for
    /// one another.
    pub patient: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            tick_ms: TICK_MS,
            session_ms: [2 * TICK_MS, 20 * TICK_MS],
            container_ms: 60_000,
            ttl: true,
            sync: true,
            sync_limit: 4,
            patient: false,
        }
    }
}

/// An ensemble.
pub struct ZooKeeper {
    /// What its servers are.
    pub kind: Kind,
    members: Vec<Member>,
    clients: Vec<Port>,
    /// The servers' own ports.
    between: Vec<[Port; 2]>,
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
        Self::start_set(kind, count, Settings::default())
    }

    /// The same, with other settings.
    #[track_caller]
    pub fn start_set(kind: Kind, count: usize, settings: Settings) -> ZooKeeper {
        Self::start_with(kind, count, |_| None, settings)
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
            Settings { sync_limit: 60, ..Settings::default() },
        );
        assert_ne!(ensemble.leader(), 0, "the straggler leads");
        (ensemble, valves)
    }

    fn start_with(kind: Kind, count: usize, detour: impl FnMut(u16) -> Option<u16>, settings: Settings) -> ZooKeeper {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let clients: Vec<Port> = (0..count).map(|_| Port::reserve()).collect();
        let between: Vec<[Port; 2]> = (0..count).map(|_| [Port::reserve(), Port::reserve()]).collect();
        let members = match kind {
            Kind::Debian => debian(&directory, &clients, &between, detour, &settings),
            Kind::Lockstep => lockstep(&directory, &clients, &between, &settings),
        };
        let mut ensemble = ZooKeeper { kind, members, clients, between, directory };
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

    /// `HOST:PORT` by which the others reach one of them.
    pub fn peer(&self, index: usize) -> String {
        self.between[index][0].address()
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

/// Debian's servers. `detour`: the port by which the first one reaches another's.
fn debian(
    directory: &TempDir,
    clients: &[Port],
    between: &[[Port; 2]],
    mut detour: impl FnMut(u16) -> Option<u16>,
    settings: &Settings,
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
            "tickTime={}\ninitLimit={}\nsyncLimit={}\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\n\
             minSessionTimeout={}\nmaxSessionTimeout={}\nadmin.enableServer=false\n4lw.commands.whitelist=*\nmaxClientCnxns=0\n\
             extendedTypesEnabled={}\nforceSync={}\n",
            settings.tick_ms,
            (INIT_MS / settings.tick_ms).max(if settings.patient { 80 } else { 5 }),
            if settings.patient { 80 } else { settings.sync_limit },
            data.display(),
            client.number,
            settings.session_ms[0],
            settings.session_ms[1],
            settings.ttl,
            if settings.sync { "yes" } else { "no" },
        );
        if between.len() > 1 {
            configuration += &servers(index);
        }
        let file = directory.path().join(format!("server{index}.cfg"));
        std::fs::write(&file, configuration).expect("a file");
        let (log, jars) = (format!("-Dlog4j.configuration=file:{}", log.display()), jars.join(":"));
        let containers = format!("-Dznode.container.checkIntervalMs={}", settings.container_ms);
        Member::start(&directory.path().join(format!("server{index}.out")), move || {
            let mut command = Command::new("java");
            // Small and quick to start: three of them share the machine with the test.
            command.args([
                "-Xmx64m",
                "-Xss512k",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                &log,
                &containers,
                "-cp",
                &jars,
            ]);
            command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(&file);
            command
        })
    };
    clients.iter().enumerate().map(member).collect()
}

/// Our own. Where the others are, each of them is told by the group; nobody can be held up by what one is told at its start.
fn lockstep(directory: &TempDir, clients: &[Port], between: &[[Port; 2]], settings: &Settings) -> Vec<Member> {
    let peers: Vec<String> =
        between.iter().zip(1..).map(|([peer, _], id)| format!("{id}={}", peer.address())).collect();
    let member = |(index, client): (usize, &Port)| {
        let data = directory.path().join(format!("data{index}"));
        let (peers, client, settings) = (peers.join(","), client.address(), settings.clone());
        Member::start(&directory.path().join(format!("server{index}.out")), move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
            command.args(["arbiter", "--id", &(index + 1).to_string(), "--peers", &peers, "--client", &client]);
            command.arg("--data").arg(&data);
            let [least, most] = settings.session_ms;
            command.args(["--min-session-timeout", &least.to_string(), "--max-session-timeout", &most.to_string()]);
            command.args(["--container-check", &settings.container_ms.to_string()]);
            if settings.patient {
                command.args(["--heartbeat", "100", "--election-timeout", "1000"]);
            }
            command
        })
    };
    clients.iter().enumerate().map(member).collect()
}
