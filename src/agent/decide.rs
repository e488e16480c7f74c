//! What is to become of the cluster's VMs: a function of what an agent sees, of who it is, and for how long things have been as they are.
//!
//! ```text
//!                    ┌─ a side runs it ──► is it protected by the backup that it was given? ── no ──► choose one
//!  a VM's placement ─┤                     has it changed hands? does a person want it elsewhere?
//!                    └─ nobody runs it ──► has it never run? ──► choose where it boots
//!                                          is it certain that nobody has it, and is it to be restarted? ──► the same
//! ```
//!
//! One agent acts for a VM: that of the host which runs it; where there is none, the first by name. Two that see the cluster differently may both believe to
//! be the one. Then both write, and each write depends on the version that its writer saw: one of them counts.
//!
//! Nothing here decides who lives. A placement says where sides are to be *started*; which of them runs the machine, the VM's register knows.

use std::collections::BTreeSet;

use super::fit::{Fitting, Wanted};
use super::times::{Times, boots};
use crate::cluster::placement::{Out, Placement, Why};
use crate::cluster::records::{Host, Side};
use crate::cluster::spec::Spec;
use crate::cluster::view::{View, Vm};
use crate::console::status::Role;

/// What an agent does for a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Write its placement.
    Place(Box<Place>),
    /// Have the side at `control` hand the machine over to its backup.
    Switch {
        /// The VM.
        vm: String,
        /// The console port of the side that runs it.
        control: String,
        /// The version of its placement that this is done for.
        version: i32,
    },
}

/// A placement that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The VM.
    pub vm: String,
    /// The version that it takes the place of; `None`: there was none.
    pub instead_of: Option<i32>,
    /// The version of the specification that it was made for.
    pub spec_version: i32,
    /// The placement.
    pub placement: Placement,
    /// The hosts that get a part which they had not.
    pub added: Vec<String>,
}

/// The host whose agent acts for a VM.
pub fn responsible<'a>(view: &'a View, vm: &Vm) -> Option<&'a str> {
    let has_agent = |host: &&'a String| view.hosts[*host].record.is_some();
    let runs = vm.runner().and_then(|side| view.hosts.get_key_value(&side.host));
    let runs = runs.map(|(host, _)| host).filter(has_agent);
    runs.or_else(|| view.hosts.keys().find(has_agent)).map(String::as_str)
}

/// What the agent of host `me` does. At most one thing for a VM; the next follows from what has become of it.
pub fn decide(view: &View, me: &str, times: &Times) -> Vec<Act> {
    // What is placed for one VM counts for the next.
    let mut view = view.clone();
    let names: Vec<String> = view.vms.keys().cloned().collect();
    let mut acts = Vec::new();
    for name in names {
        let vm = &view.vms[&name];
        if responsible(&view, vm) != Some(me) {
            continue;
        }
        let Some(act) = Case::of(&view, times, &name).and_then(Case::decide) else { continue };
        if let (Act::Place(place), Some(vm)) = (&act, view.vms.get_mut(&name)) {
            vm.placement.get_or_insert_default().is = place.placement.clone();
        }
        acts.push(act);
    }
    acts
}

/// One VM's case.
struct Case<'a> {
    fitting: Fitting<'a>,
    name: &'a str,
    vm: &'a Vm,
    spec: &'a Spec,
    spec_version: i32,
    before: Placement,
    next: Placement,
}

/// A side of the VM on a host.
fn side_on<'a>(vm: &'a Vm, host: &str) -> Option<&'a Side> {
    vm.sides.iter().find(|side| side.host == host)
}

impl<'a> Case<'a> {
    fn of(view: &'a View, times: &'a Times, name: &'a str) -> Option<Self> {
        let vm = view.vms.get(name)?;
        let spec = vm.spec.as_ref()?;
        let before = vm.placement.as_ref().map(|placement| placement.is.clone()).unwrap_or_default();
        let (fitting, next) = (Fitting { view, times }, before.clone());
        Some(Case { fitting, name, vm, spec: &spec.is, spec_version: spec.version, before, next })
    }

    fn decide(mut self) -> Option<Act> {
        let switch = match self.vm.runner() {
            Some(side) => self.it_runs(side),
            None => {
                self.nobody_runs_it();
                None
            }
        };
        let known = self.vm.placement.as_ref();
        if self.next == self.before {
            let version = known?.version;
            return switch.map(|side| Act::Switch { vm: self.name.into(), control: side.control.clone(), version });
        }
        let parts = |of: &Placement| (of.primary.clone(), of.backup.clone(), of.asked, of.boot);
        if parts(&self.next) != parts(&self.before) {
            self.next.number += 1;
        }
        let before: BTreeSet<&String> = self.before.hosts().collect();
        let added = self.next.hosts().filter(|host| !before.contains(host)).cloned().collect();
        Some(Act::Place(Box::new(Place {
            vm: self.name.into(),
            instead_of: known.map(|placement| placement.version),
            spec_version: self.spec_version,
            added,
            placement: self.next,
        })))
    }

    fn agent(&self, host: &str) -> Option<&'a Host> {
        self.fitting.view.hosts.get(host)?.record.as_ref()
    }

    /// `side` runs the VM. Gives the side that is to hand it over, if that is what comes next.
    fn it_runs(&mut self, side: &'a Side) -> Option<&'a Side> {
        (self.next.ended, self.next.asked) = (None, false);
        let protector = side.peer.clone().filter(|_| side.role == Role::Primary);
        if self.next.primary.as_ref() != Some(&side.host) {
            self.changed_hands(side, protector.as_ref());
        }
        match protector {
            Some(protector) => self.it_is_protected(side, protector),
            None => {
                self.it_is_unprotected(side);
                None
            }
        }
    }

    fn changed_hands(&mut self, side: &Side, protector: Option<&String>) {
        let before = self.next.primary.replace(side.host.clone());
        self.next.leaving.take_if(|leaving| *leaving == side.host);
        if let Some(protector) = protector {
            // A switch, or a pair that a person has started.
            (self.next.backup, self.next.protected, self.next.leaving) = (Some(protector.clone()), true, None);
            return;
        }
        if let Some(before) = before {
            self.leave_out(&before, Why::Lost, "it ran the VM, and was lost".into());
            self.give_up_wish(format!("{before} was lost"));
        }
        // One that was on its way to become the backup still is.
        if self.next.backup.as_ref() == Some(&side.host) {
            (self.next.backup, self.next.protected) = (None, false);
        }
    }

    fn it_is_protected(&mut self, side: &'a Side, protector: String) -> Option<&'a Side> {
        match self.next.backup.clone() {
            Some(backup) if backup == protector => {
                (self.next.protected, self.next.leaving) = (true, None);
                // What was once the matter with these two is over: only what fails in a row is tried again ever later.
                self.next.out.retain(|out| out.host != protector && out.host != side.host);
            }
            // It is to be sent away.
            None if self.spec.backups == 0 => return None,
            None => (self.next.backup, self.next.protected) = (Some(protector.clone()), true),
            Some(successor) => match self.trouble(&successor, true) {
                // The one that is there protects until this one has come.
                None => {
                    (self.next.leaving, self.next.protected) = (Some(protector), false);
                    return None;
                }
                Some((why, trouble)) => {
                    self.leave_out(&successor, why, trouble.clone());
                    self.give_up_wish(format!("{successor}: {trouble}"));
                    (self.next.backup, self.next.protected) = (Some(protector.clone()), true);
                    self.next.leaving = None;
                }
            },
        }
        if self.spec.backups == 0 {
            (self.next.backup, self.next.protected, self.next.wish) = (None, false, None);
            return None;
        }
        if let Some(wish) = self.next.wish.clone() {
            let wanted = if wish.primary == side.host { wish.backup.as_ref() } else { Some(&wish.primary) };
            match wanted {
                Some(wanted) if *wanted == protector && wish.primary == protector => return Some(side),
                Some(wanted) if *wanted != protector => self.replace_backup(wanted, protector),
                _ => (self.next.wish, self.next.note) = (None, None),
            }
            return None;
        }
        if self.spec.net.is_none() || !self.fitting.times.is_cut_off(&side.host) {
            return None;
        }
        let reached = |host: &str| self.agent(host).is_some_and(|agent| agent.uplink == Some(true));
        if reached(&protector) {
            return Some(side);
        }
        // Neither side is where the guest's clients are. Where they are, there may be a third.
        let question = Wanted { vm: self.name, spec: self.spec, other: Some(&side.host) };
        if let Some(third) = self.choose(&question, None).filter(|third| reached(third)) {
            self.replace_backup(&third, protector);
        }
        None
    }

    /// A person wants another backup than the one that protects it.
    fn replace_backup(&mut self, wanted: &str, protector: String) {
        let other = self.next.primary.clone();
        let question = Wanted { vm: self.name, spec: self.spec, other: other.as_deref() };
        match self.fitting.fits(&question, wanted) {
            Ok(()) => {
                self.next.backup = Some(wanted.into());
                (self.next.protected, self.next.leaving) = (false, Some(protector));
            }
            Err(misfit) => self.give_up_wish(format!("{wanted}: {misfit}")),
        }
    }

    fn it_is_unprotected(&mut self, side: &Side) {
        if self.next.protected
            && let Some(backup) = self.next.backup.take()
        {
            self.leave_out(&backup, Why::Lost, "it protected the VM, and was lost".into());
            self.give_up_wish(format!("{backup} was lost"));
        }
        (self.next.protected, self.next.leaving) = (false, None);
        if let Some(backup) = self.next.backup.clone()
            && let Some((why, trouble)) = self.trouble(&backup, true)
        {
            self.leave_out(&backup, why, trouble.clone());
            self.give_up_wish(format!("{backup}: {trouble}"));
            self.next.backup = None;
        }
        if self.spec.backups == 0 {
            (self.next.backup, self.next.wish) = (None, None);
        } else if self.next.backup.is_none() {
            let wish = self.next.wish.clone();
            let named = wish.and_then(|wish| if wish.primary == side.host { wish.backup } else { Some(wish.primary) });
            self.choose_backup(named.as_deref());
        }
    }

    fn choose_backup(&mut self, named: Option<&str>) {
        let other = self.next.primary.clone();
        let question = Wanted { vm: self.name, spec: self.spec, other: other.as_deref() };
        let chosen = self.choose(&question, named);
        self.next.backup = chosen;
    }

    /// The best host but those that were given up in this very decision: what is known of them is what it was before.
    fn choose(&self, question: &Wanted, named: Option<&str>) -> Option<String> {
        let new = |out: &&Out| !self.before.out.contains(out);
        if self.next.out.iter().any(|out| new(&out)) {
            let mut view = self.fitting.view.clone();
            if let Some(vm) = view.vms.get_mut(self.name) {
                vm.placement.get_or_insert_default().is.out = self.next.out.clone();
            }
            return Fitting { view: &view, times: self.fitting.times }.choose(question, named).ok();
        }
        self.fitting.choose(question, named).ok()
    }

    /// Why a host that was chosen before does not do what it was chosen for. `deadline`: whether it should have begun by now. One whose agent is gone has failed at
    /// nothing: when that is back, it is as good as any other.
    fn trouble(&self, host: &str, deadline: bool) -> Option<(Why, String)> {
        if !self.before.names(host) {
            return None;
        }
        let failed = self.agent(host).and_then(|agent| agent.failed.get(self.name));
        if let Some(failure) = failed.filter(|failure| failure.number == self.before.number) {
            return Some((Why::Failed, failure.text.clone()));
        }
        if self.fitting.times.is_gone(host) && side_on(self.vm, host).is_none() {
            return Some((Why::Lost, "its agent is gone".into()));
        }
        (deadline && self.fitting.times.is_late(self.name)).then(|| (Why::Failed, "nothing came of it in time".into()))
    }

    fn leave_out(&mut self, host: &str, why: Why, text: String) {
        let agent = self.agent(host).map(|agent| (agent.process.number.clone(), agent.beat)).unwrap_or_default();
        let again = self.next.out(host).filter(|out| out.why == Why::Failed && why == Why::Failed);
        let times = again.map_or(1, |out| out.times.saturating_add(1));
        self.next.out.retain(|out| out.host != host);
        self.next.out.push(Out { host: host.into(), agent, why, times, text });
    }

    fn give_up_wish(&mut self, why: String) {
        if let Some(wish) = self.next.wish.take() {
            let wanted: Vec<String> = std::iter::once(wish.primary).chain(wish.backup).collect();
            self.next.note = Some(format!("not moved to {}: {why}", wanted.join(", ")));
        }
    }

    fn nobody_runs_it(&mut self) {
        let held = self.vm.register.as_ref().map_or(0, |claim| claim.generation);
        if self.vm.placement.is_none() && held == 0 && self.spec.guest.is_some() {
            self.next.boot = Some(0);
        }
        if self.next.ended.is_some() {
            return;
        }
        let (may_boot, booting) = (self.next.boot == Some(held), boots(self.vm));
        if may_boot || booting {
            return self.it_is_to_boot(booting);
        }
        // Somebody asks the arbiter whether he may go on, or replays what he has.
        if self.vm.sides.iter().any(|side| side.role == Role::Waiting) {
            return;
        }
        if let Some(text) = self.its_end() {
            (self.next.ended, self.next.wish, self.next.leaving) = (Some(text), None, None);
        } else if self.spec.restart && self.spec.guest.is_some() && self.vm.placement.is_some() {
            self.it_may_be_restarted(held);
        }
    }

    fn it_is_to_boot(&mut self, booting: bool) {
        self.next.asked = false;
        if let Some(primary) = self.next.primary.clone().filter(|_| !booting)
            && let Some((why, trouble)) = self.trouble(&primary, true)
        {
            self.leave_out(&primary, why, trouble);
            self.next.primary = None;
        }
        if self.next.primary.is_none() {
            let question = Wanted { vm: self.name, spec: self.spec, other: None };
            self.next.primary = self.choose(&question, self.spec.primary.as_deref());
            if self.next.primary.is_none() {
                // There is nothing to be said: who is asked says which hosts there are, and why none fits.
                self.next = self.before.clone();
                return;
            }
            self.next.backup.take_if(|backup| Some(&*backup) == self.next.primary.as_ref());
        }
        if self.spec.backups == 0 {
            self.next.backup = None;
            return;
        }
        if let Some(backup) = self.next.backup.clone()
            && let Some((why, trouble)) = self.trouble(&backup, booting)
        {
            self.leave_out(&backup, why, trouble);
            self.next.backup = None;
        }
        if self.next.backup.is_none() {
            self.choose_backup(self.spec.backup.as_deref());
        }
    }

    /// How its guest has ended, if an agent knows.
    fn its_end(&self) -> Option<String> {
        let agents = self.fitting.view.hosts.values().filter_map(|host| host.record.as_ref());
        let ends = agents.filter_map(|agent| agent.ended.get(self.name)).filter(|end| end.boot == self.before.boot);
        ends.map(|end| end.text.clone()).next()
    }

    /// It is lost, and wanted back. The hosts that may have it are asked; when all of them are there and say that they have not, it is booted anew.
    fn it_may_be_restarted(&mut self, held: u64) {
        if !self.before.asked {
            self.next.asked = true;
            return;
        }
        let holder = self.vm.register.iter().map(|claim| &claim.host_name);
        let out = self.before.out.iter().map(|out| &out.host);
        let involved: BTreeSet<&String> = self.before.hosts().chain(holder).chain(out).collect();
        let without = |host: &String| {
            let answer = self.agent(host).and_then(|agent| agent.without.get(self.name));
            answer == Some(&self.before.number) && side_on(self.vm, host).is_none()
        };
        if involved.into_iter().all(without) {
            (self.next.boot, self.next.primary, self.next.backup) = (Some(held), None, None);
            (self.next.protected, self.next.leaving) = (false, None);
            self.it_is_to_boot(false);
        }
    }
}
