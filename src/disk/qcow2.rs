//! qcow2 images, by way of the `imago` crate. It keeps parts of the image's tables in this process' memory, so such an image belongs to one host; and it serves one that stands on
//! its own, without a backing file.

use std::io;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Storage, StorageOpenOptions};

use super::DiskError;
use super::image::Image;
use super::medium::Medium;
use super::spec::DiskSpec;
use crate::machine::blocks::SECTOR;

struct Qcow2Medium(FormatAccess<File>);

impl Medium for Qcow2Medium {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let length = buffer.len();
        self.0.read(buffer, at)?;
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.0.write(bytes, at)?;
        Ok(bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.flush()?;
        self.0.sync()
    }

    // imago 0.2.6 clears parts of a cluster in a way that can go wrong (it counts below zero in an image smaller than a cluster), and looks at the rest of it without keeping writers
    // off. Zeros that are written are as good.
    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn data_from(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let size = self.0.size();
        Ok((from < size).then_some((from, size)))
    }
}

/// Opens a qcow2 image.
pub(super) fn open(spec: &DiskSpec) -> Result<Image, DiskError> {
    let path = &spec.file;
    let opened = || -> io::Result<FormatAccess<File>> {
        let options = StorageOpenOptions::new().filename(path).write(!spec.read_only);
        let builder = Qcow2::<File>::builder(File::open(options)?).write(!spec.read_only);
        Ok(FormatAccess::new(builder.open(DenyImplicitOpenGate::default())?))
    };
    let access = opened().map_err(|source| DiskError::Qcow2 { path: path.clone(), source })?;
    let size = access.size();
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(DiskError::Size { path: path.clone(), size, unit: SECTOR });
    }
    Ok(super::open::with_faults(spec, Qcow2Medium(access), size, 1))
}
