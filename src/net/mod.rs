//! The network outside of the guest's card: where its packets come from and go to.
//!
//! | room | its one job |
//! | --- | --- |
//! | [`spec`] | what `--net` says |
//! | [`port`] | the meeting point: packets for the guest, packets that wait for their release, and who may send |
//! | `carrier` | the task that carries its packets |
//! | `wire` | the cable, and what is on its way through it |
//! | [`cable`] | a TAP device or a stream socket, used in the same way |
//! | [`tap`], [`socket`] | each of them |
//! | [`received`] | packets that wait for the guest |
//! | [`replayed`] | what a replayed guest has sent and may be missing |
//! | [`announce`] | where the guest is: gratuitous ARP and RARP |
//! | [`pcap`] | captures of what is on the wire |

pub mod announce;
pub mod cable;
mod carrier;
pub mod pcap;
pub mod port;
pub mod received;
pub mod replayed;
pub mod socket;
pub mod spec;
pub mod strays;
pub mod tap;
mod wire;

use std::io;
use std::path::PathBuf;

use crate::machine::packets::{HEADER, Packets};

/// What can be wrong with a network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The cable cannot be plugged in.
    #[error(transparent)]
    Cable(#[from] cable::CableError),
    /// The capture.
    #[error("cannot write the capture {}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The bytes of these packets on a wire.
fn frame_bytes(packets: &Packets) -> u64 {
    (packets.bytes().len() - packets.len() * HEADER) as u64
}
