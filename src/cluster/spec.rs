//! What a VM is to be, as its owner wants it: all that an agent needs to start its sides anywhere.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::records::{Document, VERSION};

/// A VM that the cluster's agents run and protect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// Version of the record.
    pub version: u32,
    /// The guest; `None`: it was booted by hand, and the agents can only protect it.
    pub guest: Option<Guest>,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// Its disk, as `--disk` takes it on any host.
    pub disk: Option<String>,
    /// Its network card.
    pub net: Option<Card>,
    /// Time between two heartbeats of its pair, ms.
    pub heartbeat_ms: u64,
    /// Silence after which a side is suspected, ms.
    pub timeout_ms: u64,
    /// Backups that it shall have: 0 or 1.
    pub backups: u32,
    /// VMs that shall have no side on a host on which this one has one.
    pub avoid: BTreeSet<String>,
    /// Labels that its hosts must have.
    pub require: BTreeMap<String, String>,
    /// Where it shall begin, if that can be.
    pub primary: Option<String>,
    /// Where its first backup shall be, if that can be.
    pub backup: Option<String>,
    /// Whether it is booted anew, without a person, when it is certain that its hosts have lost it.
    pub restart: bool,
}

/// How a guest is booted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guest {
    /// An application of the built-in image, or the path of an ELF image on each host.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Card {
    /// The TAP device that each host has ready for it; `None`: the agent makes one and plugs it into its bridge.
    pub tap: Option<String>,
    /// The other settings of `--net`, for where the guest boots.
    pub settings: String,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            version: VERSION,
            guest: None,
            memory_mib: 64,
            disk: None,
            net: None,
            heartbeat_ms: 20,
            timeout_ms: 200,
            backups: 1,
            avoid: BTreeSet::new(),
            require: BTreeMap::new(),
            primary: None,
            backup: None,
            restart: false,
        }
    }
}

impl Document for Spec {
    fn version(&self) -> u32 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_and_what_is_not_said_has_its_default() {
        let spec = Spec {
            guest: Some(Guest { name: "kv".into(), arguments: vec!["persist=1".into()] }),
            net: Some(Card { tap: None, settings: "ip=10.9.0.2/24".into() }),
            avoid: ["other".to_owned()].into(),
            ..Spec::default()
        };
        assert_eq!(Spec::from_bytes(&spec.to_bytes()).unwrap(), spec);
        let short = Spec::from_bytes(br#"{"version":1,"memory_mib":7,"colour":"red"}"#).unwrap();
        assert_eq!(short, Spec { memory_mib: 7, ..Spec::default() });
        // One that does not say its version is of this one's: nothing else was ever written.
        assert!(Spec::from_bytes(br#"{"version":2}"#).is_err());
    }
}
