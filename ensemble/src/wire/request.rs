//! What clients ask for (ZooKeeper 3.8, `ZooDefs.OpCode` and the records of `zookeeper.jute`).
//!
//! Requests borrow from the frame that they came in: a change goes into the log as its bytes, and is read again where it is
//! applied.

use super::jute::{JuteError, Reader};
use super::stat::RawAcl;

/// Types of requests.
#[allow(missing_docs, reason = "the protocol's own names")]
pub mod op {
    pub const CREATE: i32 = 1;
    pub const DELETE: i32 = 2;
    pub const EXISTS: i32 = 3;
    pub const GET_DATA: i32 = 4;
    pub const SET_DATA: i32 = 5;
    pub const GET_ACL: i32 = 6;
    pub const SET_ACL: i32 = 7;
    pub const GET_CHILDREN: i32 = 8;
    pub const SYNC: i32 = 9;
    pub const PING: i32 = 11;
    pub const GET_CHILDREN2: i32 = 12;
    pub const CHECK: i32 = 13;
    pub const MULTI: i32 = 14;
    pub const CREATE2: i32 = 15;
    pub const RECONFIG: i32 = 16;
    pub const CHECK_WATCHES: i32 = 17;
    pub const REMOVE_WATCHES: i32 = 18;
    pub const CREATE_CONTAINER: i32 = 19;
    pub const CREATE_TTL: i32 = 21;
    pub const MULTI_READ: i32 = 22;
    pub const AUTH: i32 = 100;
    pub const SET_WATCHES: i32 = 101;
    pub const SASL: i32 = 102;
    pub const GET_EPHEMERALS: i32 = 103;
    pub const GET_ALL_CHILDREN_NUMBER: i32 = 104;
    pub const SET_WATCHES2: i32 = 105;
    pub const ADD_WATCH: i32 = 106;
    pub const WHO_AM_I: i32 = 107;
    pub const CLOSE_SESSION: i32 = -11;
    pub const ERROR: i32 = -1;
}

/// The first frame of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The newest zxid that the client has seen: a server that is behind it is none for this client.
    pub last_zxid: i64,
    /// The wanted time-out of the session, milliseconds.
    pub timeout_ms: i32,
    /// The session to go on with; 0: a new one.
    pub session: i64,
    /// Its password.
    pub password: &'a [u8],
    /// Whether the client said whether a read-only server will do, and so wants to be told.
    pub with_read_only: bool,
}

impl<'a> Connect<'a> {
    /// Reads it.
    pub fn read(frame: &'a [u8]) -> Result<Self, JuteError> {
        let mut reader = Reader::new(frame);
        reader.int()?;
        let (last_zxid, timeout_ms, session) = (reader.long()?, reader.int()?, reader.long()?);
        let password = reader.buffer()?.unwrap_or_default();
        Ok(Connect { last_zxid, timeout_ms, session, password, with_read_only: reader.bool().is_ok() })
    }
}

/// What kind of node is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// It goes away with its session.
    pub ephemeral: bool,
    /// Its name gets a number.
    pub sequential: bool,
    /// It goes away once it has had children and has none any more.
    pub container: bool,
    /// It goes away after some time.
    pub ttl: bool,
}

impl Mode {
    /// From the flags of a request; `None` if no mode has them.
    pub fn from_flags(flags: i32) -> Option<Self> {
        let plain = Mode { ephemeral: false, sequential: false, container: false, ttl: false };
        Some(match flags {
            0 => plain,
            1 => Mode { ephemeral: true, ..plain },
            2 => Mode { sequential: true, ..plain },
            3 => Mode { ephemeral: true, sequential: true, ..plain },
            4 => Mode { container: true, ..plain },
            5 => Mode { ttl: true, ..plain },
            6 => Mode { ttl: true, sequential: true, ..plain },
            _ => return None,
        })
    }
}

/// A node to be created.
#[derive(Clone, Copy, Debug)]
pub struct Create<'a> {
    /// The request's type: it decides what the answer looks like.
    pub op: i32,
    /// Where.
    pub path: &'a str,
    /// With which data.
    pub data: Option<&'a [u8]>,
    /// For whom.
    pub acl: RawAcl<'a>,
    /// Of what kind; [`Mode::from_flags`].
    pub flags: i32,
}

/// A change, or what is done in order with the changes.
#[derive(Clone, Debug)]
pub enum Change<'a> {
    /// A new node.
    Create(Create<'a>),
    /// A node less.
    Delete {
        /// Which.
        path: &'a str,
        /// The version it must have; −1: any.
        version: i32,
    },
    /// Other data.
    SetData {
        /// Of which node.
        path: &'a str,
        /// The data.
        data: Option<&'a [u8]>,
        /// The version it must have; −1: any.
        version: i32,
    },
    /// Another ACL.
    SetAcl {
        /// Of which node.
        path: &'a str,
        /// The ACL.
        acl: RawAcl<'a>,
        /// The ACL's version it must have; −1: any.
        version: i32,
    },
    /// Whether a node has a version.
    Check {
        /// Which node.
        path: &'a str,
        /// The version it must have; −1: any.
        version: i32,
    },
    /// All of these, or none.
    Multi(Vec<Change<'a>>),
    /// Nothing, but after everything that was committed before.
    Sync {
        /// Said again in the answer.
        path: Option<&'a str>,
    },
    /// The end of the session.
    CloseSession,
}

/// What a watch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchType {
    /// A node's children.
    Children,
    /// A node's data and being.
    Data,
    /// Whichever there is.
    Any,
}

/// How long a watch lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// For one event.
    Once,
    /// Until it is removed.
    Persistent,
    /// Until it is removed, for everything below the path, too.
    Recursive,
}

/// What a reconnected client had watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched<'a> {
    /// The zxid up to which it knows everything.
    pub since: i64,
    /// Nodes whose data it had read.
    pub data: Vec<&'a str>,
    /// Nodes that it had found missing.
    pub exist: Vec<&'a str>,
    /// Nodes whose children it had read.
    pub child: Vec<&'a str>,
    /// Persistent watches.
    pub persistent: Vec<&'a str>,
    /// Persistent, recursive watches.
    pub recursive: Vec<&'a str>,
}

/// A question that a member answers by itself.
#[derive(Clone, Debug)]
pub enum Query<'a> {
    /// Is it there?
    Exists {
        /// Which node.
        path: &'a str,
        /// Whether the client wants to hear of the next change.
        watch: bool,
    },
    /// What is in it?
    GetData {
        /// Which node.
        path: &'a str,
        /// As above.
        watch: bool,
    },
    /// Which children?
    GetChildren {
        /// Which node.
        path: &'a str,
        /// As above.
        watch: bool,
        /// Whether the stat is wanted, too.
        stat: bool,
    },
    /// Who may do what?
    GetAcl {
        /// Which node.
        path: &'a str,
    },
    /// How many nodes are below?
    CountBelow {
        /// Which node.
        path: &'a str,
    },
    /// Which ephemeral nodes has this session?
    GetEphemerals {
        /// Only those whose path begins so.
        prefix: Option<&'a str>,
    },
    /// Several at once: data and children.
    Multi(Vec<Query<'a>>),
    /// Watch it until told otherwise.
    AddWatch {
        /// Which path.
        path: &'a str,
        /// How.
        mode: WatchMode,
    },
    /// Do not watch it any more.
    RemoveWatches {
        /// Which path.
        path: &'a str,
        /// What for.
        kind: WatchType,
    },
    /// Is it watched?
    CheckWatches {
        /// Which path.
        path: &'a str,
        /// What for.
        kind: WatchType,
    },
    /// Watch these again, and say what has happened to them.
    SetWatches(Watched<'a>),
    /// Who does this member think that I am?
    WhoAmI,
}

/// A request.
#[derive(Clone, Debug)]
pub enum Request<'a> {
    /// For the log.
    Change(Change<'a>),
    /// For this member alone.
    Query(Query<'a>),
    /// A sign of life.
    Ping,
    /// Who the client is.
    Auth {
        /// In which scheme.
        scheme: &'a str,
        /// With which proof.
        proof: Option<&'a [u8]>,
    },
    /// A step of an authentication that this service does not have.
    Sasl,
    /// Other members: not this way.
    Reconfig,
    /// No type that is known.
    Unknown,
}

/// Reads the request of type `kind`, whose record is `body`. What follows the record is ignored, as ZooKeeper does.
pub fn read(kind: i32, body: &[u8]) -> Result<Request<'_>, JuteError> {
    let mut reader = Reader::new(body);
    let reader = &mut reader;
    Ok(Request::Query(match kind {
        op::PING => return Ok(Request::Ping),
        op::AUTH => {
            reader.int()?;
            let (scheme, proof) = (reader.string()?.unwrap_or_default(), reader.buffer()?);
            return Ok(Request::Auth { scheme, proof });
        }
        op::SASL => return reader.buffer().map(|_| Request::Sasl),
        op::RECONFIG => {
            for _ in 0..3 {
                reader.string()?;
            }
            reader.long()?;
            return Ok(Request::Reconfig);
        }
        op::CLOSE_SESSION
        | op::SYNC
        | op::CREATE
        | op::CREATE2
        | op::CREATE_CONTAINER
        | op::CREATE_TTL
        | op::DELETE
        | op::SET_DATA
        | op::SET_ACL
        | op::CHECK
        | op::MULTI => return read_change(kind, body).map(Request::Change),
        op::EXISTS => Query::Exists { path: reader.text()?, watch: reader.bool()? },
        op::GET_DATA => Query::GetData { path: reader.text()?, watch: reader.bool()? },
        op::GET_CHILDREN => Query::GetChildren { path: reader.text()?, watch: reader.bool()?, stat: false },
        op::GET_CHILDREN2 => Query::GetChildren { path: reader.text()?, watch: reader.bool()?, stat: true },
        op::GET_ACL => Query::GetAcl { path: reader.text()? },
        op::GET_ALL_CHILDREN_NUMBER => Query::CountBelow { path: reader.text()? },
        op::GET_EPHEMERALS => Query::GetEphemerals { prefix: reader.string()? },
        op::MULTI_READ => Query::Multi(multi(reader, |kind, reader| {
            let (path, watch) = (reader.text()?, reader.bool()?);
            match kind {
                op::GET_DATA => Ok(Query::GetData { path, watch }),
                op::GET_CHILDREN => Ok(Query::GetChildren { path, watch, stat: false }),
                _ => Err(JuteError::Value { what: "an operation of a multi-read", value: kind }),
            }
        })?),
        op::ADD_WATCH => {
            let path = reader.string()?.unwrap_or_default();
            let mode = match reader.int()? {
                0 => WatchMode::Persistent,
                1 => WatchMode::Recursive,
                value => return Err(JuteError::Value { what: "the mode of a watch", value }),
            };
            Query::AddWatch { path, mode }
        }
        op::REMOVE_WATCHES => {
            let (path, kind) = read_watch_type(reader)?;
            Query::RemoveWatches { path, kind }
        }
        op::CHECK_WATCHES => {
            let (path, kind) = read_watch_type(reader)?;
            Query::CheckWatches { path, kind }
        }
        op::SET_WATCHES | op::SET_WATCHES2 => {
            let mut watched = Watched { since: reader.long()?, ..Watched::default() };
            watched.data = read_paths(reader)?;
            watched.exist = read_paths(reader)?;
            watched.child = read_paths(reader)?;
            if kind == op::SET_WATCHES2 {
                watched.persistent = read_paths(reader)?;
                watched.recursive = read_paths(reader)?;
            }
            Query::SetWatches(watched)
        }
        op::WHO_AM_I => Query::WhoAmI,
        _ => return Ok(Request::Unknown),
    }))
}

fn read_paths<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a str>, JuteError> {
    reader.vector(4, |reader| Ok(reader.string()?.unwrap_or_default()))
}

fn read_watch_type<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, WatchType), JuteError> {
    let path = reader.string()?.unwrap_or_default();
    let kind = match reader.int()? {
        1 => WatchType::Children,
        2 => WatchType::Data,
        3 => WatchType::Any,
        value => return Err(JuteError::Value { what: "the type of a watch", value }),
    };
    Ok((path, kind))
}

/// Reads the change of type `kind`, whose record is `body`.
pub fn read_change(kind: i32, body: &[u8]) -> Result<Change<'_>, JuteError> {
    let mut reader = Reader::new(body);
    match kind {
        op::CLOSE_SESSION => Ok(Change::CloseSession),
        op::SYNC => Ok(Change::Sync { path: reader.string()? }),
        op::MULTI => multi(&mut reader, read_single).map(Change::Multi),
        // Its permission is not there in a multi.
        op::SET_ACL => {
            let path = reader.string()?.unwrap_or_default();
            Ok(Change::SetAcl { path, acl: RawAcl::read(&mut reader)?, version: reader.int()? })
        }
        _ => read_single(kind, &mut reader),
    }
}

/// A change that may stand in a multi. A null path where a node must be there is one that no node can have.
fn read_single<'a>(kind: i32, reader: &mut Reader<'a>) -> Result<Change<'a>, JuteError> {
    match kind {
        op::CREATE | op::CREATE2 | op::CREATE_CONTAINER | op::CREATE_TTL => {
            let (path, data) = (reader.text()?, reader.buffer()?);
            let create = Create { op: kind, path, data, acl: RawAcl::read(reader)?, flags: reader.int()? };
            if kind == op::CREATE_TTL {
                reader.long()?;
            }
            Ok(Change::Create(create))
        }
        op::DELETE => Ok(Change::Delete { path: reader.text()?, version: reader.int()? }),
        op::SET_DATA => {
            let (path, data) = (reader.string()?.unwrap_or_default(), reader.buffer()?);
            Ok(Change::SetData { path, data, version: reader.int()? })
        }
        op::CHECK => Ok(Change::Check { path: reader.string()?.unwrap_or_default(), version: reader.int()? }),
        value => Err(JuteError::Value { what: "an operation of a multi", value }),
    }
}

/// Bytes of a `MultiHeader`.
const MULTI_HEADER: usize = 9;

fn multi<'a, T>(
    reader: &mut Reader<'a>,
    read: impl Fn(i32, &mut Reader<'a>) -> Result<T, JuteError>,
) -> Result<Vec<T>, JuteError> {
    // Each has a header and more: so there are no more of them than that, whatever they say.
    let mut operations = Vec::with_capacity((reader.rest().len() / (MULTI_HEADER + 8)).min(64));
    loop {
        let (kind, done, _) = (reader.int()?, reader.bool()?, reader.int()?);
        if done {
            return Ok(operations);
        }
        operations.push(read(kind, reader)?);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(kind in -12..110i32, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(kind, &body);
            let _ = Connect::read(&body);
        }
    }

    #[test]
    fn a_multi_without_an_end_is_none() {
        assert!(read(op::MULTI, &[]).is_err());
        let end = [0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff];
        let Ok(Request::Change(Change::Multi(operations))) = read(op::MULTI, &end) else { panic!() };
        assert!(operations.is_empty());
    }
}
