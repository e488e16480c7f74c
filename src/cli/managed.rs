//! What the commands share that tell the agents what is wanted: what is known of a VM, and waiting until it is as it should be.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, timeout};

use super::cluster::ClusterArgs;
use crate::agent::advice::advice;
use crate::agent::times::boots;
use crate::arbiter::ensemble::PATIENCE;
use crate::cluster::follow::Following;
use crate::cluster::placement::Placement;
use crate::cluster::spec::Spec;
use crate::cluster::view::{Condition, Versioned, View, Vm};
use crate::cluster::write::{Writer, Written};
use crate::console::status::Role;

/// For how long a VM has to be down, and nobody say why, before a person is told that it is lost.
const SURE_AFTER: Duration = Duration::from_millis(500);

/// A cluster whose VMs agents look after.
pub struct Managed {
    following: Following,
    location: String,
    /// Writes what is wanted.
    pub writer: Writer,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The VM runs, with the backups that it shall have.
    AsSpecified,
    /// It is where a person wants it.
    Moved,
    /// None of its sides is there.
    Stopped,
}

impl Managed {
    /// Reads what there is.
    pub async fn open(cluster: &ClusterArgs) -> anyhow::Result<Self> {
        let sessions = cluster.open()?;
        // What cannot be reached at all is an error at once.
        let session = super::cluster::session(&sessions).await?;
        super::cluster::read(&sessions, &session).await?;
        let location = sessions.location().to_owned();
        let managed =
            Managed { following: Following::start(sessions.clone()), location, writer: Writer::new(sessions) };
        let mut told = managed.following.told();
        let ready = async { while told.borrow_and_update().is_err() && told.changed().await.is_ok() {} };
        timeout(PATIENCE, ready).await.with_context(|| format!("no answer from {}", managed.location))?;
        Ok(managed)
    }

    /// What is known now.
    pub fn view(&self) -> anyhow::Result<Arc<View>> {
        match &*self.following.told().borrow() {
            Ok(seen) => Ok(seen.view.clone()),
            Err(error) => bail!("{error}"),
        }
    }

    /// Waits until what was written before this call is known.
    pub async fn renewed(&self) -> anyhow::Result<()> {
        let mut told = self.following.told();
        let now_ns = crate::backends::clock::boot_clock_ns();
        self.following.renew();
        let renewed = told.wait_for(|told| told.as_ref().is_ok_and(|seen| seen.read_at_ns >= now_ns));
        timeout(PATIENCE, renewed).await.with_context(|| format!("no answer from {}", self.location))??;
        Ok(())
    }

    /// Writes what is wanted, made from what is known: once more where somebody else has written meanwhile.
    pub async fn write(&self, mut attempt: impl AsyncFnMut(&Self) -> anyhow::Result<Written>) -> anyhow::Result<()> {
        while attempt(self).await? == Written::Overtaken {
            self.renewed().await?;
        }
        Ok(())
    }

    /// What a VM is to be, and where its sides are to be.
    #[allow(clippy::type_complexity, reason = "a pair of what one VM's nodes hold")]
    pub fn specified(&self, name: &str) -> anyhow::Result<(Versioned<Spec>, Option<Versioned<Placement>>)> {
        let view = self.view()?;
        let vm = view
            .vms
            .get(name)
            .with_context(|| format!("no VM is called `{name}` in {} (lockstep vms)", self.location))?;
        let spec = vm.spec.clone();
        let spec = spec.with_context(|| format!("the agents know nothing of `{name}`: lockstep protect {name}"))?;
        Ok((spec, vm.placement.clone()))
    }

    /// Waits until a VM is as it should be, and says what happens meanwhile. Ctrl-C ends the waiting alone.
    pub async fn wait(&self, name: &str, until: Until) -> anyhow::Result<ExitCode> {
        // What was written a moment ago is part of it.
        self.renewed().await?;
        let mut told = self.following.told();
        let (mut said, mut silent, mut down) = (String::new(), false, None);
        let mut interrupted = std::pin::pin!(super::interrupts::signalled());
        loop {
            let now = told.borrow_and_update().clone();
            match now {
                Ok(seen) => {
                    silent = false;
                    let nothing = Vm::default();
                    let vm = seen.view.vms.get(name).unwrap_or(&nothing);
                    let line = format!("{name}: {}", describe(&seen.view, name, vm));
                    // Its sides are gone a moment before anybody can have said that it has come to its end.
                    let ended = vm.placement.as_ref().is_some_and(|placement| placement.is.ended.is_some());
                    let is_down = vm.condition() == Condition::Down && vm.register.is_some() && !ended;
                    down = is_down.then(|| down.unwrap_or_else(Instant::now));
                    let is_sure = down.is_none_or(|since| since.elapsed() >= SURE_AFTER);
                    if line != said && is_sure {
                        println!("{line}");
                        said = line;
                    }
                    if let Some(status) = arrived(vm, name, until)? {
                        return Ok(status);
                    }
                }
                Err(error) if !std::mem::replace(&mut silent, true) => eprintln!("lockstep: {error}; waiting"),
                Err(_) => {}
            }
            // What changes at the same moment is one line.
            tokio::time::sleep(Duration::from_millis(20)).await;
            tokio::select! {
                () = tokio::time::sleep(SURE_AFTER), if down.is_some() => {}
                changed = told.changed() => changed.context("nobody follows the cluster any more")?,
                () = &mut interrupted => {
                    eprintln!("lockstep: not waited for any longer; the agents go on (lockstep vms shows how far)");
                    return Ok(ExitCode::from(super::FAILED));
                }
            }
        }
    }
}

/// Whether what is waited for is so; an error if it will not be.
fn arrived(vm: &Vm, name: &str, until: Until) -> anyhow::Result<Option<ExitCode>> {
    let placement = vm.placement.as_ref().map(|placement| &placement.is);
    if until == Until::Stopped {
        return Ok(vm.sides.is_empty().then_some(ExitCode::SUCCESS));
    }
    if let Some(end) = placement.and_then(|placement| placement.ended.as_ref()) {
        bail!("`{name}` does not run any more: {end}");
    }
    let Some(spec) = &vm.spec else { bail!("`{name}` was taken from the agents' care") };
    let settled = match (spec.is.backups, vm.runner()) {
        (_, None) => false,
        // The other side may not know yet that it is not wanted.
        (0, Some(side)) => side.role == Role::Unprotected && vm.backups().next().is_none(),
        (_, Some(_)) => vm.condition() == Condition::Protected,
    };
    let placed = placement.is_some_and(|placement| placement.wish.is_none() && placement.leaving.is_none());
    let refused = placement.and_then(|placement| placement.note.as_ref()).filter(|_| until == Until::Moved);
    match (placed, refused) {
        (true, Some(note)) => bail!("`{name}`: {note}"),
        (placed, _) => Ok((settled && (placed || until == Until::AsSpecified)).then_some(ExitCode::SUCCESS)),
    }
}

/// How a VM is, in one line.
fn describe(view: &View, name: &str, vm: &Vm) -> String {
    let placement = vm.placement.as_ref().map(|placement| &placement.is);
    let part = |part: Option<&String>| part.map_or("nobody", String::as_str).to_owned();
    let backup = || part(placement.and_then(|placement| placement.backup.as_ref()));
    let told = match (vm.runner(), vm.condition()) {
        (Some(side), Condition::Protected) => {
            format!("runs on {}, protected by {}", side.host, part(side.peer.as_ref()))
        }
        (Some(side), Condition::Joining) => {
            format!("runs on {}, unprotected; its state is on its way to {}", side.host, part(side.peer.as_ref()))
        }
        (Some(side), _) => match placement.and_then(|placement| placement.backup.as_ref()) {
            Some(backup) => format!("runs on {}, unprotected; a backup starts on {backup}", side.host),
            None => format!("runs on {}, unprotected", side.host),
        },
        (None, _) if boots(vm) => {
            let on = placement.and_then(|placement| placement.primary.as_ref());
            format!("waits on {} for its backup on {}", part(on), backup())
        }
        (None, Condition::Waiting) => "nobody runs it at the moment".into(),
        (None, _) => match placement.and_then(|placement| placement.primary.as_ref()) {
            Some(primary) if placement.is_some_and(|placement| placement.boot.is_some()) && vm.register.is_none() => {
                format!("starts on {primary}")
            }
            _ => "nobody runs it".into(),
        },
    };
    // A host that could not do its part says why.
    let trouble =
        placement.and_then(|placement| placement.out.last()).map(|out| format!(" ({}: {})", out.host, out.text));
    let trouble = trouble.filter(|_| vm.condition() != Condition::Protected).unwrap_or_default();
    match advice(view, name) {
        Some(advice) => format!("{told}{trouble}: {advice}"),
        None => format!("{told}{trouble}"),
    }
}
