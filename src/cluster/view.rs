//! All that an ensemble knows of a cluster, read and put together.

use std::collections::BTreeMap;

use serde::Serialize;
use zookeeper_client as zk;

use super::ClusterError;
use super::paths::{Paths, vm_of};
use super::records::{Host, Record, Side};
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

/// A VM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vm {
    /// What its register holds; `None` where it has none that can be read.
    pub register: Option<Claim>,
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
        let reader = Reader { session, location: sessions.location() };
        let paths = Paths::below(sessions.root());
        let mut view = View::default();
        // Everything is asked for before any answer is waited for: what the tree is large in costs one round trip for each level.
        let (hosts, vms) = (reader.children(paths.hosts()), reader.children(paths.vms()));
        let (hosts, vms) = (hosts.await?, vms.await?);
        let hosts: Vec<_> = hosts.iter().map(|node| format!("{}/{node}", paths.hosts())).collect();
        let hosts: Vec<_> = hosts.into_iter().map(|path| reader.data(path)).collect();
        let vms: Vec<_> = vms
            .iter()
            .map(|node| {
                let vm = vm_of(node);
                let (register, sides) = (paths.register(&vm), paths.sides(&vm));
                (vm, reader.data(register), sides.clone(), reader.children(sides))
            })
            .collect();
        for host in hosts {
            let (path, bytes) = host.await?;
            let Some(bytes) = bytes else { continue };
            if let Some(host) = view.record::<Host>(path, &bytes) {
                let name = host.name.clone();
                let cpu = Some(host.cpu.clone());
                view.hosts.insert(name, HostView { record: Some(host), cpu, ..HostView::default() });
            }
        }
        let mut sides = Vec::new();
        for (vm, register, parent, nodes) in vms {
            let (path, bytes) = register.await?;
            let register = match bytes.map(|bytes| from_text(&vm, &bytes)) {
                Some(Err(flaw)) => {
                    view.unreadable.push((path, flaw.to_string()));
                    None
                }
                Some(Ok(claim)) => Some(claim),
                None => None,
            };
            let nodes = nodes.await?;
            sides.extend(nodes.into_iter().map(|node| (vm.clone(), reader.data(format!("{parent}/{node}")))));
            view.vms.insert(vm, Vm { register, sides: Vec::new() });
        }
        for (vm, side) in sides {
            let (path, bytes) = side.await?;
            let Some(bytes) = bytes else { continue };
            if let Some(side) = view.record::<Side>(path, &bytes)
                && let Some(vm) = view.vms.get_mut(&vm)
            {
                vm.sides.push(side);
            }
        }
        view.put_together();
        Ok(view)
    }

    fn record<R: Record>(&mut self, path: String, bytes: &[u8]) -> Option<R> {
        match R::from_bytes(bytes) {
            Ok(record) => Some(record),
            Err(error) => {
                self.unreadable.push((path, error.to_string()));
                None
            }
        }
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

/// Asks through one session.
struct Reader<'a> {
    session: &'a Session,
    location: &'a str,
}

impl<'a> Reader<'a> {
    /// The children of a node, none if it is not there. Asks at once.
    fn children(&self, path: String) -> impl Future<Output = Result<Vec<String>, ClusterError>> + use<'a> {
        let (asked, location) = (self.session.client.list_children(&path), self.location);
        async move {
            match asked.await {
                Ok(mut children) => {
                    children.sort();
                    Ok(children)
                }
                Err(zk::Error::NoNode) => Ok(Vec::new()),
                Err(source) => Err(ClusterError::Read { location: location.into(), path, source }),
            }
        }
    }

    /// The data of a node, with its path. Asks at once.
    fn data(&self, path: String) -> impl Future<Output = Result<(String, Option<Vec<u8>>), ClusterError>> + use<'a> {
        let (asked, location) = (self.session.client.get_data(&path), self.location);
        async move {
            match asked.await {
                Ok((bytes, _)) => Ok((path, Some(bytes))),
                Err(zk::Error::NoNode) => Ok((path, None)),
                Err(source) => Err(ClusterError::Read { location: location.into(), path, source }),
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
        Vm { register: (register > 0).then_some(claim), sides: sides.to_vec() }
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
