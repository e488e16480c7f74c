//! The disk outside of the deterministic machine: images, and the requests of a guest on their way to them and back.

pub mod port;
pub mod spec;

use std::path::PathBuf;

/// What can be wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image cannot be opened, read or written.
    #[error("cannot {what} the disk image {}", path.display())]
    Image {
        /// What was tried.
        what: &'static str,
        /// The image.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
