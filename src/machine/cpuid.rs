//! The guest's processor as CPUID shows it: a fixed template (baseline x86-64 without a time-stamp counter), so that every host
//! shows a guest the same. Nothing that KVM would write into guest memory on its own (kvmclock, steal time,
//! asynchronous page faults, PV EOI) is offered, and nothing whose result nobody logs (TSC, RDRAND, RDSEED).
//!
//! Source: Intel SDM vol. 2 CPUID; AMD APM vol. 3 appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use std::fmt;

use super::snapshot::CpuidLeaf;

/// Leaf 1 `ecx`: "a hypervisor is present"; KVM need not offer it, it is ours to say.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 `edx`: FPU, PSE, MSR, PAE, CX8, PGE, CMOV, PAT, PSE36, CLFLUSH, MMX, FXSR, SSE, SSE2.
const LEAF1_EDX: u32 = 1
    | 1 << 3
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 15
    | 1 << 16
    | 1 << 17
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;
/// Leaf 0x8000_0001 `ecx`: LAHF in long mode.
const EXTENDED_ECX: u32 = 1;
/// Leaf 0x8000_0001 `edx`: SYSCALL, NX, long mode.
const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 29;

/// A host that cannot offer a guest's processor: the first register that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host cannot offer the guest's processor: CPUID leaf {leaf:#x}, {register}: needed {needed:#010x}, offered {offered:#010x} (run it on a host of the CPU kind it was started on)"
)]
pub struct CpuMismatch {
    /// The leaf.
    pub leaf: u32,
    /// `eax`, `ebx`, `ecx` or `edx`.
    pub register: &'static str,
    /// What the guest's template has.
    pub needed: u32,
    /// What this host's KVM supports.
    pub offered: u32,
}

/// The registers of `leaf` (subleaf 0) in `host`; zeros where it is missing.
fn registers(host: &CpuId, leaf: u32) -> [u32; 4] {
    let entry = host.as_slice().iter().find(|e| e.function == leaf && e.index == 0);
    entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}

/// The template for guests started on this host. Maker, model and address width are the host's: a guest stays with its CPU kind.
pub fn template(host: &CpuId) -> Vec<CpuidLeaf> {
    let [_, ebx, ecx, edx] = registers(host, 0);
    let [signature, ..] = registers(host, 1);
    let [address_width, ..] = registers(host, 0x8000_0008);
    let text = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    [
        (0, [1, ebx, ecx, edx]),
        (1, [signature, 1 << 16 | 8 << 8, HYPERVISOR, LEAF1_EDX]),
        (0x4000_0000, [0x4000_0000, text(b"Lock"), text(b"step"), text(b"FTVM")]),
        (0x8000_0000, [0x8000_0008, ebx, ecx, edx]),
        (0x8000_0001, [signature, 0, EXTENDED_ECX, EXTENDED_EDX]),
        (0x8000_0008, [address_width & 0xffff, 0, 0, 0]),
    ]
    .map(|(leaf, registers)| CpuidLeaf { leaf, subleaf: None, registers })
    .to_vec()
}

/// Checks that `host` can offer every leaf of `guest`: identification the same, features a subset.
pub fn check(guest: &[CpuidLeaf], host: &CpuId) -> Result<(), CpuMismatch> {
    for wanted in guest {
        let offered = registers(host, wanted.leaf);
        for (i, register) in ["eax", "ebx", "ecx", "edx"].into_iter().enumerate() {
            let (needed, offered) = (wanted.registers[i], offered[i]);
            let fits = match (wanted.leaf, register) {
                (0 | 0x8000_0000, "eax") => needed <= offered,
                (0 | 0x8000_0000, _) | (1 | 0x8000_0001, "eax") => needed == offered,
                (0x8000_0008, "eax") => needed == offered & 0xffff,
                (1, "ecx") => needed & !HYPERVISOR & !offered == 0,
                (1, "ebx") | (0x4000_0000, _) => true, // ours to say
                _ => needed & !offered == 0,
            };
            if !fits {
                return Err(CpuMismatch { leaf: wanted.leaf, register, needed, offered });
            }
        }
    }
    Ok(())
}

/// The template in the form that KVM takes.
pub fn to_kvm(guest: &[CpuidLeaf]) -> Option<CpuId> {
    let entries: Vec<kvm_cpuid_entry2> = guest
        .iter()
        .map(|l| kvm_cpuid_entry2 {
            function: l.leaf,
            index: l.subleaf.unwrap_or(0),
            flags: if l.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: l.registers[0],
            ebx: l.registers[1],
            ecx: l.registers[2],
            edx: l.registers[3],
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).ok()
}

/// The kind of CPU that a template names: maker, family, model, stepping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuKind(String);

impl CpuKind {
    /// The kind in `guest`.
    pub fn of(guest: &[CpuidLeaf]) -> Self {
        let leaf = |n| guest.iter().find(|l| l.leaf == n).map_or([0; 4], |l| l.registers);
        let [_, b, c, d] = leaf(0);
        let vendor: Vec<u8> = [b, d, c].iter().flat_map(|r| r.to_le_bytes()).collect();
        let eax = leaf(1)[0];
        let base = eax >> 8 & 0xf;
        let family = if base == 0xf { base + (eax >> 20 & 0xff) } else { base };
        let model = (eax >> 4 & 0xf) | if base == 0xf || base == 6 { eax >> 12 & 0xf0 } else { 0 };
        CpuKind(format!("{} family {family} model {model} stepping {}", String::from_utf8_lossy(&vendor), eax & 0xf))
    }
}

impl fmt::Display for CpuKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let leaf =
            |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() };
        CpuId::from_entries(&[
            leaf(0, 0x10, 1, 2, 3),
            leaf(1, 0x00b0_0f21, 0, !0, !0),
            leaf(0x8000_0000, 0x8000_0028, 1, 2, 3),
            leaf(0x8000_0001, 0x00b0_0f21, 0, !0, !0),
            leaf(0x8000_0008, 0x3030, 0, 0, 0),
        ])
        .unwrap()
    }

    #[test]
    fn a_host_offers_its_own_template() {
        check(&template(&host()), &host()).unwrap();
        assert_eq!(CpuKind::of(&template(&host())).0, "\u{1}\0\0\0\u{3}\0\0\0\u{2}\0\0\0 family 26 model 2 stepping 1");
    }

    #[test]
    fn a_missing_feature_or_another_model_is_named() {
        let guest = template(&host());
        let mut other = host();
        other.as_mut_slice()[1].edx &= !(1 << 26);
        let refused = check(&guest, &other).unwrap_err();
        assert_eq!((refused.leaf, refused.register), (1, "edx"));
        let mut other = host();
        other.as_mut_slice()[1].eax += 1;
        let refused = check(&guest, &other).unwrap_err();
        assert_eq!((refused.leaf, refused.register), (1, "eax"));
    }
}
