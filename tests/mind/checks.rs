//! What must hold in the cluster of the mind: of a placement that is about to count, at any time, and in the end.

use std::collections::BTreeMap;

use lockstep::agent::decide::{Act, Place, decide};
use lockstep::agent::fit::on_host;
use lockstep::agent::times::Times;
use lockstep::cluster::placement::Why;
use lockstep::cluster::view::{Condition, View, Vm};

use super::world::{Machine, Part, ROUND_NS, World};

/// Whether these VMs may be on a host together.
fn fits(host: &str, capacity_mib: u64, vms: &BTreeMap<&String, &Vm>) {
    let spec = |vm: &Vm| vm.spec.as_ref().unwrap().is.clone();
    let sum: u64 = vms.values().map(|vm| spec(vm).memory_mib).sum();
    assert!(sum <= capacity_mib, "{sum} MiB are on {host}, which has {capacity_mib}: {:?}", vms.keys());
    for (name, vm) in vms {
        let avoid = spec(vm).avoid;
        let meets = vms.keys().find(|other| avoid.contains(**other));
        assert!(meets.is_none(), "{name} meets {meets:?} on {host}");
    }
}

impl World {
    /// A placement that is about to count is one that may be.
    pub(super) fn is_sane(&self, saw: &View, place: &Place) {
        let placement = &place.placement;
        let primary = placement.primary.as_ref();
        assert!(primary.is_none() || primary != placement.backup.as_ref(), "both sides on one host: {place:?}");
        let machine = &self.machines[&place.vm];
        let before = machine.vm.placement.as_ref().map(|placement| placement.is.clone()).unwrap_or_default();
        let runner = saw.vms[&place.vm].runner();
        let spec = &machine.vm.spec.as_ref().unwrap().is;
        // It may have had another part before: then it is not among those that were added.
        let new = placement.backup.as_ref().filter(|host| before.backup.as_ref() != Some(*host));
        if let Some(host) = new.filter(|host| !saw.vms[&place.vm].sides.iter().any(|side| side.host == **host)) {
            let out = placement.out(host).filter(|out| out.why == Why::Lost);
            if let (Some(out), Some(seen)) = (out, &saw.hosts[host].record) {
                let silent = out.is_of(&seen.process, seen.beat);
                assert!(!silent, "a host that was lost and has not shown itself: {place:?}");
            }
        }
        for host in &place.added {
            // Together with what has been placed there by all who have written before.
            let mut placed: BTreeMap<&String, &Vm> =
                self.machines.iter().map(|(name, machine)| (name, &machine.vm)).collect();
            placed.retain(|name, vm| {
                **name == place.vm || vm.placement.as_ref().is_some_and(|placement| placement.is.names(host))
            });
            let runs_there = runner.is_some_and(|runner| runner.host == *host || runner.peer.as_ref() == Some(host));
            if !runs_there {
                fits(host, self.nodes[host].record.capacity_mib, &placed);
            }
            let has_a_side = saw.vms[&place.vm].sides.iter().any(|side| side.host == *host);
            let record = &self.nodes[host].record;
            if let Some(runner) = runner.filter(|runner| runner.host != *host) {
                assert_eq!(self.nodes[&runner.host].record.cpu, record.cpu, "another kind of processor: {place:?}");
            }
            if has_a_side {
                continue;
            }
            for (key, value) in &spec.require {
                assert_eq!(record.labels.get(key), Some(value), "a label is missing: {place:?}");
            }
        }
        if before.boot != placement.boot && placement.boot.is_some_and(|after| after > 0) {
            let holder = machine.procs.iter().find(|proc| {
                proc.dead.is_none() && matches!(proc.part, Part::Live(_) | Part::Following(_) | Part::Joining(_))
            });
            assert!(holder.is_none(), "booted anew while {holder:?} has it");
            assert!(spec.restart);
        }
    }

    /// What must hold at any time.
    pub(super) fn holds(&self) {
        for (name, machine) in &self.machines {
            let held = machine.register.as_ref().map_or(0, |claim| claim.generation);
            // A live side of an older generation is one that is asleep, and will find out.
            let live = machine.procs.iter().filter(|proc| proc.dead.is_none() && matches!(proc.part, Part::Live(_)));
            let live: Vec<_> = live.filter(|proc| proc.generation >= held).collect();
            assert!(live.len() <= 1, "two hosts run {name}: {live:?}");
        }
        for (host, node) in &self.nodes {
            let is_here =
                |machine: &&Machine| machine.procs.iter().any(|proc| proc.host == *host && proc.dead.is_none());
            let here: BTreeMap<&String, &Vm> = self
                .machines
                .iter()
                .filter(|(_, machine)| is_here(machine))
                .map(|(name, machine)| (name, &machine.vm))
                .collect();
            fits(host, node.record.capacity_mib, &here);
        }
        let view = self.view();
        // Of all who see the same, one acts for a VM.
        let mut acts: BTreeMap<String, Vec<&String>> = BTreeMap::new();
        let mut times = Times::default();
        times.look(self.round * ROUND_NS, &view);
        for host in self.nodes.keys() {
            for act in decide(&view, host, &times) {
                let vm = match act {
                    Act::Place(place) => place.vm,
                    Act::Switch { vm, .. } => vm,
                };
                acts.entry(vm).or_default().push(host);
            }
        }
        for (vm, hosts) in acts {
            assert!(hosts.len() == 1, "{hosts:?} act for {vm}");
        }
    }

    /// Whether a VM is as it should be: protected, or as well as can be with these hosts.
    pub fn is_settled(&self) -> Result<(), String> {
        let view = self.view();
        for (name, vm) in &view.vms {
            let spec = &vm.spec.as_ref().unwrap().is;
            let wanted = if spec.backups == 0 { Condition::Unprotected } else { Condition::Protected };
            if vm.condition() != wanted {
                return Err(format!("{name} is {}: {vm:?}", vm.condition()));
            }
            let placement = &vm.placement.as_ref().unwrap().is;
            if placement.wish.is_some() || placement.leaving.is_some() {
                return Err(format!("{name} is on its way: {placement:?}"));
            }
            let runner = vm.runner().unwrap();
            if placement.primary.as_ref() != Some(&runner.host) || (spec.backups > 0 && placement.backup != runner.peer)
            {
                return Err(format!("{name} is not where it is placed: {vm:?}"));
            }
            if vm.sides.len() != 1 + spec.backups as usize {
                return Err(format!("{name} has sides too many: {:?}", vm.sides));
            }
        }
        for host in self.nodes.keys() {
            let sum: u64 = on_host(&view, host).values().sum();
            if sum > self.nodes[host].record.capacity_mib {
                return Err(format!("{host} has {sum} MiB on it"));
            }
        }
        Ok(())
    }
}
