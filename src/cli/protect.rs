//! `lockstep protect` and `lockstep unprotect`: VMs that are given to the cluster's agents, and taken from their care.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};

use super::agent::label;
use super::cluster::{ClusterArgs, SIDE_PATIENCE};
use super::managed::{Managed, Until};
use super::remote::runtime;
use crate::agent::fit::{Fitting, Wanted};
use crate::agent::times::Times;
use crate::arbiter;
use crate::cluster::placement::Placement;
use crate::cluster::spec::{Card, Guest, Spec};
use crate::cluster::view::{View, Vm};
use crate::cluster::write::Written;
use crate::console::control;
use crate::console::status::Role;
use crate::disk::spec::DiskSpec;
use crate::guest;
use crate::net::spec::NetSpec;
use crate::replication::Settings;

/// Give a VM to the cluster's agents: they start it, protect it, and restore its protection after every loss.
///
/// A new VM: `lockstep protect web --guest kv --memory 256 --net ip=10.9.0.2/24,gw=10.9.0.1`.
///
/// One that was started by hand (`lockstep primary`) and is listed by `lockstep vms`: `lockstep protect web` gives it a backup, and another one whenever that is
/// lost. (If it has a disk, say with `--disk` where a backup finds it.)
///
/// One that the agents have already: changes what is said, and leaves the rest. What concerns the guest itself takes effect when it is booted the next time.
///
/// A VM is booted once. When it has been lost with both its hosts, no agent boots it again (unless it has `--restart`): whether its disk is worth anything, and that
/// none of the hosts still runs it, a person has to know, and says so with `--boot-anew`.
#[derive(Clone, Debug, clap::Args)]
pub struct ProtectArgs {
    /// Name of the VM
    #[arg(value_name = "VM")]
    vm: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The guest: an application of the built-in image (`lockstep run --guest list`), or the path of an ELF image that each host has
    #[arg(long, value_name = "NAME|FILE")]
    guest: Option<String>,
    /// Memory of the guest, in MiB (64 where it is left out)
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    memory: Option<u64>,
    /// A disk for the guest, as `lockstep primary --disk` takes it; the path is the same on each host
    #[arg(long, value_name = "SPEC")]
    disk: Option<String>,
    /// A network card for the guest: its settings (`mac=…`, `ip=10.9.0.2/24`, `ip=dhcp`, `gw=10.9.0.1`, `offload=off`), and `tap=NAME` if each host has a TAP
    /// device ready for it. Without that, each agent makes one and plugs it into its bridge
    #[arg(long, value_name = "SETTINGS")]
    net: Option<String>,
    /// Time between two heartbeats of the pair, in milliseconds (20 where it is left out)
    #[arg(long, value_name = "MS")]
    heartbeat: Option<u64>,
    /// Silence after which a side is suspected, in milliseconds (200 where it is left out)
    #[arg(long, value_name = "MS")]
    timeout: Option<u64>,
    /// Backups that it shall have: 1, or 0 for a VM that the agents only start
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1))]
    backups: Option<u32>,
    /// The host on which it begins
    #[arg(long, value_name = "HOST")]
    primary: Option<String>,
    /// The host of its first backup
    #[arg(long, value_name = "HOST")]
    backup: Option<String>,
    /// VMs with which it shall share no host, in any role
    #[arg(long, value_name = "VM,…", value_delimiter = ',')]
    avoid: Vec<String>,
    /// Only on hosts that are labelled so (`lockstep agent --label`); may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    require: Vec<(String, String)>,
    /// Boot it anew, without asking anybody, when it was lost and every host that may have it is back and says that it has not
    #[arg(long, value_name = "YES|NO", num_args = 0..=1, default_missing_value = "yes", value_parser = ["yes", "no"])]
    restart: Option<String>,
    /// Boot its guest again, which has ended or was lost. You vouch for it that none of its hosts still runs it
    #[arg(long)]
    boot_anew: bool,
    /// Do not wait until it is protected
    #[arg(long)]
    no_wait: bool,
    /// Arguments for the guest (after `--`)
    #[arg(last = true, value_name = "ARG")]
    arguments: Vec<String>,
}

/// Have a VM go on without its backup, or without the agents.
///
/// Its backup is sent away, and the VM runs on alone; `lockstep protect VM --backups 1` gives it one again. To stop a VM: `lockstep stop VM`.
#[derive(Clone, Debug, clap::Args)]
pub struct UnprotectArgs {
    /// Name of the VM
    #[arg(value_name = "VM")]
    vm: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Have the agents forget it: what runs of it runs on as it is, backup and all, and nobody looks after it any more
    #[arg(long)]
    forget: bool,
    /// Do not wait until its backup is gone
    #[arg(long)]
    no_wait: bool,
}

/// What `--net` says.
fn card(text: &str) -> anyhow::Result<Card> {
    let (taps, settings): (Vec<&str>, Vec<&str>) = text.split(',').partition(|setting| setting.starts_with("tap="));
    let tap = taps.first().map(|tap| tap["tap=".len()..].to_owned());
    let settings = settings.join(",");
    // Read as a side will read it.
    let device = if taps.is_empty() { "tap=x".into() } else { taps.join(",") };
    let whole = if settings.is_empty() { device } else { format!("{device},{settings}") };
    whole.parse::<NetSpec>().context("--net")?;
    Ok(Card { tap, settings })
}

fn on_each_host(what: &str, path: &str) -> anyhow::Result<()> {
    ensure!(Path::new(path).is_absolute(), "{what}: `{path}` must be an absolute path, which each host has");
    Ok(())
}

impl ProtectArgs {
    /// Takes over what was said.
    fn change(&self, spec: &mut Spec) -> anyhow::Result<()> {
        if let Some(name) = &self.guest {
            if guest::app(name).is_none() {
                ensure!(
                    name.contains('/'),
                    "no guest application is called `{name}`: see `lockstep run --guest list`, or give the path of an ELF image"
                );
                on_each_host("--guest", name)?;
            }
            spec.guest = Some(Guest { name: name.clone(), arguments: self.arguments.clone() });
        } else if !self.arguments.is_empty() {
            let Some(guest) = &mut spec.guest else {
                bail!("arguments are for a guest that is booted: give --guest as well")
            };
            guest.arguments.clone_from(&self.arguments);
        }
        if let Some(disk) = &self.disk {
            let parsed: DiskSpec = disk.parse().context("--disk")?;
            on_each_host("--disk", &parsed.file.display().to_string())?;
            spec.disk = Some(disk.clone());
        }
        if let Some(net) = &self.net {
            spec.net = Some(card(net)?);
        }
        spec.memory_mib = self.memory.unwrap_or(spec.memory_mib);
        spec.heartbeat_ms = self.heartbeat.unwrap_or(spec.heartbeat_ms);
        spec.timeout_ms = self.timeout.unwrap_or(spec.timeout_ms);
        if !Settings::times_are_sane(spec.heartbeat_ms, spec.timeout_ms) {
            bail!("--timeout must be at least twice --heartbeat, and both above 0");
        }
        spec.backups = self.backups.unwrap_or(spec.backups);
        for (part, said) in [(&mut spec.primary, &self.primary), (&mut spec.backup, &self.backup)] {
            if said.is_some() {
                part.clone_from(said);
            }
        }
        if spec.primary.is_some() && spec.primary == spec.backup {
            bail!("the primary and its backup cannot be on the same host");
        }
        if !self.avoid.is_empty() {
            spec.avoid = self.avoid.iter().filter(|vm| !vm.is_empty()).cloned().collect::<BTreeSet<_>>();
            ensure!(!spec.avoid.contains(&self.vm), "a VM cannot avoid itself");
        }
        if !self.require.is_empty() {
            spec.require = self.require.iter().cloned().collect();
        }
        if let Some(restart) = &self.restart {
            spec.restart = restart == "yes";
        }
        Ok(())
    }

    /// What a VM that was started by hand is.
    async fn as_it_runs(&self, vm: &Vm) -> anyhow::Result<Spec> {
        ensure!(
            self.guest.is_none(),
            "`{}` runs already: its guest cannot be chosen any more (leave --guest out)",
            self.vm
        );
        let side = vm.runner().or_else(|| vm.sides.first()).context("nobody runs it")?;
        let status = control::status(&side.control, SIDE_PATIENCE)
            .await
            .context("the side that runs it must be asked what it is")?;
        let memory_mib = status.memory_mib.or(side.memory_mib).context("its memory is not known yet")?;
        if status.disk.is_some() && self.disk.is_none() {
            bail!("`{}` has a disk: say with --disk where a backup finds it", self.vm);
        }
        let net = status.net.map(|_| Card::default());
        Ok(Spec { memory_mib, net, ..Spec::default() })
    }
}

/// Whether a part that a person has named can be had, where the VM has no sides yet.
fn check(view: &View, vm: &str, spec: &Spec) -> anyhow::Result<()> {
    let times = Times::default();
    let fitting = Fitting { view, times: &times };
    let wanted = |other| Wanted { vm, spec, other };
    for (named, other) in [(&spec.primary, None), (&spec.backup, spec.primary.as_deref())] {
        if let Some(host) = named {
            fitting.fits(&wanted(other), host).with_context(|| format!("host {host} cannot have a side of `{vm}`"))?;
        }
    }
    let primary = fitting.choose(&wanted(spec.backup.as_deref()), spec.primary.as_deref());
    let primary = primary.map_err(|misfits| anyhow::anyhow!("no host fits `{vm}`: {misfits}"))?;
    if spec.backups > 0
        && let Err(misfits) = fitting.choose(&wanted(Some(&primary)), spec.backup.as_deref())
    {
        eprintln!("lockstep: no host fits as its backup yet, and its guest does not start before one does: {misfits}");
    }
    Ok(())
}

/// Runs `lockstep protect`.
pub fn protect(args: ProtectArgs) -> anyhow::Result<ExitCode> {
    if !arbiter::is_name(&args.vm) || args.vm.contains('/') {
        bail!("the VM's name must be 1 to {} bytes long, without `/`", arbiter::MAX_NAME);
    }
    runtime()?.block_on(async {
        let managed = Managed::open(&args.cluster).await?;
        managed.write(async |managed| write(&args, managed).await).await?;
        if args.no_wait {
            return Ok(ExitCode::SUCCESS);
        }
        managed.wait(&args.vm, Until::AsSpecified).await
    })
}

async fn write(args: &ProtectArgs, managed: &Managed) -> anyhow::Result<Written> {
    let (view, name) = (managed.view()?, &args.vm);
    ensure!(
        view.hosts.values().any(|host| host.record.is_some()),
        "no agent runs in this cluster: start one on each host (lockstep agent)"
    );
    let nothing = Vm::default();
    let vm = view.vms.get(name).unwrap_or(&nothing);
    let held = vm.register.as_ref().map_or(0, |claim| claim.generation);
    let runs = vm.runner().is_some() || vm.sides.iter().any(|side| side.role == Role::Waiting);
    let before = vm.spec.as_ref();
    let mut spec = match before {
        Some(before) => before.is.clone(),
        None if runs => args.as_it_runs(vm).await?,
        None => Spec::default(),
    };
    args.change(&mut spec)?;
    let placement = vm.placement.as_ref();
    let booted = if args.boot_anew {
        ensure!(!runs, "`{name}` runs: there is nothing to boot (lockstep vms)");
        ensure!(spec.guest.is_some(), "how `{name}` is booted is not known: give --guest");
        let number = placement.map_or(0, |placement| placement.is.number) + 1;
        let anew = Placement { number, boot: Some(held), ..Placement::default() };
        Some((anew, placement.map(|placement| placement.version)))
    } else {
        match (before, vm.register.as_ref()) {
            (None, Some(claim)) if !runs => bail!(
                "`{name}` was run by {} before (generation {held}), and nobody runs it now: if that is so, boot it with --boot-anew and --guest",
                claim.host_name
            ),
            (None, None) if !runs => {
                ensure!(spec.guest.is_some(), "there is no `{name}` yet: say with --guest what it is")
            }
            _ => {}
        }
        None
    };
    if (before.is_none() && !runs) || args.boot_anew {
        check(&view, name, &spec)?;
    }
    let booted = booted.as_ref().map(|(placement, version)| (placement, *version));
    Ok(managed.writer.specify(name, (&spec, before.map(|before| before.version)), booted).await?)
}

/// Runs `lockstep unprotect`.
pub fn unprotect(args: UnprotectArgs) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let managed = Managed::open(&args.cluster).await?;
        managed
            .write(async |managed| {
                let (spec, placement) = managed.specified(&args.vm)?;
                if args.forget {
                    let placement = placement.map(|placement| placement.version);
                    return Ok(managed.writer.forget(&args.vm, spec.version, placement).await?);
                }
                let alone = Spec { backups: 0, ..spec.is };
                Ok(managed.writer.specify(&args.vm, (&alone, Some(spec.version)), None).await?)
            })
            .await?;
        if args.forget {
            println!("{}: forgotten; what runs of it runs on, and nobody looks after it", args.vm);
            return Ok(ExitCode::SUCCESS);
        }
        if args.no_wait {
            return Ok(ExitCode::SUCCESS);
        }
        managed.wait(&args.vm, Until::AsSpecified).await
    })
}
