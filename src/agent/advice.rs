//! What a person should know of a VM that is not as it should be, and what there is to do: worked out of the same view as the agents' decisions, by the
//! same rules.

use std::collections::BTreeSet;

use super::fit::{Fitting, Wanted};
use super::times::{Times, boots};
use crate::cluster::view::{View, Vm};
use crate::console::status::Role;

fn list<'a>(hosts: impl IntoIterator<Item = &'a String>) -> String {
    let hosts: BTreeSet<&str> = hosts.into_iter().map(String::as_str).collect();
    hosts.into_iter().collect::<Vec<_>>().join(", ")
}

/// What there is to say of a VM, if anything.
pub fn advice(view: &View, name: &str) -> Option<String> {
    let vm = view.vms.get(name)?;
    let spec = &vm.spec.as_ref()?.is;
    let placement = vm.placement.as_ref().map(|placement| &placement.is);
    if !view.hosts.values().any(|host| host.record.is_some()) {
        return Some("no agent runs: nobody looks after it (lockstep agent)".into());
    }
    let times = Times::default();
    let fitting = Fitting { view, times: &times };
    let anew = format!("lockstep protect {name} --boot-anew");
    if let Some(end) = placement.and_then(|placement| placement.ended.as_ref()) {
        return Some(format!("{end}; to boot it again: {anew}"));
    }
    let Some(runner) = vm.runner() else {
        return nobody_runs_it(vm, &fitting, &Wanted { vm: name, spec, other: None }, &anew);
    };
    let placement = placement?;
    if let Some(wish) = &placement.wish {
        return Some(format!("on its way to {}", list(std::iter::once(&wish.primary).chain(&wish.backup))));
    }
    if runner.role == Role::Unprotected && spec.backups > 0 && placement.backup.is_none() {
        let wanted = Wanted { vm: name, spec, other: Some(&runner.host) };
        if let Err(misfits) = fitting.choose(&wanted, None) {
            return Some(format!("no host fits as its backup: {misfits}"));
        }
    }
    placement.note.clone()
}

fn nobody_runs_it(vm: &Vm, fitting: &Fitting, wanted: &Wanted, anew: &str) -> Option<String> {
    let placement = vm.placement.as_ref().map(|placement| &placement.is);
    let held = vm.register.as_ref().map_or(0, |claim| claim.generation);
    let booting = boots(vm);
    if booting || placement.map_or(held == 0, |placement| placement.boot == Some(held)) {
        let backup = placement.and_then(|placement| placement.backup.as_ref());
        let primary = placement.and_then(|placement| placement.primary.as_deref());
        if primary.is_some() && (backup.is_some() || wanted.spec.backups == 0) {
            return None;
        }
        let misfits = fitting.choose(&Wanted { other: primary, ..*wanted }, None).err()?;
        let what = if primary.is_some() { "as its first backup, for which it waits" } else { "for it" };
        return Some(format!("no host fits {what}: {misfits}"));
    }
    let asking = vm.sides.iter().filter(|side| side.role == Role::Waiting);
    let asking: Vec<&String> = asking.map(|side| &side.host).collect();
    if !asking.is_empty() {
        return Some(format!("{} has it, and waits for the arbiter's word", list(asking)));
    }
    let holder = vm.register.iter().map(|claim| &claim.host_name);
    let hosts = list(placement.into_iter().flat_map(|placement| placement.hosts()).chain(holder));
    if wanted.spec.guest.is_none() {
        return Some(format!("lost with its hosts ({hosts}); it was booted by hand, and can only be booted so again"));
    }
    if wanted.spec.restart {
        return Some(format!("lost; it is booted anew when {hosts} are back and none of them has it"));
    }
    Some(format!("lost with its hosts ({hosts}). If it comes back on none of them, and only then: {anew}"))
}
