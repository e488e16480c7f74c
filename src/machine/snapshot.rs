//! What a log starts from. Here: the boot of a guest, as image and configuration, complete enough
//! to run the guest anywhere on the same kind of CPU.

use bincode::{Decode, Encode};

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

/// The state of a machine at an instant, without its memory: with that, and the boot it came from, the machine can be made anywhere on the
/// same kind of CPU.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MachineState {
    /// Guest-caused exits before it.
    pub exits: u64,
    /// Safepoints before it.
    pub polls: u64,
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
