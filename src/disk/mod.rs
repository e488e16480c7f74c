//! The disk outside of the deterministic machine: images, and the requests of a guest on their way to them and back.
//!
//! | room | its one job |
//! | --- | --- |
//! | [`spec`] | what `--disk` says |
//! | [`port`] | the meeting point: requests of the guest, their completions, and who may change the image |
//! | [`requests`] | which request may begin, and which waits for what: pure data |
//! | `engine` | the threads that carry requests out |
//! | [`image`] | whole requests, made of single calls |
//! | [`medium`] | the calls: files and block devices |
//! | [`open`] | from the option to an image that this process holds |
//! | `qcow2` | images of QEMU's format |
//! | [`copy`] | which parts of an image a new backup lacks |
//! | [`stamp`] | what is known of an image: whose, of which generation, whole or not |
//! | [`fence`] | whose going live was the last one, where hosts share an image: nobody else changes it |
//! | [`lock`] | who has it open |
//! | [`faults`] | things that go wrong on purpose |

pub mod copy;
mod engine;
pub mod faults;
pub mod fence;
pub mod image;
pub mod lock;
pub mod medium;
pub mod open;
pub mod port;
mod qcow2;
pub mod requests;
pub mod spec;
pub mod stamp;

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
    /// Its file system has no way past the host's memory.
    #[error(
        "the disk image {} cannot be written past this host's memory (O_DIRECT), so another host would not find there what the guest has written: put it on storage that can, or add \
         cache=writeback if both sides run on one host",
        path.display()
    )]
    NoDirect {
        /// The image.
        path: PathBuf,
    },
    /// Its length.
    #[error("the disk image {} is {size} bytes long: it has to be a multiple of {unit}, and not 0", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its length in bytes.
        size: u64,
        /// What it has to be a multiple of.
        unit: u64,
    },
    /// It looks like something else than sectors one after the other.
    #[error(
        "the disk image {} looks like {looks_like}: say format=qcow2 if it is one, convert it (qemu-img convert -O raw), or say format=raw if its first bytes only look so",
        path.display()
    )]
    Format {
        /// The image.
        path: PathBuf,
        /// What it looks like.
        looks_like: &'static str,
    },
    /// It was said to be what it is not, or uses what there is not here.
    #[error("the disk image {} cannot be used as qcow2", path.display())]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else has it.
    #[error("the disk image {} is in use by another VM or another process of this one", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// Its stamp.
    #[error(transparent)]
    Stamp(#[from] stamp::StampError),
    /// It was the copy of a backup.
    #[error(
        "the disk image {} is the copy that a backup kept, and the VM may have gone on without it: start the VM where its own image is, and this host as its backup; if you know that this image is the right one, add `,force`",
        path.display()
    )]
    Following {
        /// The image.
        path: PathBuf,
    },
    /// It was on its way to become a copy.
    #[error(
        "the disk image {} is an unfinished copy: start the VM where its own image is, and this host as its backup, which gets a new copy",
        path.display()
    )]
    Copying {
        /// The image.
        path: PathBuf,
    },
    /// The VM has gone on elsewhere.
    #[error(
        "the disk image {} is stale: it is of generation {image}, and the VM has gone on elsewhere as generation {vm}. Start the VM there, and this host as its backup; if you know that this image is the right one, add `,force`",
        path.display()
    )]
    Stale {
        /// The image.
        path: PathBuf,
        /// Its generation.
        image: u64,
        /// The VM's.
        vm: u64,
    },
    /// The primary's disk is another one.
    #[error("the disk image {} is not the primary's disk: {why}", path.display())]
    Misfit {
        /// The image.
        path: PathBuf,
        /// In what they differ.
        why: Misfit,
    },
    /// This host has no copy of what is on the primary's disk.
    #[error("the disk image {} is no copy of the primary's disk", path.display())]
    NotACopy {
        /// The image.
        path: PathBuf,
    },
    /// The image could not do what the primary's did.
    #[error("the disk image {} could not do what the primary's did, and is no copy of it any more", path.display())]
    Broken {
        /// The image.
        path: PathBuf,
    },
    /// A piece of a copy that lies outside of the image.
    #[error("a piece of a copy ({length} bytes at {at}) does not lie in the disk image {}", path.display())]
    Piece {
        /// The image.
        path: PathBuf,
        /// Where it begins.
        at: u64,
        /// Its length.
        length: u32,
    },
    /// What only a separate image that can be written does.
    #[error("the disk image {} cannot become a copy: only one with mode=separate can, and not a read-only one", path.display())]
    NotSeparate {
        /// The image.
        path: PathBuf,
    },
}

/// In what a backup's disk differs from its primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The size.
    #[error("it has {own} sectors, and the primary's {primary}")]
    Size {
        /// Of this one.
        own: u64,
        /// Of the primary's.
        primary: u64,
    },
    /// It is another image.
    #[error("its stamp says that it is another image (with mode=shared both hosts name the same one)")]
    Other,
    /// One can be written, the other cannot.
    #[error("one of the two is read-only (`ro`), the other is not")]
    ReadOnly,
}
