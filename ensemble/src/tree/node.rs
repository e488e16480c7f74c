//! One node.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdSet;

use super::acl::Acl;
use crate::wire::stat::Stat;

/// A node: what is in it, and the zxids, times and counts of which its [`Stat`] is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its data; a client may put nothing in a node, which is not the same as no bytes.
    pub data: Option<Bytes>,
    /// Who may do what.
    pub acl: Acl,
    /// The zxid that created it.
    pub czxid: i64,
    /// The zxid that changed its data last.
    pub mzxid: i64,
    /// The zxid that created or deleted a child last.
    pub pzxid: i64,
    /// When it was created, milliseconds since 1970.
    pub ctime: i64,
    /// When its data were changed last.
    pub mtime: i64,
    /// Changes of its data.
    pub version: i32,
    /// Children ever created: sequential names count on from here.
    pub creates: i32,
    /// Changes of its ACL.
    pub aversion: i32,
    /// The session it goes away with; 0: none.
    pub owner: i64,
    /// Whether it goes away once it has had children and has none any more.
    pub container: bool,
    /// Names of its children.
    pub children: OrdSet<Arc<str>>,
}

impl Node {
    /// A new node.
    pub fn new(data: Option<Bytes>, acl: Acl, zxid: i64, time: i64) -> Self {
        Node {
            data,
            acl,
            czxid: zxid,
            mzxid: zxid,
            pzxid: zxid,
            ctime: time,
            mtime: time,
            version: 0,
            creates: 0,
            aversion: 0,
            owner: 0,
            container: false,
            children: OrdSet::new(),
        }
    }

    /// What the service says of it.
    pub fn stat(&self) -> Stat {
        Stat {
            czxid: self.czxid,
            mzxid: self.mzxid,
            ctime: self.ctime,
            mtime: self.mtime,
            version: self.version,
            // Creations and deletions: as many were deleted as were created and are not there.
            cversion: self.creates.wrapping_mul(2).wrapping_sub(self.children.len() as i32),
            aversion: self.aversion,
            ephemeral_owner: self.owner,
            data_length: self.data.as_ref().map_or(0, |data| data.len() as i32),
            num_children: self.children.len() as i32,
            pzxid: self.pzxid,
        }
    }

    /// Bytes of its data.
    pub fn data_bytes(&self) -> usize {
        self.data.as_ref().map_or(0, Bytes::len)
    }

    /// Whether the service shall delete it.
    pub fn is_spent(&self) -> bool {
        self.container && self.creates > 0 && self.children.is_empty()
    }
}
