//! From the nucleus to the application: reads what PVH handed over, brings the services up in order, calls
//! `lockstep_main` and ends the machine with its result.

use crate::{Args, args, console, gate, memory, pv, safepoint, time};

/// `hvm_start_info`, version 1 (Xen's `start_info.h`).
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

const START_INFO_MAGIC: u32 = 0x336e_c578;

/// One range of `hvm_start_info`'s memory map.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MemoryRange {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// 1 is RAM, as in the E820 map.
    pub(crate) kind: u32,
    reserved: u32,
}

unsafe extern "Rust" {
    fn lockstep_main(args: Args) -> u8;
}

/// Where the nucleus enters ring 3.
#[unsafe(no_mangle)]
extern "C" fn runtime_start(start_info: *const StartInfo) -> ! {
    // SAFETY: PVH: ebx points to this structure, and the identity map covers the first 4 GiB. Nothing has
    // been written to memory outside the image yet, so what it points to is still there.
    let (command_line, ranges) = unsafe {
        let info = &*start_info;
        assert!(info.magic == START_INFO_MAGIC && info.version >= 1, "no PVH start info with a memory map");
        (
            info.command_line as *const core::ffi::c_char,
            core::slice::from_raw_parts(info.memory_map as *const MemoryRange, info.memory_map_entries as usize),
        )
    };
    // SAFETY: PVH: a null-terminated string, or null.
    unsafe { args::keep(command_line) };
    memory::init(ranges);
    let args = Args::new();

    pv::detect();
    safepoint::register();
    console::init();
    time::init(args.number("hz").unwrap_or(time::DEFAULT_HZ));
    if !pv::present() {
        crate::println!("no lockstep machine: the clock counts ticks, entropy is a fixed sequence");
    }

    // SAFETY: `app!` defines it with this signature.
    let code = unsafe { lockstep_main(args) };
    console::flush();
    gate::exit(code)
}
