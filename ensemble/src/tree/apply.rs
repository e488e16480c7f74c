//! Changes, one at a time. The order of the checks is ZooKeeper's, so that the same request gets the same error.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdSet;

use super::acl::{self, Acl, Ids, perms};
use super::node::Node;
use super::session::{PASSWORD_BYTES, Session};
use super::{Effect, Tree, path};
use crate::wire::code::Code;
use crate::wire::request::{Change, Create, Mode, op};
use crate::wire::stat::Stat;

/// The circumstances of a change.
#[derive(Clone, Copy, Debug)]
pub struct Txn<'a> {
    /// Its number.
    pub zxid: i64,
    /// Its time, milliseconds since 1970.
    pub time_ms: i64,
    /// The session whose change it is.
    pub session: i64,
    /// Who its client has shown to be.
    pub ids: Ids<'a>,
}

/// What one operation led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Single {
    /// The node's path, and its stat where the answer has it.
    Created(Arc<str>, Option<Stat>),
    /// A node is gone.
    Deleted,
    /// The stat of the node whose data were set.
    DataSet(Stat),
    /// The stat of the node whose ACL was set.
    AclSet(Stat),
    /// The version is as expected.
    Checked,
}

/// What a request led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One operation.
    Single(Single),
    /// All of them were carried out.
    Multi(Vec<Single>),
    /// One failed, and so none was: the error of each.
    Failed(Vec<i32>),
    /// Everything before it is there.
    Synced,
    /// The session is over.
    Closed,
}

impl Tree {
    /// Carries out a client's change. An error leaves the tree as it was. What was done is added to `effects`.
    pub fn apply(&mut self, txn: &Txn<'_>, change: &Change<'_>, effects: &mut Vec<Effect>) -> Result<Outcome, Code> {
        match change {
            Change::Multi(operations) => Ok(self.multi(txn, operations, effects)),
            Change::Sync { .. } => Ok(Outcome::Synced),
            Change::CloseSession => {
                self.close_session(txn, effects);
                Ok(Outcome::Closed)
            }
            Change::Create(_)
            | Change::Delete { .. }
            | Change::SetData { .. }
            | Change::SetAcl { .. }
            | Change::Check { .. } => self.single(txn, change, effects).map(Outcome::Single),
        }
    }

    /// Carries out one operation.
    pub(super) fn single(
        &mut self,
        txn: &Txn<'_>,
        change: &Change<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<Single, Code> {
        match change {
            Change::Create(create) => self.create(txn, create, effects),
            Change::Delete { path, version } => self.delete(txn, path, *version, effects),
            Change::SetData { path, data, version } => self.set_data(txn, path, *data, *version, effects),
            Change::SetAcl { path, acl, version } => self.set_acl(txn, path, *acl, *version),
            Change::Check { path, version } => {
                let node = self.valid(path)?;
                acl::check(&node.acl, perms::READ, txn.ids)?;
                next_version(node.version, *version).map(|_| Single::Checked)
            }
            // The protocol has none of these inside of a multi.
            Change::Multi(_) | Change::Sync { .. } | Change::CloseSession => Err(Code::MarshallingError),
        }
    }

    /// The node at `path`, whose syntax is checked.
    fn valid(&self, path: &str) -> Result<&Arc<Node>, Code> {
        if !path::is_valid(path) {
            return Err(Code::BadArguments);
        }
        self.node(path).ok_or(Code::NoNode)
    }

    fn create(&mut self, txn: &Txn<'_>, create: &Create<'_>, effects: &mut Vec<Effect>) -> Result<Single, Code> {
        let mode = Mode::from_flags(create.flags).ok_or(Code::BadArguments)?;
        if mode.ttl {
            return Err(Code::Unimplemented);
        }
        if create.op == op::CREATE_TTL {
            return Err(Code::BadArguments);
        }
        let (parent_path, _) = path::split(create.path).ok_or(Code::BadArguments)?;
        if create.path.contains('\0') {
            return Err(Code::BadArguments);
        }
        let acl = acl::fix_up(create.acl, txn.ids)?;
        let parent = self.node(parent_path).ok_or(Code::NoNode)?;
        acl::check(&parent.acl, perms::CREATE, txn.ids)?;
        let path: Arc<str> = match mode.sequential {
            true => format!("{}{:010}", create.path, parent.creates).into(),
            false => create.path.into(),
        };
        if !path::is_valid(&path) {
            return Err(Code::BadArguments);
        }
        if self.node(&path).is_some() {
            return Err(Code::NodeExists);
        }
        if parent.owner != 0 {
            return Err(Code::NoChildrenForEphemerals);
        }
        let parent_acl = parent.acl.clone();

        let mut node = Node::new(create.data.map(Bytes::copy_from_slice), acl.clone(), txn.zxid, txn.time_ms);
        // A container comes of a request of its own: one that says so by its flags alone gets an ordinary node, as in ZooKeeper.
        node.container = create.op == op::CREATE_CONTAINER;
        if mode.ephemeral && !node.container {
            node.owner = txn.session;
            let session = self.sessions.get_mut(&txn.session).ok_or(Code::SessionExpired)?;
            Arc::make_mut(session).ephemerals.insert(path.clone());
            self.ephemerals += 1;
        }
        if node.container {
            self.containers.insert(path.clone());
        }
        let stat = node.stat();
        self.insert(path.clone(), node);
        let name = path::split(&path).expect("a valid path has a slash").1;
        self.change(parent_path, |parent| {
            parent.children.insert(name.into());
            parent.creates = parent.creates.wrapping_add(1);
            parent.pzxid = txn.zxid;
        });
        effects.push(Effect::Created { path: path.clone(), acl, parent_acl });
        Ok(Single::Created(path, (create.op != op::CREATE).then_some(stat)))
    }

    fn delete(&mut self, txn: &Txn<'_>, path: &str, version: i32, effects: &mut Vec<Effect>) -> Result<Single, Code> {
        let (parent_path, _) = path::split(path).ok_or(Code::BadArguments)?;
        if path.contains('\0') || path::is_special(path) {
            return Err(Code::BadArguments);
        }
        let parent = self.node(parent_path).ok_or(Code::NoNode)?;
        acl::check(&parent.acl, perms::DELETE, txn.ids)?;
        let node = self.node(path).ok_or(Code::NoNode)?;
        next_version(node.version, version)?;
        if !node.children.is_empty() {
            return Err(Code::NotEmpty);
        }
        self.remove(path, txn.zxid, effects);
        Ok(Single::Deleted)
    }

    /// Takes away a node that is there and has no children.
    fn remove(&mut self, path: &str, zxid: i64, effects: &mut Vec<Effect>) {
        let (key, node) = self.nodes.remove_with_key(path).expect("the caller has looked");
        self.bytes -= (key.len() + node.data_bytes()) as u64;
        if node.container {
            self.containers.remove(path);
        }
        if node.owner != 0 {
            self.ephemerals -= 1;
            if let Some(session) = self.sessions.get_mut(&node.owner) {
                Arc::make_mut(session).ephemerals.remove(path);
            }
        }
        let (parent_path, name) = path::split(path).expect("a valid path has a slash");
        let parent_acl = self.change(parent_path, |parent| {
            parent.children.remove(name);
            parent.pzxid = zxid;
            parent.acl.clone()
        });
        effects.push(Effect::Deleted { path: key, acl: node.acl.clone(), parent_acl });
    }

    fn set_data(
        &mut self,
        txn: &Txn<'_>,
        path: &str,
        data: Option<&[u8]>,
        version: i32,
        effects: &mut Vec<Effect>,
    ) -> Result<Single, Code> {
        let node = self.valid(path)?;
        acl::check(&node.acl, perms::WRITE, txn.ids)?;
        let next = next_version(node.version, version)?;
        let before = node.data_bytes();
        let (stat, acl) = self.change(path, |node| {
            node.data = data.map(Bytes::copy_from_slice);
            node.version = next;
            node.mzxid = txn.zxid;
            node.mtime = txn.time_ms;
            (node.stat(), node.acl.clone())
        });
        self.bytes = self.bytes - before as u64 + data.map_or(0, <[u8]>::len) as u64;
        let path = self.nodes.get_key_value(path).expect("it was changed just now").0.clone();
        effects.push(Effect::DataChanged { path, acl });
        Ok(Single::DataSet(stat))
    }

    fn set_acl(
        &mut self,
        txn: &Txn<'_>,
        path: &str,
        wanted: crate::wire::stat::RawAcl<'_>,
        version: i32,
    ) -> Result<Single, Code> {
        if !path::is_valid(path) {
            return Err(Code::BadArguments);
        }
        let wanted: Acl = acl::fix_up(wanted, txn.ids)?;
        let node = self.node(path).ok_or(Code::NoNode)?;
        acl::check(&node.acl, perms::ADMIN, txn.ids)?;
        let next = next_version(node.aversion, version)?;
        let stat = self.change(path, |node| {
            node.acl = wanted;
            node.aversion = next;
            node.stat()
        });
        Ok(Single::AclSet(stat))
    }

    /// A new session, which has this transaction's number.
    pub fn open_session(&mut self, zxid: i64, password: [u8; PASSWORD_BYTES], timeout_ms: u32) -> i64 {
        let session = Session { password, timeout_ms, attached: zxid, ephemerals: OrdSet::new() };
        self.sessions.insert(zxid, Arc::new(session));
        zxid
    }

    /// A session goes on over another connection, if it is still there and the password is its own.
    pub fn attach_session(&mut self, zxid: i64, session: i64, password: &[u8], timeout_ms: u32) -> Result<(), Code> {
        let session = self.sessions.get_mut(&session).ok_or(Code::SessionExpired)?;
        if session.password != password {
            return Err(Code::SessionExpired);
        }
        let session = Arc::make_mut(session);
        (session.attached, session.timeout_ms) = (zxid, timeout_ms);
        Ok(())
    }

    /// Whether a change that came over the connection attached with `attached` may be carried out.
    pub fn check_session(&self, session: i64, attached: i64) -> Result<(), Code> {
        match self.session(session) {
            None => Err(Code::SessionExpired),
            Some(session) if session.attached != attached => Err(Code::SessionMoved),
            Some(_) => Ok(()),
        }
    }

    /// Ends the session of `txn`, with all its ephemeral nodes.
    pub fn close_session(&mut self, txn: &Txn<'_>, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.remove(&txn.session) else { return };
        for path in &session.ephemerals {
            self.remove(path, txn.zxid, effects);
        }
    }

    /// Deletes a container, if it is still spent.
    pub fn remove_container(&mut self, zxid: i64, path: &str, effects: &mut Vec<Effect>) {
        if self.node(path).is_some_and(|node| node.is_spent()) {
            self.remove(path, zxid, effects);
        }
    }
}

/// The version after `held`, if `expected` is it or any (−1). It never is −1 itself, which could not be asked for.
fn next_version(held: i32, expected: i32) -> Result<i32, Code> {
    if expected != -1 && expected != held {
        return Err(Code::BadVersion);
    }
    Ok(match held.wrapping_add(1) {
        -1 => 0,
        next => next,
    })
}
