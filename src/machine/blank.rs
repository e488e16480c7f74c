//! A machine that has not run: its memory zero, its processor and devices as after power-on. From here it goes one of two ways: its
//! guest boots, or the state of another machine is brought here, page by page, and it goes on where that one stood.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::blocks::Requests;
use super::boot;
use super::instant::Instant;
use super::memory::{self, Memory};
use super::memory_digest::MemoryDigest;
use super::packets::Packets;
use super::pages::Pages;
use super::run::{Access, Machine, MachineError, Tracking};
use super::safepoint::{PAGE, Safepoints};
use super::snapshot::{Boot, MachineState, STATE_VERSION, StateError};
use super::vcpu::Vcpu;
use super::vcpu_state::VcpuState;
use crate::devices::Devices;

/// A machine without a guest.
pub struct Blank {
    boot: Arc<Boot>,
    vcpu: Vcpu,
    fresh: VcpuState,
    memory: Memory,
    safepoints: Safepoints,
    pages: Pages,
    digest: Option<MemoryDigest>,
    /// The pages that were put here with something in them, one bit each.
    filled: Vec<u64>,
}

/// More exits than any guest makes: what lies beyond must not overflow.
const MOST_EXITS: u64 = u64::MAX >> 1;

impl Blank {
    /// The machine that `boot` describes, its image not loaded.
    pub fn new(boot: &Boot, tracking: Tracking) -> Result<Self, MachineError> {
        let memory = memory::map(boot.memory_bytes)?;
        let digests = tracking == Tracking::On;
        let vcpu = Vcpu::new(memory.clone(), &boot.cpuid, digests)?;
        let fresh = vcpu.state()?;
        let safepoints = Safepoints::new(memory.clone());
        let pages = Pages::new(memory.clone(), vcpu.vm().clone(), safepoints.clone(), digests);
        let digest = digests.then(|| MemoryDigest::new(pages.count()));
        let filled = vec![0; pages.count().div_ceil(64)];
        Ok(Blank { boot: Arc::new(boot.clone()), vcpu, fresh, memory, safepoints, pages, digest, filled })
    }

    /// The handle to the pages.
    pub fn pages(&self) -> Pages {
        self.pages.clone()
    }

    /// What the machine was made from.
    pub fn description(&self) -> &Arc<Boot> {
        &self.boot
    }

    /// Puts the contents of page number `page` here; `None`: zeros. As often as they change.
    ///
    /// # Panics
    /// If there is no such page: ask [`Pages::count`].
    pub fn put_page(&mut self, page: u32, bytes: Option<&[u8; PAGE as usize]>) {
        const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
        let index = page as usize;
        assert!(index < self.pages.count(), "there is no page {page:#x}");
        let (word, bit) = (&mut self.filled[index / 64], 1 << (index % 64));
        if bytes.is_none() && *word & bit == 0 {
            // Never touched, and so zero: left to the host, which need not find memory for it.
            return;
        }
        *word = *word & !bit | if bytes.is_some() { bit } else { 0 };
        let address = GuestAddress(u64::from(page) * PAGE);
        self.memory.write_slice(bytes.unwrap_or(&ZEROS), address).expect("the page lies in memory");
        if let Some(digest) = &mut self.digest {
            digest.put(index, bytes.map(<[u8; PAGE as usize]>::as_slice));
        }
    }

    /// The machine that goes on from `state`, all of whose memory was put here. Its first digest costs no more than any other.
    pub fn finish(mut self, state: &MachineState) -> Result<Machine, MachineError> {
        if state.version != STATE_VERSION {
            return Err(StateError::Version(state.version).into());
        }
        if state.exits > MOST_EXITS {
            return Err(StateError::Exits(state.exits).into());
        }
        let devices = Devices::from_state(&state.devices, self.boot.net, self.boot.disk).map_err(StateError::Device)?;
        let page = state.safepoints.map_or(0, |safepoints| safepoints.page);
        if page != devices.pv.safepoint_page
            || state.safepoints.is_some() && (page == 0 || !self.safepoints.set_page(page))
        {
            return Err(StateError::SafepointPage(page).into());
        }
        if let Some(safepoints) = state.safepoints {
            self.safepoints.set_count(safepoints.count);
            self.safepoints.ring();
            if let Some(digest) = &mut self.digest {
                // It is left out of digests: its limit is the host's.
                digest.put((page / PAGE) as usize, None);
            }
        }
        self.safepoints.set_exits(state.exits);
        self.vcpu.set_state(&state.vcpu)?;
        // What was put here is in the digest already.
        self.pages.take_for_digest()?;
        let mut machine = self.machine(devices);
        machine.at = Instant::new(state.exits, state.polls);
        (machine.halted, machine.waiting, machine.paused) = (state.halted, state.waiting, state.paused);
        Ok(machine)
    }

    /// The machine, ready to run the first instruction of its image.
    pub(super) fn boot(mut self) -> Result<Machine, MachineError> {
        let entry = boot::load(&self.boot, &self.memory)?;
        self.vcpu.enter_at(entry)?;
        let devices = Devices::new(self.boot.boot_time_ns, self.boot.net, self.boot.disk);
        Ok(self.machine(devices))
    }

    fn machine(self, devices: Devices) -> Machine {
        Machine {
            vcpu: self.vcpu,
            safepoints: self.safepoints,
            memory: self.memory,
            devices,
            at: Instant::BOOT,
            halted: false,
            waiting: false,
            access: Access::None,
            digest: self.digest,
            boot: self.boot,
            fresh: self.fresh,
            pages: self.pages,
            paused: false,
            capture_due: false,
            packets: Packets::new(),
            requests: Requests::new(),
        }
    }
}
