//! Sessions: what a client has of the service that outlives its connection.
//!
//! A session is over when its client says so, or when the leader has heard nothing of it for its time-out. That is a matter of the
//! leader's clock; the decision is an entry of the log like any other.

use std::sync::Arc;

use imbl::OrdSet;

/// Bytes of a session's password.
pub const PASSWORD_BYTES: usize = 16;

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// What a client must know to go on with it.
    pub password: [u8; PASSWORD_BYTES],
    /// Silence after which it is over, milliseconds.
    pub timeout_ms: u32,
    /// The zxid with which its connection was attached: changes that come over an older one have no effect.
    pub attached: i64,
    /// Paths of its ephemeral nodes.
    pub ephemerals: OrdSet<Arc<str>>,
}
