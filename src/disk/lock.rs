//! Who has an image open: locks on bytes far behind the end of it, which go away with the process that holds them (open file description locks, which
//! network file systems pass on).
//!
//! Each VM has a byte of its own, by its name. A host of a pair that shares its image holds a read lock on that byte, so the other host of the same VM gets one, too.
//! Whoever wants the image for himself alone holds a write lock on all the bytes. Whoever only reads it holds a read lock on a byte for readers. After it has its own
//! lock, everybody looks whether somebody else holds another: of two that come at once, at least one sees the other.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// How an image is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold<'a> {
    /// By this process alone.
    Alone,
    /// By hosts of the VM of this name.
    With(&'a str),
    /// By any number of processes that do not change it.
    Reading,
}

/// Where the locks begin: behind every image.
const BASE: i64 = 0x6c6f_636b_0000_0000;
/// How many names there are; the byte behind them is for readers.
const NAMES: i64 = 1 << 30;

fn range(kind: i32, from: i64, to: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: BASE + from,
        l_len: to - from,
        l_pid: 0,
    }
}

/// Locks `file` for as long as it is open. `false`: somebody else has it, in a way that does not go with this one.
pub fn lock(file: &File, hold: Hold) -> io::Result<bool> {
    let own = match hold {
        Hold::Alone => return set(file, range(libc::F_WRLCK, 0, NAMES + 1)),
        Hold::With(name) => (xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % NAMES as u64) as i64,
        Hold::Reading => NAMES,
    };
    Ok(set(file, range(libc::F_RDLCK, own, own + 1))? && is_free(file, 0, own)? && is_free(file, own + 1, NAMES + 1)?)
}

fn set(file: &File, range: libc::flock) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn is_free(file: &File, from: i64, to: i64) -> io::Result<bool> {
    if from == to {
        return Ok(true);
    }
    let mut range = range(libc::F_WRLCK, from, to);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut range))?;
    Ok(range.l_type == libc::F_UNLCK as i16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn open(path: &Path, hold: Hold) -> Option<File> {
        let file = File::options().read(true).write(hold != Hold::Reading).open(path).unwrap();
        lock(&file, hold).unwrap().then_some(file)
    }

    #[test]
    fn hosts_of_one_vm_share_an_image_and_nobody_else_does() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let first = open(path, Hold::With("a")).unwrap();
        let second = open(path, Hold::With("a")).unwrap();
        assert!(open(path, Hold::With("b")).is_none());
        assert!(open(path, Hold::Alone).is_none());
        assert!(open(path, Hold::Reading).is_none());
        drop((first, second));
        let alone = open(path, Hold::Alone).unwrap();
        assert!(open(path, Hold::With("a")).is_none() && open(path, Hold::Alone).is_none());
        assert!(open(path, Hold::Reading).is_none());
        drop(alone);
        let readers = (open(path, Hold::Reading).unwrap(), open(path, Hold::Reading).unwrap());
        assert!(open(path, Hold::With("a")).is_none() && open(path, Hold::Alone).is_none());
        drop(readers);
        assert!(open(path, Hold::With("b")).is_some());
    }
}
