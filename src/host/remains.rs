//! What a side leaves behind in files, for whoever has started it: how it came to its end, and a copy of the log if that is worth something.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::replication::StopReason;

/// How a side came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideEnd {
    /// Whether the guest has ended, here or on the other side.
    pub ended: bool,
    /// The end in words.
    pub text: String,
}

impl From<&Outcome> for SideEnd {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Ended(reason) => SideEnd { ended: true, text: reason.to_string() },
            Outcome::Stopped(reason) => {
                SideEnd { ended: *reason == StopReason::Ended, text: format!("stopped: {reason}") }
            }
        }
    }
}

impl SideEnd {
    /// Says it in a file.
    pub fn tell(&self, file: &Path) -> io::Result<()> {
        write_whole(file, &serde_json::to_vec(self)?)
    }

    /// What a side has said; `None`: it could not.
    pub fn told_in(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }
}

/// Writes a file as a whole or not at all, for whoever reads it may do so at any time.
pub fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, file))
}

/// Where a backup of `vm` without `--log` keeps its copy, in a directory for temporary files. It is removed in the end, unless the backup has diverged.
pub fn scratch_log(temporary: &Path, vm: &str, process: u32) -> PathBuf {
    temporary.join(format!("lockstep-{vm}-{process}.lslog"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_was_told_is_read_and_none_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vm.outcome");
        assert_eq!(SideEnd::told_in(&file), None);
        for text in ["stopped: by the operator", "the guest has ended"] {
            let end = SideEnd { ended: text.contains("ended"), text: text.into() };
            end.tell(&file).unwrap();
            assert_eq!(SideEnd::told_in(&file), Some(end));
        }
        std::fs::write(&file, "{").unwrap();
        assert_eq!(SideEnd::told_in(&file), None);
    }
}
