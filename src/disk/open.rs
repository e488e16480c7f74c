//! From what `--disk` says to an image that this process holds, with its lock and its stamp.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::DiskError;
use super::faults::Faulty;
use super::fence::Fences;
use super::image::{Image, MAX_ALIGN};
use super::lock::{self, Hold};
use super::medium::{Medium, RawFile};
use super::spec::{Cache, DiskSpec, Format, Mode};
use super::stamp::{ImageRole, Stamp, StampError, random};
use crate::machine::blocks::SECTOR;

/// Who opens an image.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// A VM of this name without a partner.
    Alone(&'a str),
    /// A host of a pair that runs the VM of this name.
    Pair(&'a str),
}

impl Owner<'_> {
    /// The VM's name.
    pub fn vm(&self) -> &str {
        match self {
            Owner::Alone(vm) | Owner::Pair(vm) => vm,
        }
    }
}

/// An image that this process holds.
pub struct Opened {
    /// The image.
    pub image: Image,
    /// Open as long as the lock shall last.
    pub lock: File,
    /// What is known of it; `None`: it is read-only and has no stamp.
    pub stamp: Option<Stamp>,
    /// Where its stamp is.
    pub stamp_path: PathBuf,
    /// Where those of hosts that share it are, and the number of the newest. `None`: it is not shared, or cannot be changed.
    pub fences: Option<Fences>,
    /// Number of the newest of these.
    pub seen: u64,
    /// What is on it, as far as it is known: of two images, equal numbers mean equal contents. Zero: not known.
    pub contents: u128,
}

/// What other images begin with.
const MAGICS: [(&[u8], &str); 3] =
    [(b"QFI\xfb", "a qcow2 image"), (b"KDMV", "a VMDK image"), (b"vhdxfile", "a VHDX image")];

/// Opens the image of `spec` for `owner`.
pub fn open(spec: &DiskSpec, owner: Owner) -> Result<Opened, DiskError> {
    let path = &spec.file;
    let failed = |what| move |source| DiskError::Image { what, path: path.clone(), source };
    let lock = File::options().read(true).write(!spec.read_only).open(path).map_err(failed("open"))?;
    let hold = match (spec.read_only, spec.mode, owner) {
        (true, _, _) => Hold::Reading,
        (false, Mode::Shared, Owner::Pair(vm)) => Hold::With(vm),
        (false, Mode::Separate, Owner::Pair(_)) | (false, _, Owner::Alone(_)) => Hold::Alone,
    };
    if !lock::lock(&lock, hold).map_err(failed("lock"))? {
        return Err(DiskError::InUse { path: path.clone() });
    }
    // Looked at through the host's memory: a few bytes cannot be read past it.
    let raw = RawFile::open(path, spec.read_only, false).map_err(failed("open"))?;
    let mut first = [0; 8];
    let read = if raw.size() >= 8 { raw.read_at(&mut first, 0).map_err(failed("read"))? } else { 0 };
    let looks_like = MAGICS.iter().find(|(magic, _)| first[..read].starts_with(magic)).map(|(_, name)| *name);
    let image = match (spec.format, looks_like) {
        (None, Some(looks_like)) => return Err(DiskError::Format { path: path.clone(), looks_like }),
        (Some(Format::Qcow2), _) => super::qcow2::open(spec)?,
        (None | Some(Format::Raw), _) => open_raw(spec, raw)?,
    };
    let stamp_path = spec.stamp.clone().unwrap_or_else(|| beside(path));
    let fences = Fences::of(&stamp_path);
    let (stamp, seen) = read_stamp(spec, owner, &stamp_path, &fences, hold == Hold::Alone)?;
    let contents = match &stamp {
        // What was not brought to its end is like no other image.
        Some(stamp) if !stamp.clean && spec.mode == Mode::Separate => random().map_err(failed("name"))?,
        Some(stamp) if spec.mode == Mode::Separate => stamp.contents(),
        Some(stamp) => stamp.disk(),
        None => 0,
    };
    let fences = (spec.mode == Mode::Shared && !spec.read_only).then_some(fences);
    Ok(Opened { image, lock, stamp, stamp_path, fences, seen, contents })
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".lockstep");
    path.with_file_name(name)
}

/// Reads or makes the stamp, and refuses an image that is none of its VM's own where there is nobody else to ask. Says the number of the newest stamp of
/// hosts that share it, too.
fn read_stamp(
    spec: &DiskSpec,
    owner: Owner,
    path: &Path,
    fences: &Fences,
    alone: bool,
) -> Result<(Option<Stamp>, u64), DiskError> {
    let made = |source| StampError::File { what: "make", path: path.into(), source };
    let fresh = Stamp::fresh(owner.vm(), spec.mode).map_err(made)?;
    let newest = match fences.newest() {
        Err(StampError::Damaged { .. }) if spec.force && !spec.read_only => {
            fences.clear()?;
            None
        }
        newest => newest?,
    };
    let (stamp, mut seen) = match newest {
        Some((number, stamp)) => (Some(stamp), number),
        None => {
            let stamp = match Stamp::read(path) {
                Err(StampError::Damaged { .. }) if spec.force => {
                    fresh.write(path)?;
                    Some(fresh)
                }
                Ok(None) if !spec.read_only => Some(fresh.read_or_create(path)?),
                other => other?,
            };
            (stamp, 0)
        }
    };
    if let (Some(stamp), true, 1..) = (&stamp, alone, seen) {
        // Nobody shares it now: one stamp is enough, and says the same.
        stamp.write(path)?;
        fences.clear()?;
        seen = 0;
    }
    if let (Some(stamp), Owner::Alone(_)) = (&stamp, owner)
        && !spec.force
    {
        match stamp.role {
            ImageRole::Live => {}
            ImageRole::Following => return Err(DiskError::Following { path: spec.file.clone() }),
            ImageRole::Copying => return Err(DiskError::Copying { path: spec.file.clone() }),
        }
    }
    Ok((stamp, seen))
}

fn open_raw(spec: &DiskSpec, raw: RawFile) -> Result<Image, DiskError> {
    let path = &spec.file;
    let (raw, align) = match spec.cache {
        Cache::Writeback => (raw, 1),
        Cache::None => open_direct(spec)?,
    };
    let (size, unit) = (raw.size(), align.max(SECTOR));
    if size == 0 || !size.is_multiple_of(unit) {
        return Err(DiskError::Size { path: path.clone(), size, unit });
    }
    Ok(with_faults(spec, raw, size, align))
}

/// The image on `medium`, with the faults that are asked for.
pub(super) fn with_faults(spec: &DiskSpec, medium: impl Medium + 'static, size: u64, align: u64) -> Image {
    let medium: Box<dyn Medium> = match &spec.faults {
        Some(faults) => Box::new(Faulty::new(medium, faults.clone(), align)),
        None => Box::new(medium),
    };
    Image::new(medium, size, align, spec.mode == Mode::Separate)
}

/// Opens it past the host's memory, and finds out how large the blocks are that have to be read and written as a whole.
fn open_direct(spec: &DiskSpec) -> Result<(RawFile, u64), DiskError> {
    let path = &spec.file;
    let no_direct = |error: io::Error| match error.raw_os_error() {
        Some(nix::libc::EINVAL) => DiskError::NoDirect { path: path.clone() },
        _ => DiskError::Image { what: "open", path: path.clone(), source: error },
    };
    let raw = RawFile::open(path, spec.read_only, true).map_err(no_direct)?;
    let mut memory = vec![0; 3 * MAX_ALIGN as usize];
    let start = memory.as_ptr().align_offset(MAX_ALIGN as usize);
    for align in [SECTOR, 1024, 2048, MAX_ALIGN] {
        // At a position and in memory that are multiples of nothing larger.
        let at = if raw.size() >= 2 * align { align } else { 0 };
        let part = &mut memory[start + align as usize..][..align as usize];
        match raw.read_at(part, at) {
            Ok(_) => return Ok((raw, align)),
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {}
            Err(error) => return Err(no_direct(error)),
        }
    }
    Err(DiskError::NoDirect { path: path.clone() })
}
