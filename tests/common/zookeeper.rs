//! Servers that speak ZooKeeper's protocol, started for a test and ended with it: Debian's ZooKeeper (package `zookeeper`, run
//! directly, without its service) and lockstep's arbiters, alone or as an ensemble. All listen on loopback, on ports of their own,
//! and keep their data in a temporary directory.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::eventually;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian's ZooKeeper.
    Debian,
    /// `lockstep arbiter`.
    Lockstep,
}

/// How they serve.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often containers are looked for that can go, ms.
    pub container_check_ms: u64,
    /// The shortest and the longest time-out of a session, ms.
    pub session_ms: (u64, u64),
    /// Whether a write is on the disk before it is acknowledged. Without, tests that lose no power are faster.
    pub sync: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { container_check_ms: 200, session_ms: (500, 40_000), sync: false }
    }
}

/// ZooKeeper's unit of time: sessions are looked at once in so many ms.
const TICK_MS: u64 = 250;

/// A port that no other test takes while this lives: below those that the kernel gives to connections, locked by a file.
struct Port {
    number: u16,
    _lock: Flock<File>,
}

impl Port {
    fn take() -> Port {
        let directory = std::env::temp_dir().join("lockstep-test-ports");
        fs::create_dir_all(&directory).expect("the temporary directory can be written");
        // Where to begin differs between processes; who takes the same port goes to the next.
        let begin = std::process::id() as u16 % 2000;
        for offset in 0..2000 {
            let number = 20_000 + (begin + offset) % 2000;
            let file = File::create(directory.join(number.to_string())).expect("a lock file");
            let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port { number, _lock: lock };
            }
        }
        panic!("no free port between 20000 and 22000");
    }
}

/// One server.
pub struct Member {
    kind: Kind,
    command: Vec<String>,
    said: PathBuf,
    child: Option<Child>,
    client: Port,
    /// For the other members.
    peers: [Port; 2],
}

impl Member {
    fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.said).expect("a log file");
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a second handle"))
            .stdout(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")));
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.client.number))
    }

    /// Its process. A server that was killed has none.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().expect("it runs").id() as i32)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a child that was not waited for can be signalled");
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether its process is there.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("a child can be asked").is_none())
    }

    /// What it answers to a four-letter word, until it closes the connection; nothing if it does not take one.
    pub fn four_letter_word(&self, word: &str) -> Option<String> {
        four_letter_word(self.address(), word)
    }

    fn serves(&self) -> bool {
        self.four_letter_word("srvr").is_some_and(|answer| answer.contains("Mode: "))
    }
}

/// What a server answers to a four-letter word, until it closes the connection.
pub fn four_letter_word(address: SocketAddr, word: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    // ZooKeeper loses some of those that come while it starts: they are never answered.
    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out that is not zero");
    stream.write_all(word.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // A reset after the answer is how some close.
    let _ = stream.read_to_end(&mut answer);
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// One server, or three that elect one of them.
pub struct Ensemble {
    /// In the order of their numbers, from 1.
    pub members: Vec<Member>,
    directory: TempDir,
}

impl Ensemble {
    /// Starts `count` servers and waits until all serve.
    pub fn start(kind: Kind, count: usize) -> Ensemble {
        Ensemble::start_with(kind, count, &Settings::default())
    }

    /// The same, otherwise set.
    pub fn start_with(kind: Kind, count: usize, settings: &Settings) -> Ensemble {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let members = (0..count)
            .map(|index| Member {
                kind,
                command: Vec::new(),
                said: directory.path().join(format!("said-{}", index + 1)),
                child: None,
                client: Port::take(),
                peers: [Port::take(), Port::take()],
            })
            .collect();
        let mut ensemble = Ensemble { members, directory };
        for index in 0..count {
            ensemble.members[index].command = ensemble.command(index, settings);
            ensemble.members[index].start();
        }
        ensemble.all_serve();
        ensemble
    }

    /// Waits until every member that was not killed serves.
    #[track_caller]
    pub fn all_serve(&mut self) {
        for member in &mut self.members {
            let Some(child) = &mut member.child else { continue };
            let (kind, said) = (member.kind, &member.said);
            let address = SocketAddr::from(([127, 0, 0, 1], member.client.number));
            eventually(&format!("{kind:?} serves at {address}"), || {
                if let Some(status) = child.try_wait().expect("a child can be asked") {
                    panic!("{kind:?} has ended ({status}): {}", fs::read_to_string(said).unwrap_or_default());
                }
                four_letter_word(address, "srvr").filter(|answer| answer.contains("Mode: "))
            });
        }
    }

    /// Starts a member again that was killed; its data are as it left them.
    pub fn restart(&mut self, index: usize) {
        self.members[index].start();
    }

    /// Where clients connect to.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(Member::address).collect()
    }

    /// The addresses as clients take them: `host:port,host:port`.
    pub fn cluster(&self) -> String {
        self.addresses().iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
    }

    /// The index of the member that leads, as it says itself.
    pub fn leader(&self) -> Option<usize> {
        let leads = |answer: String| answer.contains("Mode: leader") || answer.contains("Mode: standalone");
        self.members.iter().position(|member| member.serves() && member.four_letter_word("srvr").is_some_and(leads))
    }

    /// Where a member keeps its data.
    pub fn data(&self, index: usize) -> PathBuf {
        self.directory.path().join(format!("data-{}", index + 1))
    }

    fn command(&self, index: usize, settings: &Settings) -> Vec<String> {
        let data = self.data(index);
        fs::create_dir_all(&data).expect("a directory in a temporary one");
        match self.members[index].kind {
            Kind::Debian => debian(&self.members, index, &data, self.directory.path(), settings),
            Kind::Lockstep => lockstep(&self.members, index, &data, settings),
        }
    }
}

impl Drop for Ensemble {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.kill();
            if std::thread::panicking() {
                let said = fs::read_to_string(&member.said).unwrap_or_default();
                let tail: Vec<&str> = said.lines().rev().take(40).collect();
                eprintln!("---- the server at {} said at last:", member.address());
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

/// Debian's ZooKeeper with a small heap; how it is set stands in a file.
fn debian(members: &[Member], index: usize, data: &Path, directory: &Path, settings: &Settings) -> Vec<String> {
    let number = index + 1;
    let mut file = format!(
        "tickTime={TICK_MS}\ninitLimit=80\nsyncLimit=80\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n\
         minSessionTimeout={}\nmaxSessionTimeout={}\nadmin.enableServer=false\n4lw.commands.whitelist=*\n",
        data.display(),
        members[index].client.number,
        settings.session_ms.0,
        settings.session_ms.1,
    );
    if members.len() > 1 {
        for (index, member) in members.iter().enumerate() {
            let [quorum, election] = &member.peers;
            file += &format!("server.{}=127.0.0.1:{}:{}\n", index + 1, quorum.number, election.number);
        }
        fs::write(data.join("myid"), number.to_string()).expect("a file in a temporary directory");
    }
    let path = directory.join(format!("zoo-{number}.cfg"));
    fs::write(&path, file).expect("a file in a temporary directory");
    let java = "/usr/share/java";
    let mut command = vec![
        "java".to_owned(),
        "-Xmx96m".to_owned(),
        "-XX:+UseSerialGC".to_owned(),
        // Starts in half the time, and no test runs long enough to miss the better compiler.
        "-XX:TieredStopAtLevel=1".to_owned(),
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".to_owned(),
        "-Dzookeeper.preAllocSize=1024".to_owned(),
        format!("-Dznode.container.checkIntervalMs={}", settings.container_check_ms),
    ];
    if !settings.sync {
        command.push("-Dzookeeper.forceSync=no".to_owned());
    }
    command.extend([
        "-cp".to_owned(),
        format!("{java}/zookeeper.jar:{java}/slf4j-simple.jar"),
        "org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned(),
        path.display().to_string(),
    ]);
    command
}

/// lockstep's own arbiter.
fn lockstep(members: &[Member], index: usize, data: &Path, settings: &Settings) -> Vec<String> {
    let peer = |(index, member): (usize, &Member)| format!("{}=127.0.0.1:{}", index + 1, member.peers[0].number);
    let peers: Vec<String> = members.iter().enumerate().map(peer).collect();
    let mut command: Vec<String> = [env!("CARGO_BIN_EXE_lockstep"), "arbiter", "--id"].map(str::to_owned).into();
    command.push((index + 1).to_string());
    command.extend(["--peers".to_owned(), peers.join(",")]);
    command.extend(["--client".to_owned(), members[index].address().to_string()]);
    command.extend(["--data".to_owned(), data.display().to_string()]);
    command.extend(["--min-session-ms".to_owned(), settings.session_ms.0.to_string()]);
    command.extend(["--max-session-ms".to_owned(), settings.session_ms.1.to_string()]);
    command.extend(["--container-check-ms".to_owned(), settings.container_check_ms.to_string()]);
    command
}
