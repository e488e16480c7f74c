//! What a log starts from: the boot of a guest, as image and configuration, complete enough to run the guest anywhere on the
//! same kind of CPU; and the state of a machine that has run from there.

use bincode::{Decode, Encode};

use super::vcpu_state::VcpuState;
use crate::devices::{DeviceStateError, DevicesState};

/// Everything that decides how a guest boots. A log carries it, and a pair sends it to its backup.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Boot {
    /// The VM's name.
    pub name: String,
    /// Guest memory in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// The kernel command line handed over by PVH.
    pub command_line: String,
    /// The wall clock at boot, in nanoseconds since 1970 UTC.
    pub boot_time_ns: u64,
    /// The network card, if there is one.
    pub net: Option<NicConfig>,
    /// The disk, if there is one.
    pub disk: Option<DiskConfig>,
    /// The CPUID leaves the guest sees.
    pub cpuid: Vec<CpuidLeaf>,
    /// The guest's ELF image.
    pub image: Vec<u8>,
}

/// The network card as the guest finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NicConfig {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The longest IP packet of its link, in bytes.
    pub mtu: u16,
    /// Whether it offers checksum and segmentation offloads.
    pub offloads: bool,
}

/// The disk as the guest finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DiskConfig {
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// What the guest is told when it asks for the disk's name (`VIRTIO_BLK_T_GET_ID`), padded with zeros.
    pub serial: [u8; 20],
    /// Random number of the disk's contents: what images of them are known by.
    pub identity: u128,
}

/// Version of [`MachineState`].
pub const STATE_VERSION: u32 = 1;

/// The state of a machine at an instant, without its memory: with that, and the boot it came from, the machine can be made anywhere on the
/// same kind of CPU.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MachineState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Guest-caused exits before it.
    pub exits: u64,
    /// Safepoints before it.
    pub polls: u64,
    /// The guest waits in `hlt`.
    pub halted: bool,
    /// The guest waits at the waiting port.
    pub waiting: bool,
    /// The operator has paused the machine.
    pub paused: bool,
    /// The guest's safepoint page, if it has named one.
    pub safepoints: Option<SafepointState>,
    /// The processor.
    pub vcpu: VcpuState,
    /// The devices.
    pub devices: DevicesState,
}

/// A guest's safepoint page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SafepointState {
    /// Its guest-physical address.
    pub page: u64,
    /// The count in it.
    pub count: u64,
}

/// A state that no machine can be in, or none of this boot.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Written by another version.
    #[error("the machine's state has version {0}, not {STATE_VERSION}")]
    Version(u32),
    /// Counts beyond what a guest can reach.
    #[error("the machine's state is after {0} exits, which no guest reaches")]
    Exits(u64),
    /// The safepoint page does not lie in memory.
    #[error("the guest's safepoint page is at {0:#x}, where there is none")]
    SafepointPage(u64),
    /// The devices.
    #[error(transparent)]
    Device(#[from] DeviceStateError),
}

/// One CPUID leaf of the guest's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CpuidLeaf {
    /// `eax` on input.
    pub leaf: u32,
    /// `ecx` on input; `None` where the leaf has no subleaves.
    pub subleaf: Option<u32>,
    /// `eax`, `ebx`, `ecx`, `edx` on output.
    pub registers: [u32; 4],
}
