//! Which hosts fit a VM, and which of them fits best.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::times::Times;
use crate::cluster::placement::Why;
use crate::cluster::records::Host;
use crate::cluster::spec::Spec;
use crate::cluster::view::{View, Vm};

/// Why a host cannot have a side of a VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Nobody has heard of it.
    #[error("no such host is known")]
    Unknown,
    /// No agent runs on it.
    #[error("no agent runs there")]
    NoAgent,
    /// The VM's other side is there.
    #[error("the other side is there")]
    OtherSide,
    /// It has not enough memory left.
    #[error("{free_mib} of {capacity_mib} MiB are free, {wanted_mib} are needed")]
    Capacity {
        /// What is free, MiB.
        free_mib: u64,
        /// What there is in all, MiB.
        capacity_mib: u64,
        /// What the VM has, MiB.
        wanted_mib: u64,
    },
    /// Its processor is of another kind.
    #[error("its processor is of another kind ({there}) than where the VM is ({here})")]
    Cpu {
        /// Its kind.
        there: String,
        /// The kind that the VM runs on.
        here: String,
    },
    /// A VM is there that this one shall not meet.
    #[error("`{vm}` is there, and the two shall not share a host")]
    Avoided {
        /// That VM.
        vm: String,
    },
    /// A label is missing.
    #[error("it is not labelled {key}={value}")]
    Label {
        /// The label.
        key: String,
        /// Its value.
        value: String,
    },
    /// The VM has a network card.
    #[error("its agent has no bridge for the network card (--bridge)")]
    NoBridge,
    /// It is left out for now.
    #[error("{why}")]
    Out {
        /// Why, in words.
        why: String,
    },
}

/// Why no host fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Misfits(pub Vec<(String, Misfit)>);

impl fmt::Display for Misfits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there are no hosts with an agent");
        }
        for (index, (host, misfit)) in self.0.iter().enumerate() {
            write!(f, "{}{host}: {misfit}", if index > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

/// A VM for which hosts are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its name.
    pub vm: &'a str,
    /// What it is to be.
    pub spec: &'a Spec,
    /// The host of its other side, if that is settled.
    pub other: Option<&'a str>,
}

/// Everything that is known, for the question which host fits.
#[derive(Clone, Copy, Debug)]
pub struct Fitting<'a> {
    /// What is known.
    pub view: &'a View,
    /// For how long.
    pub times: &'a Times,
}

/// The VMs that have a side on a host or are to have one, with their memory in MiB.
pub fn on_host<'a>(view: &'a View, host: &str) -> BTreeMap<&'a str, u64> {
    let mut there = BTreeMap::new();
    for (name, vm) in &view.vms {
        let placed =
            vm.placement.as_ref().is_some_and(|placement| placement.is.names(host) && placement.is.ended.is_none());
        let side = vm.sides.iter().find(|side| side.host == host);
        if placed || side.is_some() {
            let told = side.and_then(|side| side.memory_mib);
            let wanted = vm.spec.as_ref().map(|spec| spec.is.memory_mib);
            there.insert(name.as_str(), wanted.max(told).unwrap_or(0));
        }
    }
    there
}

/// The VMs that a VM shall not meet: those that it names, and those that name it.
pub fn avoided<'a>(view: &'a View, name: &str, spec: &'a Spec) -> BTreeSet<&'a str> {
    let names_it = |(other, vm): (&'a String, &'a Vm)| {
        vm.spec.as_ref().filter(|theirs| theirs.is.avoid.contains(name)).map(|_| other.as_str())
    };
    let named = spec.avoid.iter().map(String::as_str);
    named.chain(view.vms.iter().filter_map(names_it)).filter(|other| *other != name).collect()
}

impl<'a> Fitting<'a> {
    /// The agent of a host.
    fn agent(&self, host: &str) -> Option<&'a Host> {
        self.view.hosts.get(host)?.record.as_ref()
    }

    /// The kind of processor that a VM's state needs: that of the host which has it, or is to boot it.
    fn cpu(&self, wanted: &Wanted) -> Option<&'a str> {
        let vm = self.view.vms.get(wanted.vm);
        let runs = vm.and_then(Vm::runner).map(|side| side.cpu.as_str()).filter(|cpu| !cpu.is_empty());
        runs.or_else(|| wanted.other.and_then(|other| Some(self.agent(other)?.cpu.as_str())))
    }

    /// Whether a host can have a side of a VM.
    pub fn fits(&self, wanted: &Wanted, host: &str) -> Result<(), Misfit> {
        let Some(known) = self.view.hosts.get(host) else { return Err(Misfit::Unknown) };
        let Some(agent) = &known.record else { return Err(Misfit::NoAgent) };
        if wanted.other == Some(host) {
            return Err(Misfit::OtherSide);
        }
        let there = on_host(self.view, host);
        let taken: u64 = there.iter().filter(|(vm, _)| **vm != wanted.vm).map(|(_, memory_mib)| memory_mib).sum();
        let free_mib = agent.capacity_mib.saturating_sub(taken);
        if free_mib < wanted.spec.memory_mib {
            let (capacity_mib, wanted_mib) = (agent.capacity_mib, wanted.spec.memory_mib);
            return Err(Misfit::Capacity { free_mib, capacity_mib, wanted_mib });
        }
        if let Some(here) = self.cpu(wanted).filter(|here| *here != agent.cpu) {
            return Err(Misfit::Cpu { there: agent.cpu.clone(), here: here.into() });
        }
        let avoided = avoided(self.view, wanted.vm, wanted.spec);
        if let Some(vm) = there.keys().find(|vm| avoided.contains(**vm)) {
            return Err(Misfit::Avoided { vm: (*vm).into() });
        }
        if let Some((key, value)) =
            wanted.spec.require.iter().find(|(key, value)| agent.labels.get(*key) != Some(value))
        {
            return Err(Misfit::Label { key: key.clone(), value: value.clone() });
        }
        if wanted.spec.net.as_ref().is_some_and(|card| card.tap.is_none()) && !agent.bridge {
            return Err(Misfit::NoBridge);
        }
        let placement = self.view.vms.get(wanted.vm).and_then(|vm| vm.placement.as_ref());
        if let Some(out) = placement.and_then(|placement| placement.is.out(host)) {
            let left_out = match out.why {
                // Another agent, or one that has shown itself since.
                Why::Lost => out.is_of(&agent.process, agent.beat),
                Why::Failed => !self.times.may_try_again(wanted.vm, out),
            };
            if left_out {
                return Err(Misfit::Out { why: out.text.clone() });
            }
        }
        Ok(())
    }

    /// The host that fits best: the one that is named, if it fits; otherwise one that the guest's clients reach, and of these the one with the most memory
    /// left.
    pub fn choose(&self, wanted: &Wanted, named: Option<&str>) -> Result<String, Misfits> {
        if let Some(named) = named.filter(|named| self.fits(wanted, named).is_ok()) {
            return Ok(named.into());
        }
        let mut misfits = Misfits::default();
        let mut fitting = Vec::new();
        for (host, known) in &self.view.hosts {
            let Some(agent) = &known.record else { continue };
            match self.fits(wanted, host) {
                Ok(()) => {
                    let cut_off = wanted.spec.net.is_some() && agent.uplink == Some(false);
                    let taken: u64 = on_host(self.view, host).values().sum();
                    fitting.push((cut_off, Reverse(agent.capacity_mib.saturating_sub(taken)), host));
                }
                Err(misfit) => misfits.0.push((host.clone(), misfit)),
            }
        }
        fitting.into_iter().min().map(|(_, _, host)| host.clone()).ok_or(misfits)
    }
}
