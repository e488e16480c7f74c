//! Two hosts and a client's on this machine, for the network's demo and measurements: network namespaces, a bridge between
//! them, cables, a TAP device on either host for the guest's card, and a cable of its own for the logging channel.
//!
//! ```text
//!         host A                        client                        host B
//!  tap0 ── bridge lan ── cable ──── a ─ bridge lan ─ b ──── cable ── bridge lan ── tap0
//!         10.77.0.11                    10.77.0.1                    10.77.0.12
//!         log 10.77.1.1 ───────────── logging channel ─────────────── 10.77.1.2 log
//! ```
//!
//! The guest is 10.77.0.2 wherever it lives. A helper process takes all this away when this process drops the site or ends,
//! however it ends.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, bail, ensure};
use nix::sched::{CloneFlags, setns};

use super::loopback::{Pair, Place, Unprotected};

/// The guest's address.
pub const GUEST: &str = "10.77.0.2";
/// The client's address.
pub const CLIENT: &str = "10.77.0.1";
/// The hosts' addresses where the guest and the client are; the consoles are there too.
const LAN: [&str; 2] = ["10.77.0.11", "10.77.0.12"];
/// The hosts' addresses on the logging channel's cable.
pub const LOG: [&str; 2] = ["10.77.1.1", "10.77.1.2"];
const NAMES: [&str; 2] = ["A", "B"];

/// Sub-commands of the `ip` of a host, behind which `{address}` and `{log}` stand for its own.
const HOST: &str = "link set lo up
link add lan type bridge mcast_snooping 0
tuntap add dev tap0 mode tap
link set dev lan addrgenmode none
link set dev tap0 addrgenmode none
link set dev cable addrgenmode none
link set dev log addrgenmode none
link set dev tap0 master lan up
link set dev cable master lan up
address add {address}/24 dev lan
link set dev lan up
address add {log}/24 dev log
link set dev log up
";

const SWITCH: &str = "link set lo up
link add lan type bridge mcast_snooping 0
link set dev lan addrgenmode none
link set dev a addrgenmode none
link set dev b addrgenmode none
link set dev a master lan up
link set dev b master lan up
address add {address}/24 dev lan
link set dev lan up
";

/// The bridge passes frames on without showing them to the IP firewall, as bridges of virtual machines do.
const BRIDGE_SETTING: (&str, &str) = ("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");

/// Waits until its standard input ends, and removes the namespaces.
const REMOVE: &str = r#"cat >/dev/null; for name; do ip netns delete "$name"; done 2>/dev/null"#;

/// A network of its own.
pub struct Namespace {
    file: File,
}

impl Namespace {
    fn open(path: &str) -> anyhow::Result<Self> {
        Ok(Namespace { file: File::open(path).with_context(|| format!("cannot open the network namespace {path}"))? })
    }

    /// Another handle of it.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Namespace { file: self.file.try_clone()? })
    }

    /// From now on, this thread's sockets are in it.
    pub fn enter(&self) -> nix::Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
    }
}

/// This thread is in another network as long as this lives.
pub struct Visit {
    home: Namespace,
}

impl Visit {
    /// Enters `there`.
    pub fn to(there: &Namespace) -> anyhow::Result<Self> {
        let home = Namespace::open("/proc/thread-self/ns/net")?;
        there.enter().context("cannot enter the network namespace")?;
        Ok(Visit { home })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // It is where the thread comes from: nothing can be missing.
        let _ = self.home.enter();
    }
}

/// The helper that removes the namespaces, also if this process is killed.
struct Remover {
    process: Child,
    // Its end is the sign.
    alive: Option<ChildStdin>,
}

impl Remover {
    fn start(names: &[String; 3]) -> anyhow::Result<Self> {
        let mut process = Command::new("sh")
            .args(["-c", REMOVE, "sh"])
            .args(names)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C at the terminal is not for it.
            .process_group(0)
            .spawn()
            .context("cannot start a shell")?;
        let alive = process.stdin.take();
        Ok(Remover { process, alive })
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        self.alive.take();
        let _ = self.process.wait();
    }
}

/// Two hosts, a client's, and what joins them.
pub struct Site {
    hosts: [Namespace; 2],
    /// Where the clients of the guest are.
    pub client: Namespace,
    name: String,
    _remover: Remover,
}

impl Site {
    /// Makes everything.
    pub fn make() -> anyhow::Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "needs root: network namespaces");
        let name = format!("ls{}", std::process::id());
        let names = ["a", "b", "client"].map(|host| format!("{name}-{host}"));
        let [a, b, client] = &names;
        let remover = Remover::start(&names)?;
        let cables = format!(
            "netns add {a}\nnetns add {b}\nnetns add {client}\n\
             link add log netns {a} type veth peer name log netns {b}\n\
             link add cable netns {a} type veth peer name a netns {client}\n\
             link add cable netns {b} type veth peer name b netns {client}\n"
        );
        ip(None, &cables)?;
        for (host, (address, log)) in names.iter().zip(LAN.into_iter().zip(LOG)) {
            ip(Some(host), &HOST.replace("{address}", address).replace("{log}", log))?;
        }
        ip(Some(client), &SWITCH.replace("{address}", CLIENT))?;
        let open = |name: &String| Namespace::open(&format!("/run/netns/{name}"));
        let site = Site { hosts: [open(a)?, open(b)?], client: open(client)?, name, _remover: remover };
        for namespace in site.hosts.iter().chain([&site.client]) {
            let _visit = Visit::to(namespace)?;
            let (setting, value) = BRIDGE_SETTING;
            // A kernel without that firewall has no such setting.
            let _ = std::fs::write(setting, value);
        }
        Ok(site)
    }

    /// What a shell command begins with that is to run where the client is.
    pub fn at_the_client(&self) -> String {
        format!("ip netns exec {}-client", self.name)
    }

    /// The network of host A (0) or B (1).
    pub fn host(&self, index: usize) -> &Namespace {
        &self.hosts[index]
    }

    /// A pair, the primary on host A and the backup on host B.
    pub fn pair(&self, application: &str, arguments: &str) -> anyhow::Result<Pair> {
        self.forget_the_guest()?;
        let [card, plug] = &nets();
        Pair::start_at(&[self.place(0, card), self.place(1, plug)], application, arguments, &[])
    }

    /// The same guest on host A alone.
    pub fn unprotected(&self, application: &str, arguments: &str) -> anyhow::Result<Unprotected> {
        self.unprotected_with(application, arguments, &[])
    }

    /// The same, with more options.
    pub fn unprotected_with(
        &self,
        application: &str,
        arguments: &str,
        options: &[&str],
    ) -> anyhow::Result<Unprotected> {
        self.forget_the_guest()?;
        Pair::unprotected_at(&self.place(0, &nets()[0]), application, arguments, options)
    }

    /// A backup on host B for a guest that runs on host A.
    pub fn join(&self, unprotected: Unprotected) -> anyhow::Result<Pair> {
        unprotected.join(&self.place(1, &nets()[1]))
    }

    /// Limits the logging channel's cable to so many Gbit/s each way, or no longer.
    pub fn limit_the_link(&self, gbit_per_s: Option<u32>) -> anyhow::Result<()> {
        for host in ["a", "b"] {
            let namespace = format!("{}-{host}", self.name);
            let mut command = Command::new("tc");
            command.args(["-n", &namespace, "qdisc"]);
            match gbit_per_s {
                // Room for what a timer tick lets through.
                Some(rate) => command.args([
                    "replace",
                    "dev",
                    "log",
                    "root",
                    "tbf",
                    "rate",
                    &format!("{rate}gbit"),
                    "burst",
                    &format!("{rate}mb"),
                    "latency",
                    "20ms",
                ]),
                None => command.args(["delete", "dev", "log", "root"]),
            };
            let output = command.output().context("cannot start `tc`: install iproute2")?;
            ensure!(output.status.success(), "`tc` cannot limit the link: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// A guest that is booted says nothing before it is asked. The client must ask, and not remember where the last guest died.
    fn forget_the_guest(&self) -> anyhow::Result<()> {
        ip(Some(&format!("{}-client", self.name)), "neigh flush dev lan\n")
    }

    fn place<'a>(&'a self, index: usize, net: &'a str) -> Place<'a> {
        Place {
            host: NAMES[index],
            namespace: Some(&self.hosts[index]),
            control: LAN[index],
            channel: LOG[index],
            net: Some(net),
            disk: None,
        }
    }
}

/// What primary and backup are told of the card.
fn nets() -> [String; 2] {
    [format!("tap=tap0,ip={GUEST}/24,gw={CLIENT}"), "tap=tap0".into()]
}

/// Has `ip` carry out some lines, in a namespace if one is named.
fn ip(namespace: Option<&str>, lines: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(namespace.into_iter().flat_map(|name| ["-n", name])).args(["-batch", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("there is no `ip`, which makes the network: install iproute2")
        }
        child => child.context("cannot start `ip`")?,
    };
    // An `ip` that reads no more says why on its standard error.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().context("cannot wait for `ip`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`ip` cannot make the network: {}",
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    Ok(())
}
