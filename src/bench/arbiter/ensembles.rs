//! Three arbiters of ours, or three of Debian's ZooKeeper, on loopback: processes of this machine with their logs on its disk.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::loopback::{PATIENCE, Scratch, confine};

/// Whose servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `lockstep arbiter`.
    Ours,
    /// Debian's package `zookeeper`.
    Debian,
}

const MEMBERS: usize = 3;
/// Where Debian's package puts it.
const JARS: [&str; 3] = ["slf4j-log4j12.jar", "log4j-1.2.jar", "zookeeper.jar"];
const JAR_DIRECTORY: &str = "/usr/share/java";
/// It writes as little as ours does.
const LOG4J: &str = "log4j.rootLogger=WARN, OUT\nlog4j.appender.OUT=org.apache.log4j.ConsoleAppender\n\
                     log4j.appender.OUT.layout=org.apache.log4j.SimpleLayout\n";

/// An ensemble; its processes are killed when it is dropped.
pub struct Ensemble {
    kind: Kind,
    members: Vec<Member>,
    _scratch: Scratch,
}

struct Member {
    command: Command,
    child: Option<Child>,
    client: String,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Member {
    fn start(&mut self) -> anyhow::Result<()> {
        let child = self.command.spawn();
        self.child = Some(child.with_context(|| format!("cannot start {}", self.command.get_program().display()))?);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Ports that nobody has at the moment.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    Ok(listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<std::io::Result<_>>()?)
}

impl Ensemble {
    /// Starts one and waits until it serves.
    pub async fn start(kind: Kind) -> anyhow::Result<Self> {
        let scratch = Scratch::new()?;
        let ports = free_ports(3 * MEMBERS)?;
        let mut members = Vec::new();
        for (index, ports_of) in ports.chunks(3).enumerate() {
            let directory = scratch.path(&index.to_string());
            std::fs::create_dir(&directory)?;
            let mut command = match kind {
                Kind::Ours => ours(index, &ports, &directory)?,
                Kind::Debian => debians(index, &ports, &directory)?,
            };
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            confine(&mut command, None)?;
            members.push(Member { command, child: None, client: format!("127.0.0.1:{}", ports_of[0]) });
        }
        let mut ensemble = Ensemble { kind, members, _scratch: scratch };
        ensemble.members.iter_mut().try_for_each(Member::start)?;
        for index in 0..MEMBERS {
            ensemble.serves(index).await?;
        }
        Ok(ensemble)
    }

    /// Whose servers.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where its members serve clients.
    pub fn clients(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    /// Waits until a member serves.
    pub async fn serves(&self, index: usize) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        while self.mode(index).await.is_none() {
            if Instant::now() > until {
                bail!("arbiter {} does not serve", index + 1);
            }
            super::super::pause(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// What a member is: `leader` or `follower`, if it serves.
    async fn mode(&self, index: usize) -> Option<String> {
        let mut stream = TcpStream::connect(&self.members[index].client).await.ok()?;
        stream.write_all(b"srvr").await.ok()?;
        let mut said = String::new();
        tokio::time::timeout(Duration::from_secs(1), stream.read_to_string(&mut said)).await.ok()?.ok()?;
        said.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    }

    /// The member that leads.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        for index in 0..MEMBERS {
            if self.mode(index).await.as_deref() == Some("leader") {
                return Ok(index);
            }
        }
        bail!("nobody leads")
    }

    /// SIGKILL.
    pub fn kill(&mut self, index: usize) {
        self.members[index].kill();
    }

    /// Starts a member that was killed.
    pub async fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        self.members[index].start()?;
        self.serves(index).await
    }
}

fn ours(index: usize, ports: &[u16], directory: &Path) -> anyhow::Result<Command> {
    let peers: Vec<String> =
        ports.chunks(3).zip(1..).map(|(ports, id)| format!("{id}=127.0.0.1:{}", ports[1])).collect();
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["arbiter", "--id", &(index + 1).to_string(), "--peers", &peers.join(",")]);
    command.args(["--client", &format!("127.0.0.1:{}", ports[3 * index])]).arg("--data").arg(directory);
    Ok(command)
}

fn debians(index: usize, ports: &[u16], directory: &Path) -> anyhow::Result<Command> {
    let jars: Vec<PathBuf> = JARS.iter().map(|jar| Path::new(JAR_DIRECTORY).join(jar)).collect();
    if let Some(missing) = jars.iter().find(|jar| !jar.exists()) {
        bail!("{} is not there: install the package zookeeper to compare with it", missing.display());
    }
    let configuration = directory.join("zoo.cfg");
    let mut text = format!(
        "tickTime=2000\ninitLimit=10\nsyncLimit=5\nmaxClientCnxns=0\nadmin.enableServer=false\n\
         4lw.commands.whitelist=srvr\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\n",
        directory.display(),
        ports[3 * index],
    );
    for (ports, id) in ports.chunks(3).zip(1..) {
        text += &format!("server.{id}=127.0.0.1:{}:{}\n", ports[1], ports[2]);
    }
    std::fs::write(&configuration, text)?;
    std::fs::write(directory.join("myid"), format!("{}\n", index + 1))?;
    std::fs::write(directory.join("log4j.properties"), LOG4J)?;
    let class_path: Vec<String> = std::iter::once(directory)
        .chain(jars.iter().map(PathBuf::as_path))
        .map(|path| path.display().to_string())
        .collect();
    let mut command = Command::new("java");
    command.args(["-Xmx1g", "-cp", &class_path.join(":"), "org.apache.zookeeper.server.quorum.QuorumPeerMain"]);
    command.arg(configuration);
    Ok(command)
}
