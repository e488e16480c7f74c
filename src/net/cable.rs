//! The cable of the guest's card: a [TAP device](super::tap) or a [stream socket](super::socket), used in the same way. Nothing
//! here waits.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::socket::{Socket, SocketError};
use super::spec::Backend;
use super::tap::{self, Tap, TapError};
use crate::machine::packets::{Offloads, Packets};

/// Why there is no cable.
#[derive(Debug, thiserror::Error)]
pub enum CableError {
    /// The TAP device cannot be opened.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The TAP device was removed.
    #[error("the TAP device is gone")]
    TapGone(#[source] io::Error),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// How sending went.
#[derive(Debug)]
pub enum Sent {
    /// So many packets have left; at least one.
    Left(usize),
    /// The other end takes nothing now.
    Full,
    /// The other end does not want the first one.
    Refused,
}

/// What to wait for when the cable is full or empty. Keeps the file open, but not the cable plugged in.
#[derive(Clone)]
pub enum Handle {
    /// Of a TAP device.
    Tap(Arc<File>),
    /// Of a socket.
    Socket(Arc<UnixStream>),
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Handle::Tap(file) => file.as_raw_fd(),
            Handle::Socket(stream) => stream.as_raw_fd(),
        }
    }
}

/// A cable that is plugged in.
pub enum Cable {
    /// A TAP device, and a buffer for its longest frame.
    Tap(Tap, Box<[u8]>),
    /// A connection.
    Socket(Socket),
}

impl Cable {
    /// Plugs it in.
    pub fn open(backend: &Backend) -> Result<Self, CableError> {
        Ok(match backend {
            Backend::Tap(name) => Cable::Tap(Tap::open(name)?, vec![0; Packets::MAX_PACKET].into_boxed_slice()),
            Backend::Socket(path) => Cable::Socket(Socket::connect(path)?),
        })
    }

    /// What to wait for.
    pub fn handle(&self) -> Handle {
        match self {
            Cable::Tap(tap, _) => Handle::Tap(tap.file()),
            Cable::Socket(socket) => Handle::Socket(socket.stream()),
        }
    }

    /// Says what the guest does itself to the frames that come. A socket's are always whole.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        match self {
            Cable::Tap(tap, _) => tap.set_offloads(offloads),
            Cable::Socket(_) => Ok(()),
        }
    }

    /// Adds packets that have come to `packets`, `most` in all; `false`: there are no more now.
    pub fn receive(&mut self, packets: &mut Packets, most: usize) -> Result<bool, CableError> {
        match self {
            Cable::Tap(tap, buffer) => {
                while packets.len() < most && packets.has_room(buffer.len()) {
                    match tap.receive(buffer) {
                        // What does not fit is no Ethernet frame.
                        Ok(Some(length)) => packets.push(&buffer[..length]),
                        Ok(None) => return Ok(false),
                        Err(error) if tap::is_gone(&error) => return Err(CableError::TapGone(error)),
                        // It is down.
                        Err(_) => return Ok(false),
                    };
                }
                Ok(true)
            }
            Cable::Socket(socket) => Ok(socket.receive(packets, most)?),
        }
    }

    /// Sends packets from number `from` on. It may be fewer than all; ask again.
    pub fn send(&mut self, packets: &Packets, from: usize) -> Result<Sent, CableError> {
        match self {
            Cable::Tap(tap, _) => match packets.get(from).map(|packet| tap.send(packet)) {
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Full),
                Some(Err(error)) if tap::is_gone(&error) => Err(CableError::TapGone(error)),
                // It is down.
                Some(Err(_)) => Ok(Sent::Refused),
                Some(Ok(())) | None => Ok(Sent::Left(1)),
            },
            Cable::Socket(socket) => match socket.send(packets, from)? {
                0 => Ok(Sent::Full),
                count => Ok(Sent::Left(count)),
            },
        }
    }

    /// Whether a packet has left in part: nothing but its rest may come next.
    pub fn in_a_packet(&self) -> bool {
        match self {
            Cable::Tap(..) => false,
            Cable::Socket(socket) => socket.in_a_frame(),
        }
    }
}
