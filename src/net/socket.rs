//! A stream socket as a cable: each frame behind its length in four bytes, big endian, in both directions, as QEMU
//! (`-netdev stream`) and `passt` speak it. The frames there have no virtio-net header.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::machine::packets::{HEADER, Packets};

/// Bytes of the length before each frame.
const PREFIX: usize = 4;
/// The longest frame.
const MAX_FRAME: usize = Packets::MAX_PACKET - HEADER;
/// The shortest frame that is one.
const MIN_FRAME: usize = Packets::MIN_PACKET - HEADER;
/// What is read at once, at most: room for the longest frame and its length, and some more.
const INBOX_BYTES: usize = 128 << 10;
/// Frames that are written at once, at most.
const WRITE_FRAMES: usize = 64;

/// Why a socket cannot be used, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Nobody listens, or not for us.
    #[error("cannot connect to {}: start what listens there first (`passt --socket …`, say)", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The other end has gone.
    #[error("the other end closed the connection")]
    Closed,
    /// The other end breaks the rules.
    #[error("a frame of {0} bytes was announced; {MAX_FRAME} are possible")]
    TooLong(usize),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[from] io::Error),
}

/// A connection.
pub struct Socket {
    stream: Arc<UnixStream>,
    /// Bytes that were read and are no whole frame yet, from `begin` to `end`.
    inbox: Box<[u8]>,
    begin: usize,
    end: usize,
    /// How much of the frame that is being sent has left, its length included.
    sent: usize,
}

impl Socket {
    /// Connects to the socket `path`.
    pub fn connect(path: &Path) -> Result<Self, SocketError> {
        let stream = try_connect(path).map_err(|e| SocketError::Connect { path: path.to_owned(), source: e.into() })?;
        let inbox = vec![0; INBOX_BYTES].into_boxed_slice();
        Ok(Socket { stream: Arc::new(stream), inbox, begin: 0, end: 0, sent: 0 })
    }

    /// The connection.
    pub fn stream(&self) -> Arc<UnixStream> {
        self.stream.clone()
    }

    /// Adds frames that have come to `packets`, while there is room for `most`; `false`: there are no more now.
    pub fn receive(&mut self, packets: &mut Packets, most: usize) -> Result<bool, SocketError> {
        loop {
            while let Some(frame) = self.next_frame()? {
                let frame = self.begin + PREFIX..self.begin + PREFIX + frame;
                if !packets.has_room(HEADER + frame.len().max(MIN_FRAME)) || packets.len() >= most {
                    return Ok(true);
                }
                // What is shorter than an Ethernet header is nothing for a card.
                if frame.len() >= MIN_FRAME {
                    packets.push_with(|bytes| {
                        bytes.extend_from_slice(&[0; HEADER]);
                        bytes.extend_from_slice(&self.inbox[frame.clone()]);
                        true
                    });
                }
                self.begin = frame.end;
            }
            if !self.read()? {
                return Ok(false);
            }
        }
    }

    /// The length of the next frame, if all of it is here.
    fn next_frame(&self) -> Result<Option<usize>, SocketError> {
        let Some((prefix, rest)) = self.inbox[self.begin..self.end].split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(SocketError::TooLong(length));
        }
        Ok((rest.len() >= length).then_some(length))
    }

    /// Reads more; `false`: there is nothing now.
    fn read(&mut self) -> Result<bool, SocketError> {
        self.inbox.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        loop {
            match (&*self.stream).read(&mut self.inbox[self.end..]) {
                Ok(0) => return Err(SocketError::Closed),
                Ok(length) => {
                    self.end += length;
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends packets from number `from` on, as many as are taken at once; how many have left whole. One that has left in part
    /// must be the first at the next call.
    pub fn send(&mut self, packets: &Packets, from: usize) -> Result<usize, SocketError> {
        let mut prefixes = [[0; PREFIX]; WRITE_FRAMES];
        let mut slices = [IoSlice::new(&[]); 2 * WRITE_FRAMES];
        let frames = (from..packets.len()).take(WRITE_FRAMES).filter_map(|index| packets.get(index));
        let count = frames.clone().count();
        for (prefix, packet) in prefixes.iter_mut().zip(frames.clone()) {
            *prefix = ((packet.len() - HEADER) as u32).to_be_bytes();
        }
        for (pair, (prefix, packet)) in slices.chunks_exact_mut(2).zip(prefixes.iter().zip(frames)) {
            (pair[0], pair[1]) = (IoSlice::new(prefix), IoSlice::new(&packet[HEADER..]));
        }
        let mut rest = &mut slices[..2 * count];
        IoSlice::advance_slices(&mut rest, self.sent);
        let written = loop {
            match (&*self.stream).write_vectored(rest) {
                Ok(written) => break written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        };
        self.sent += written;
        let mut left = 0;
        while let Some(packet) = packets.get(from + left).filter(|_| left < count) {
            let whole = PREFIX + packet.len() - HEADER;
            if self.sent < whole {
                break;
            }
            self.sent -= whole;
            left += 1;
        }
        Ok(left)
    }

    /// Whether a frame has left in part: nothing but its rest may come next.
    pub fn in_a_frame(&self) -> bool {
        self.sent > 0
    }
}

/// Connects without waiting: a listener whose queue is full is one that does not listen.
fn try_connect(path: &Path) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}
