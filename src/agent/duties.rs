//! What an agent does on its own host: which processes there are to be, by what the placements say, and what it tells the others of them.

use std::collections::BTreeMap;

use super::fit::{Misfit, avoided};
use super::times::{Times, boots};
use crate::cluster::placement::Placement;
use crate::cluster::records::{Failure, GuestEnd, Host, Side};
use crate::cluster::spec::Spec;
use crate::cluster::view::{View, Vm};
use crate::console::status::Role;

/// A process that an agent has started on its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// For the placement of this number.
    pub number: u64,
    /// What the placement said about booting.
    pub boot: Option<u64>,
    /// Where it looks for its primary; empty for one that boots the guest.
    pub primary: String,
    /// Its process number on this host.
    pub pid: u32,
    /// How it stands.
    pub state: Process,
}

/// How a process stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Process {
    /// It runs.
    Runs,
    /// It has ended.
    Ended {
        /// Because its guest has.
        guest: bool,
        /// How, in words.
        text: String,
    },
}

/// The processes on this host that its agent has started, by VM.
pub type Here = BTreeMap<String, Started>;

/// What there is to do on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duty {
    /// For which VM.
    pub vm: String,
    /// In which version of its placement.
    pub version: i32,
    /// What.
    pub what: What,
}

/// What there is to do for a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Start a primary that boots the guest, as the successor of generation `after`.
    Boot {
        /// The placement's number.
        number: u64,
        /// That generation; 0: of none.
        after: u64,
        /// The VM's specification.
        spec: Box<Spec>,
    },
    /// Start a backup of the side whose logging channel is `primary`.
    Protect {
        /// The placement's number.
        number: u64,
        /// What the placement says about booting.
        boot: Option<u64>,
        /// That side's logging channel.
        primary: String,
        /// The VM's specification.
        spec: Box<Spec>,
    },
    /// Say that this host cannot do what it is placed for.
    Decline {
        /// The placement's number.
        number: u64,
        /// What the placement says about booting.
        boot: Option<u64>,
        /// Why.
        misfit: Misfit,
    },
    /// Ask a side to leave.
    Leave {
        /// Its console port.
        control: String,
    },
    /// Kill a process that can never run the VM again, and does not go.
    Kill {
        /// Which.
        pid: u32,
    },
}

/// The sides of a VM on this host.
fn sides_here<'a>(vm: &'a Vm, me: &str) -> impl Iterator<Item = &'a Side> {
    vm.sides.iter().filter(move |side| side.host == me)
}

/// Whether a side that says nothing can be killed and nothing be lost with it. One that can never run the VM again; and one that had found no primary
/// when it was last heard, while another side runs the VM without it: it may have become a backup that counts since, but then the one that runs the VM has won the
/// next generation by now, or would still count on it.
fn is_of_no_use(vm: &Vm, side: &Side) -> bool {
    let elsewhere = vm.runner().is_some_and(|runner| runner != side && runner.peer.as_deref() != Some(&side.host));
    has_lost(vm, side) || (side.role == Role::Backup && side.state == "connecting" && elsewhere)
}

/// Whether a side can never run the VM again: somebody has won a generation after its own, and that was neither it nor for it.
fn has_lost(vm: &Vm, side: &Side) -> bool {
    let number = u64::from_str_radix(&side.process.number, 16).ok();
    vm.register.as_ref().is_some_and(|claim| {
        side.generation > 0
            && claim.generation > side.generation
            && number.is_some_and(|number| claim.host != number && claim.shared_with != Some(number))
    })
}

/// Where a new backup finds the machine.
fn source(vm: &Vm) -> Option<&Side> {
    let booting = || vm.sides.iter().find(|side| boots(vm) && side.role == Role::Waiting);
    vm.runner().or_else(booting)
}

/// What is to be done on host `me`, and which sides of it are to leave (their VM and process). Of the sides on this host, the view has those whose
/// processes are there.
pub fn duties(view: &View, me: &str, here: &Here, times: &Times) -> (Vec<Duty>, Vec<(String, u32)>) {
    let (mut duties, mut leaving) = (Vec::new(), Vec::new());
    let mut there = processes_here(view, me, here);
    for (name, vm) in &view.vms {
        let (Some(spec), Some(placement)) = (&vm.spec, &vm.placement) else { continue };
        let started = here.get(name);
        let case = Case { me, vm, spec: &spec.is, placement: &placement.is, started };
        let mut add = |what| duties.push(Duty { vm: name.clone(), version: placement.version, what });
        for side in sides_here(vm, me).filter(|side| case.is_to_leave(side)) {
            let pid = side.process.pid;
            leaving.push((name.clone(), pid));
            if times.is_overdue(name, pid) && is_of_no_use(vm, side) {
                add(What::Kill { pid });
            } else {
                add(What::Leave { control: side.control.clone() });
            }
        }
        if let Some(what) = case.start() {
            if no_room(view, me, &there, name, &spec.is).is_none() {
                there.insert(name, spec.is.memory_mib);
                add(what);
                continue;
            }
            // What is about to go is waited for. Otherwise whoever placed it here did not see what is here.
            let mut staying = there.clone();
            staying.retain(|other, _| stays(&view.vms[*other], me));
            if let Some(misfit) = no_room(view, me, &staying, name, &spec.is) {
                let (number, boot) = (placement.is.number, placement.is.boot);
                add(What::Decline { number, boot, misfit });
            }
        }
    }
    (duties, leaving)
}

/// The VMs of which a process is on this host, with their memory in MiB. This host knows better than anybody else.
fn processes_here<'a>(view: &'a View, me: &str, here: &Here) -> BTreeMap<&'a str, u64> {
    let mut there = BTreeMap::new();
    for (name, vm) in &view.vms {
        let runs = here.get(name).is_some_and(|started| started.state == Process::Runs);
        let side = sides_here(vm, me).next();
        if runs || side.is_some() {
            let told = side.and_then(|side| side.memory_mib);
            let wanted = vm.spec.as_ref().map(|spec| spec.is.memory_mib);
            there.insert(name.as_str(), told.or(wanted).unwrap_or(0));
        }
    }
    there
}

/// Whether a VM of which a process is on host `me` has a part there.
fn stays(vm: &Vm, me: &str) -> bool {
    let placed = vm.placement.as_ref().is_some_and(|placement| placement.is.names(me) && placement.is.ended.is_none());
    placed || vm.placement.is_none() || vm.runner().is_some_and(|runner| runner.host == me)
}

/// Why a VM has no place beside those that are here.
fn no_room(view: &View, me: &str, there: &BTreeMap<&str, u64>, vm: &str, spec: &Spec) -> Option<Misfit> {
    let avoided = avoided(view, vm, spec);
    if let Some(other) = there.keys().find(|other| avoided.contains(**other)) {
        return Some(Misfit::Avoided { vm: (*other).into() });
    }
    let capacity_mib = view.hosts.get(me)?.record.as_ref()?.capacity_mib;
    let free_mib = capacity_mib.saturating_sub(there.values().sum());
    let wanted_mib = spec.memory_mib;
    (wanted_mib > free_mib).then_some(Misfit::Capacity { free_mib, capacity_mib, wanted_mib })
}

struct Case<'a> {
    me: &'a str,
    vm: &'a Vm,
    spec: &'a Spec,
    placement: &'a Placement,
    started: Option<&'a Started>,
}

impl Case<'_> {
    fn is_mine(&self, part: &Option<String>) -> bool {
        part.as_deref() == Some(self.me)
    }

    /// Whether a process of the VM is on this host.
    fn is_here(&self) -> bool {
        self.started.is_some_and(|started| started.state == Process::Runs)
            || sides_here(self.vm, self.me).next().is_some()
    }

    /// Whether a side on this host has no business here any more. Whether it may go, it knows best: it is asked.
    fn is_to_leave(&self, side: &Side) -> bool {
        if self.vm.runner() == Some(side) {
            return false;
        }
        match side.role {
            // One that waits for its first backup, and is not the one that is to boot the guest, or not any more.
            Role::Waiting if side.state == "waiting" => !self.is_mine(&self.placement.primary) || self.is_over(),
            // One that has found no primary yet holds nothing.
            Role::Backup if side.state == "connecting" => {
                let moved = source(self.vm).is_some_and(|source| {
                    self.started.is_some_and(|started| {
                        started.pid == side.process.pid
                            && !started.primary.is_empty()
                            && started.primary != source.channel
                    })
                });
                !self.is_mine(&self.placement.backup) || self.is_over() || moved
            }
            Role::Backup => {
                let has_part = self.is_mine(&self.placement.primary) || self.is_mine(&self.placement.backup);
                !has_part && !self.is_needed_still(side)
            }
            // It has lost, and does not know it yet; or it may be the one that goes on.
            Role::Waiting => has_lost(self.vm, side) && !self.placement.names(self.me),
            Role::Primary | Role::Unprotected => self.vm.is_over(side) && has_lost(self.vm, side),
            Role::Retired => false,
        }
    }

    /// Whether nothing of the VM is to be started.
    fn is_over(&self) -> bool {
        self.placement.asked || self.placement.ended.is_some() || self.spec.backups == 0 && self.vm.runner().is_some()
    }

    /// Whether this backup protects the VM, and the one that is to take its place is not there yet.
    fn is_needed_still(&self, side: &Side) -> bool {
        let protects = self
            .vm
            .runner()
            .is_some_and(|runner| runner.role == Role::Primary && runner.peer.as_deref() == Some(&side.host));
        let successor = self.placement.backup.as_ref();
        protects && successor.is_some_and(|successor| !self.vm.sides.iter().any(|side| side.host == *successor))
    }

    fn start(&self) -> Option<What> {
        let number = self.placement.number;
        let failed = self.started.is_some_and(|started| started.number == number && started.state != Process::Runs);
        if failed || self.is_here() || self.placement.asked || self.placement.ended.is_some() {
            return None;
        }
        let spec = || Box::new(self.spec.clone());
        if self.is_mine(&self.placement.backup) {
            let (primary, boot) = (source(self.vm)?.channel.clone(), self.placement.boot);
            return Some(What::Protect { number, boot, primary, spec: spec() });
        }
        let held = self.vm.register.as_ref().map_or(0, |claim| claim.generation);
        let may_boot = self.is_mine(&self.placement.primary) && self.vm.runner().is_none() && self.spec.guest.is_some();
        let after = self.placement.boot.filter(|after| may_boot && *after == held)?;
        Some(What::Boot { number, after, spec: spec() })
    }
}

/// What the agent tells of its host, after what it told before.
pub fn tell(view: &View, me: &str, here: &Here, before: &Host) -> Host {
    let mut host = Host { failed: BTreeMap::new(), ended: BTreeMap::new(), without: BTreeMap::new(), ..before.clone() };
    let suspected = view.vms.values().filter_map(|vm| vm.placement.as_ref()).flat_map(|placement| &placement.is.out);
    if suspected.into_iter().any(|out| out.host == me && out.is_of(&before.process, before.beat)) {
        host.beat += 1;
    }
    let there = processes_here(view, me, here);
    host.used_mib = there.values().sum();
    host.sides = there.keys().map(|name| (*name).to_owned()).collect();
    for (name, vm) in &view.vms {
        let started = here.get(name);
        let Some(placement) = vm.placement.as_ref().map(|placement| &placement.is) else { continue };
        if placement.asked && !there.contains_key(name.as_str()) {
            host.without.insert(name.clone(), placement.number);
        }
        match started {
            Some(Started { boot, state: Process::Ended { guest: true, text }, .. }) => {
                host.ended.insert(name.clone(), GuestEnd { boot: *boot, text: text.clone() });
            }
            Some(Started { number, state: Process::Ended { guest: false, text }, .. })
                if *number == placement.number =>
            {
                host.failed.insert(name.clone(), Failure { number: *number, text: text.clone() });
            }
            _ => {}
        }
    }
    host
}
