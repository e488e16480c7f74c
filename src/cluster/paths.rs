//! Where things are in an ensemble's tree.

use crate::arbiter::names::{escape, unescape, vm_path};

/// The paths below a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    root: String,
}

impl Paths {
    /// Those below `root`, which is empty or an absolute path without a `/` at its end.
    pub fn below(root: &str) -> Self {
        Paths { root: root.into() }
    }

    /// Below this, each VM has a node.
    pub fn vms(&self) -> String {
        format!("{}/vms", self.root)
    }

    /// The register of a VM.
    pub fn register(&self, vm: &str) -> String {
        crate::arbiter::names::register_path(&self.root, vm)
    }

    /// Below this, each side of a VM has a node.
    pub fn sides(&self, vm: &str) -> String {
        format!("{}/sides", vm_path(&self.root, vm))
    }

    /// What a VM is to be.
    pub fn spec(&self, vm: &str) -> String {
        format!("{}/spec", vm_path(&self.root, vm))
    }

    /// Where its sides are to be.
    pub fn placement(&self, vm: &str) -> String {
        format!("{}/placement", vm_path(&self.root, vm))
    }

    /// Below this, each host on which something was placed has a node.
    pub fn reservations(&self) -> String {
        format!("{}/reservations", self.root)
    }

    /// The node that changes with everything that is placed on a host.
    pub fn reservation(&self, host: &str) -> String {
        format!("{}/{}", self.reservations(), node_of(host))
    }

    /// Below this, each host has a node.
    pub fn hosts(&self) -> String {
        format!("{}/hosts", self.root)
    }
}

/// The name of the node of a host, or of a side on that host.
pub fn node_of(host: &str) -> String {
    escape(host)
}

/// The name of such a node where another process has taken the host's own. (`~` has no other meaning: who reads takes names out of the records.)
pub fn second_node_of(host: &str, process: &str) -> String {
    format!("{}~{process}", escape(host))
}

/// The host of a node below [`Paths::hosts`] or [`Paths::reservations`]; not of a second one.
pub fn host_of(node: &str) -> String {
    unescape(node)
}

/// The VM of a node below [`Paths::vms`].
pub fn vm_of(node: &str) -> String {
    unescape(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_where_the_documentation_says() {
        let paths = Paths::below("/lockstep");
        assert_eq!(paths.register("vm 1"), "/lockstep/vms/vm%201/generation");
        assert_eq!(paths.sides("vm"), "/lockstep/vms/vm/sides");
        assert_eq!((paths.vms().as_str(), paths.hosts().as_str()), ("/lockstep/vms", "/lockstep/hosts"));
        assert_eq!(paths.placement("vm"), "/lockstep/vms/vm/placement");
        assert_eq!(paths.reservation("a/b"), "/lockstep/reservations/a%2Fb");
        let paths = Paths::below("");
        assert_eq!(paths.vms(), "/vms");
        assert_eq!((node_of("a/b"), second_node_of("a/b", "07")), ("a%2Fb".into(), "a%2Fb~07".into()));
        assert_eq!(vm_of("vm%201"), "vm 1");
    }
}
