//! The stamp beside an image, `IMAGE.lockstep`: whose disk it is, and of what generation. It is what tells an image that may go on from one that missed something. While hosts
//! share an image, each going live puts a new one beside it (see [`fence`](super::fence)).
//!
//! ```text
//!              go_live                    (killed)
//!   new, clean ───────► live, not clean ───────────► live, not clean: what was flushed is there; it may go on
//!        ▲                   │ ended
//!        └───────────────────┘
//!              begin_receiving                copied               go_live
//!   anything ─────────────────► copying ───────────────► following ───────► live
//!                               (of no use)      (good for its backup only: what it lacks, it cannot know)
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::spec::Mode;

/// What an image is to its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageRole {
    /// Its own disk: of the host that ran the VM last, as far as this image knows.
    Live,
    /// The copy of a backup.
    Following,
    /// On its way to become one.
    Copying,
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The version of this format.
    pub format: u32,
    /// Random number of the disk; stays.
    pub disk: String,
    /// Random number of what is on it: images with the same number, both clean, are the same.
    pub contents: String,
    /// The VM that had it last.
    pub vm: String,
    /// How it was used last.
    pub mode: Mode,
    /// The VM's generation when this image went live, or was copied.
    pub generation: u64,
    /// What it is to its VM.
    pub role: ImageRole,
    /// Whether everything that its VM did is on it.
    pub clean: bool,
}

/// The stamp and its check, as they stand in the file.
#[derive(Serialize, Deserialize)]
struct Sealed {
    stamp: Stamp,
    /// XXH3, 64 bits, of the stamp as compact JSON.
    check: String,
}

/// Why a stamp cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// The file.
    #[error("cannot {what} the disk's stamp {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The stamp.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is no stamp.
    #[error(
        "the disk's stamp {} cannot be understood: if you know that the image is the right one, remove it or add `,force`",
        path.display()
    )]
    Damaged {
        /// The stamp.
        path: PathBuf,
    },
}

/// A longer file is no stamp.
pub const MAX_BYTES: u64 = 64 << 10;
/// The version of this format.
pub const FORMAT: u32 = 1;

/// A random number that nobody else has.
#[allow(clippy::disallowed_methods, reason = "the machine is told of it by its configuration, which is in the log")]
pub fn random() -> io::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u128::from_le_bytes(bytes))
}

/// As stamps write it.
pub fn hex(number: u128) -> String {
    format!("{number:032x}")
}

fn number(hex: &str) -> Option<u128> {
    u128::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 32)
}

impl Stamp {
    /// That of an image which has none.
    pub fn fresh(vm: &str, mode: Mode) -> io::Result<Self> {
        Ok(Stamp {
            format: FORMAT,
            disk: hex(random()?),
            contents: hex(random()?),
            vm: vm.into(),
            mode,
            generation: 0,
            role: ImageRole::Live,
            clean: true,
        })
    }

    /// Random number of the disk.
    pub fn disk(&self) -> u128 {
        number(&self.disk).unwrap_or(0)
    }

    /// Random number of what is on it.
    pub fn contents(&self) -> u128 {
        number(&self.contents).unwrap_or(0)
    }

    /// As it stands in a file.
    pub fn sealed(&self) -> Vec<u8> {
        let body = serde_json::to_string(self).expect("plain words and numbers");
        let check = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(body.as_bytes()));
        let mut bytes = serde_json::to_vec_pretty(&Sealed { stamp: self.clone(), check }).expect("as above");
        bytes.push(b'\n');
        bytes
    }

    /// What stands in a file.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let Sealed { stamp, check } = serde_json::from_slice(bytes).ok()?;
        let body = serde_json::to_string(&stamp).ok()?;
        let right = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(body.as_bytes()));
        let sound = stamp.format == FORMAT && number(&stamp.disk).is_some() && number(&stamp.contents).is_some();
        (check == right && sound).then_some(stamp)
    }

    /// Reads the stamp at `path`; `None`: there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, StampError> {
        let failed = |source| StampError::File { what: "read", path: path.into(), source };
        let bytes = match File::open(path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut io::Read::take(file, MAX_BYTES), &mut bytes).map_err(failed)?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        Self::parse(&bytes).map(Some).ok_or_else(|| StampError::Damaged { path: path.into() })
    }

    /// Puts it at `path`, durably and as a whole; `anew`: only if there is none there, else `false`.
    fn put(&self, path: &Path, anew: bool) -> Result<bool, StampError> {
        let failed = |source| StampError::File { what: "write", path: path.into(), source };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Hosts that share a directory do not share process numbers.
        let temporary = path.with_file_name(format!(".{name}.{}", hex(random().map_err(failed)?)));
        let written = self.put_by_way_of(&temporary, path, anew);
        if written.as_ref().is_ok_and(|new| *new) && !anew {
            return Ok(true);
        }
        // It is there under its own name, or shall not be there.
        let _ = fs::remove_file(&temporary);
        written.map_err(failed)
    }

    fn put_by_way_of(&self, temporary: &Path, path: &Path, anew: bool) -> io::Result<bool> {
        let mut file = File::create_new(temporary)?;
        file.write_all(&self.sealed())?;
        file.sync_all()?;
        if anew {
            match fs::hard_link(temporary, path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
                Err(error) => return Err(error),
            }
        } else {
            fs::rename(temporary, path)?;
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()?;
        Ok(true)
    }

    /// Puts it at `path`, durably and as a whole.
    pub fn write(&self, path: &Path) -> Result<(), StampError> {
        self.put(path, false).map(|_| ())
    }

    /// The stamp at `path`; if there is none, this one is put there. Two hosts that do so at once get the same.
    pub fn read_or_create(self, path: &Path) -> Result<Self, StampError> {
        loop {
            if let Some(stamp) = Self::read(path)? {
                return Ok(stamp);
            }
            if self.put(path, true)? {
                return Ok(self);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written_and_a_changed_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.lockstep");
        assert!(Stamp::read(&path).unwrap().is_none());
        let stamp = Stamp { generation: 7, ..Stamp::fresh("vm", Mode::Separate).unwrap() };
        stamp.write(&path).unwrap();
        assert_eq!(Stamp::read(&path).unwrap(), Some(stamp));
        let text = fs::read_to_string(&path).unwrap();
        for changed in [text.replace("\"generation\": 7", "\"generation\": 8"), text[..40].into(), String::new()] {
            assert_ne!(changed, text);
            fs::write(&path, changed).unwrap();
            assert!(matches!(Stamp::read(&path), Err(StampError::Damaged { .. })));
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left lying about");
    }

    #[test]
    fn two_hosts_that_find_no_stamp_agree_on_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.lockstep");
        let host = || {
            let path = path.clone();
            std::thread::spawn(move || Stamp::fresh("vm", Mode::Shared).unwrap().read_or_create(&path).unwrap())
        };
        let hosts: Vec<_> = (0..8).map(|_| host()).collect();
        let stamps: Vec<_> = hosts.into_iter().map(|host| host.join().unwrap()).collect();
        assert!(stamps.iter().all(|stamp| *stamp == stamps[0]));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
