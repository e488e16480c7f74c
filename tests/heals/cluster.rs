//! Hosts with agents on loopback, our own arbiters, and somebody who looks into the registry. Whatever the agents have started ends with the test.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lockstep::agent::ledger::processes_of;
use lockstep::arbiter::uri::ArbiterUri;
use lockstep::arbiter::zookeeper::Sessions;
use lockstep::cluster::follow::Following;
use lockstep::cluster::view::{Condition, View, Vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::PATIENCE;
use crate::common::pair::needs_kvm;
use crate::common::process::Side;
use crate::common::zookeeper::{Kind, ZooKeeper};

/// One cluster at a time: several on two processors would only test the scheduler.
static TURN: Mutex<()> = Mutex::new(());

/// A cluster.
pub struct Cluster {
    agents: BTreeMap<&'static str, Side>,
    names: Vec<&'static str>,
    capacity_mib: u64,
    uri: String,
    following: Following,
    directory: tempfile::TempDir,
    _arbiters: ZooKeeper,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts `arbiters` of them and an agent for each of `names`, and waits until all are listed.
    #[track_caller]
    pub fn start(arbiters: usize, names: &[&'static str], capacity_mib: u64) -> Cluster {
        needs_kvm();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let arbiters = ZooKeeper::start(Kind::Lockstep, arbiters);
        let uri = arbiters.uri("");
        let Ok(ArbiterUri::ZooKeeper(parsed)) = uri.parse() else { panic!("a URI") };
        let following = Following::start(Sessions::open(&parsed).expect("sessions"));
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut cluster = Cluster {
            agents: BTreeMap::new(),
            names: names.to_vec(),
            capacity_mib,
            uri,
            following,
            directory,
            _arbiters: arbiters,
            _turn: turn,
        };
        names.iter().for_each(|name| cluster.boot(name));
        for name in names {
            cluster.sees(&format!("{name} is listed"), |view| cluster.is_listed(view, name).then_some(()));
        }
        cluster
    }

    /// Where the agent of a host keeps its account.
    pub fn data(&self, host: &str) -> PathBuf {
        self.directory.path().join(host)
    }

    /// Starts the agent of a host.
    pub fn boot(&mut self, host: &'static str) {
        let words = format!(
            "agent --arbiter {} --host {host} --capacity {} --data {}",
            self.uri,
            self.capacity_mib,
            self.data(host).display()
        );
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        self.agents.insert(host, Side::spawn(host, &[], &words));
    }

    /// The agent of a host.
    pub fn agent(&mut self, host: &str) -> &mut Side {
        self.agents.get_mut(host).expect("an agent that runs")
    }

    /// Whether the agent that runs on a host now is listed.
    pub fn is_listed(&self, view: &View, host: &str) -> bool {
        let record = view.hosts.get(host).and_then(|known| known.record.as_ref());
        record.is_some_and(|record| record.process.pid as i32 == self.agents[host].pid().as_raw())
    }

    /// The sides' processes on a host.
    pub fn sides_on(&self, host: &str) -> Vec<u32> {
        processes_of(&self.data(host)).expect("/proc can be read")
    }

    /// Sends a signal to the sides on a host.
    pub fn signal_sides(&self, host: &str, signal: Signal) {
        for process in self.sides_on(host) {
            // It may have ended by itself in this moment.
            let _ = kill(Pid::from_raw(process as i32), signal);
        }
    }

    /// A host dies with everything on it.
    pub fn kill_host(&mut self, host: &str) {
        self.agent(host).signal(Signal::SIGKILL);
        self.signal_sides(host, Signal::SIGKILL);
        self.agents.remove(host).expect("an agent").kill();
    }

    /// Runs a command of lockstep's for this cluster.
    pub fn lockstep(&self, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        command.args(words.split(' ')).env("LOCKSTEP_ARBITER", &self.uri);
        command.output().expect("lockstep can be started")
    }

    /// The same, and it has to do what it was told; what it prints.
    #[track_caller]
    pub fn does(&self, words: &str) -> String {
        let output = self.lockstep(words);
        assert!(output.status.success(), "lockstep {words}: {output:?}\n{}", self.logs());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same, and it has to refuse; what it says.
    #[track_caller]
    pub fn refuses(&self, words: &str) -> String {
        let output = self.lockstep(words);
        assert_eq!(output.status.code(), Some(1), "lockstep {words}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// What is known now.
    pub fn view(&self) -> Option<Arc<View>> {
        self.following.told().borrow().as_ref().ok().map(|seen| seen.view.clone())
    }

    /// Waits until the registry shows something.
    #[track_caller]
    pub fn sees<T>(&self, what: &str, look: impl Fn(&View) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            let view = self.view();
            if let Some(found) = view.as_deref().and_then(&look) {
                return found;
            }
            if begun.elapsed() > PATIENCE {
                panic!("waited in vain: {what}; the registry says {view:#?}\n{}", self.logs());
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Waits until a VM is protected, by two sides and no more; who runs it, who protects it.
    #[track_caller]
    pub fn protected(&self, vm: &str, but: Option<&str>) -> [&'static str; 2] {
        self.sees(&format!("{vm} is protected, not by {but:?}"), |view| {
            let found = self.hosts_of(view.vms.get(vm)?)?;
            (!found.iter().any(|host| Some(*host) == but)).then_some(found)
        })
    }

    fn hosts_of(&self, vm: &Vm) -> Option<[&'static str; 2]> {
        let of = |host: &str| self.names.iter().copied().find(|name| *name == host);
        let runner = vm.runner().filter(|_| vm.condition() == Condition::Protected && vm.sides.len() == 2)?;
        Some([of(&runner.host)?, of(runner.peer.as_deref()?)?])
    }

    /// What the sides on all hosts have said.
    fn logs(&self) -> String {
        let mut said = String::new();
        for host in &self.names {
            let files = std::fs::read_dir(self.data(host)).into_iter().flatten().flatten();
            for file in files.filter(|file| file.path().extension().is_some_and(|kind| kind == "log")) {
                let text = std::fs::read_to_string(file.path()).unwrap_or_default();
                let text = &text[text.len().saturating_sub(3000)..];
                said += &format!("---- {} on {host}:\n{text}", file.file_name().display());
            }
        }
        said
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // First those that would start others.
        self.agents.clear();
        for host in &self.names {
            self.signal_sides(host, Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}
