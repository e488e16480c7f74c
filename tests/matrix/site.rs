//! Seven machines and the cables between them, made of network namespaces:
//!
//! ```text
//!            host a        host b        host c        arbiters 1 2 3      client
//!           ┌──┼──┐       ┌──┼──┐       ┌──┼──┐           │ │ │             │
//!  guests ──┘  │  │ ──────┘  │  │ ──────┘  │  │           │ │ │  ───────────┘    the guest's own network: bridge, TAP
//!  channel ────┘  │ ─────────┘  │ ─────────┘  │           │ │ │                  logging channels and consoles
//!  manage ────────┘ ────────────┘ ────────────┘ ──────────┴─┴─┘                  hosts and arbiters
//! ```
//!
//! The networks are bridges in a namespace of their own, the switch; a cable is pulled there. Who watches sits at the switch, so no cable is his. Names of
//! namespaces have the test's process number in them, so sites do not meet.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::net::site::{done, within};

/// How many hosts.
pub const HOSTS: usize = 3;
/// How many arbiters.
pub const ARBITERS: usize = 3;
/// The hosts' names.
pub const NAMES: [&str; HOSTS] = ["a", "b", "c"];

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    /// A host.
    Host(usize),
    /// An arbiter.
    Arbiter(usize),
    /// The client's.
    Client,
}

/// A way by which machines hear each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cable {
    /// A host's, to the guests' network.
    Guests(usize),
    /// A host's, to the network of the logging channels.
    Channel(usize),
    /// A host's, to the arbiters.
    Manage(usize),
    /// An arbiter's.
    Arbiter(usize),
    /// What two hosts say to each other on the network of the logging channels, and nothing else.
    Between(usize, usize),
}

/// A site; removed with the test.
pub struct Site {
    name: String,
}

static SITES: AtomicU32 = AtomicU32::new(0);

/// A host's address for logging channels and consoles.
pub fn channel_address(host: usize) -> String {
    format!("10.9.1.{}", host + 1)
}

/// An arbiter's address.
pub fn arbiter_address(arbiter: usize) -> String {
    format!("10.9.2.{}", arbiter + 21)
}

/// The switch's port of a host on the guests' network.
pub fn guests_port(host: usize) -> &'static str {
    ["guests-a", "guests-b", "guests-c"][host]
}

impl Site {
    /// Makes one.
    #[track_caller]
    pub fn up() -> Site {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces and needs root");
        let number = SITES.fetch_add(1, Ordering::Relaxed);
        let site = Site { name: format!("mx{}x{number}", std::process::id()) };
        let switch = site.switch();
        for namespace in site.namespaces() {
            done(&format!("ip netns add {namespace}"));
            done(&format!("ip -n {namespace} link set lo up"));
        }
        for bridge in ["guests", "channel", "manage"] {
            done(&format!("ip -n {switch} link add {bridge} up type bridge mcast_snooping 0"));
        }
        done(&format!("ip -n {switch} address add 10.9.2.254/24 dev manage"));
        let plug = |machine: Machine, network: &str, port: &str, address: Option<String>| {
            let namespace = site.namespace(machine);
            done(&format!("ip link add {network} netns {namespace} type veth peer name {port} netns {switch}"));
            done(&format!("ip -n {switch} link set {port} master {network} up"));
            done(&format!("ip -n {namespace} link set {network} up"));
            if let Some(address) = address {
                done(&format!("ip -n {namespace} address add {address}/24 dev {network}"));
            }
        };
        for host in 0..HOSTS {
            let machine = Machine::Host(host);
            plug(machine, "guests", guests_port(host), None);
            plug(machine, "channel", &port(Cable::Channel(host)), Some(channel_address(host)));
            plug(machine, "manage", &port(Cable::Manage(host)), Some(format!("10.9.2.{}", host + 1)));
            let namespace = site.namespace(machine);
            done(&format!("ip -n {namespace} link add bridge up type bridge mcast_snooping 0"));
            done(&format!("ip -n {namespace} link set guests master bridge"));
        }
        for arbiter in 0..ARBITERS {
            let address = arbiter_address(arbiter);
            plug(Machine::Arbiter(arbiter), "manage", &port(Cable::Arbiter(arbiter)), Some(address));
        }
        plug(Machine::Client, "guests", "client", Some("10.9.0.1".into()));
        // A client whose connection was silent for long asks again at least this often, so that its silence is not added to the service's. (Kernels before
        // 6.15 know no such limit: there the longest cases take longer.)
        let limit = "/proc/sys/net/ipv4/tcp_rto_max_ms";
        within(&site.namespace(Machine::Client), || {
            if std::fs::exists(limit).is_ok_and(|there| there) {
                std::fs::write(limit, "1000").expect("root may set it");
            }
        });
        site
    }

    /// A machine's namespace.
    pub fn namespace(&self, machine: Machine) -> String {
        match machine {
            Machine::Host(host) => format!("{}-{}", self.name, NAMES[host]),
            Machine::Arbiter(arbiter) => format!("{}-{}", self.name, arbiter + 1),
            Machine::Client => format!("{}-client", self.name),
        }
    }

    /// The namespace of the networks.
    pub fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    fn namespaces(&self) -> Vec<String> {
        let hosts = (0..HOSTS).map(Machine::Host);
        let machines = hosts.chain((0..ARBITERS).map(Machine::Arbiter)).chain([Machine::Client]);
        machines.map(|machine| self.namespace(machine)).chain([self.switch()]).collect()
    }

    /// Pulls a cable.
    #[track_caller]
    pub fn cut(&self, cable: Cable) {
        self.change(cable, "down", "-A");
    }

    /// Plugs it in again.
    #[track_caller]
    pub fn mend(&self, cable: Cable) {
        self.change(cable, "up", "-D");
    }

    #[track_caller]
    fn change(&self, cable: Cable, how: &str, rule: &str) {
        let Cable::Between(one, other) = cable else {
            return done(&format!("ip -n {} link set {} {how}", self.switch(), port(cable)));
        };
        for (here, there) in [(one, other), (other, one)] {
            let (namespace, there) = (self.namespace(Machine::Host(here)), channel_address(there));
            done(&format!("ip netns exec {namespace} iptables -w {rule} INPUT -i channel -s {there} -j DROP"));
        }
    }

    /// The processes on a machine.
    pub fn processes(&self, machine: Machine) -> Vec<Pid> {
        processes(&self.namespace(machine))
    }

    /// Sends a signal to all of them.
    pub fn signal(&self, machine: Machine, signal: Signal) {
        for process in self.processes(machine) {
            // It may have ended by itself.
            let _ = kill(process, signal);
        }
    }
}

/// The processes of a namespace, but for this one.
fn processes(namespace: &str) -> Vec<Pid> {
    let Ok(wanted) = std::fs::metadata(format!("/run/netns/{namespace}")) else { return Vec::new() };
    let this = std::process::id() as i32;
    let all = std::fs::read_dir("/proc").expect("there is /proc");
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid != this)
        .filter(|pid| {
            let there = std::fs::metadata(format!("/proc/{pid}/ns/net"));
            there.is_ok_and(|there| (there.dev(), there.ino()) == (wanted.dev(), wanted.ino()))
        })
        .map(Pid::from_raw)
        .collect()
}

fn port(cable: Cable) -> String {
    match cable {
        Cable::Guests(host) => guests_port(host).to_owned(),
        Cable::Channel(host) => format!("channel-{}", NAMES[host]),
        Cable::Manage(host) => format!("manage-{}", NAMES[host]),
        Cable::Arbiter(arbiter) => format!("manage-{}", arbiter + 1),
        Cable::Between(..) => unreachable!("two hosts share no cable of their own"),
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for namespace in self.namespaces() {
            // A namespace lives as long as something runs in it. What is left there was started for this site.
            loop {
                let left = processes(&namespace);
                if left.is_empty() {
                    break;
                }
                for process in left {
                    // It may have ended by itself.
                    let _ = kill(process, Signal::SIGKILL);
                }
                std::thread::yield_now();
            }
            // Where the making of the site failed, some are missing.
            let _ = Command::new("ip").args(["netns", "delete", &namespace]).output();
        }
    }
}
