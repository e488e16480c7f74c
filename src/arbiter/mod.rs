//! The arbiter: who may live. One register per VM holds the generation and the host that won it; whoever
//! suspects the other side must move it from the pair's generation to the next before it goes on alone.
//! Of two that try, one wins.
//!
//! | module | where the registers are |
//! | --- | --- |
//! | [`register`] | files on storage that both hosts reach |
//! | [`zookeeper`] | nodes of a ZooKeeper ensemble |
//! | [`etcd`] | keys of an etcd cluster |
//!
//! [`uri`] is how a user names one, and [`open`] opens it. The two services are asked by [`ensemble`], which bears that some of the servers are
//! dead or silent.

pub mod ensemble;
pub mod etcd;
pub mod names;
pub mod register;
mod standing;
pub mod uri;
pub mod zookeeper;

use std::path::PathBuf;
use std::sync::Arc;

use ensemble::Unanswered;
use uri::ArbiterUri;

/// What a register holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The generation; it only grows.
    pub generation: u64,
    /// Random number of the process that won it.
    pub host: u64,
    /// Name of its host, for people; see [`is_name`].
    pub host_name: String,
    /// After a planned switch: random number of the process that shares the generation, as the backup of the one that won it. It may go on
    /// from it, as any backup may that knows of its primary. `None`: it was won alone.
    pub shared_with: Option<u64>,
}

/// The most bytes in the name of a VM or a host: with an ending it must still do for a file.
pub const MAX_NAME: usize = 200;

/// Whether this can be the name of a host: 1 to [`MAX_NAME`] bytes, no control characters. A VM's name must have no `/`
/// either.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// The outcome of a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The register holds the claim, durably: it was set now, or by an earlier call.
    Won,
    /// The register holds something else: this, or nothing at all. The claim may have been set, and followed by another one.
    Lost(Option<Claim>),
}

/// Why there is no verdict. The register may or may not have been set.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The storage does not do what it should.
    #[error("cannot {what} {}", path.display())]
    Storage {
        /// What was tried.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The register cannot be read. Somebody must look at it: it is never taken for an empty one.
    #[error("the register {} is damaged: {flaw}", path.display())]
    Corrupt {
        /// The register.
        path: PathBuf,
        /// What is wrong with it.
        flaw: register::Flaw,
    },
    /// The thread that carries the questions cannot be started.
    #[error("cannot start the arbiter's thread")]
    Thread(#[source] std::io::Error),
    /// No server of an ensemble has answered in time, or none that has a majority behind it.
    #[error("no answer from {location}: {servers}")]
    NoAnswer {
        /// The ensemble.
        location: String,
        /// What each of the servers was heard of.
        servers: Unanswered,
    },
    /// The servers do not let whoever asks read or set the register.
    #[error("{location} does not allow it: {reason}")]
    Denied {
        /// The ensemble.
        location: String,
        /// What the servers say.
        reason: String,
    },
    /// A name that cannot be a register's or a host's.
    #[error(
        "`{name}` cannot be the name of a VM or a host: 1 to {MAX_NAME} bytes, no control characters, a VM also no `/`"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// A claim must be on the generation after the one that it replaces.
    #[error("generation {claimed} does not follow {expected}")]
    Order {
        /// The generation expected.
        expected: u64,
        /// The generation claimed.
        claimed: u64,
    },
}

/// Who may live.
///
/// Calls may block for as long as the storage does (a dead NFS server: for ever). So they are made on a thread of
/// their own, with a deadline after which the outcome counts as unknown; asking again is safe.
pub trait Arbiter: Send + Sync {
    /// What the register of `vm` holds.
    fn read(&self, vm: &str) -> Result<Option<Claim>, ArbiterError>;

    /// Sets the register of `vm` to `claim`, on the generation after `expected`, if it holds the generation `expected` (`None`: if there is none, and then
    /// the claim is on generation 1). Atomic among all hosts and durable when it returns [`Verdict::Won`]. The same claim may be made any number of
    /// times: a register that holds it already counts as won.
    fn compare_and_set(&self, vm: &str, expected: Option<u64>, claim: &Claim) -> Result<Verdict, ArbiterError>;

    /// Where the registers are, for people.
    fn location(&self) -> String;
}

/// An arbiter, and the sessions behind it where it is an ensemble that can also keep what is known of the cluster.
pub type Opened = (Arc<dyn Arbiter>, Option<Arc<zookeeper::Sessions>>);

/// Opens an arbiter: a directory must be there; of an ensemble, sessions to its servers are being opened when this returns, and nothing is known of
/// them yet.
pub fn open(uri: &ArbiterUri) -> Result<Opened, ArbiterError> {
    Ok(match uri {
        ArbiterUri::File(directory) => (Arc::new(register::RegisterFile::open(directory)?), None),
        ArbiterUri::ZooKeeper(ensemble) => {
            let sessions = zookeeper::Sessions::open(ensemble)?;
            (Arc::new(zookeeper::ZooKeeper::over(sessions.clone())), Some(sessions))
        }
        ArbiterUri::Etcd(ensemble) => (Arc::new(etcd::Etcd::open(ensemble)?), None),
    })
}
