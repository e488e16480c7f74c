//! The state as bytes: how a snapshot is kept on disk and sent to a member that is far behind.
//!
//! ```text
//! state    = version u8 · zxid i64 · time i64 · acls · origins · sessions · nodes        (each a count and as many records)
//! acl      = vector of (perms, scheme, id)
//! origin   = member · start u64 · last u64
//! session  = number i64 · timeout u32 · attached i64 · password
//! node     = path · data · acl u32 · 3 zxids · 2 times · version · creates · aversion · owner i64 · container u8
//! ```
//!
//! Nodes stand in the order of their paths, so a parent comes before its children. Children, ephemerals, containers and counts are
//! made of the nodes; they cannot contradict them. Equal states have equal bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use imbl::{OrdMap, OrdSet};

use super::acl::{self, Acl, Entry};
use super::node::Node;
use super::session::Session;
use super::{Tree, path};
use crate::log::proposal::Progress;
use crate::member::MemberId;
use crate::wire::jute::{JuteError, Reader, Write};
use crate::wire::stat::{RawAcl, write_acl};

/// The version of this format.
const VERSION: u8 = 1;

/// Why bytes are no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A record cannot be read.
    #[error("a record of the state cannot be read")]
    Record(#[from] JuteError),
    /// Another version.
    #[error("the state is of version {0}")]
    Version(u8),
    /// A node without a parent, with an ACL that is not there, of a session that is not there, or twice.
    #[error("a node of the state hangs in the air")]
    Node,
    /// Something follows.
    #[error("the state has more bytes than it says")]
    Trailing,
}

impl Tree {
    /// The state as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes as usize + self.nodes.len() * 128 + 1024);
        out.put_u8(VERSION);
        out.long(self.zxid);
        out.long(self.time_ms);

        let mut acls: BTreeMap<&[Entry], u32> = BTreeMap::new();
        for node in self.nodes.values() {
            let next = acls.len() as u32;
            acls.entry(&node.acl).or_insert(next);
        }
        let mut in_order: Vec<(u32, &[Entry])> = acls.iter().map(|(acl, index)| (*index, *acl)).collect();
        in_order.sort_unstable();
        out.int(in_order.len() as i32);
        in_order.iter().for_each(|(_, acl)| write_acl(acl, &mut out));

        out.int(self.origins.len() as i32);
        for (origin, progress) in &self.origins {
            out.put_u32(origin.id);
            out.put_u64(origin.incarnation);
            out.put_u64(progress.start);
            out.put_u64(progress.last);
        }

        out.int(self.sessions.len() as i32);
        for (number, session) in &self.sessions {
            out.long(*number);
            out.put_u32(session.timeout_ms);
            out.long(session.attached);
            out.put_slice(&session.password);
        }

        out.int(self.nodes.len() as i32);
        for (path, node) in &self.nodes {
            out.string(path);
            match &node.data {
                Some(data) => out.buffer(data),
                None => out.null(),
            }
            out.put_u32(acls[&*node.acl]);
            for number in [node.czxid, node.mzxid, node.pzxid, node.ctime, node.mtime] {
                out.long(number);
            }
            for number in [node.version, node.creates, node.aversion] {
                out.int(number);
            }
            out.long(node.owner);
            out.bool(node.container);
        }
        out
    }

    /// The state that these bytes are.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut reader = Reader::new(bytes);
        let [version] = reader.array()?;
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let (zxid, time_ms) = (reader.long()?, reader.long()?);
        let acls: Vec<Acl> = reader.vector(4, |reader| {
            let entries: Vec<Entry> = RawAcl::read(reader)?.entries().collect();
            Ok(if entries == **acl::OPEN { acl::OPEN.clone() } else { entries.into() })
        })?;
        let origins = reader.vector(28, |reader| {
            let origin = MemberId { id: reader.int()? as u32, incarnation: reader.long()? as u64 };
            Ok((origin, Progress { start: reader.long()? as u64, last: reader.long()? as u64 }))
        })?;
        let sessions = reader.vector(36, |reader| {
            let (number, timeout_ms, attached) = (reader.long()?, reader.int()? as u32, reader.long()?);
            let session = Session { timeout_ms, attached, password: reader.array()?, ephemerals: OrdSet::new() };
            Ok((number, Arc::new(session)))
        })?;
        let mut tree = Tree {
            nodes: OrdMap::new(),
            sessions: sessions.into_iter().collect(),
            containers: OrdSet::new(),
            origins: origins.into_iter().collect(),
            zxid,
            time_ms,
            bytes: 0,
            ephemerals: 0,
        };
        for _ in 0..reader.int()? {
            tree.read_node(&mut reader, &acls)?;
        }
        if !reader.rest().is_empty() {
            return Err(SnapshotError::Trailing);
        }
        if tree.node("/").is_none() {
            return Err(SnapshotError::Node);
        }
        Ok(tree)
    }

    fn read_node(&mut self, reader: &mut Reader<'_>, acls: &[Acl]) -> Result<(), SnapshotError> {
        let path: Arc<str> = reader.text()?.into();
        let data = reader.buffer()?.map(Bytes::copy_from_slice);
        let acl = acls.get(reader.int()? as usize).ok_or(SnapshotError::Node)?.clone();
        let mut node = Node::new(data, acl, reader.long()?, 0);
        (node.mzxid, node.pzxid) = (reader.long()?, reader.long()?);
        (node.ctime, node.mtime) = (reader.long()?, reader.long()?);
        (node.version, node.creates, node.aversion) = (reader.int()?, reader.int()?, reader.int()?);
        (node.owner, node.container) = (reader.long()?, reader.bool()?);

        if self.nodes.contains_key(&path) || !path::is_valid(&path) {
            return Err(SnapshotError::Node);
        }
        if node.owner != 0 {
            let session = self.sessions.get_mut(&node.owner).ok_or(SnapshotError::Node)?;
            Arc::make_mut(session).ephemerals.insert(path.clone());
            self.ephemerals += 1;
        }
        if node.container {
            self.containers.insert(path.clone());
        }
        if let Some(parent) = path::parent(&path) {
            let name = path::split(&path).ok_or(SnapshotError::Node)?.1;
            if !self.nodes.contains_key(parent) {
                return Err(SnapshotError::Node);
            }
            self.change(parent, |parent| parent.children.insert(name.into()));
        }
        self.insert(path, node);
        Ok(())
    }
}
