//! Where a VM's sides are to be: what the agents have agreed on. It is written by compare-and-set only, so of several agents that would change it one does.
//!
//! It says nothing of who lives. That, the VM's register decides; a placement follows it.

use serde::{Deserialize, Serialize};

use super::process::Process;
use super::records::{Document, VERSION};

/// Where the sides of a VM are to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// Version of the record.
    pub version: u32,
    /// Grows with every change of who is to do what: failures and answers name it.
    pub number: u64,
    /// The guest may be booted as the successor of this generation (0: of none) and of no other: with the first claim, that is over. `None`: it was booted
    /// by hand.
    pub boot: Option<u64>,
    /// The host that runs it, or is to boot it.
    pub primary: Option<String>,
    /// The host that protects it, or is to.
    pub backup: Option<String>,
    /// Whether this backup was seen to protect it.
    pub protected: bool,
    /// A backup that protects it until `backup` is there to take its place.
    pub leaving: Option<String>,
    /// Where a person wants the sides, while they are on their way there.
    pub wish: Option<Wish>,
    /// Hosts that are left out for now.
    pub out: Vec<Out>,
    /// Nobody runs it. The hosts that may have are asked whether no process of it is left there; nothing is started meanwhile.
    pub asked: bool,
    /// It has come to its end, and this is how.
    pub ended: Option<String>,
    /// What a person should know of the last change.
    pub note: Option<String>,
}

/// Where a person wants the sides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wish {
    /// The host that is to run it.
    pub primary: String,
    /// The host that is to protect it; `None`: whichever.
    pub backup: Option<String>,
}

/// A host that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Out {
    /// The host.
    pub host: String,
    /// Its agent's process number and beat when that was written; both empty if it had no agent. A lost host whose record says something else is alive again.
    pub agent: (String, u64),
    /// Why.
    pub why: Why,
    /// How often in a row it has failed.
    pub times: u32,
    /// Why, in words.
    pub text: String,
}

/// Why a host is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// A side of the VM was lost there. Until the host's agent shows itself alive.
    Lost,
    /// It was asked to start a side, and none came. For a while.
    Failed,
}

impl Default for Placement {
    fn default() -> Self {
        Placement {
            version: VERSION,
            number: 0,
            boot: None,
            primary: None,
            backup: None,
            protected: false,
            leaving: None,
            wish: None,
            out: Vec::new(),
            asked: false,
            ended: None,
            note: None,
        }
    }
}

impl Document for Placement {
    fn version(&self) -> u32 {
        self.version
    }
}

impl Placement {
    /// The hosts that have a part in it.
    pub fn hosts(&self) -> impl Iterator<Item = &String> {
        [&self.primary, &self.backup, &self.leaving].into_iter().flatten()
    }

    /// Whether a host has a part in it.
    pub fn names(&self, host: &str) -> bool {
        self.hosts().any(|named| named == host)
    }

    /// Why a host is left out.
    pub fn out(&self, host: &str) -> Option<&Out> {
        self.out.iter().find(|out| out.host == host)
    }
}

impl Out {
    /// Whether the agent that says it is `process`, at its `beat`, is the one that was there when this was written, and has not shown itself since.
    pub fn is_of(&self, process: &Process, beat: u64) -> bool {
        self.agent.0 == process.number && self.agent.1 == beat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_survives() {
        let placement = Placement {
            number: 3,
            boot: Some(0),
            primary: Some("a".into()),
            out: vec![Out {
                host: "b".into(),
                agent: ("7".into(), 2),
                why: Why::Lost,
                times: 1,
                text: "its side was lost".into(),
            }],
            ..Placement::default()
        };
        assert_eq!(Placement::from_bytes(&placement.to_bytes()).unwrap(), placement);
        assert!(placement.names("a") && !placement.names("b"));
        let out = placement.out("b").unwrap();
        assert!(out.is_of(&Process { number: "7".into(), ..Process::default() }, 2));
        assert!(!out.is_of(&Process { number: "7".into(), ..Process::default() }, 3));
    }
}
