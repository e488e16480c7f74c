//! The replicated state: the tree of nodes and the sessions.
//!
//! It is a deterministic state machine. Whatever changes it comes out of the log, in one order, with the time and the random
//! numbers that it needs; the same log makes the same state on every member. It is made of persistent maps: a copy costs
//! nothing, so a snapshot is written while the original goes on, and a multi that fails is undone by taking the copy.

pub mod acl;
mod apply;
pub mod batch;
mod multi;
pub mod node;
pub mod path;
pub mod query;
pub mod session;
pub mod snapshot;

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use self::acl::Acl;
pub use self::apply::{Outcome, Single, Txn};
use self::node::Node;
use self::session::Session;
use crate::log::proposal::{Origin, Progress};

/// What a change did to the tree: what watches are held against. Each carries who may read what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A node was created.
    Created {
        /// Its path.
        path: Arc<str>,
        /// Its ACL.
        acl: Acl,
        /// Its parent's.
        parent_acl: Acl,
    },
    /// A node was deleted.
    Deleted {
        /// Its path.
        path: Arc<str>,
        /// The ACL it had.
        acl: Acl,
        /// Its parent's.
        parent_acl: Acl,
    },
    /// A node's data were changed.
    DataChanged {
        /// Its path.
        path: Arc<str>,
        /// Its ACL.
        acl: Acl,
    },
}

/// The state.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    nodes: OrdMap<Arc<str>, Arc<Node>>,
    sessions: OrdMap<i64, Arc<Session>>,
    /// Containers, spent or not.
    containers: OrdSet<Arc<str>>,
    /// How far the changes of each member have come.
    origins: OrdMap<Origin, Progress>,
    /// The number of the last change.
    zxid: i64,
    /// The time of the last change, milliseconds since 1970: it does not go back.
    time_ms: i64,
    /// Bytes of all paths and data.
    bytes: u64,
    ephemerals: u64,
}

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Tree {
            nodes: OrdMap::new(),
            sessions: OrdMap::new(),
            containers: OrdSet::new(),
            origins: OrdMap::new(),
            zxid: 0,
            time_ms: 0,
            bytes: 0,
            ephemerals: 0,
        };
        let empty = || Some(bytes::Bytes::new());
        tree.insert("/".into(), Node::new(empty(), acl::OPEN.clone(), 0, 0));
        for (path, parent, acl, aversion) in [
            ("/zookeeper", "/", &acl::OPEN, 0),
            ("/zookeeper/quota", "/zookeeper", &acl::OPEN, 0),
            ("/zookeeper/config", "/zookeeper", &acl::READ_ONLY, -1),
        ] {
            let node = Node { aversion, ..Node::new(empty(), (*acl).clone(), 0, 0) };
            tree.insert(path.into(), node);
            let name = path::split(path).expect("it has a slash").1;
            tree.change(parent, |parent| parent.children.insert(name.into()));
        }
        tree
    }
}

impl Tree {
    /// The number of the last change.
    pub fn zxid(&self) -> i64 {
        self.zxid
    }

    /// The time of the last change, milliseconds since 1970.
    pub fn time_ms(&self) -> i64 {
        self.time_ms
    }

    /// The node at `path`.
    pub fn node(&self, path: &str) -> Option<&Arc<Node>> {
        self.nodes.get(path)
    }

    /// How many nodes there are, the root and the ensemble's own among them.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How many of them go away with their session.
    pub fn ephemeral_count(&self) -> u64 {
        self.ephemerals
    }

    /// Bytes of all paths and data.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The session of that number.
    pub fn session(&self, session: i64) -> Option<&Arc<Session>> {
        self.sessions.get(&session)
    }

    /// All sessions.
    pub fn sessions(&self) -> impl Iterator<Item = (i64, &Arc<Session>)> {
        self.sessions.iter().map(|(number, session)| (*number, session))
    }

    /// Containers that the service shall delete.
    pub fn spent_containers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.containers.iter().filter(|path| self.node(path).is_some_and(|node| node.is_spent()))
    }

    /// How many nodes are below `path`.
    pub fn count_below(&self, path: &str) -> usize {
        if path == "/" {
            return self.nodes.len() - 1;
        }
        // What begins with `path/` stands in one row, and ends before `path0`: `0` follows `/`.
        let (first, end): (Arc<str>, Arc<str>) = (format!("{path}/").into(), format!("{path}0").into());
        self.nodes.range(first..end).count()
    }

    fn insert(&mut self, path: Arc<str>, node: Node) {
        self.bytes += (path.len() + node.data_bytes()) as u64;
        self.nodes.insert(path, Arc::new(node));
    }

    /// Changes the node at `path`, which is there.
    fn change<T>(&mut self, path: &str, change: impl FnOnce(&mut Node) -> T) -> T {
        let node = self.nodes.get_mut(path).expect("the caller has looked");
        change(Arc::make_mut(node))
    }
}

#[cfg(test)]
mod tests;
