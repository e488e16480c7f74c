//! The state of a virtual processor as plain numbers: what KVM hands out, without KVM's structures and their holes.

use bincode::{Decode, Encode};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xsave,
};

/// Bytes of the FPU's state as `KVM_GET_XSAVE` hands it out.
pub const XSAVE_BYTES: usize = 4096;

/// A processor between two instructions.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VcpuState {
    /// The general registers, in the order of [`REGISTER_NAMES`](super::digest::REGISTER_NAMES).
    pub registers: [u64; 18],
    /// cs, ds, es, fs, gs, ss, tr, ldt.
    pub segments: [Segment; 8],
    /// gdt, idt: base and limit.
    pub tables: [(u64, u16); 2],
    /// cr0, cr2, cr3, cr4, cr8, efer, APIC base.
    pub control: [u64; 7],
    /// The interrupt that is on its way in, one bit a vector.
    pub interrupt_bitmap: [u64; 4],
    /// dr0 to dr3, dr6, dr7.
    pub debug: [u64; 6],
    /// Exceptions and interrupts between their cause and their handler.
    pub events: Events,
    /// The model-specific registers that guests may use, by their index.
    pub msrs: Vec<(u32, u64)>,
    /// x87, SSE and AVX registers, in the layout of XSAVE; [`XSAVE_BYTES`] of them.
    pub xsave: Vec<u8>,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// type, present, dpl, db, s, l, g, avl, unusable.
    pub attributes: [u8; 9],
}

/// What `KVM_GET_VCPU_EVENTS` tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Events {
    /// Exception: injected, vector, has an error code, pending.
    pub exception: [u8; 4],
    /// The exception's error code.
    pub error_code: u32,
    /// Interrupt: injected, vector, is a software interrupt, shadow (`sti` or `mov ss` just before).
    pub interrupt: [u8; 4],
    /// NMI: injected, pending, masked.
    pub nmi: [u8; 3],
}

impl VcpuState {
    /// Out of KVM's structures.
    pub(super) fn from_kvm(
        r: &kvm_regs,
        s: &kvm_sregs,
        d: &kvm_debugregs,
        e: &kvm_vcpu_events,
        xsave: &kvm_xsave,
        msrs: Vec<(u32, u64)>,
    ) -> Self {
        VcpuState {
            registers: registers(r),
            segments: [s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.tr, s.ldt].map(Segment::from),
            tables: [(s.gdt.base, s.gdt.limit), (s.idt.base, s.idt.limit)],
            control: [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base],
            interrupt_bitmap: s.interrupt_bitmap,
            debug: [d.db[0], d.db[1], d.db[2], d.db[3], d.dr6, d.dr7],
            events: Events {
                exception: [e.exception.injected, e.exception.nr, e.exception.has_error_code, e.exception.pending],
                error_code: e.exception.error_code,
                interrupt: [e.interrupt.injected, e.interrupt.nr, e.interrupt.soft, e.interrupt.shadow],
                nmi: [e.nmi.injected, e.nmi.pending, e.nmi.masked],
            },
            msrs,
            xsave: xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect(),
        }
    }

    /// The general registers for KVM.
    pub(super) fn regs(&self) -> kvm_regs {
        let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags] =
            self.registers;
        kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
    }

    /// The system registers for KVM.
    pub(super) fn sregs(&self) -> kvm_sregs {
        let [cs, ds, es, fs, gs, ss, tr, ldt] = self.segments.map(kvm_segment::from);
        let [gdt, idt] = self.tables.map(|(base, limit)| kvm_dtable { base, limit, ..Default::default() });
        let [cr0, cr2, cr3, cr4, cr8, efer, apic_base] = self.control;
        let interrupt_bitmap = self.interrupt_bitmap;
        kvm_sregs {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr,
            ldt,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            interrupt_bitmap,
        }
    }

    /// The debug registers for KVM.
    pub(super) fn debug_registers(&self) -> kvm_debugregs {
        let [d0, d1, d2, d3, dr6, dr7] = self.debug;
        kvm_debugregs { db: [d0, d1, d2, d3], dr6, dr7, ..Default::default() }
    }

    /// The events for KVM.
    pub(super) fn vcpu_events(&self) -> kvm_vcpu_events {
        let mut events = kvm_vcpu_events {
            flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
            ..Default::default()
        };
        let own = &self.events;
        let e = &mut events.exception;
        [e.injected, e.nr, e.has_error_code, e.pending] = own.exception;
        e.error_code = own.error_code;
        let i = &mut events.interrupt;
        [i.injected, i.nr, i.soft, i.shadow] = own.interrupt;
        let n = &mut events.nmi;
        [n.injected, n.pending, n.masked] = own.nmi;
        events
    }

    /// The FPU's state for KVM; `None` if it has another size.
    pub(super) fn kvm_xsave(&self) -> Option<kvm_xsave> {
        let mut xsave = kvm_xsave::default();
        let (words, rest) = self.xsave.as_chunks::<4>();
        if words.len() != xsave.region.len() || !rest.is_empty() {
            return None;
        }
        xsave.region.iter_mut().zip(words).for_each(|(to, from)| *to = u32::from_le_bytes(*from));
        Some(xsave)
    }
}

/// The general registers, in the order of [`REGISTER_NAMES`](super::digest::REGISTER_NAMES).
pub(super) fn registers(r: &kvm_regs) -> [u64; 18] {
    [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
        r.rip, r.rflags,
    ]
}

impl From<kvm_segment> for Segment {
    fn from(s: kvm_segment) -> Self {
        Segment {
            base: s.base,
            limit: s.limit,
            selector: s.selector,
            attributes: [s.type_, s.present, s.dpl, s.db, s.s, s.l, s.g, s.avl, s.unusable],
        }
    }
}

impl From<Segment> for kvm_segment {
    fn from(own: Segment) -> Self {
        let [type_, present, dpl, db, s, l, g, avl, unusable] = own.attributes;
        kvm_segment {
            base: own.base,
            limit: own.limit,
            selector: own.selector,
            type_,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
            padding: 0,
        }
    }
}
