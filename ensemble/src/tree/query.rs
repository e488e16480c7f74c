//! What the tree says when it is asked.

use std::sync::Arc;

use super::Tree;
use super::acl::{self, Entry, Ids, perms};
use super::node::Node;
use crate::wire::code::Code;
use crate::wire::stat::Stat;

impl Tree {
    /// The node that a question is about. The empty path is the root's other name there.
    pub fn asked(&self, path: &str) -> Result<&Arc<Node>, Code> {
        self.node(if path.is_empty() { "/" } else { path }).ok_or(Code::NoNode)
    }

    /// The same, for somebody who may read it.
    pub fn readable(&self, path: &str, ids: Ids<'_>) -> Result<&Arc<Node>, Code> {
        let node = self.asked(path)?;
        acl::check(&node.acl, perms::READ, ids)?;
        Ok(node)
    }

    /// Whether there is such a node; everybody may know.
    pub fn exists(&self, path: &str) -> Result<Stat, Code> {
        if path.contains('\0') {
            return Err(Code::BadArguments);
        }
        self.asked(path).map(|node| node.stat())
    }

    /// The node's ACL, without what only its administrators may see.
    pub fn acl(&self, path: &str, ids: Ids<'_>) -> Result<(Vec<Entry>, Stat), Code> {
        let node = self.asked(path)?;
        acl::check(&node.acl, perms::READ | perms::ADMIN, ids)?;
        let shown = match acl::allows(&node.acl, perms::ADMIN, ids) {
            true => node.acl.to_vec(),
            false => acl::redacted(&node.acl),
        };
        Ok((shown, node.stat()))
    }

    /// How many nodes are below this one.
    pub fn count(&self, path: &str, ids: Ids<'_>) -> Result<usize, Code> {
        self.readable(path, ids)?;
        Ok(self.count_below(if path.is_empty() { "/" } else { path }))
    }

    /// The ephemeral nodes of a session whose paths begin with `prefix`.
    pub fn ephemerals(&self, session: i64, prefix: Option<&str>) -> Vec<Arc<str>> {
        let prefix = prefix.filter(|prefix| !matches!(prefix.trim(), "" | "/")).unwrap_or_default();
        let Some(session) = self.session(session) else { return Vec::new() };
        session.ephemerals.iter().filter(|path| path.starts_with(prefix)).cloned().collect()
    }
}
