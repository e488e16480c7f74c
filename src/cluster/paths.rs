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
        let paths = Paths::below("");
        assert_eq!(paths.vms(), "/vms");
        assert_eq!((node_of("a/b"), second_node_of("a/b", "07")), ("a%2Fb".into(), "a%2Fb~07".into()));
        assert_eq!(vm_of("vm%201"), "vm 1");
    }
}
