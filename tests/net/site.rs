//! Two hosts, a client and the cables between them, made of network namespaces:
//!
//! ```text
//!   host a ─ bridge ─ tap0 ─ guest          host b ─ bridge ─ tap0 ─ guest
//!     │  └──── guest-a ────┐                  │  └──── guest-b ────┐
//!  channel-a               └── switch: guests ┼────────────────────┴── client
//!     └────────────────────── switch: channel ┴ channel-b
//! ```
//!
//! The switch is a namespace with two bridges: one network for the guest and its client, one for the logging channel. A cable
//! is pulled at the switch. Names of namespaces have the test's process number in them, so sites do not meet.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::console::enter;

/// Where the guest's server listens.
pub const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 2)), 6379);
/// The guest's address, for tools.
pub const GUEST: &str = "10.9.0.2";
/// Ethernet address of the guest's card.
pub const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x09, 0x00, 0x02];
/// The hosts' addresses on the logging channel's network.
pub const CHANNEL: [&str; 2] = ["10.9.1.1", "10.9.1.2"];

/// The cables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// A host's to the guest's network: 0 is a's.
    Guest(usize),
    /// A host's to the logging channel's network.
    Channel(usize),
}

impl Cable {
    fn port(self) -> &'static str {
        match self {
            Cable::Guest(host) => ["guest-a", "guest-b"][host],
            Cable::Channel(host) => ["channel-a", "channel-b"][host],
        }
    }
}

/// A site; removed with the test.
pub struct Site {
    name: String,
}

static SITES: AtomicU32 = AtomicU32::new(0);

/// Runs a command to its end.
#[track_caller]
pub fn done(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Does something on a thread that is in a namespace, and stays there if it starts threads.
pub fn within<T: Send>(namespace: &str, what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace);
            what()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Site {
    /// Makes one.
    #[track_caller]
    pub fn up() -> Site {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces and needs root");
        let number = SITES.fetch_add(1, Ordering::Relaxed);
        let site = Site { name: format!("nf{}x{number}", std::process::id()) };
        let [a, b] = [site.host(0), site.host(1)];
        let (switch, client) = (site.switch(), site.client());
        for namespace in [&a, &b, &switch, &client] {
            done(&format!("ip netns add {namespace}"));
            done(&format!("ip -n {namespace} link set lo up"));
        }
        for bridge in ["guests", "channel"] {
            done(&format!("ip -n {switch} link add {bridge} up type bridge mcast_snooping 0"));
        }
        let plug = |namespace: &str, device: &str, bridge: &str, port: &str| {
            done(&format!("ip link add {device} netns {namespace} type veth peer name {port} netns {switch}"));
            done(&format!("ip -n {switch} link set {port} master {bridge} up"));
            done(&format!("ip -n {namespace} link set {device} up"));
        };
        for (host, namespace) in [&a, &b].into_iter().enumerate() {
            plug(namespace, "channel", "channel", Cable::Channel(host).port());
            done(&format!("ip -n {namespace} address add {}/24 dev channel", CHANNEL[host]));
            plug(namespace, "guest", "guests", Cable::Guest(host).port());
            done(&format!("ip -n {namespace} link add bridge up type bridge mcast_snooping 0"));
            done(&format!("ip -n {namespace} tuntap add tap0 mode tap"));
            done(&format!("ip -n {namespace} link set tap0 master bridge up"));
            done(&format!("ip -n {namespace} link set guest master bridge"));
        }
        plug(&client, "guest", "guests", "client");
        done(&format!("ip -n {client} address add 10.9.0.1/24 dev guest"));
        site
    }

    /// The namespace of host a (0) or b (1).
    pub fn host(&self, side: usize) -> String {
        format!("{}-{}", self.name, ["a", "b"][side])
    }

    /// The client's namespace.
    pub fn client(&self) -> String {
        format!("{}-c", self.name)
    }

    /// The namespace of the bridges.
    pub fn switch(&self) -> String {
        format!("{}-s", self.name)
    }

    /// The switch's port of a host on the guest's network.
    pub fn guest_port(side: usize) -> &'static str {
        Cable::Guest(side).port()
    }

    /// Pulls a cable.
    #[track_caller]
    pub fn cut(&self, cable: Cable) {
        done(&format!("ip -n {} link set {} down", self.switch(), cable.port()));
    }

    /// Plugs it in again.
    #[track_caller]
    pub fn mend(&self, cable: Cable) {
        done(&format!("ip -n {} link set {} up", self.switch(), cable.port()));
    }

    /// Lets the logging channel carry that many kbit/s.
    #[track_caller]
    pub fn slow_channel(&self, kbit: u32) {
        for side in [0, 1] {
            let host = self.host(side);
            let bucket = format!("tbf rate {kbit}kbit burst 8kb latency 200ms");
            done(&format!("tc -n {host} qdisc add dev channel root {bucket}"));
        }
    }

    /// Lets the logging channel lose that share of its packets.
    #[track_caller]
    pub fn lossy_channel(&self, per_cent: u32) {
        for side in [0, 1] {
            let rule = format!("-i channel -m statistic --mode random --probability 0.{per_cent:02} -j DROP");
            done(&format!("ip netns exec {} iptables -A INPUT {rule}", self.host(side)));
        }
    }

    /// Puts the logging channel and the cables in order again.
    #[track_caller]
    pub fn mend_all(&self) {
        for side in [0, 1] {
            let host = self.host(side);
            // There may be nothing to remove.
            let _ = Command::new("tc").args(["-n", &host, "qdisc", "del", "dev", "channel", "root"]).output();
            done(&format!("ip netns exec {host} iptables -F INPUT"));
            self.mend(Cable::Guest(side));
            self.mend(Cable::Channel(side));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for namespace in [self.host(0), self.host(1), self.client(), self.switch()] {
            // A namespace lives as long as something runs in it. What is left there was started for this site.
            let pids = Command::new("ip").args(["netns", "pids", &namespace]).output();
            let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                if pid != std::process::id() as i32 {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                }
            }
            // Where the making of the site failed, some are missing.
            let _ = Command::new("ip").args(["netns", "delete", &namespace]).output();
        }
    }
}
