//! The network outside of the guest's card: where its packets come from and go to.
//!
//! | room | its one job |
//! | --- | --- |
//! | [`spec`] | what `--net` says |
//! | [`port`] | the meeting point: packets for the guest, packets that wait for their release, and who may send |
//! | [`pcap`] | captures of what is on the wire |

pub mod pcap;
pub mod port;
pub mod spec;

use std::io;
use std::path::PathBuf;

/// What can be wrong with a network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The capture.
    #[error("cannot write the capture {}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}
