//! Booting a guest: an ELF image with a PVH note, entered in 32-bit protected mode.
//!
//! Source: Xen's `docs/misc/pvh.pandoc` (the x86/HVM direct boot ABI).

use std::io::Cursor;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::memory::Memory;
use super::snapshot::Boot;

const START_INFO: u64 = 0x6000;
const MEMORY_MAP: u64 = 0x6100;
const COMMAND_LINE: u64 = 0x7000;
/// The longest command line, in bytes, without its final NUL.
pub const MAX_COMMAND_LINE: usize = 4095;
const LOW_MEMORY_END: u64 = 0xa_0000;
const HIGH_MEMORY: u64 = 0x10_0000;

/// A guest that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The image does not load.
    #[error("the guest image is no ELF file that fits into the guest's memory ({})", innermost(.0))]
    Image(linux_loader::loader::Error),
    /// The image lacks a PVH note.
    #[error("the guest image has no PVH entry point (an ELF note of owner \"Xen\", type 18)")]
    NoPvhEntry,
    /// The command line is too long.
    #[error("the guest's command line is {0} bytes long; {MAX_COMMAND_LINE} are possible")]
    CommandLine(usize),
    /// A boot structure does not fit into memory.
    #[error("cannot write the boot structures")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// The loader wraps its errors in errors of the same words; the innermost says it all.
fn innermost(error: &linux_loader::loader::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The new types around loader structures exist to mark them as plain data.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct StartInfo(hvm_start_info);
// SAFETY: `hvm_start_info` is a C structure of integers without padding, as its specification lays it out.
unsafe impl ByteValued for StartInfo {}

#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct MemoryMapEntry(hvm_memmap_table_entry);
// SAFETY: `hvm_memmap_table_entry` is a C structure of integers without padding, as its specification lays it out.
unsafe impl ByteValued for MemoryMapEntry {}

/// Loads the image and the boot structures into zeroed memory; returns where the guest starts.
pub fn load(boot: &Boot, memory: &Memory) -> Result<u64, BootError> {
    if boot.command_line.len() > MAX_COMMAND_LINE {
        return Err(BootError::CommandLine(boot.command_line.len()));
    }
    let high = Some(GuestAddress(HIGH_MEMORY));
    let loaded = Elf::load(memory, None, &mut Cursor::new(&boot.image), high).map_err(BootError::Image)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else { return Err(BootError::NoPvhEntry) };

    let ram = |addr, size| MemoryMapEntry(hvm_memmap_table_entry { addr, size, type_: 1, reserved: 0 });
    let map = [ram(0, LOW_MEMORY_END), ram(HIGH_MEMORY, boot.memory_bytes - HIGH_MEMORY)];
    for (i, entry) in map.iter().enumerate() {
        memory.write_obj(*entry, GuestAddress(MEMORY_MAP + (i * size_of::<MemoryMapEntry>()) as u64))?;
    }
    memory.write_slice(boot.command_line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    let info = hvm_start_info {
        magic: 0x336e_c578, // "xEn3" with the high bit of the E set
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(StartInfo(info), GuestAddress(START_INFO))?;
    Ok(entry.0)
}

/// The registers with which the image is entered: flat 32-bit protected mode, paging off, `ebx` at the start info.
pub fn registers(entry: u64, reset: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let segment = |type_, s, db| kvm_segment { limit: u32::MAX, type_, present: 1, s, db, g: 1, ..Default::default() };
    let code = kvm_segment { selector: 0x08, ..segment(0xb, 1, 1) };
    let data = kvm_segment { selector: 0x10, ..segment(0x3, 1, 1) };
    let task = kvm_segment { limit: 0x67, g: 0, selector: 0x18, ..segment(0xb, 0, 0) };
    let sregs =
        kvm_sregs { cs: code, ds: data, es: data, fs: data, gs: data, ss: data, tr: task, cr0: 0x11, cr4: 0, ..reset };
    (kvm_regs { rip: entry, rbx: START_INFO, rflags: 2, ..Default::default() }, sregs)
}
