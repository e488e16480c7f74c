//! The KVM virtual machine and its one vCPU. A raw exit becomes an enum of our own here, and nothing outside knows KVM.

use kvm_bindings::{
    KVM_CAP_X86_MSR_FILTER, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES,
    Msrs, kvm_interrupt, kvm_msr_entry, kvm_run, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuExit, VcpuFd, VmFd};
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::ioctl::ioctl_with_ref;
use xxhash_rust::xxh3::Xxh3Default;

use super::cpuid;
use super::memory::Memory;
use super::snapshot::CpuidLeaf;
use super::vcpu_state::{self, VcpuState};

/// The ioctl that `kvm-ioctls` has no wrapper for.
mod ioctl {
    #![allow(missing_docs, reason = "the macro leaves no place for them")]
    vmm_sys_util::ioctl_iow_nr!(KVM_INTERRUPT, 0xae, 0x86, kvm_bindings::kvm_interrupt);
}
use ioctl::KVM_INTERRUPT;

/// The MSRs a guest may use. Everything else, the time-stamp counter first of all, is a general protection fault.
/// Ranges of (first, how many).
const GUEST_MSRS: [(u32, u32); 4] = [
    (0x174, 3),       // SYSENTER_CS, _ESP, _EIP
    (0x277, 1),       // PAT
    (0xc000_0080, 5), // EFER, STAR, LSTAR, CSTAR, SFMASK
    (0xc000_0100, 3), // FS, GS and kernel GS base
];

/// What can be wrong with KVM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` does not open.
    #[error(
        "cannot open /dev/kvm: is this machine capable of KVM, is the module loaded, and may this user (group kvm) open it?"
    )]
    Open(#[source] kvm_ioctls::Error),
    /// `/dev/kvm` opens, but something else is behind it.
    #[error("/dev/kvm is no KVM of version 12 (it answers {0}): is the right device bound there?")]
    NotKvm(i32),
    /// The host's KVM lacks something that lockstep needs.
    #[error("this host's KVM lacks {0}, which lockstep needs")]
    Missing(&'static str),
    /// The host's CPU is of another kind.
    #[error(transparent)]
    Cpu(#[from] cpuid::CpuMismatch),
    /// Only one at a time can.
    #[error("somebody copies the guest's memory already")]
    Copied,
    /// A processor's state that cannot be.
    #[error("a processor cannot be in this state: {0}")]
    State(&'static str),
    /// A call failed.
    #[error("KVM: {call} failed")]
    Call {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
}

fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { call, source }
}

/// Why the vCPU stopped. Accesses of several elements (`rep ins`) carry all of them in `data`.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads `data.len() / size` times `size` bytes from a port.
    PortRead {
        /// The port.
        port: u16,
        /// Bytes an element.
        size: usize,
        /// Where the answer goes.
        data: &'a mut [u8],
    },
    /// The guest writes to a port.
    PortWrite {
        /// The port.
        port: u16,
        /// Bytes an element.
        size: usize,
        /// What it writes.
        data: &'a [u8],
    },
    /// The guest reads memory that is none.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// Where the answer goes.
        data: &'a mut [u8],
    },
    /// The guest writes memory that is none.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What it writes.
        data: &'a [u8],
    },
    /// `hlt`.
    Halt,
    /// The guest takes interrupts now, as was asked for.
    InterruptWindow,
    /// A signal.
    Interrupted,
    /// Triple fault.
    Shutdown,
    /// KVM cannot go on with this guest.
    CannotExecute,
}

fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(KvmError::Open)?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        other => Err(KvmError::NotKvm(other)),
    }
}

/// What this host's KVM offers guests; also the check that there is a KVM.
pub fn host_cpuid() -> Result<kvm_bindings::CpuId, KvmError> {
    let kvm = open()?;
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))
}

/// A virtual machine: the part of it that all threads may use.
pub struct Vm {
    fd: VmFd,
    /// Its one slot; mapped as long as the virtual machine is there.
    memory: Memory,
}

impl Vm {
    /// Has KVM log from now on which pages the guest writes, or no longer. Also while the guest runs.
    pub fn log_written_pages(&self, log: bool) -> Result<(), KvmError> {
        let start =
            self.memory.get_host_address(GuestAddress(0)).map_err(|_| KvmError::Missing("guest memory at 0"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: 0,
            memory_size: self.bytes(),
            userspace_addr: start as u64,
        };
        // SAFETY: the region is the whole of `memory`, one mapping, which `self` keeps alive at least as long as the VM.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))
    }

    /// The pages that the guest has written since the last call, one bit each; may name more than were written.
    pub fn take_written_pages(&self) -> Result<Vec<u64>, KvmError> {
        self.fd.get_dirty_log(0, self.bytes() as usize).map_err(failed("KVM_GET_DIRTY_LOG"))
    }

    fn bytes(&self) -> u64 {
        self.memory.iter().map(vm_memory::GuestMemoryRegion::len).sum()
    }
}

/// A virtual machine with one vCPU.
pub struct Vcpu {
    fd: VcpuFd,
    vm: Arc<Vm>,
    /// Completing an access led to another exit, which [`run`](Self::run) has not told of yet.
    exit_untold: bool,
}

impl Vcpu {
    /// Makes a virtual machine over `memory` with the processor `cpu`; `track` turns on dirty page logging.
    pub fn new(memory: Memory, cpu: &[CpuidLeaf], track: bool) -> Result<Self, KvmError> {
        let kvm = open()?;
        for (cap, name) in [
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::Xsave, "KVM_CAP_XSAVE"),
            (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Missing(name));
            }
        }
        cpuid::check(cpu, &kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?)?;
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        if vm.check_extension_raw(u64::from(KVM_CAP_X86_MSR_FILTER)) <= 0 {
            return Err(KvmError::Missing("KVM_CAP_X86_MSR_FILTER"));
        }
        let allow_all = [0xffu8; 1];
        let flags = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
        let ranges = GUEST_MSRS.map(|(base, msr_count)| MsrFilterRange { flags, base, msr_count, bitmap: &allow_all });
        vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(failed("KVM_X86_SET_MSR_FILTER"))?;

        let vm = Arc::new(Vm { fd: vm, memory });
        vm.log_written_pages(track)?;
        let fd = vm.fd.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
        let leaves = cpuid::to_kvm(cpu).ok_or(KvmError::Missing("room for the guest's CPUID leaves"))?;
        fd.set_cpuid2(&leaves).map_err(failed("KVM_SET_CPUID2"))?;
        Ok(Vcpu { fd, vm, exit_untold: false })
    }

    /// The virtual machine.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Sets the registers with which a guest image is entered at `entry`.
    pub fn enter_at(&mut self, entry: u64) -> Result<(), KvmError> {
        let reset = self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        let (regs, sregs) = super::boot::registers(entry, reset);
        self.fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        self.fd.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
    }

    /// Runs the guest to its next exit.
    pub fn run(&mut self) -> Result<Exit<'_>, KvmError> {
        if std::mem::take(&mut self.exit_untold) {
            return Ok(self.untold_exit());
        }
        let run: *const kvm_run = self.fd.get_kvm_run();
        // SAFETY: `run` points to the mapped `kvm_run` of this vCPU, which lives as long as `self.fd`; only called after a port exit, when the union holds `io`.
        let element_size = || usize::from(unsafe { (*run).__bindgen_anon_1.io.size });
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => Ok(Exit::PortRead { port, size: element_size(), data }),
            Ok(VcpuExit::IoOut(port, data)) => Ok(Exit::PortWrite { port, size: element_size(), data }),
            Ok(VcpuExit::MmioRead(address, data)) => Ok(Exit::MmioRead { address, data }),
            Ok(VcpuExit::MmioWrite(address, data)) => Ok(Exit::MmioWrite { address, data }),
            Ok(VcpuExit::Hlt) => Ok(Exit::Halt),
            Ok(VcpuExit::IrqWindowOpen) => Ok(Exit::InterruptWindow),
            Ok(VcpuExit::Intr) => Ok(Exit::Interrupted),
            Ok(VcpuExit::Shutdown) => Ok(Exit::Shutdown),
            // Every other exit is one that lockstep's configuration of KVM never asks for, or an instruction that KVM cannot emulate.
            Ok(_) => Ok(Exit::CannotExecute),
            Err(e) if matches!(e.errno(), libc_errno::EINTR | libc_errno::EAGAIN) => Ok(Exit::Interrupted),
            Err(source) => Err(KvmError::Call { call: "KVM_RUN", source }),
        }
    }

    /// Completes the access of the last exit without running the guest, so that the registers are whole. False: the instruction goes on
    /// with another access, which is the next exit.
    pub fn complete_access(&mut self) -> Result<bool, KvmError> {
        if self.exit_untold {
            return Ok(false);
        }
        self.fd.set_kvm_immediate_exit(1);
        let result = self.fd.run().map(|_| ());
        self.fd.set_kvm_immediate_exit(0);
        match result {
            Err(e) if e.errno() == libc_errno::EINTR => Ok(true),
            Ok(()) => {
                self.exit_untold = true;
                Ok(false)
            }
            Err(source) => Err(KvmError::Call { call: "KVM_RUN", source }),
        }
    }

    /// The exit that completing an access has led to, out of what KVM left in `kvm_run`.
    fn untold_exit(&mut self) -> Exit<'_> {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: `run` points to the mapped `kvm_run` of this vCPU, which lives as long as `self.fd` and which nobody else uses while `self` is
        // borrowed. KVM has set the member of the union that belongs to the exit's reason, and the data of a port access lies
        // within the same mapping, as the interface says.
        unsafe {
            match (*run).exit_reason {
                KVM_EXIT_MMIO => {
                    let mmio = &mut (*run).__bindgen_anon_1.mmio;
                    let length = (mmio.len as usize).min(mmio.data.len());
                    match mmio.is_write {
                        0 => Exit::MmioRead { address: mmio.phys_addr, data: &mut mmio.data[..length] },
                        _ => Exit::MmioWrite { address: mmio.phys_addr, data: &mmio.data[..length] },
                    }
                }
                KVM_EXIT_IO => {
                    let io = (*run).__bindgen_anon_1.io;
                    let size = usize::from(io.size);
                    let start = run.cast::<u8>().add(io.data_offset as usize);
                    let length = size * io.count as usize;
                    match u32::from(io.direction) {
                        KVM_EXIT_IO_IN => {
                            Exit::PortRead { port: io.port, size, data: std::slice::from_raw_parts_mut(start, length) }
                        }
                        _ => Exit::PortWrite { port: io.port, size, data: std::slice::from_raw_parts(start, length) },
                    }
                }
                _ => Exit::CannotExecute,
            }
        }
    }

    /// Whether the guest would take an interrupt now.
    pub fn accepts_interrupt(&mut self) -> bool {
        self.fd.get_kvm_run().ready_for_interrupt_injection != 0
    }

    /// Whether the guest's interrupt flag is set.
    pub fn interrupts_on(&mut self) -> bool {
        self.fd.get_kvm_run().if_flag != 0
    }

    /// Asks for [`Exit::InterruptWindow`] as soon as the guest takes interrupts, or no longer.
    pub fn request_window(&mut self, wanted: bool) {
        self.fd.get_kvm_run().request_interrupt_window = u8::from(wanted);
    }

    /// Has the guest take interrupt `vector` before its next instruction. Only while [`accepts_interrupt`](Self::accepts_interrupt).
    pub fn inject(&mut self, vector: u8) -> Result<(), KvmError> {
        let interrupt = kvm_interrupt { irq: u32::from(vector) };
        // SAFETY: KVM_INTERRUPT reads one `kvm_interrupt`, which lives through the call; the descriptor is this vCPU's.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_INTERRUPT(), &interrupt) };
        if result == 0 { Ok(()) } else { Err(failed("KVM_INTERRUPT")(kvm_ioctls::Error::last())) }
    }

    /// The instruction pointer.
    pub fn instruction_pointer(&self) -> u64 {
        self.fd.get_regs().map_or(0, |r| r.rip)
    }

    /// The general registers, in the order of [`REGISTER_NAMES`](super::digest::REGISTER_NAMES). Complete the last access first.
    pub fn registers(&self) -> Result<[u64; 18], KvmError> {
        Ok(vcpu_state::registers(&self.fd.get_regs().map_err(failed("KVM_GET_REGS"))?))
    }

    /// Hash of segment, control, debug and model-specific registers, and of pending events.
    pub fn system_hash(&self) -> Result<u64, KvmError> {
        let mut hash = Xxh3Default::new();
        let s = self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        for segment in [s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.tr, s.ldt] {
            hash.update(&segment.base.to_le_bytes());
            hash.update(&segment.limit.to_le_bytes());
            hash.update(&segment.selector.to_le_bytes());
            // Not the type: its accessed bit is the processor's to set when it likes.
            hash.update(&[segment.present, segment.dpl, segment.db, segment.s, segment.l, segment.g, segment.unusable]);
        }
        for word in [s.gdt.base, s.idt.base, s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base] {
            hash.update(&word.to_le_bytes());
        }
        hash.update(&s.gdt.limit.to_le_bytes());
        hash.update(&s.idt.limit.to_le_bytes());
        for word in s.interrupt_bitmap {
            hash.update(&word.to_le_bytes());
        }
        let d = self.fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
        for word in [d.db[0], d.db[1], d.db[2], d.db[3], d.dr6, d.dr7] {
            hash.update(&word.to_le_bytes());
        }
        let e = self.fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        hash.update(&[e.exception.injected, e.exception.nr, e.exception.pending, e.nmi.pending, e.nmi.masked]);
        hash.update(&[e.interrupt.injected, e.interrupt.nr, e.interrupt.soft, e.interrupt.shadow]);
        for (_, value) in self.msrs()? {
            hash.update(&value.to_le_bytes());
        }
        Ok(hash.digest())
    }

    fn msrs(&self) -> Result<Vec<(u32, u64)>, KvmError> {
        let entries: Vec<kvm_msr_entry> = GUEST_MSRS
            .iter()
            .flat_map(|&(base, count)| base..base + count)
            .map(|index| kvm_msr_entry { index, ..Default::default() })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Missing("room for the guest's MSRs"))?;
        let read = self.fd.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        if read != entries.len() {
            return Err(KvmError::Missing("an MSR of the x86-64 architecture"));
        }
        Ok(msrs.as_slice().iter().map(|m| (m.index, m.data)).collect())
    }

    /// Hash of the x87, SSE and AVX registers.
    ///
    /// From `KVM_GET_XSAVE`, whose copy shows components in their initial state as such whatever the hardware tracked. Left out: the last x87
    /// instruction and operand pointers, which processors keep or drop as they like, and the header that says what was tracked.
    pub fn fpu_hash(&self) -> Result<u64, KvmError> {
        let xsave = self.fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        let bytes: Vec<u8> = xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut hash = Xxh3Default::new();
        hash.update(&bytes[0..5]); // control, status and tag words
        hash.update(&bytes[24..28]); // MXCSR
        hash.update(&bytes[32..416]); // x87/MMX and XMM registers
        hash.update(&bytes[576..832]); // upper halves of the YMM registers
        Ok(hash.digest())
    }

    /// The whole state. Complete the last access first.
    pub fn state(&self) -> Result<VcpuState, KvmError> {
        Ok(VcpuState::from_kvm(
            &self.fd.get_regs().map_err(failed("KVM_GET_REGS"))?,
            &self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
            &self.fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
            &self.fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
            &self.fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?,
            self.msrs()?,
        ))
    }

    /// Takes on `state`, and forgets the last exit: any half done access must have been completed, or not be wanted.
    pub fn set_state(&mut self, state: &VcpuState) -> Result<(), KvmError> {
        let xsave = state.kvm_xsave().ok_or(KvmError::State("the FPU's state has another size"))?;
        let known = GUEST_MSRS.iter().flat_map(|&(base, count)| base..base + count);
        if !known.eq(state.msrs.iter().map(|(index, _)| *index)) {
            return Err(KvmError::State("it has other model-specific registers than guests have"));
        }
        let entries: Vec<kvm_msr_entry> =
            state.msrs.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Missing("room for the guest's MSRs"))?;
        // What the last exit left half done would otherwise be done at the next run, to the new state.
        while !self.complete_access()? {
            self.exit_untold = false;
        }
        self.fd.set_sregs(&state.sregs()).map_err(failed("KVM_SET_SREGS"))?;
        self.fd.set_regs(&state.regs()).map_err(failed("KVM_SET_REGS"))?;
        // SAFETY: KVM_SET_XSAVE reads as many bytes as KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2) says, which is more than this structure has only where a
        // process has asked for features of its own (`arch_prctl`), which this one does not do.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(failed("KVM_SET_XSAVE"))?;
        if self.fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))? != entries.len() {
            return Err(KvmError::State("KVM does not take one of its model-specific registers"));
        }
        self.fd.set_debug_regs(&state.debug_registers()).map_err(failed("KVM_SET_DEBUGREGS"))?;
        // Last: setting the general registers drops what is pending.
        self.fd.set_vcpu_events(&state.vcpu_events()).map_err(failed("KVM_SET_VCPU_EVENTS"))?;
        // Without an interrupt controller of its own, KVM takes this one from here with every run.
        self.fd.get_kvm_run().cr8 = state.control[4];
        // Whether the guest takes interrupts, KVM says only after a run.
        match self.complete_access()? {
            true => Ok(()),
            false => Err(KvmError::State("the processor does not stand between two instructions")),
        }
    }
}

/// The two error numbers that mean "interrupted", from the kernel's `errno-base.h`.
mod libc_errno {
    pub const EINTR: i32 = 4;
    pub const EAGAIN: i32 = 11;
}
