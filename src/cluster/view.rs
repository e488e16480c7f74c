//! All that an ensemble knows of a cluster, read and put together.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ClusterError;
use super::paths::{Paths, host_of, node_of, vm_of};
use super::placement::Placement;
use super::records::{Document, Host, Side};
use super::spec::Spec;
use super::tree::Tree;
use crate::arbiter::Claim;
use crate::arbiter::register::from_text;
use crate::arbiter::zookeeper::{Session, Sessions};
use crate::console::status::Role;

/// The hosts and VMs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The hosts whose agents run, and those that are only known for their sides, by name.
    pub hosts: BTreeMap<String, HostView>,
    /// The VMs, by name.
    pub vms: BTreeMap<String, Vm>,
    /// Versions of the hosts' reservations, by host.
    pub reservations: BTreeMap<String, i32>,
    /// Nodes that hold no record that this program understands, and why.
    pub unreadable: Vec<(String, String)>,
}

/// A host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostView {
    /// What its agent says; `None` where none runs.
    pub record: Option<Host>,
    /// The VMs that it runs.
    pub runs: Vec<String>,
    /// The VMs that it stands by for.
    pub protects: Vec<String>,
    /// Memory of the guests on it, in MiB, as far as it is known.
    pub guests_mib: u64,
    /// Its kind of processor.
    pub cpu: Option<String>,
}

/// What a node holds that is written by compare-and-set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versioned<D> {
    /// What it holds.
    pub is: D,
    /// In this version of the node.
    pub version: i32,
}

/// A VM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vm {
    /// What its register holds; `None` where it has none that can be read.
    pub register: Option<Claim>,
    /// What it is to be; `None` where a person runs it.
    pub spec: Option<Versioned<Spec>>,
    /// Where its sides are to be, as the agents have agreed.
    pub placement: Option<Versioned<Placement>>,
    /// Its sides: who runs it first.
    pub sides: Vec<Side>,
}

/// How a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Nobody runs it.
    Down,
    /// Its sides wait: for a backup before it starts, or for the arbiter.
    Waiting,
    /// It runs, and would be lost with its host.
    Unprotected,
    /// It runs, and its state is on its way to a backup.
    Joining,
    /// It runs, and would survive the loss of its host.
    Protected,
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Condition::Down => "down",
            Condition::Waiting => "waiting",
            Condition::Unprotected => "unprotected",
            Condition::Joining => "joining",
            Condition::Protected => "protected",
        })
    }
}

impl Vm {
    /// The newest generation that anything tells of.
    pub fn generation(&self) -> u64 {
        let told = self.sides.iter().map(|side| side.generation).max().unwrap_or(0);
        told.max(self.register.as_ref().map_or(0, |claim| claim.generation))
    }

    /// Whether what this side says of itself is over: the VM has changed hands since. (Its record may stay for some seconds after its process.)
    pub fn is_over(&self, side: &Side) -> bool {
        runs(side) && side.generation < self.generation()
    }

    /// The side that runs it.
    pub fn runner(&self) -> Option<&Side> {
        self.sides.iter().find(|side| runs(side) && !self.is_over(side))
    }

    /// The sides that stand by.
    pub fn backups(&self) -> impl Iterator<Item = &Side> {
        self.sides.iter().filter(|side| side.role == Role::Backup)
    }

    /// How it is.
    pub fn condition(&self) -> Condition {
        match self.runner() {
            Some(side) if side.role == Role::Primary => Condition::Protected,
            Some(side) if matches!(side.state.as_str(), "transferring" | "joining") => Condition::Joining,
            Some(_) => Condition::Unprotected,
            None if self.sides.iter().any(|side| side.role == Role::Waiting) => Condition::Waiting,
            None => Condition::Down,
        }
    }
}

fn runs(side: &Side) -> bool {
    matches!(side.role, Role::Primary | Role::Unprotected)
}

impl View {
    /// Reads it, as this session's server knows it.
    pub async fn read(sessions: &Sessions, session: &Session) -> Result<View, ClusterError> {
        Ok(View::of(&Tree::read(sessions, session).await?, &Paths::below(sessions.root())))
    }

    /// What these nodes tell.
    pub fn of(tree: &Tree, paths: &Paths) -> View {
        let mut view = View::default();
        for (node, held) in tree.below(&paths.hosts()) {
            let Some(host) = view.document::<Host>(format!("{}/{node}", paths.hosts()), &held.data) else { continue };
            // A host has one agent. The record of a second one stands beside the first one's.
            if host.process.number.is_empty() || node_of(&host.name) == node || !view.hosts.contains_key(&host.name) {
                let (name, cpu) = (host.name.clone(), Some(host.cpu.clone()));
                view.hosts.insert(name, HostView { record: Some(host), cpu, ..HostView::default() });
            }
        }
        for (node, held) in tree.below(&paths.reservations()) {
            view.reservations.insert(host_of(node), held.version);
        }
        for (node, _) in tree.below(&paths.vms()) {
            let name = vm_of(node);
            let mut vm = Vm::default();
            let path = paths.register(&name);
            if let Some(held) = tree.get(&path) {
                match from_text(&name, &held.data) {
                    Ok(claim) => vm.register = Some(claim),
                    Err(flaw) => view.unreadable.push((path, flaw.to_string())),
                }
            }
            vm.spec = view.versioned(tree, paths.spec(&name));
            vm.placement = view.versioned(tree, paths.placement(&name));
            let sides = paths.sides(&name);
            let read =
                tree.below(&sides).filter_map(|(node, held)| view.document(format!("{sides}/{node}"), &held.data));
            vm.sides = read.collect();
            view.vms.insert(name, vm);
        }
        view.put_together();
        view
    }

    fn document<D: Document>(&mut self, path: String, bytes: &[u8]) -> Option<D> {
        match D::from_bytes(bytes) {
            Ok(document) => Some(document),
            Err(error) => {
                self.unreadable.push((path, error.to_string()));
                None
            }
        }
    }

    fn versioned<D: Document>(&mut self, tree: &Tree, path: String) -> Option<Versioned<D>> {
        let held = tree.get(&path)?;
        let version = held.version;
        self.document(path, &held.data).map(|is| Versioned { is, version })
    }

    /// Has this session's server know everything that was so before this call.
    pub async fn renew(sessions: &Sessions, session: &Session) -> Result<(), ClusterError> {
        let (location, root) = (sessions.location(), sessions.root());
        let failed = |source| ClusterError::Read { location: location.into(), path: root.into(), source };
        session.barrier(root).await.map_err(failed)
    }

    /// Puts the sides into order, and counts what is on which host.
    pub(crate) fn put_together(&mut self) {
        for vm in self.vms.values_mut() {
            let newest = vm.generation();
            vm.sides.sort_by_key(|side| (!(runs(side) && side.generation == newest), side.host.clone()));
        }
        for (name, vm) in &self.vms {
            let runner = vm.runner();
            for side in &vm.sides {
                let host = self.hosts.entry(side.host.clone()).or_default();
                if runner == Some(side) {
                    host.runs.push(name.clone());
                } else if side.role == Role::Backup {
                    host.protects.push(name.clone());
                }
                host.guests_mib += side.memory_mib.unwrap_or(0);
                host.cpu.get_or_insert_with(|| side.cpu.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(host: &str, role: Role, state: &str, generation: u64) -> Side {
        Side { host: host.into(), role, state: state.into(), generation, memory_mib: Some(64), ..Side::default() }
    }

    fn vm(register: u64, sides: &[Side]) -> Vm {
        let claim = Claim { generation: register, host: 1, host_name: "a".into(), shared_with: None };
        Vm { register: (register > 0).then_some(claim), sides: sides.to_vec(), ..Vm::default() }
    }

    #[test]
    fn how_a_vm_is() {
        let protected = side("a", Role::Primary, "protected", 1);
        let backup = side("b", Role::Backup, "following", 1);
        for (vm, condition) in [
            (vm(0, &[]), Condition::Down),
            (vm(3, &[side("a", Role::Retired, "stopped", 2)]), Condition::Down),
            (vm(0, &[side("a", Role::Waiting, "waiting", 0)]), Condition::Waiting),
            (vm(1, &[protected.clone(), backup.clone()]), Condition::Protected),
            (vm(1, &[side("a", Role::Unprotected, "unprotected", 1), backup.clone()]), Condition::Unprotected),
            (vm(1, &[side("a", Role::Unprotected, "joining", 1), backup.clone()]), Condition::Joining),
            // The record of a primary that died a moment ago, and nobody lives yet; and then the backup does.
            (vm(2, &[protected.clone(), side("b", Role::Waiting, "asking", 1)]), Condition::Waiting),
            (vm(2, &[protected.clone(), side("b", Role::Unprotected, "unprotected", 2)]), Condition::Unprotected),
            (vm(0, &[protected.clone(), side("b", Role::Unprotected, "unprotected", 2)]), Condition::Unprotected),
        ] {
            assert_eq!(vm.condition(), condition, "{vm:?}");
        }
        let after = vm(2, &[protected, side("b", Role::Unprotected, "unprotected", 2)]);
        assert_eq!(after.runner().map(|side| side.host.as_str()), Some("b"));
        assert!(after.is_over(&after.sides[0]) && !after.is_over(&after.sides[1]));
    }

    #[test]
    fn what_is_on_which_host() {
        let mut view = View::default();
        let over = side("a", Role::Primary, "protected", 1);
        view.vms.insert(
            "one".into(),
            vm(2, &[over, side("b", Role::Primary, "protected", 2), side("c", Role::Backup, "following", 2)]),
        );
        view.vms.insert("two".into(), vm(1, &[side("c", Role::Unprotected, "unprotected", 1)]));
        view.hosts.insert("d".into(), HostView { record: Some(Host::default()), ..HostView::default() });
        view.put_together();
        let of = |host: &str| {
            (view.hosts[host].runs.join(","), view.hosts[host].protects.join(","), view.hosts[host].guests_mib)
        };
        assert_eq!(of("a"), ("".into(), "".into(), 64));
        assert_eq!(of("b"), ("one".into(), "".into(), 64));
        assert_eq!(of("c"), ("two".into(), "one".into(), 128));
        assert_eq!(of("d"), ("".into(), "".into(), 0));
        assert_eq!(view.vms["one"].sides[0].host, "b", "who runs it comes first");
    }
}
