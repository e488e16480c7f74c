//! What holds an image's bytes: a file or a block device, seen as the few system calls that are made on it. Calls may do less than was
//! asked for, as `pread` and `pwrite` may; [`Image`](super::image::Image) goes on from there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::unistd::{Whence, lseek};

/// Bytes at positions. Any number of threads may call at the same time.
pub trait Medium: Send + Sync {
    /// Reads at `at`; returns how many bytes it was.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Reads at `at` if that needs no waiting; else [`WouldBlock`](io::ErrorKind::WouldBlock), or fewer bytes.
    fn try_read_at(&self, _buffer: &mut [u8], _at: u64) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Writes at `at`; returns how many bytes it was.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;

    /// Everything written is on stable storage when it returns.
    fn sync(&self) -> io::Result<()>;

    /// The range reads as zeros, and its room is given back. [`Unsupported`](io::ErrorKind::Unsupported) where that cannot be.
    fn punch(&self, at: u64, length: u64) -> io::Result<()>;

    /// The range reads as zeros, and keeps its room. [`Unsupported`](io::ErrorKind::Unsupported) where that cannot be.
    fn zero(&self, at: u64, length: u64) -> io::Result<()>;

    /// The first range at or after `from` that may hold something else than zeros: (beginning, end).
    fn data_from(&self, from: u64) -> io::Result<Option<(u64, u64)>>;
}

/// A file or a block device.
pub struct RawFile {
    file: File,
    size: u64,
    /// Some file systems cannot say whether a read would wait.
    can_try: AtomicBool,
    /// A write that had been accepted did not reach the storage. The kernel says so once and forgets; here it is remembered.
    lost_writes: AtomicBool,
}

impl RawFile {
    /// Opens `path`; `direct`: past the host's memory.
    pub fn open(path: &Path, read_only: bool, direct: bool) -> io::Result<Self> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a block device"));
        }
        // The length of a block device is not in its metadata.
        let size = lseek(&file, 0, Whence::SeekEnd)? as u64;
        let (can_try, lost_writes) = (AtomicBool::new(!direct), AtomicBool::new(false));
        Ok(RawFile { file, size, can_try, lost_writes })
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn fallocate(&self, mode: FallocateFlags, at: u64, length: u64) -> io::Result<()> {
        fallocate(&self.file, mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, at as i64, length as i64).map_err(|errno| {
            match errno {
                nix::Error::EOPNOTSUPP | nix::Error::ENOSYS | nix::Error::ENODEV => io::ErrorKind::Unsupported.into(),
                errno => errno.into(),
            }
        })
    }
}

impl Medium for RawFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buffer, at)
    }

    fn try_read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        if !self.can_try.load(SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: the one element of the vector is `buffer`, which is exclusively ours during the call.
        let read = unsafe { libc::preadv2(self.file.as_raw_fd(), &vector, 1, at as i64, libc::RWF_NOWAIT) };
        if read >= 0 {
            return Ok(read as usize);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {
                self.can_try.store(false, SeqCst);
                Err(io::ErrorKind::WouldBlock.into())
            }
            _ => Err(error),
        }
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.file.write_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        let result = self.file.sync_data();
        if result.is_err() {
            self.lost_writes.store(true, SeqCst);
        }
        if self.lost_writes.load(SeqCst) {
            return Err(result
                .err()
                .unwrap_or_else(|| io::Error::other("an earlier flush has failed, and what it lost is lost")));
        }
        Ok(())
    }

    fn punch(&self, at: u64, length: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, at, length)
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, at, length)
    }

    fn data_from(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        match lseek(&self.file, from as i64, Whence::SeekData) {
            Ok(begin) => {
                let end = lseek(&self.file, begin, Whence::SeekHole)?;
                Ok(Some((begin as u64, end as u64)))
            }
            Err(nix::Error::ENXIO) => Ok(None),
            // A block device has no holes to tell of.
            Err(nix::Error::EINVAL) => Ok((from < self.size).then_some((from, self.size))),
            Err(errno) => Err(errno.into()),
        }
    }
}
