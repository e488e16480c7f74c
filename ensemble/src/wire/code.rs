//! The protocol's error codes (ZooKeeper 3.8, `KeeperException.Code`).

/// Why a request was not carried out, as the protocol says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(i32)]
pub enum Code {
    /// Of a failed multi: this operation came after the one that failed.
    #[error("runtime inconsistency")]
    RuntimeInconsistency = -2,
    /// The request's bytes cannot be understood.
    #[error("marshalling error")]
    MarshallingError = -5,
    /// The operation is not known, or not supported.
    #[error("unimplemented")]
    Unimplemented = -6,
    /// An argument makes no sense: a path, mostly.
    #[error("bad arguments")]
    BadArguments = -8,
    /// There is no such node.
    #[error("no node")]
    NoNode = -101,
    /// The ACL of a node does not let this client do that.
    #[error("no auth")]
    NoAuth = -102,
    /// The node has another version.
    #[error("bad version")]
    BadVersion = -103,
    /// Ephemeral nodes have no children.
    #[error("no children for ephemerals")]
    NoChildrenForEphemerals = -108,
    /// There is such a node.
    #[error("node exists")]
    NodeExists = -110,
    /// The node has children.
    #[error("not empty")]
    NotEmpty = -111,
    /// The session is over.
    #[error("session expired")]
    SessionExpired = -112,
    /// The ACL makes no sense.
    #[error("invalid ACL")]
    InvalidAcl = -114,
    /// The client could not prove who it is.
    #[error("auth failed")]
    AuthFailed = -115,
    /// The session goes on over another connection.
    #[error("session moved")]
    SessionMoved = -118,
    /// Of a removal: there is no such watch.
    #[error("no watcher")]
    NoWatcher = -121,
    /// Members are changed in another way.
    #[error("reconfiguration disabled")]
    ReconfigDisabled = -123,
}

impl Code {
    /// As replies carry it.
    pub fn number(self) -> i32 {
        self as i32
    }
}
