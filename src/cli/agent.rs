//! `lockstep agent`: the daemon of a host in a cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};

use super::cluster::ClusterArgs;
use super::remote::runtime;
use crate::agent::run::{self, Settings};
use crate::arbiter;
use crate::cluster::process::Process;
use crate::cluster::records::{Host, VERSION};
use crate::machine::{cpuid, vcpu};

/// Run this host's agent: it starts primaries and backups here as the cluster needs them, and with the other agents keeps every VM that was given to them
/// protected.
///
/// Start one on each host, with a name and an address by which the others reach it:
///
///   a# lockstep agent --arbiter zk://10.0.0.21,10.0.0.22,10.0.0.23 --host a --address 10.0.0.1 --bridge br0 --uplink eth1
///
/// then `lockstep protect VM …` anywhere. The sides of VMs do not end with the agent: Ctrl-C or SIGTERM ends the agent alone, they go on, and an
/// agent that is started again finds them. (Under systemd: `KillMode=process`.)
///
/// It needs /dev/kvm, and for guests with a network card the right to make TAP devices (root, or CAP_NET_ADMIN).
#[derive(Clone, Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct AgentArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Name of this host in the cluster; the system's host name where it is left out
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// This host's address, where the other hosts reach the consoles and logging channels of its sides
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: std::net::IpAddr,
    /// The most memory that guests may have here in all, in MiB; most of the host's memory where it is left out
    #[arg(long, value_name = "MIB")]
    capacity: Option<u64>,
    /// Say something about this host, for `lockstep protect --require`: KEY=VALUE; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// The bridge into which guests' network cards are plugged. The agent makes a TAP device for each, and removes it with the side
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// The interface by which guests' clients are reached. While its cable is dead here and not on a backup's host, the guests that run here are moved there
    #[arg(long, value_name = "NAME")]
    uplink: Option<String>,
    /// Ports on which sides listen here; whichever are free where it is left out
    #[arg(long, value_name = "FIRST-LAST", value_parser = ports)]
    ports: Option<(u16, u16)>,
    /// Where the agent keeps account of its processes, and they their logs
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// `KEY=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("write it as KEY=VALUE, for example rack=7".into()),
    }
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let range = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match range {
        Some((first, last)) if first > 0 && first < last => Ok((first, last)),
        _ => Err("write it as FIRST-LAST, for example 7700-7799".into()),
    }
}

/// Most of this host's memory, in MiB: what guests may have where nobody says otherwise.
fn most_of_the_memory() -> anyhow::Result<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let total_kib =
        told.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let total_mib = total_kib.context("/proc/meminfo says no MemTotal: give --capacity")? >> 10;
    Ok(total_mib - (total_mib / 8).max(512).min(total_mib / 2))
}

/// Runs `lockstep agent`.
pub fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let name = match args.host {
        Some(name) => name,
        None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
    };
    ensure!(
        arbiter::is_name(&name),
        "`{name}` cannot be a host's name: 1 to {} bytes, no control characters",
        arbiter::MAX_NAME
    );
    for (option, interface) in [("--bridge", &args.bridge), ("--uplink", &args.uplink)] {
        if let Some(interface) = interface
            && nix::net::if_::if_nametoindex(interface.as_str()).is_err()
        {
            bail!("there is no network interface `{interface}` ({option})");
        }
    }
    let cpu = cpuid::CpuKind::of(&cpuid::template(&vcpu::host_cpuid()?)).to_string();
    let capacity_mib = args.capacity.map_or_else(most_of_the_memory, Ok)?;
    let data = args.data.unwrap_or_else(|| format!("/var/lib/lockstep/agent-{}", arbiter::names::escape(&name)).into());
    let labels: BTreeMap<String, String> = args.label.into_iter().collect();
    let host = Host {
        version: VERSION,
        process: Process::this(getrandom::u64()?),
        addresses: vec![args.address.to_string()],
        capacity_mib,
        cpu,
        labels,
        program: env!("CARGO_PKG_VERSION").into(),
        bridge: args.bridge.is_some(),
        name: name.clone(),
        ..Host::default()
    };
    let sessions = args.cluster.open()?;
    eprintln!(
        "lockstep: agent of {name} at {}; {capacity_mib} MiB for guests; data in {}",
        args.address,
        data.display()
    );
    let settings = Settings {
        host,
        address: args.address.to_string(),
        ports: args.ports,
        bridge: args.bridge,
        uplink: args.uplink,
        data,
        arbiter: args.cluster.arbiter.clone(),
    };
    let left = runtime()?.block_on(run::run(settings, sessions, super::interrupts::signalled()))?;
    match left.as_slice() {
        [] => eprintln!("lockstep: the agent of {name} ends; nothing runs here"),
        vms => eprintln!("lockstep: the agent of {name} ends; what runs here goes on: {}", vms.join(", ")),
    }
    Ok(ExitCode::SUCCESS)
}
