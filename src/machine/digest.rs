//! Digests: a fingerprint of the whole machine at an instant, by which a replay proves itself.

/// The general registers in the order of [`Digest::registers`].
pub const REGISTER_NAMES: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
];

/// A fingerprint of the machine's state at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Digest of all guest memory except the safepoint page. Depends on contents only, not on which
    /// pages the host believes were touched.
    pub memory: u128,
    /// The general registers themselves, in the order of [`REGISTER_NAMES`].
    pub registers: [u64; 18],
    /// Hash of segment, control, debug and model-specific registers, and pending events.
    pub system: u64,
    /// Hash of the x87, SSE and AVX registers.
    pub fpu: u64,
    /// Hash of all device state.
    pub devices: u64,
    /// The pages whose contents changed since the digest before, in ascending order, at most
    /// [`Digest::MAX_PAGES`] of them: enough to name the first page that differs.
    pub pages: Vec<PageCheck>,
}

impl Digest {
    /// The most changed pages one digest lists.
    pub const MAX_PAGES: usize = 1024;

    /// Whether both are of the same state. The pages that changed since the digest before only help to find what differs: a
    /// machine that was restored in between knows of those that changed since then.
    pub fn same_state(&self, other: &Digest) -> bool {
        (self.memory, &self.registers, self.system, self.fpu, self.devices)
            == (other.memory, &other.registers, other.system, other.fpu, other.devices)
    }
}

/// Index and short hash of one changed page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCheck {
    /// Guest-physical page number (address / 4096).
    pub page: u32,
    /// Low 16 bits of the hash of the page's contents.
    pub check: u16,
}
