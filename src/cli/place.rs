//! `lockstep place`: a VM is moved to other hosts.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};

use super::cluster::ClusterArgs;
use super::managed::{Managed, Until};
use super::remote::runtime;
use crate::agent::fit::{Fitting, Wanted};
use crate::agent::times::Times;
use crate::cluster::placement::{Placement, Wish};
use crate::cluster::view::{View, Vm};
use crate::cluster::write::{Placing, Written};

/// Move a VM's sides to these hosts, while it runs: for maintenance, or because they are better there.
///
/// A side that has to go somewhere else gets there by live transfer, and the roles change by a planned switch: clients see some milliseconds. The VM is
/// without protection only while its state is on its way to a new backup, for the one before it leaves then, and not before the new one is there. Another
/// failure in that time is worse than at other times: so move a VM when nothing else is amiss.
///
/// What was asked for is done once. After a failure the agents protect the VM wherever that can be done best.
#[derive(Clone, Debug, clap::Args)]
pub struct PlaceArgs {
    /// Name of the VM
    #[arg(value_name = "VM")]
    vm: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The host that shall run it; the one that does where it is left out
    #[arg(long, value_name = "HOST", required_unless_present = "backup")]
    primary: Option<String>,
    /// The host that shall protect it; whichever fits where it is left out
    #[arg(long, value_name = "HOST")]
    backup: Option<String>,
    /// Do not wait until it is there
    #[arg(long)]
    no_wait: bool,
}

/// Runs `lockstep place`.
pub fn place(args: PlaceArgs) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(async {
        let managed = Managed::open(&args.cluster).await?;
        managed.write(async |managed| write(&args, managed).await).await?;
        if args.no_wait {
            return Ok(ExitCode::SUCCESS);
        }
        managed.wait(&args.vm, Until::Moved).await
    })
}

async fn write(args: &PlaceArgs, managed: &Managed) -> anyhow::Result<Written> {
    let name = &args.vm;
    let (spec, placement) = managed.specified(name)?;
    let view = managed.view()?;
    let vm = &view.vms[name];
    let wish = check(args, &view, vm)?;
    let placement = placement.context("its agents have not placed it yet: try again in a moment")?;
    let wanted = Placement { wish: Some(wish), note: None, ..placement.is };
    let placing = Placing {
        vm: name,
        instead_of: Some(placement.version),
        spec_version: spec.version,
        placement: &wanted,
        added: BTreeMap::new(),
    };
    Ok(managed.writer.place(&placing).await?)
}

/// What is wished for, if it can be.
fn check(args: &PlaceArgs, view: &View, vm: &Vm) -> anyhow::Result<Wish> {
    let name = &args.vm;
    let spec = &vm.spec.as_ref().context("the agents know nothing of it")?.is;
    let Some(runner) = vm.runner() else { bail!("nobody runs `{name}` at the moment (lockstep vms)") };
    ensure!(
        spec.backups > 0,
        "`{name}` has no backup, and is moved by way of one: lockstep protect {name} --backups 1"
    );
    let primary = args.primary.clone().unwrap_or_else(|| runner.host.clone());
    if args.backup.as_ref() == Some(&primary) {
        bail!("the primary and its backup cannot be on the same host, {primary}");
    }
    let times = Times::default();
    let fitting = Fitting { view, times: &times };
    for host in std::iter::once(&primary).chain(&args.backup) {
        let has_part = vm.sides.iter().any(|side| side.host == *host);
        let known = view.hosts.get(host).is_some_and(|host| host.record.is_some());
        if !has_part || !known {
            let wanted = Wanted { vm: name, spec, other: None };
            fitting.fits(&wanted, host).with_context(|| format!("`{name}` cannot be moved to {host}"))?;
        }
    }
    Ok(Wish { primary, backup: args.backup.clone() })
}
