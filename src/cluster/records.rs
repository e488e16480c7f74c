//! What the records say: JSON objects, to which later versions may add. Whoever reads one leaves alone what it does not know, and refuses what
//! says that it cannot be understood that way.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::process::Process;
use crate::console::status::Role;

/// The version of the records that is written here, and the newest that is understood.
pub const VERSION: u32 = 1;

/// The most bytes of a record that are read.
pub const MAX_BYTES: usize = 64 << 10;

/// One process that runs or protects a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Side {
    /// Version of the record.
    pub version: u32,
    /// The VM's name.
    pub vm: String,
    /// The host's name.
    pub host: String,
    /// The process.
    pub process: Process,
    /// What it is to the VM.
    pub role: Role,
    /// The protocol's state in its own words.
    pub state: String,
    /// The generation that it knows of.
    pub generation: u64,
    /// Whether the VM would survive the loss of the host that runs it, as far as this side knows.
    pub protected: bool,
    /// Name of the other side's host.
    pub peer: Option<String>,
    /// Console port, `HOST:PORT`.
    pub control: String,
    /// Logging channel, `HOST:PORT`.
    pub channel: String,
    /// Memory of the guest, in MiB, once it is known.
    pub memory_mib: Option<u64>,
    /// The host's kind of processor.
    pub cpu: String,
}

/// A host whose agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Version of the record.
    pub version: u32,
    /// The host's name.
    pub name: String,
    /// The agent.
    pub process: Process,
    /// Where the agent listens, `HOST:PORT`.
    pub control: Option<String>,
    /// The host's addresses, for logging channels and consoles.
    pub addresses: Vec<String>,
    /// Memory that guests may have there in all, in MiB.
    pub capacity_mib: u64,
    /// Memory that guests have there, in MiB.
    pub used_mib: u64,
    /// Its kind of processor: only alike ones can make a pair.
    pub cpu: String,
    /// What its owner says of it, for placement.
    pub labels: BTreeMap<String, String>,
    /// The program's version.
    pub program: String,
    /// Whether the agent plugs guests' network cards into a bridge.
    pub bridge: bool,
    /// Whether the network that the guests' clients use can be reached from there, as far as the host's own end of the cable tells. `None`: it does not look.
    pub uplink: Option<bool>,
    /// Grows whenever somebody takes the host for lost and its agent sees that: it is alive.
    pub beat: u64,
    /// VMs of which a process is on the host.
    pub sides: Vec<String>,
    /// What it has been asked to start and could not, by VM.
    pub failed: BTreeMap<String, Failure>,
    /// Guests that have ended there by themselves or by an operator's wish, by VM.
    pub ended: BTreeMap<String, GuestEnd>,
    /// That no process of a VM is on the host, asked by the placement of this number: nothing has been started there since.
    pub without: BTreeMap<String, u64>,
}

/// What a host has been asked to start and could not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// By the placement of this number.
    pub number: u64,
    /// Why, in words.
    pub text: String,
}

/// A guest that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestEnd {
    /// After which generation it had been booted, as its placement said when the side was started.
    pub boot: Option<u64>,
    /// The end, in words.
    pub text: String,
}

/// What is wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is far too long.
    #[error("it is longer than {MAX_BYTES} bytes")]
    Long,
    /// It is no such JSON object.
    #[error("it cannot be read")]
    Json(#[source] serde_json::Error),
    /// It is newer than this program.
    #[error("it is of version {0}; this program understands {VERSION}")]
    Version(u32),
}

/// What a node holds.
pub trait Document: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync + 'static {
    /// Its version.
    fn version(&self) -> u32;

    /// Its bytes.
    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers can be written")
    }

    /// The record of these bytes.
    fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_BYTES {
            return Err(RecordError::Long);
        }
        let record: Self = serde_json::from_slice(bytes).map_err(RecordError::Json)?;
        match record.version() {
            1..=VERSION => Ok(record),
            other => Err(RecordError::Version(other)),
        }
    }
}

/// A document that a process keeps there for as long as it lives.
pub trait Record: Document {
    /// The process that it is of.
    fn process(&self) -> &Process;
}

impl Document for Side {
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for Side {
    fn process(&self) -> &Process {
        &self.process
    }
}

impl Document for Host {
    fn version(&self) -> u32 {
        self.version
    }
}

impl Record for Host {
    fn process(&self) -> &Process {
        &self.process
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_survives_and_later_versions_may_add_to_it() {
        let side = Side { version: VERSION, vm: "vm".into(), role: Role::Primary, generation: 3, ..Side::default() };
        assert_eq!(Side::from_bytes(&side.to_bytes()).unwrap(), side);
        let read = Side::from_bytes(
            br#"{"version":1,"vm":"vm","role":"backup","colour":"red","process":{"number":"7","x":1}}"#,
        );
        let read = read.unwrap();
        assert_eq!((read.role, read.process.number.as_str(), read.memory_mib), (Role::Backup, "7", None));
        let host = Host { version: VERSION, labels: [("rack".into(), "1".into())].into(), ..Host::default() };
        assert_eq!(Host::from_bytes(&host.to_bytes()).unwrap(), host);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        assert!(matches!(Side::from_bytes(br#"{"version":2}"#), Err(RecordError::Version(2))));
        assert!(matches!(Side::from_bytes(b"{}"), Err(RecordError::Version(0))));
        assert!(matches!(Side::from_bytes(b"7"), Err(RecordError::Json(_))));
        assert!(matches!(Side::from_bytes(&vec![b' '; MAX_BYTES + 1]), Err(RecordError::Long)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_a_named_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Side::from_bytes(&bytes).is_ok(), Host::from_bytes(&bytes).is_ok());
        }
    }
}
