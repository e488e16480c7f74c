//! What is known of all hosts and VMs of a cluster, kept in the ensemble that is its arbiter (`zk://`).
//!
//! ```text
//! ROOT/vms/VM/generation       the VM's register (persistent; `crate::arbiter::zookeeper`)
//! ROOT/vms/VM/sides/HOST       a process that runs or protects the VM (ephemeral; a JSON record)
//! ROOT/vms/VM/spec             what the VM is to be (persistent; JSON)
//! ROOT/vms/VM/placement        where its sides are to be (persistent; JSON; changed by compare-and-set)
//! ROOT/hosts/HOST              a host whose agent runs (ephemeral; a JSON record)
//! ROOT/reservations/HOST       changes with everything that is placed on a host (persistent): two agents cannot do so at once without noticing
//! ```
//!
//! The registers decide who lives; the rest only tells, and says where sides are to be started. A record that is missing, old or wrong misleads whoever looks at it and harms no VM, and a pair does not
//! notice when nobody takes its records: [`publish`] is a task beside it.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`paths`] | the tree above |
//! | [`records`] | what the records say |
//! | [`process`] | which process a record is of, and whether that is gone |
//! | [`publish`] | keeping a record there for as long as a process lives |
//! | [`side`] | the record of a primary or a backup |
//! | [`spec`], [`placement`] | what a VM is to be, and where |
//! | [`tree`] | the nodes, read once |
//! | [`view`] | all of it, put together |
//! | [`follow`] | the view as it changes |
//! | [`mod@write`] | what agents and people agree on, written |
//! | [`figures`] | what the sides say of themselves when they are asked |
#![allow(clippy::disallowed_methods, reason = "this is the outside world")]

pub mod figures;
pub mod follow;
pub mod paths;
pub mod placement;
pub mod process;
pub mod publish;
pub mod records;
pub mod side;
pub mod spec;
pub mod tree;
pub mod view;
pub mod write;

use zookeeper_client as zk;

use crate::arbiter::ArbiterError;

/// Why nothing can be said of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It keeps no such thing.
    #[error(
        "{arbiter} decides who lives and knows nothing else: hosts and VMs are listed by an ensemble, --arbiter zk://HOST,…"
    )]
    NoRegistry {
        /// The arbiter.
        arbiter: String,
    },
    /// The ensemble cannot be opened, or no server of it can be used.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// A server has answered with an error.
    #[error("{location}: {path} cannot be read")]
    Read {
        /// The ensemble.
        location: String,
        /// Of which node.
        path: String,
        /// The error.
        #[source]
        source: zk::Error,
    },
    /// The same, to a write.
    #[error("{location}: {path} cannot be written")]
    Write {
        /// The ensemble.
        location: String,
        /// Which node.
        path: String,
        /// The error.
        #[source]
        source: zk::Error,
    },
}
