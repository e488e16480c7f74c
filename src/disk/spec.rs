//! `--disk FILE[,mode=shared|separate]…`: what the option says.

use std::path::PathBuf;
use std::str::FromStr;

/// Who has the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// One image that both hosts reach; only the live side touches it.
    #[default]
    Shared,
    /// Each host has its own, and the backup makes the same changes to it in the order of the log.
    Separate,
}

/// A disk as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The image.
    pub file: PathBuf,
    /// Who has it.
    pub mode: Mode,
    /// Whether the backup reads by itself what the guest reads, instead of out of the log.
    pub backup_reads: bool,
}

/// What is wrong with a `--disk`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskSpecError {
    /// No file.
    #[error("a disk needs an image: FILE[,mode=shared|separate][,reads=log|backup]")]
    NoFile,
}

impl FromStr for DiskSpec {
    type Err = DiskSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(DiskSpecError::NoFile);
        }
        Ok(DiskSpec { file: text.into(), mode: Mode::Shared, backup_reads: false })
    }
}
