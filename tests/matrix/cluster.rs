//! What runs on the seven machines: three arbiters, an agent on each host with the sides that it starts, and somebody at the switch who follows the cluster's
//! records and every change of the VM's register.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep::arbiter::uri::ArbiterUri;
use lockstep::arbiter::zookeeper::Sessions;
use lockstep::cluster::follow::Following;
use lockstep::cluster::view::{Condition, View};
use lockstep::console::status::{Role, Status};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::fault::{Deed, Parts};
use super::site::{ARBITERS, Cable, HOSTS, Machine, NAMES, Site, arbiter_address, channel_address};
use crate::common::console::status;
use crate::common::eventually;
use crate::common::process::Side;
use crate::net::pair::lockstep_in;
use crate::net::site::{GUEST, MAC, within};

/// The VM's name.
pub const VM: &str = "vm";

/// Who won which generation, as the register showed it one after the other.
type Winners = Arc<Mutex<Vec<(u64, usize)>>>;

/// The cluster.
pub struct Cluster {
    arbiters: [Option<Side>; ARBITERS],
    agents: [Option<Side>; HOSTS],
    following: Following,
    winners: Winners,
    directory: TempDir,
    /// The machines and cables. (Goes last: it ends what is left.)
    pub site: Site,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn index_of(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

/// How hosts and their agents name the arbiters.
fn uri() -> String {
    let addresses: Vec<String> = (0..ARBITERS).map(arbiter_address).collect();
    format!("zk://{}", addresses.join(","))
}

impl Cluster {
    /// Starts everything, and a VM that answers its clients, protected.
    #[track_caller]
    pub fn start(timeout_ms: u64) -> Cluster {
        let site = Site::up();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let Ok(ArbiterUri::ZooKeeper(ensemble)) = uri().parse() else { panic!("{} is a URI", uri()) };
        // The threads of whoever follows are at the switch, as the one that starts them is.
        let (following, winners) = within(&site.switch(), || {
            let following = Following::start(Sessions::open(&ensemble).expect("sessions"));
            let winners = Winners::default();
            watch_the_register(&following, &winners);
            (following, winners)
        });
        let mut cluster =
            Cluster { arbiters: Default::default(), agents: Default::default(), following, winners, directory, site };
        for arbiter in 0..ARBITERS {
            cluster.start_arbiter(arbiter);
        }
        for host in 0..HOSTS {
            cluster.start_agent(host);
        }
        eventually("all hosts are listed", || (cluster.view()?.hosts.len() == HOSTS).then_some(()));
        let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
        cluster.lockstep(&format!(
            "protect {VM} --guest kv --memory 32 --net mac={mac},ip={GUEST}/24,gw=10.9.0.1 --timeout {timeout_ms} --primary a --backup b"
        ));
        cluster
    }

    fn start_arbiter(&mut self, arbiter: usize) {
        let peers: Vec<String> =
            (0..ARBITERS).map(|arbiter| format!("{}={}:7710", arbiter + 1, arbiter_address(arbiter))).collect();
        let arguments = words(&format!(
            "arbiter --id {} --peers {} --data {}",
            arbiter + 1,
            peers.join(","),
            self.directory.path().join(format!("arbiter-{}", arbiter + 1)).display()
        ));
        let through = lockstep_in(&self.site.namespace(Machine::Arbiter(arbiter)));
        let name = ["arbiter 1", "arbiter 2", "arbiter 3"][arbiter];
        self.arbiters[arbiter] = Some(Side::spawn(name, &through, &arguments));
    }

    fn data(&self, host: usize) -> std::path::PathBuf {
        self.directory.path().join(format!("host-{}", NAMES[host]))
    }

    fn start_agent(&mut self, host: usize) {
        let arguments = words(&format!(
            "agent --arbiter {} --host {} --address {} --bridge bridge --uplink guests --capacity 1024 --data {}",
            uri(),
            NAMES[host],
            channel_address(host),
            self.data(host).display()
        ));
        let through = lockstep_in(&self.site.namespace(Machine::Host(host)));
        self.agents[host] = Some(Side::spawn(["agent a", "agent b", "agent c"][host], &through, &arguments));
    }

    /// Runs a command of lockstep's at the switch, which must succeed.
    #[track_caller]
    pub fn lockstep(&self, arguments: &str) -> Output {
        let through = lockstep_in(&self.site.switch());
        let mut command = Command::new(&through[0]);
        command.args(&through[1..]).args(words(arguments)).env("LOCKSTEP_ARBITER", uri());
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(output.status.success(), "lockstep {arguments}: {output:?}");
        output
    }

    /// What the arbiters know, if they answer.
    pub fn view(&self) -> Option<Arc<View>> {
        self.following.told().borrow().as_ref().ok().map(|seen| seen.view.clone())
    }

    /// Who has won which generation, in their order.
    pub fn winners(&self) -> Vec<(u64, usize)> {
        self.winners.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the newest side on a host says of itself, asked there; `None` where none answers.
    pub fn status(&self, host: usize) -> Option<Status> {
        let said = std::fs::read_to_string(self.data(host).join(format!("{VM}.log"))).ok()?;
        let line = said.lines().rev().find(|line| line.starts_with("lockstep: ") && line.contains(", console "))?;
        let console = line.rsplit_once(", console ")?.1;
        status(console, Some(&self.site.namespace(Machine::Host(host))))
    }

    /// The host that runs the VM, of those whose processes go on, and what it says. (One that has lost may not know it yet, and speaks of an older generation;
    /// two never speak of one.)
    #[track_caller]
    pub fn live(&self, asleep: impl Fn(usize) -> bool) -> Option<(usize, Status)> {
        let all = (0..HOSTS).filter(|host| !asleep(*host)).filter_map(|host| Some((host, self.status(host)?)));
        let mut live: Vec<(usize, Status)> =
            all.filter(|(_, status)| matches!(status.role, Role::Primary | Role::Unprotected)).collect();
        live.sort_by_key(|(_, status)| std::cmp::Reverse(status.generation));
        let both = live.windows(2).any(|pair| pair[0].1.generation == pair[1].1.generation);
        assert!(!both, "two run it in one generation: {live:?}");
        live.into_iter().next()
    }

    /// What an arbiter says it is: `leader`, `follower`; `None` where it does not serve.
    fn seat(&self, arbiter: usize) -> Option<String> {
        let told = within(&self.site.switch(), || {
            let address = format!("{}:2181", arbiter_address(arbiter)).parse().expect("an address");
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
            stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
            stream.write_all(b"mntr").ok()?;
            let mut told = String::new();
            stream.read_to_string(&mut told).ok()?;
            Some(told)
        })?;
        let line = told.lines().find(|line| line.starts_with("zk_server_state"))?;
        line.split_whitespace().nth(1).map(str::to_owned)
    }

    /// The arbiter that leads.
    pub fn leader(&self) -> Option<usize> {
        (0..ARBITERS).find(|arbiter| self.seat(*arbiter).as_deref() == Some("leader"))
    }

    /// Who has which part, if everything is as it should be: all arbiters serve, all agents are listed, and the VM has two sides, protected, and none
    /// is to be changed. Otherwise what is missing.
    pub fn whole(&self) -> Result<Parts, String> {
        let view = self.view().ok_or("the arbiters do not answer")?;
        for (name, host) in &view.hosts {
            if host.record.as_ref().is_none_or(|record| record.uplink != Some(true)) {
                return Err(format!("the agent of {name} is not listed, or its cable is dead"));
            }
        }
        let vm = view.vms.get(VM).ok_or("there is no VM")?;
        let placement = &vm.placement.as_ref().ok_or("the VM is not placed")?.is;
        let runner = vm.runner().ok_or_else(|| format!("nobody runs it: {:?}", vm.sides))?;
        let (primary, backup) = (index_of(&runner.host), runner.peer.as_deref().and_then(index_of));
        let (Some(primary), Some(backup)) = (primary, backup) else { return Err(format!("no backup: {runner:?}")) };
        let placed = (placement.primary.as_deref(), placement.backup.as_deref(), placement.protected);
        if placed != (Some(NAMES[primary]), Some(NAMES[backup]), true) || placement.leaving.is_some() {
            return Err(format!("placed otherwise: {placement:?}"));
        }
        if vm.condition() != Condition::Protected || vm.sides.len() != 2 || view.hosts.len() != HOSTS {
            return Err(format!("{:?}, {:?}", vm.condition(), vm.sides));
        }
        let spare = 3 - primary - backup;
        for (host, name) in NAMES.iter().enumerate() {
            let there = self.site.processes(Machine::Host(host)).len();
            let wanted = if host == spare { 1 } else { 2 };
            if there != wanted {
                return Err(format!("{there} processes on {name}, not {wanted}"));
            }
        }
        let seats: Vec<Option<String>> = (0..ARBITERS).map(|arbiter| self.seat(arbiter)).collect();
        let leader = seats.iter().position(|seat| seat.as_deref() == Some("leader"));
        match leader {
            Some(leader) if seats.iter().all(Option::is_some) => Ok(Parts { hosts: [primary, backup, spare], leader }),
            _ => Err(format!("the arbiters: {seats:?}")),
        }
    }

    /// Does it.
    #[track_caller]
    pub fn suffers(&mut self, deed: Deed) {
        match deed {
            Deed::Cut(cable) => self.site.cut(cable),
            Deed::Freeze(machine) => self.site.signal(machine, Signal::SIGSTOP),
            Deed::Kill(machine) => {
                // What it was about to start is killed as well.
                while !self.site.processes(machine).is_empty() {
                    self.site.signal(machine, Signal::SIGKILL);
                }
                let process = match machine {
                    Machine::Host(host) => self.agents[host].take(),
                    Machine::Arbiter(arbiter) => self.arbiters[arbiter].take(),
                    Machine::Client => None,
                };
                process.into_iter().for_each(|mut process| process.kill());
            }
        }
    }

    /// Repairs it.
    #[track_caller]
    pub fn recovers(&mut self, deed: Deed) {
        match deed {
            Deed::Cut(cable) => self.site.mend(cable),
            Deed::Freeze(machine) => self.site.signal(machine, Signal::SIGCONT),
            Deed::Kill(Machine::Host(host)) => self.start_agent(host),
            Deed::Kill(Machine::Arbiter(arbiter)) => self.start_arbiter(arbiter),
            Deed::Kill(Machine::Client) => unreachable!("the client is not killed"),
        }
    }

    /// Nothing has panicked or diverged so far, and what should run does.
    #[track_caller]
    pub fn nothing_is_wrong(&mut self) {
        for process in self.agents.iter_mut().chain(&mut self.arbiters).flatten() {
            assert!(process.status().is_none(), "a daemon has ended: {:?}", process.said());
            let said = process.said();
            assert!(!said.iter().any(|line| line.contains("panicked")), "{said:?}");
        }
        for (host, name) in NAMES.iter().enumerate() {
            let log = self.data(host).join(format!("{VM}.log"));
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let wrong: Vec<&str> =
                said.lines().filter(|line| line.contains("panicked") || line.contains("diverge")).collect();
            assert!(wrong.is_empty(), "a side on {name}: {wrong:?}");
        }
    }

    /// What each host and its sides have said lately, for people.
    fn tell(&self) {
        for (host, name) in NAMES.iter().enumerate() {
            let log = self.data(host).join(format!("{VM}.log"));
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            eprintln!("---- the sides on {name} said (the end of it):");
            lines[lines.len().saturating_sub(60)..].iter().for_each(|line| eprintln!("{line}"));
            eprintln!("---- and now: {:?}", self.status(host));
        }
        eprintln!("---- known: {:#?}", self.view().map(|view| view.vms.clone()));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A frozen host would keep whoever asks waiting.
            (0..HOSTS).for_each(|host| self.site.signal(Machine::Host(host), Signal::SIGCONT));
            self.tell();
        }
        for cable in (0..ARBITERS).map(Cable::Arbiter) {
            self.site.mend(cable);
        }
    }
}

/// Notes every claim that the register holds, one after the other, on the thread of whoever follows.
fn watch_the_register(following: &Following, winners: &Winners) {
    let (mut told, winners) = (following.told(), winners.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            while told.changed().await.is_ok() {
                let now = told.borrow_and_update().clone();
                let Ok(seen) = now else { continue };
                let Some(claim) = seen.view.vms.get(VM).and_then(|vm| vm.register.clone()) else { continue };
                let Some(host) = index_of(&claim.host_name) else { continue };
                let mut winners = winners.lock().unwrap_or_else(PoisonError::into_inner);
                if winners.last().is_none_or(|(generation, _)| *generation < claim.generation) {
                    winners.push((claim.generation, host));
                }
            }
        });
    });
}
