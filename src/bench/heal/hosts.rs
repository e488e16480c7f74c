//! Three hosts with agents and three arbiters, all processes on loopback, and what the registry says of them.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::super::arbiter::ensembles::{Ensemble, Kind};
use super::super::soon;
use crate::agent::ledger::processes_of;
use crate::arbiter::uri::ArbiterUri;
use crate::arbiter::zookeeper::Sessions;
use crate::cli::loopback::{Scratch, confine};
use crate::cluster::follow::{Following, Told};
use crate::cluster::records::Host;
use crate::cluster::view::View;

/// The hosts' names.
pub const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// Memory of each host for guests, in MiB: one side of the VM has it all.
const CAPACITY_MIB: u64 = 64;

/// The cluster. All its processes are killed when it is dropped.
pub struct Hosts {
    agents: BTreeMap<&'static str, Child>,
    uri: String,
    following: Following,
    scratch: Scratch,
    // After the agents.
    _ensemble: Ensemble,
}

impl Hosts {
    /// Starts everything, and waits until every host is listed.
    pub async fn start() -> anyhow::Result<Self> {
        let ensemble = Ensemble::start(Kind::Ours).await?;
        let uri = format!("zk://{}", ensemble.clients().join(","));
        let ArbiterUri::ZooKeeper(parsed) = uri.parse()? else { anyhow::bail!("{uri} is no ensemble") };
        let following = Following::start(Sessions::open(&parsed)?);
        let scratch = Scratch::new()?;
        let mut hosts = Hosts { agents: BTreeMap::new(), uri, following, scratch, _ensemble: ensemble };
        for name in NAMES {
            hosts.boot(name)?;
        }
        let all =
            |view: &View| NAMES.iter().all(|name| view.hosts.get(*name).is_some_and(|host| host.record.is_some()));
        hosts.sees("three hosts", all).await?;
        Ok(hosts)
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(arguments).env("LOCKSTEP_ARBITER", &self.uri);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        confine(&mut command, None)?;
        Ok(command)
    }

    /// Starts the agent of a host.
    pub fn boot(&mut self, name: &'static str) -> anyhow::Result<()> {
        let data = self.scratch.path(name).display().to_string();
        let capacity = CAPACITY_MIB.to_string();
        let mut command = self.command(&["agent", "--host", name, "--capacity", &capacity, "--data", &data])?;
        self.agents.insert(name, command.spawn().context("cannot start an agent")?);
        Ok(())
    }

    /// Has `lockstep` do something, and waits until it has.
    pub async fn tell(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = tokio::process::Command::from(self.command(arguments)?);
        let said = soon(&arguments.join(" "), command.stderr(Stdio::piped()).output()).await??;
        ensure!(said.status.success(), "lockstep {}: {}", arguments.join(" "), String::from_utf8_lossy(&said.stderr));
        Ok(())
    }

    /// The processes of a host: its agent and the sides on it.
    fn processes(&self, name: &str) -> anyhow::Result<Vec<Pid>> {
        let sides = processes_of(&self.scratch.path(name)).context("cannot look into /proc")?;
        let agent = self.agents.get(name).map(Child::id);
        Ok(agent.into_iter().chain(sides).map(|pid| Pid::from_raw(pid as i32)).collect())
    }

    /// Sends a signal to all processes of a host.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        for process in self.processes(name)? {
            kill(process, signal).with_context(|| format!("cannot send {signal}"))?;
        }
        Ok(())
    }

    /// Waits for the agent of a host that was killed.
    pub fn bury(&mut self, name: &str) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agents.remove(name) {
            agent.wait().context("an agent cannot be waited for")?;
        }
        Ok(())
    }

    /// Whether this is the record of the agent that runs on its host now.
    pub fn is_agent(&self, host: &Host) -> bool {
        self.agents.get(host.name.as_str()).map(Child::id) == Some(host.process.pid)
    }

    /// Whether no side is left on a host.
    pub fn is_empty(&self, name: &str) -> bool {
        processes_of(&self.scratch.path(name)).is_ok_and(|processes| processes.is_empty())
    }

    /// What is known, now and later.
    pub fn told(&self) -> watch::Receiver<Told> {
        self.following.told()
    }

    /// Waits until the registry says what is wanted.
    pub async fn sees(&self, what: &str, wanted: impl Fn(&View) -> bool) -> anyhow::Result<Arc<View>> {
        let mut told = self.told();
        let seen = told.wait_for(|told| told.as_ref().is_ok_and(|seen| wanted(&seen.view)));
        match &*soon(what, seen).await?? {
            Ok(seen) => Ok(seen.view.clone()),
            Err(error) => anyhow::bail!("{error}"),
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for agent in self.agents.values_mut() {
            // One that has ended already is no error.
            let _ = agent.kill();
            let _ = agent.wait();
        }
        // Nobody starts another one now.
        for name in NAMES {
            for process in processes_of(&self.scratch.path(name)).unwrap_or_default() {
                let _ = kill(Pid::from_raw(process as i32), Signal::SIGKILL);
            }
        }
    }
}
