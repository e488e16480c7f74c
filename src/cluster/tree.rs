//! The part of an ensemble's tree that tells of a cluster, as nodes.

use std::collections::BTreeMap;

use zookeeper_client as zk;

use super::ClusterError;
use super::paths::{Paths, vm_of};
use crate::arbiter::zookeeper::{Session, Sessions};

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// What it holds.
    pub data: Vec<u8>,
    /// How often that was changed.
    pub version: i32,
}

/// Nodes, by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Reads it, as this session's server knows it.
    pub async fn read(sessions: &Sessions, session: &Session) -> Result<Tree, ClusterError> {
        let reader = Reader { session, location: sessions.location() };
        let paths = Paths::below(sessions.root());
        let mut tree = Tree::default();
        // Everything is asked for before any answer is waited for: what the tree is large in costs one round trip for each level. The reservations come
        // first: whoever places something on a host on the grounds of what was read after them is told if that has changed since.
        let parents = [paths.reservations(), paths.hosts(), paths.vms()];
        let children = parents.map(|parent| (reader.children(parent.clone()), parent));
        let mut asked = Vec::new();
        let mut sides = Vec::new();
        for (children, parent) in children {
            for node in children.await? {
                asked.push(reader.node(format!("{parent}/{node}")));
                if parent == paths.vms() {
                    let vm = vm_of(&node);
                    asked
                        .extend([paths.register(&vm), paths.spec(&vm), paths.placement(&vm)].map(|at| reader.node(at)));
                    let parent = paths.sides(&vm);
                    sides.push((reader.children(parent.clone()), parent));
                }
            }
        }
        for node in asked {
            tree.put(node.await?);
        }
        let mut asked = Vec::new();
        for (children, parent) in sides {
            asked.extend(children.await?.into_iter().map(|node| reader.node(format!("{parent}/{node}"))));
        }
        for node in asked {
            tree.put(node.await?);
        }
        Ok(tree)
    }

    /// Reads some nodes anew.
    pub async fn reread(
        &mut self,
        sessions: &Sessions,
        session: &Session,
        paths: impl IntoIterator<Item = String>,
    ) -> Result<(), ClusterError> {
        let reader = Reader { session, location: sessions.location() };
        let asked: Vec<_> = paths.into_iter().map(|path| reader.node(path)).collect();
        for node in asked {
            self.put(node.await?);
        }
        Ok(())
    }

    /// Puts a node, or takes it away.
    pub fn put(&mut self, (path, node): (String, Option<Node>)) {
        match node {
            Some(node) => drop(self.nodes.insert(path, node)),
            None => drop(self.nodes.remove(&path)),
        }
    }

    /// A node.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The nodes right below a path, by name.
    pub fn below<'a>(&'a self, parent: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let prefix = format!("{parent}/");
        let length = prefix.len();
        let from = self.nodes.range(prefix.clone()..).take_while(move |(path, _)| path.starts_with(&prefix));
        from.map(move |(path, node)| (&path[length..], node)).filter(|(name, _)| !name.contains('/'))
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
                Ok(children) => Ok(children),
                Err(zk::Error::NoNode) => Ok(Vec::new()),
                Err(source) => Err(ClusterError::Read { location: location.into(), path, source }),
            }
        }
    }

    /// A node, with its path. Asks at once.
    fn node(&self, path: String) -> impl Future<Output = Result<(String, Option<Node>), ClusterError>> + use<'a> {
        let (asked, location) = (self.session.client.get_data(&path), self.location);
        async move {
            match asked.await {
                Ok((data, stat)) => Ok((path, Some(Node { data, version: stat.version }))),
                Err(zk::Error::NoNode) => Ok((path, None)),
                Err(source) => Err(ClusterError::Read { location: location.into(), path, source }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_right_below_a_path() {
        let mut tree = Tree::default();
        for path in ["/r/vms/a", "/r/vms/a/sides/x", "/r/vms/a.b", "/r/vms", "/r/vmsx/c", "/r/hosts/h"] {
            tree.put((path.into(), Some(Node::default())));
        }
        let below = |path| tree.below(path).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(below("/r/vms"), ["a", "a.b"]);
        assert_eq!(below("/r/vms/a/sides"), ["x"]);
        assert_eq!(below("/r/vms/a/side"), [] as [&str; 0]);
        tree.put(("/r/hosts/h".into(), None));
        assert!(tree.get("/r/hosts/h").is_none());
    }
}
