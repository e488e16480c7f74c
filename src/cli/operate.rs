//! `lockstep stop`, `pause`, `resume`, `reset` and `switch`: what an operator does to a running machine. Its hosts are named by the addresses of their console
//! ports, or found by the VM's name where an ensemble is its arbiter.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure};

use super::cluster::ClusterArgs;
use super::managed::{Managed, Until};
use super::remote::{address, runtime};
use crate::arbiter::uri::ArbiterUri;
use crate::cluster::placement::Placement;
use crate::cluster::write::{Placing, Written};
use crate::console::control;
use crate::console::wire::Command;

/// Stop a machine, on both hosts of a pair.
#[derive(Clone, Debug, clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    hosts: Hosts,
}

/// Have a guest stand still, on both hosts of a pair at the same instant. Its clock stands still with it.
#[derive(Clone, Debug, clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    hosts: Hosts,
}

/// Have a paused guest go on.
#[derive(Clone, Debug, clap::Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    hosts: Hosts,
}

/// Boot a machine anew, on both hosts of a pair at the same instant.
#[derive(Clone, Debug, clap::Args)]
pub struct ResetArgs {
    #[command(flatten)]
    hosts: Hosts,
}

/// Change the roles of a pair: the backup runs the machine from now on, and the host that ran it becomes the backup.
///
/// The guest's connections stay; clients see a pause of some milliseconds. For maintenance of a host: switch, then stop the backup there.
#[derive(Clone, Debug, clap::Args)]
pub struct SwitchArgs {
    #[command(flatten)]
    hosts: Hosts,
}

#[derive(Clone, Debug, clap::Args)]
struct Hosts {
    /// Console port of the host that runs it, or of both: HOST:PORT or HOST:PORT,HOST:PORT; or the VM's name, with `--arbiter zk://…`
    #[arg(value_name = "ADDR|VM", required = true, value_delimiter = ',', value_parser = address_or_vm)]
    machine: Vec<String>,
    /// The ensemble that lists the VM: zk://HOST[:2181],HOST,HOST[/PATH]
    #[arg(long, value_name = "URI", env = "LOCKSTEP_ARBITER", hide_env_values = true)]
    arbiter: Option<ArbiterUri>,
}

/// Checks that an argument is `HOST:PORT`, or may be the name of a VM.
fn address_or_vm(text: &str) -> Result<String, String> {
    if text.contains(':') { address(text) } else { Ok(text.to_owned()) }
}

impl Hosts {
    /// Console ports of the machine's sides, of the one that runs it first.
    async fn addresses(&self) -> anyhow::Result<Vec<String>> {
        let Some(name) = self.machine.iter().find(|part| !part.contains(':')) else { return Ok(self.machine.clone()) };
        ensure!(self.machine.len() == 1, "one VM's name, or the addresses of its hosts");
        let Some(arbiter) = &self.arbiter else {
            bail!(
                "`{name}` is no HOST:PORT; a VM is found by its name with --arbiter zk://HOST,… (or LOCKSTEP_ARBITER)"
            )
        };
        let view = super::cluster::look(&ClusterArgs { arbiter: arbiter.clone() }).await?;
        let Some(vm) = view.vms.get(name) else { bail!("no VM is called `{name}` in {arbiter} (lockstep vms)") };
        let addresses: Vec<String> = vm.sides.iter().map(|side| side.control.clone()).collect();
        ensure!(!addresses.is_empty(), "nobody runs `{name}` (lockstep vms)");
        Ok(addresses)
    }
}

/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take to have the other host go on.
const SWITCH_PATIENCE: Duration = Duration::from_secs(15);

/// `lockstep stop`.
pub fn stop(args: StopArgs) -> anyhow::Result<ExitCode> {
    if let ([name], Some(arbiter)) = (&args.hosts.machine[..], &args.hosts.arbiter)
        && !name.contains(':')
    {
        let cluster = ClusterArgs { arbiter: arbiter.clone() };
        return runtime()?.block_on(stop_by_name(name, cluster, &args.hosts));
    }
    operate(&args.hosts, Command::Stop, PATIENCE)
}

/// Stops a VM that agents may look after: they are told, so that none of them starts a side of it.
async fn stop_by_name(name: &str, cluster: ClusterArgs, hosts: &Hosts) -> anyhow::Result<ExitCode> {
    let managed = Managed::open(&cluster).await?;
    loop {
        let Ok((spec, Some(placement))) = managed.specified(name) else {
            return ask(&hosts.addresses().await?, Command::Stop, PATIENCE).await;
        };
        let runs = managed.view()?.vms.get(name).is_some_and(|vm| vm.runner().is_some());
        if runs {
            // Its end is its agents' to tell.
            ask(&hosts.addresses().await?, Command::Stop, PATIENCE).await?;
            break;
        }
        let ended = Some("stopped by an operator".to_owned());
        let number = placement.is.number + 1;
        let stopped = Placement { ended, number, wish: None, asked: false, ..placement.is };
        let placing = Placing {
            vm: name,
            instead_of: Some(placement.version),
            spec_version: spec.version,
            placement: &stopped,
            added: BTreeMap::new(),
        };
        match managed.writer.place(&placing).await? {
            Written::Done => break,
            Written::Overtaken => managed.renewed().await?,
        }
    }
    managed.wait(name, Until::Stopped).await
}

/// `lockstep pause`.
pub fn pause(args: PauseArgs) -> anyhow::Result<ExitCode> {
    operate(&args.hosts, Command::Pause, PATIENCE)
}

/// `lockstep resume`.
pub fn resume(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    operate(&args.hosts, Command::Resume, PATIENCE)
}

/// `lockstep reset`.
pub fn reset(args: ResetArgs) -> anyhow::Result<ExitCode> {
    operate(&args.hosts, Command::Reset, PATIENCE)
}

/// `lockstep switch`.
pub fn switch(args: SwitchArgs) -> anyhow::Result<ExitCode> {
    operate(&args.hosts, Command::Switch, SWITCH_PATIENCE)
}

fn operate(hosts: &Hosts, command: Command, patience: Duration) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async { ask(&hosts.addresses().await?, command, patience).await })
}

/// Asks the hosts one after the other, until one of them does it.
async fn ask(addresses: &[String], command: Command, patience: Duration) -> anyhow::Result<ExitCode> {
    let mut refusals = Vec::new();
    for address in addresses {
        match control::command(address, command, patience).await {
            Ok(answer) if answer.accepted => {
                println!("{address}: {}", answer.text);
                return Ok(ExitCode::SUCCESS);
            }
            Ok(answer) => refusals.push(format!("{address}: {}", answer.text)),
            Err(error) => refusals.push(error.to_string()),
        }
    }
    bail!("{}", refusals.join("; "))
}
