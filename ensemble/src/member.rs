//! Who the members of an ensemble are.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A member: its number in the configuration, and the random number of its disk.
///
/// A member whose disk was wiped does not know any more whom it has voted for and what it has acknowledged: as the same member it
/// could vote twice. It comes back under the same number as *another* member, which the group takes in for the one that is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId {
    /// Number in the configuration (`--id`).
    pub id: u32,
    /// Random number of the disk.
    pub incarnation: u64,
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:08x}", self.id, self.incarnation >> 32)
    }
}

/// Where a member is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Where the other members reach it, `HOST:PORT`.
    pub peer: String,
    /// Where clients do.
    pub client: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (clients: {})", self.peer, self.client)
    }
}
