//! A real pair on this machine, for the demo and for measurements: two processes of this very program on loopback (or on hosts of
//! their own, see [`super::site`]), and what they say. Both die with the guard, or with this process, whatever happens.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::site::Namespace;
use crate::console::client::{Client, Options, What};
use crate::console::control::Watch;
use crate::console::status::{Role, Status};
use crate::host::remains::scratch_log;

/// How long anything may take that should happen soon: generous, because it only ends what would never end.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a host's state.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Within this a status shows what has happened.
pub const SETTLE: Duration = Duration::from_millis(200);

/// The name of the VM.
const VM: &str = "loopback";

/// A directory of this pair's own, removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    pub fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("lockstep-{}-{:016x}", std::process::id(), getrandom::u64()?));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Scratch(path))
    }

    /// A file or directory in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Has a command run in a network of its own, if one is given, and die with this process.
pub fn confine(command: &mut Command, namespace: Option<&Namespace>) -> anyhow::Result<()> {
    let namespace = namespace.map(Namespace::try_clone).transpose()?;
    // SAFETY: between fork and exec, this makes two system calls and touches no memory of the parent's.
    unsafe {
        command.pre_exec(move || {
            if let Some(namespace) = &namespace {
                namespace.enter()?;
            }
            Ok(set_pdeathsig(Signal::SIGKILL)?)
        })
    };
    Ok(())
}

/// A host that a side runs on, as far as the side is told.
pub struct Place<'a> {
    /// The host's name.
    pub host: &'a str,
    /// Its network, where that is not this process's.
    pub namespace: Option<&'a Namespace>,
    /// Its address in the consoles' network.
    pub control: &'a str,
    /// Its address in the logging channel's network.
    pub channel: &'a str,
    /// What its side is told of the guest's network card.
    pub net: Option<&'a str>,
    /// What its side is told of the guest's disk.
    pub disk: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// A place in this process's own network.
    pub fn loopback(host: &'a str) -> Self {
        Place { host, namespace: None, control: "127.0.0.1", channel: "127.0.0.1", net: None, disk: None }
    }
}

/// One side. Killed and waited for when dropped.
pub struct Side {
    child: Child,
    said: mpsc::Receiver<String>,
    /// Its console port.
    pub control: String,
}

impl Side {
    fn spawn(place: &Place, arguments: &[&str]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(&program);
        confine(&mut command, place.namespace)?;
        let (subcommand, rest) = arguments.split_first().context("no subcommand")?;
        let control = format!("{}:0", place.control);
        let mut child = command
            .args([subcommand, "--host", place.host, "--name", VM, "--control", &control])
            .args(place.net.into_iter().flat_map(|net| ["--net", net]))
            .args(place.disk.into_iter().flat_map(|disk| ["--disk", disk]))
            .args(rest)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (say, said) = mpsc::channel();
        let stderr = child.stderr.take();
        let side = Side { child, said, control: String::new() };
        let stderr = BufReader::new(stderr.context("no standard error of the child")?);
        // Ends with the process, whose standard error ends.
        std::thread::Builder::new().name("stderr".into()).spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    return;
                }
            }
        })?;
        Ok(side)
    }

    /// Waits for the line in which it says where it listens; the value behind `what `.
    fn listens(&mut self, whats: &[&str]) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        loop {
            let line = match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("a side does not say where it listens: {}", heard.join(" / ")),
                Err(RecvTimeoutError::Disconnected) => bail!("a side has ended: {}", heard.join(" / ")),
            };
            let value = |what: &&str| {
                let rest = line.split_once(&format!("{what} "))?.1;
                Some(rest.split([',', ' ']).next()?.to_owned())
            };
            if let Some(values) = whats.iter().map(value).collect() {
                return Ok(values);
            }
            heard.push(line);
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Whether it has ended (and, as a zombie, only waits for this process).
    pub fn has_ended(&self) -> bool {
        waitid(Id::Pid(self.pid()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT)
            .is_ok_and(|status| status != WaitStatus::StillAlive)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal}"))
    }

    /// A connection on which it can be asked for its status.
    pub async fn watch(&self) -> anyhow::Result<Watch> {
        Ok(Watch::connect(&self.control, PATIENCE).await?)
    }

    /// Its status.
    pub async fn status(&self) -> anyhow::Result<Status> {
        Ok(self.watch().await?.status().await?)
    }
}

/// Waits until the backup protects the guest.
pub async fn protected(primary: &Side) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut watch = primary.watch().await?;
    loop {
        let status = watch.status().await?;
        if status.state == "protected" {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the guest is not protected, but {}", status.state);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until the backup has taken over and lives.
pub async fn taken_over(backup: &Side) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut watch = backup.watch().await?;
    loop {
        let status = watch.status().await?;
        if status.role == Role::Unprotected {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the backup has not taken over, but is {}", status.state);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Fails if the machine with this status is not protected (any more): figures of such a pair are not those of a pair.
pub fn ensure_protected(status: &Status) -> anyhow::Result<()> {
    anyhow::ensure!(status.role == Role::Primary, "the primary is not protected: {} ({})", status.role, status.state);
    Ok(())
}

impl Drop for Side {
    fn drop(&mut self) {
        let ended = self.has_ended();
        // A process that has ended already is no error, and a stopped one dies as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !ended {
            // A backup keeps a copy of the log for the case that it diverges, and could not remove it. There is none of a primary.
            let _ = std::fs::remove_file(scratch_log(&std::env::temp_dir(), VM, self.child.id()));
        }
    }
}

/// A primary without a backup, which does not miss one.
pub struct Unprotected {
    /// Runs the guest.
    pub primary: Side,
    channel: String,
    scratch: Scratch,
}

impl Unprotected {
    /// Starts a backup for it; the guest's state has yet to get there.
    pub fn join(self, place: &Place) -> anyhow::Result<Pair> {
        let Unprotected { primary, channel, scratch } = self;
        Pair::of(primary, &channel, scratch, place)
    }

    /// A console of it.
    pub async fn console(&self) -> anyhow::Result<Client> {
        console([&self.primary.control]).await
    }
}

async fn console(addresses: impl IntoIterator<Item = &String>) -> anyhow::Result<Client> {
    let mut options = Options::new(addresses);
    options.first_attach = Some(PATIENCE);
    options.reattach = Some(PATIENCE);
    Ok(Client::connect(options).await?)
}

/// Waits until the guest has said `words` on its console; the line with them.
pub async fn hear(console: &mut Client, words: &str) -> anyhow::Result<String> {
    let mut said = String::new();
    let hear = async {
        loop {
            let Some(event) = console.next().await else { bail!("the console has ended: {said}") };
            match event.what {
                What::Output { bytes, .. } => said += &String::from_utf8_lossy(&bytes),
                What::Ended(ended) => bail!("the guest ended: {}: {said}", ended.reason),
                What::Failed(error) => return Err(error.into()),
                What::Attached { .. }
                | What::Lost { .. }
                | What::Waiting { .. }
                | What::Unusable { .. }
                | What::Gap { .. } => {}
            }
            if let Some(at) = said.find(words) {
                let line = said[..at].rfind('\n').map_or(0, |end| end + 1);
                if let Some(end) = said[at..].find('\n') {
                    return Ok(said[line..at + end].trim().to_owned());
                }
            }
        }
    };
    match tokio::time::timeout(PATIENCE, hear).await {
        Ok(heard) => heard,
        Err(_) => bail!("the guest does not say `{words}`"),
    }
}

/// Both sides. The primary is dropped first.
pub struct Pair {
    /// Runs the guest.
    pub primary: Side,
    /// Follows.
    pub backup: Side,
    _scratch: Scratch,
}

impl Pair {
    /// Starts a pair on loopback that runs `application` of the built-in guest; the guest boots as soon as both know each other.
    pub fn start(application: &str, arguments: &str, options: &[&str]) -> anyhow::Result<Self> {
        let places = [Place::loopback("alpha"), Place::loopback("beta")];
        Self::start_at(&places, application, arguments, options)
    }

    /// The same on two hosts: the primary's, the backup's.
    pub fn start_at(
        [here, there]: &[Place; 2],
        application: &str,
        arguments: &str,
        options: &[&str],
    ) -> anyhow::Result<Self> {
        let (primary, channel, scratch) = primary(here, application, arguments, options)?;
        Self::of(primary, &channel, scratch, there)
    }

    /// A primary and a backup that is started there.
    fn of(primary: Side, channel: &str, scratch: Scratch, there: &Place) -> anyhow::Result<Self> {
        let register = scratch.path("register").display().to_string();
        let listen = format!("{}:0", there.channel);
        let words = ["backup", "--primary", channel, "--channel", &listen, "--arbiter", &register];
        let backup = Side::spawn(there, &words)?;
        let mut pair = Pair { primary, backup, _scratch: scratch };
        let [console] = pair.backup.listens(&["console"])?.try_into().unwrap_or_default();
        pair.backup.control = console;
        Ok(pair)
    }

    /// The same guest on a primary on loopback that goes on alone from the start.
    pub fn unprotected(application: &str, arguments: &str) -> anyhow::Result<Unprotected> {
        Self::unprotected_at(&Place::loopback("alpha"), application, arguments, &[])
    }

    /// The same on a host.
    pub fn unprotected_at(
        place: &Place,
        application: &str,
        arguments: &str,
        options: &[&str],
    ) -> anyhow::Result<Unprotected> {
        let options = [&["--start-alone"], options].concat();
        let (primary, channel, scratch) = primary(place, application, arguments, &options)?;
        Ok(Unprotected { primary, channel, scratch })
    }

    /// A console that knows both sides.
    pub async fn console(&self) -> anyhow::Result<Client> {
        console([&self.primary.control, &self.backup.control]).await
    }

    /// What both sides have said since they told where they listen: why something went wrong.
    pub fn words(&self) -> String {
        let words = [("primary", &self.primary), ("backup", &self.backup)].map(|(role, side)| {
            let words: Vec<String> = side.said.try_iter().collect();
            format!("the {role} said: {}", if words.is_empty() { "nothing".into() } else { words.join(" / ") })
        });
        words.join("; ")
    }
}

/// Starts a primary; itself, its logging channel, its directory.
fn primary(
    place: &Place,
    application: &str,
    arguments: &str,
    options: &[&str],
) -> anyhow::Result<(Side, String, Scratch)> {
    let scratch = Scratch::new()?;
    let register = scratch.path("register");
    std::fs::create_dir(&register)?;
    let register = register.display().to_string();
    let channel = format!("{}:0", place.channel);
    let words = ["primary", "--channel", &channel, "--guest", application, "--arbiter", &register];
    let guest: Vec<&str> = ["--"].into_iter().chain(arguments.split_whitespace()).collect();
    let mut primary = Side::spawn(place, &[&words[..], options, &guest].concat())?;
    let [channel, console] = primary.listens(&["logging channel", "console"])?.try_into().unwrap_or_default();
    primary.control = console;
    Ok((primary, channel, scratch))
}
