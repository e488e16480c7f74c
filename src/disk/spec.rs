//! `--disk FILE[,mode=shared|separate]…`: what the option says.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::faults::{FaultSpec, FaultSpecError};

/// Who has the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One image that both hosts reach; only the live side touches it.
    #[default]
    Shared,
    /// Each host has its own, and the backup makes the same changes to it in the order of the log.
    Separate,
}

/// Where a write is when the guest hears that it is done (and has not flushed it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// At the storage: this host's memory is passed by, so that another host finds it there.
    None,
    /// Perhaps in this host's memory: another process of this host finds it, another host does not.
    Writeback,
}

/// How the guest's sectors lie in the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One after the other.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// A disk as the command line names it.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskSpec {
    /// The image.
    pub file: PathBuf,
    /// Who has it.
    pub mode: Mode,
    /// Whether the backup reads by itself what the guest reads, instead of out of the log.
    pub backup_reads: bool,
    /// Whether the guest cannot write it.
    pub read_only: bool,
    /// See [`Cache`].
    pub cache: Cache,
    /// How it is laid out; `None`: raw, unless it looks like something else, which is an error.
    pub format: Option<Format>,
    /// Where its stamp is, if not beside it.
    pub stamp: Option<PathBuf>,
    /// The operator says that this image is the right one, whatever its stamp says.
    pub force: bool,
    /// What goes wrong with it on purpose.
    pub faults: Option<FaultSpec>,
}

/// What is wrong with a `--disk`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DiskSpecError {
    /// No file.
    #[error("a disk needs an image: FILE[,mode=shared|separate][,reads=log|backup][,ro]")]
    NoFile,
    /// A setting that there is not.
    #[error("`{0}` is no setting of a disk (mode=, reads=, ro, cache=, format=, stamp=, force)")]
    Unknown(String),
    /// A setting with a value that it cannot have.
    #[error("{name} is {choices}, not `{value}`")]
    Value {
        /// The setting.
        name: &'static str,
        /// What it can be.
        choices: &'static str,
        /// What was said.
        value: String,
    },
    /// A setting twice.
    #[error("{0} is set twice")]
    Twice(String),
    /// The metadata of a qcow2 image is in the memory of the host that writes it.
    #[error(
        "a qcow2 image cannot be shared between hosts: use mode=separate, or a raw image (qemu-img convert -O raw)"
    )]
    SharedQcow2,
    /// A qcow2 image has no way past the host's memory here.
    #[error("cache=none is for raw images")]
    UncachedQcow2,
    /// The faults.
    #[error(transparent)]
    Faults(#[from] FaultSpecError),
}

fn choose<T: Copy>(
    name: &'static str,
    choices: &'static str,
    of: &[(&str, T)],
    value: &str,
) -> Result<T, DiskSpecError> {
    let chosen = of.iter().find(|(word, _)| *word == value);
    chosen.map(|(_, chosen)| *chosen).ok_or_else(|| DiskSpecError::Value { name, choices, value: value.into() })
}

impl FromStr for DiskSpec {
    type Err = DiskSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut settings = text.split(',');
        let file: PathBuf = settings.next().filter(|file| !file.is_empty()).ok_or(DiskSpecError::NoFile)?.into();
        let (mut mode, mut reads, mut cache, mut format, mut stamp, mut faults) = (None, None, None, None, None, None);
        let (mut read_only, mut force) = (false, false);
        let mut seen: Vec<&str> = Vec::new();
        for setting in settings {
            let (name, value) = setting.split_once('=').map_or((setting, None), |(name, value)| (name, Some(value)));
            if seen.contains(&name) {
                return Err(DiskSpecError::Twice(name.into()));
            }
            seen.push(name);
            match (name, value) {
                ("mode", Some(value)) => {
                    let modes = [("shared", Mode::Shared), ("separate", Mode::Separate)];
                    mode = Some(choose("mode", "shared or separate", &modes, value)?);
                }
                ("reads", Some(value)) => {
                    reads = Some(choose("reads", "log or backup", &[("log", false), ("backup", true)], value)?);
                }
                ("cache", Some(value)) => {
                    let caches = [("none", Cache::None), ("writeback", Cache::Writeback)];
                    cache = Some(choose("cache", "none or writeback", &caches, value)?);
                }
                ("format", Some(value)) => {
                    let formats = [("raw", Format::Raw), ("qcow2", Format::Qcow2)];
                    format = Some(choose("format", "raw or qcow2", &formats, value)?);
                }
                ("stamp", Some(value)) if !value.is_empty() => stamp = Some(value.into()),
                ("faults", Some(value)) => faults = Some(value.parse()?),
                ("ro", None) => read_only = true,
                ("force", None) => force = true,
                _ => return Err(DiskSpecError::Unknown(setting.into())),
            }
        }
        let mode = mode.unwrap_or_default();
        if format == Some(Format::Qcow2) {
            if cache == Some(Cache::None) {
                return Err(DiskSpecError::UncachedQcow2);
            }
            if mode == Mode::Shared && !read_only {
                return Err(DiskSpecError::SharedQcow2);
            }
        }
        // What one host has written, the other must find at the storage; a host's own image may lie in its memory until a flush.
        let plain = mode == Mode::Separate || read_only || format == Some(Format::Qcow2);
        let cache = cache.unwrap_or(if plain { Cache::Writeback } else { Cache::None });
        let backup_reads = reads.unwrap_or(false);
        Ok(DiskSpec { file, mode, backup_reads, read_only, cache, format, stamp, force, faults })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_alone_is_shared_written_through_and_read_by_way_of_the_log() {
        let spec: DiskSpec = "a.img".parse().unwrap();
        assert_eq!((spec.mode, spec.cache, spec.backup_reads), (Mode::Shared, Cache::None, false));
        assert!(!spec.read_only && !spec.force && spec.faults.is_none() && spec.format.is_none());
    }

    #[test]
    fn every_setting_is_understood() {
        let text = "d/a.img,mode=separate,reads=backup,ro,cache=writeback,format=raw,stamp=/var/a,force,faults=seed:1";
        let spec: DiskSpec = text.parse().unwrap();
        assert_eq!((spec.mode, spec.cache, spec.format), (Mode::Separate, Cache::Writeback, Some(Format::Raw)));
        assert!(spec.backup_reads && spec.read_only && spec.force && spec.faults.is_some());
        assert_eq!(spec.stamp, Some("/var/a".into()));
        assert_eq!("a,mode=separate".parse::<DiskSpec>().unwrap().cache, Cache::Writeback);
    }

    #[test]
    fn what_cannot_be_is_named() {
        use DiskSpecError::{NoFile, SharedQcow2, Twice, UncachedQcow2, Unknown, Value};
        let error = |text: &str| text.parse::<DiskSpec>().unwrap_err();
        assert_eq!(error(""), NoFile);
        assert_eq!(error(",ro"), NoFile);
        assert_eq!(error("a,rw"), Unknown("rw".into()));
        assert_eq!(error("a,ro=1"), Unknown("ro=1".into()));
        assert_eq!(error("a,mode"), Unknown("mode".into()));
        assert_eq!(error("a,ro,ro"), Twice("ro".into()));
        assert!(matches!(error("a,mode=both"), Value { name: "mode", .. }));
        assert!(matches!(error("a,reads=primary"), Value { name: "reads", .. }));
        assert!(matches!(error("a,format=vmdk"), Value { name: "format", .. }));
        assert!(matches!(error("a,faults=x"), DiskSpecError::Faults(_)));
        assert_eq!(error("a,format=qcow2"), SharedQcow2);
        assert_eq!(error("a,mode=separate,format=qcow2,cache=none"), UncachedQcow2);
    }
}
