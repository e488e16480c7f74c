//! The fence of a shared image: only the host whose going live was the last one changes it.
//!
//! Whoever goes live puts a stamp of its generation beside the image, `STAMP.1`, `STAMP.2`, … (a [`ladder`](crate::ladder)), and removes the older ones, *before* it
//! changes the image. Right before each system call that changes it, it looks whether its own is still there. The order of things at the two hosts:
//!
//! ```text
//!   new:  wins at the arbiter ─► puts its stamp ─► looks: none is newer ─► removes the older ones ─► changes the image …
//!   old:  … is stopped, and wakes ─► looks: its stamp is gone ─► changes nothing, and stops
//! ```
//!
//! Numbers of stamps are not generations: an arbiter may have been set up anew, and then counts from 1 again. A stamp gives way to one of the same VM that was put since this host
//! looked last only if that is of an older generation. So a host that is late with its stamp does not put it in the way of a newer one.
//!
//! To look is one call on an open file (`statx`): a file that was removed has no name any more, and whatever is done to one changes its time of change. If that has changed and its name is still
//! there, it was something else, and what counts from then on is how it is now.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::libc;

use super::stamp::{MAX_BYTES, Stamp, StampError};
use crate::ladder::{Climb, Directory, Folder, Ladder, LadderError, Rung};

/// How often somebody else may be faster, before it is called an error: as many hosts do not go live at a time.
const ATTEMPTS: u32 = 8;

/// The stamps that hosts put when they went live.
#[derive(Clone, Debug)]
pub struct Fences<D = Folder> {
    ladder: Ladder<D>,
}

/// What has become of a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// It is the newest, and has this number.
    Newest(u64),
    /// The VM has gone live since, in this generation.
    Passed(u64),
}

impl Fences {
    /// Those that belong to the image whose first stamp is at `path`.
    pub fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::within(Folder::new(path.parent().unwrap_or(Path::new(""))), &name)
    }
}

impl<D: Directory> Fences<D> {
    /// Those of this name in `directory`.
    pub fn within(directory: D, name: &str) -> Self {
        Fences { ladder: Ladder::new(directory, name, MAX_BYTES) }
    }

    /// The newest, and its number. `None`: nobody has put one.
    pub fn newest(&self) -> Result<Option<(u64, Stamp)>, StampError> {
        let Some(Rung { number, bytes }) = self.ladder.top()? else { return Ok(None) };
        let stamp = Stamp::parse(&bytes).ok_or_else(|| StampError::Damaged { path: self.path(number) })?;
        Ok(Some((number, stamp)))
    }

    /// Puts `stamp`, durably, and removes all others. Stamps up to number `seen` give way whatever they say.
    pub fn raise(&self, stamp: &Stamp, seen: u64) -> Result<Raised, StampError> {
        for _ in 0..ATTEMPTS {
            let number = match self.newest()? {
                Some((number, newest)) => {
                    if number > seen && newest.vm == stamp.vm && newest.generation > stamp.generation {
                        return Ok(Raised::Passed(newest.generation));
                    }
                    number + 1
                }
                None => 1,
            };
            let rung = Rung { number, bytes: stamp.sealed() };
            if self.ladder.climb(&rung)? == Climb::Top {
                // Before anything is changed: an older one's owner must find it gone.
                self.ladder.clear_below(number)?;
                return Ok(Raised::Newest(number));
            }
        }
        let (what, source) = ("keep up with", io::ErrorKind::WouldBlock.into());
        Err(StampError::File { what, path: self.path(0), source })
    }

    /// Removes all of them. Only whoever has the image for himself may.
    pub fn clear(&self) -> Result<(), StampError> {
        Ok(self.ladder.clear_below(u64::MAX)?)
    }

    /// Where a stamp is.
    pub fn path(&self, number: u64) -> PathBuf {
        self.ladder.path(number)
    }
}

impl From<LadderError> for StampError {
    fn from(LadderError { what, path, source }: LadderError) -> Self {
        StampError::File { what, path, source }
    }
}

/// What shows that something has been done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    names: u32,
    changed: (i64, u32),
    inode: u64,
}

/// A host's right to change a shared image: its stamp is the newest.
#[derive(Debug)]
pub struct Fence {
    stamp: File,
    path: PathBuf,
    /// How the stamp was when it was last known to be there.
    known: Mutex<Shown>,
}

impl Fence {
    /// That of the stamp at `path`, which was put there. `None`: it is gone already.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let stamp = match File::open(path) {
            Ok(stamp) => stamp,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(shown) = look(&stamp)? else { return Ok(None) };
        Ok(Some(Fence { stamp, path: path.into(), known: Mutex::new(shown) }))
    }

    /// Whether it is still there.
    pub fn holds(&self) -> io::Result<bool> {
        let Some(shown) = look(&self.stamp)? else { return Ok(false) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if shown == *known {
            return Ok(true);
        }
        // Somebody has changed its owner, made a link to it, removed it: by its name one can tell.
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) if there.ino() == shown.inode => {
                *known = shown;
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// How this file is now, by its server if it has one. `None`: it has no name any more.
fn look(file: &File) -> io::Result<Option<Shown>> {
    // SAFETY: a structure of plain numbers may be all zeros.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let (flags, wanted) =
        (libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC, libc::STATX_NLINK | libc::STATX_CTIME | libc::STATX_INO);
    // SAFETY: the descriptor is open, the name is empty and ends in a zero, and `found` is ours during the call.
    let result = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, wanted, &mut found) };
    if result != 0 {
        let error = io::Error::last_os_error();
        // An NFS server says so of a file that is gone.
        return if error.raw_os_error() == Some(libc::ESTALE) { Ok(None) } else { Err(error) };
    }
    let changed = (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec);
    let shown = Shown { names: found.stx_nlink, changed, inode: found.stx_ino };
    Ok((shown.names > 0).then_some(shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::spec::Mode;
    use std::fs;

    fn stamp(vm: &str, generation: u64) -> Stamp {
        Stamp { generation, ..Stamp::fresh(vm, Mode::Shared).unwrap() }
    }

    fn fences() -> (tempfile::TempDir, Fences) {
        let directory = tempfile::tempdir().unwrap();
        let fences = Fences::of(&directory.path().join("a.lockstep"));
        (directory, fences)
    }

    fn raised(fences: &Fences, stamp: &Stamp, seen: u64) -> Fence {
        let Raised::Newest(number) = fences.raise(stamp, seen).unwrap() else { panic!("passed") };
        Fence::open(&fences.path(number)).unwrap().unwrap()
    }

    #[test]
    fn it_falls_with_the_next_one_and_not_before() {
        let (directory, fences) = fences();
        let first = raised(&fences, &stamp("vm", 3), 0);
        assert_eq!(fences.newest().unwrap().unwrap().1.generation, 3);
        // What people and their programs do to files.
        let path = fences.path(1);
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        assert!(first.holds().unwrap() && first.holds().unwrap());
        fs::hard_link(&path, directory.path().join("kept")).unwrap();
        assert!(first.holds().unwrap());
        let second = raised(&fences, &stamp("vm", 4), 0);
        assert!(!first.holds().unwrap(), "although there is a link to it");
        assert!(second.holds().unwrap());
        fs::remove_file(fences.path(2)).unwrap();
        assert!(!second.holds().unwrap());
    }

    #[test]
    fn a_late_stamp_does_not_take_the_place_of_a_newer_one() {
        let (_directory, fences) = fences();
        let old = raised(&fences, &stamp("vm", 3), 0);
        let newest = raised(&fences, &stamp("vm", 5), 0);
        assert_eq!(fences.raise(&stamp("vm", 4), 1).unwrap(), Raised::Passed(5));
        assert!(newest.holds().unwrap() && !old.holds().unwrap());
        // The same host once more.
        let again = raised(&fences, &stamp("vm", 5), 2);
        assert!(again.holds().unwrap() && !newest.holds().unwrap());
        // An arbiter that was set up anew, and another VM: whoever has seen the newest goes on from there.
        let anew = raised(&fences, &stamp("vm", 1), 3);
        assert!(anew.holds().unwrap());
        assert!(raised(&fences, &stamp("other", 1), 0).holds().unwrap());
        assert!(!anew.holds().unwrap());
        fences.clear().unwrap();
        assert_eq!(fences.newest().unwrap(), None);
    }

    #[test]
    fn a_damaged_stamp_is_not_taken_for_none() {
        let (_directory, fences) = fences();
        raised(&fences, &stamp("vm", 3), 0);
        fs::write(fences.path(1), "{}").unwrap();
        assert!(matches!(fences.raise(&stamp("vm", 4), 0), Err(StampError::Damaged { .. })));
        assert!(matches!(fences.newest(), Err(StampError::Damaged { .. })));
    }
}
