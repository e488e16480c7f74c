//! A TAP device: a network interface of the host whose other end is a file. A write to it is a frame that the interface
//! receives, a read from it one that the interface sent, each behind its virtio-net header.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use nix::libc;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

use crate::machine::packets::{HEADER, Offloads};

const DEVICE: &str = "/dev/net/tun";

mod ioctl {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(
        /// Attaches the file to the interface that is named.
        set_interface, libc::TUNSETIFF, libc::ifreq
    );
    nix::ioctl_write_ptr_bad!(
        /// Says how long the header before each frame is.
        set_header_size, libc::TUNSETVNETHDRSZ, libc::c_int
    );
    nix::ioctl_write_int_bad!(
        /// Says what the reader can do itself to the frames that it gets.
        set_offload, libc::TUNSETOFFLOAD
    );
}

/// Why a TAP device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// An interface's name has 1 to 15 bytes.
    #[error("`{0}` is no name of a network interface")]
    Name(String),
    /// There is no such interface.
    #[error("there is no TAP device `{0}`: make it with `ip tuntap add {0} mode tap` and `ip link set {0} up`")]
    Absent(String),
    /// The kernel has no TAP devices.
    #[error("cannot open {DEVICE}: load the kernel's module with `modprobe tun`, or let this process have the device")]
    NoDevice(#[source] io::Error),
    /// It belongs to somebody else.
    #[error(
        "no permission to use the TAP device `{0}`: make it with `ip tuntap add {0} mode tap user USER`, or run as root"
    )]
    Permission(String),
    /// A TAP device has one user at a time.
    #[error("another process has the TAP device `{0}`: every machine needs one of its own")]
    Busy(String),
    /// An interface of another kind.
    #[error("`{0}` is no TAP device with one queue: make one with `ip tuntap add NAME mode tap`")]
    NotTap(String),
    /// Anything else.
    #[error("cannot set the TAP device `{name}` up")]
    Setup {
        /// The device.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// An open TAP device, which nobody else can open meanwhile.
pub struct Tap {
    file: Arc<File>,
}

impl Tap {
    /// Opens the device `name`, which must be there: one that this call made would have no address and no bridge.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let named = || name.to_owned();
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/', '%']) {
            return Err(TapError::Name(named()));
        }
        if_nametoindex(name).map_err(|_| TapError::Absent(named()))?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
        let file = file.map_err(TapError::NoDevice)?;
        // SAFETY: `ifreq` is plain old data, for which all zero bytes are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, &from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: the file is open, and the request an initialised `ifreq` with a name that ends in a zero byte, which the
        // kernel only reads and writes during the call.
        unsafe { ioctl::set_interface(file.as_raw_fd(), &request) }.map_err(|error| match error {
            nix::Error::EPERM => TapError::Permission(named()),
            nix::Error::EBUSY => TapError::Busy(named()),
            nix::Error::EINVAL => TapError::NotTap(named()),
            other => TapError::Setup { name: named(), source: other.into() },
        })?;
        let setup = |error: nix::Error| TapError::Setup { name: named(), source: error.into() };
        // SAFETY: the file is an attached TAP device, and the kernel reads one integer.
        unsafe { ioctl::set_header_size(file.as_raw_fd(), &(HEADER as libc::c_int)) }.map_err(setup)?;
        let tap = Tap { file: Arc::new(file) };
        tap.set_offloads(Offloads::default()).map_err(|source| TapError::Setup { name: named(), source })?;
        if !is_up(name) {
            tracing::warn!("the TAP device {name} is down, nothing goes through it: `ip link set {name} up`");
        }
        Ok(tap)
    }

    /// The open file.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Says what the guest does itself to the frames that it gets; without, the kernel hands out whole frames of the link's
    /// length with their checksums.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let checksum = if offloads.guest_csum { libc::TUN_F_CSUM } else { 0 };
        let segments = if offloads.guest_tso4 { libc::TUN_F_TSO4 } else { 0 };
        // SAFETY: the file is an attached TAP device, and the argument a number.
        unsafe { ioctl::set_offload(self.file.as_raw_fd(), (checksum | segments) as libc::c_int) }?;
        Ok(())
    }

    /// Reads one frame with its header; `None`: there is none now.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&*self.file).read(buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes one frame with its header.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            match (&*self.file).write(packet) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A frame is taken whole or not at all.
                result => return result.map(drop),
            }
        }
    }
}

/// Whether an error means that the device is not there any more, rather than that it does not like a frame.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EFAULT | libc::ENODEV))
}

/// Whether somebody has switched the interface on. Where that cannot be seen, it is taken for yes: this is only for a warning.
fn is_up(name: &str) -> bool {
    nix::ifaddrs::getifaddrs().map_or(true, |mut all| {
        all.find(|one| one.interface_name == name).is_none_or(|one| one.flags.contains(InterfaceFlags::IFF_UP))
    })
}
