//! The machine: runs the guest from instant to instant, and asks at the doors.
//!
//! ```text
//!          ┌────────────────────────── settle at an instant ─────────────────────────┐
//!          │  set the limit → next event? ──yes──► deliver it ──► again              │
//!          │                      │ no                                               │
//!          │                      ▼                                                  │
//!          │  inject a pending interrupt, or have the next safepoint stop            │
//!          └──────────────────────┬──────────────────────────────────────────────────┘
//!                                 ▼
//!                              KVM_RUN ──► exit: exits += 1, devices act  ──► settle
//!                                      ──► doorbell: nothing counted      ──► settle
//!                                      ──► interrupt window: inject       ──► KVM_RUN (guests without safepoints)
//!                                      ──► signal: ask the door           ──► KVM_RUN
//! ```

use std::sync::Arc;

use super::blank::Blank;
use super::blocks::Requests;
use super::boot::{self, BootError};
use super::digest::Digest;
use super::doors::{Control, EndReason, Event, Halt, Inputs, Outputs, Readiness, Until};
use super::instant::Instant;
use super::memory::{self, Memory, MemoryError};
use super::memory_digest::MemoryDigest;
use super::packets::Packets;
use super::pages::Pages;
use super::safepoint::{NO_LIMIT, Safepoints};
use super::snapshot::{Boot, MachineState, STATE_VERSION, SafepointState, StateError};
use super::vcpu::{Exit, KvmError, Vcpu};
use super::vcpu_state::VcpuState;
use crate::devices::Devices;
use lockstep_abi::{port, pv, virtio};

/// A machine that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest image or its boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The state that it should go on from.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Whether a machine can take digests. Tracking costs a page fault for each page written between two digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// No digests: an unprotected run.
    Off,
    /// Digests.
    On,
}

/// What the last exit left half done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing.
    None,
    /// An access is to be completed with the next run.
    Pending,
    /// It is completed, and the same instruction goes on with another one.
    Another,
}

const VIRTIO_BASE: u64 = virtio::MMIO_BASE;
const VIRTIO_SIZE: u64 = virtio::MMIO_STRIDE * virtio::SLOTS;

/// Where `address` lies in the `size` bytes from `base`, if it does.
fn offset_in(address: u64, base: u64, size: u64) -> Option<u64> {
    address.checked_sub(base).filter(|&offset| offset < size)
}

/// The deterministic machine: one vCPU, its memory, its devices.
pub struct Machine {
    pub(super) vcpu: Vcpu,
    pub(super) memory: Memory,
    pub(super) devices: Devices,
    pub(super) safepoints: Safepoints,
    pub(super) at: Instant,
    /// The last exit was `hlt` and no interrupt has come since.
    pub(super) halted: bool,
    /// The last exit was a write to the waiting port and no event has come since.
    pub(super) waiting: bool,
    pub(super) access: Access,
    /// With tracking: the digest of memory.
    pub(super) digest: Option<MemoryDigest>,
    /// What it boots from, once more with every reset.
    pub(super) boot: Arc<Boot>,
    /// The processor before it was set up to run the image.
    pub(super) fresh: VcpuState,
    pub(super) pages: Pages,
    /// The operator has paused the machine. To the machine that is nothing; it is remembered for whoever takes over from here.
    pub(super) paused: bool,
    /// The state was asked for in the middle of an instruction: it is handed out at the next instant that is between two.
    pub(super) capture_due: bool,
    /// For packets on their way out: kept for its memory.
    pub(super) packets: Packets,
    /// For disk requests on their way out: kept for its memory.
    pub(super) requests: Requests,
}

impl Machine {
    /// Makes the machine that `boot` describes, ready to run its first instruction.
    pub fn new(boot: &Boot, tracking: Tracking) -> Result<Self, MachineError> {
        Blank::new(boot, tracking)?.boot()
    }

    /// Sets the wall clock at boot, which the guest can read, in nanoseconds since 1970 UTC. Before the first run.
    pub fn set_boot_time(&mut self, boot_time_ns: u64) {
        assert_eq!(self.at, Instant::BOOT, "the boot time is part of what the guest boots with");
        self.devices.pv.set_boot_time(boot_time_ns);
    }

    /// The handle to the guest's pages.
    pub fn pages(&self) -> Pages {
        self.pages.clone()
    }

    /// What it has booted from.
    pub fn boot(&self) -> &Arc<Boot> {
        &self.boot
    }

    /// Whether the operator has paused the machine.
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// The handle to the guest's safepoint page.
    pub fn safepoints(&self) -> Safepoints {
        self.safepoints.clone()
    }

    /// Where the machine stands.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// The requests to the disk that have not come to their end, in the order in which the guest made them: what the host of a machine that was
    /// made from a state must carry out (again).
    pub fn disk_in_flight(&self) -> Requests {
        self.devices.disk_in_flight(&self.memory)
    }

    /// Runs the guest until it ends. An error leaves the machine where a further run would be wrong.
    pub fn run<D: Inputs + Outputs>(&mut self, door: &mut D) -> Result<EndReason, Halt> {
        let reason = loop {
            if let Some(reason) = self.settle(door)? {
                break reason;
            }
            if let Some(reason) = self.execute(door)? {
                break reason;
            }
        };
        door.ended(self.at, &reason)?;
        Ok(reason)
    }

    /// Delivers all events due at this instant, and the interrupt that the guest can take.
    fn settle<D: Inputs + Outputs>(&mut self, door: &mut D) -> Result<Option<EndReason>, Halt> {
        if std::mem::take(&mut self.capture_due) {
            self.capture(door)?;
        }
        loop {
            // The limit first, the question after it: an event that comes in between rings.
            let until = door.run_until(self.at)?;
            self.safepoints.set_limit(match until {
                Until::Exit => NO_LIMIT,
                Until::Poll(count) => count,
            });
            let pending = self.devices.pic.pending();
            if self.halted && !self.vcpu.interrupts_on() {
                return Ok(Some(EndReason::HaltedForever));
            }
            let ready = Readiness {
                idle: (self.halted || self.waiting) && !pending,
                console_room: self.devices.uart.room(),
                packet_room: self.devices.packet_room(&self.memory),
                offloads: self.devices.offloads(),
                timer_period_ns: self.devices.pit.period_ns(),
            };
            let event = door.event(self.at, ready)?;
            // A digest is nothing that the guest waits for.
            self.waiting &= matches!(event, None | Some(Event::Digest | Event::Capture | Event::Control(_)));
            match event {
                Some(Event::Tick) => {
                    self.devices.tick();
                    transmit(&mut self.devices, self.at, door)?;
                }
                Some(Event::Console(input)) => self.devices.receive(&input.bytes),
                Some(Event::Packets(packets)) => self.devices.receive_packets(&self.memory, &packets),
                Some(Event::Disk(completions)) => self.devices.complete_requests(&self.memory, completions),
                Some(Event::Control(Control::Reset)) => {
                    transmit(&mut self.devices, self.at, door)?;
                    self.reset()?;
                }
                Some(Event::Control(Control::Pause)) => self.paused = true,
                Some(Event::Control(Control::Resume)) => self.paused = false,
                Some(Event::Control(Control::Switch)) => {}
                Some(Event::Capture) => self.capture(door)?,
                Some(Event::Digest) => {
                    let digest = self.digest().map_err(failed("take a digest"))?;
                    door.digest(self.at, digest)?;
                }
                Some(Event::Stop) => return Ok(Some(EndReason::Stopped)),
                None if ready.idle => {} // nothing yet: ask again
                None => break,
            }
        }
        self.waiting = false;
        self.deliver_interrupt().map_err(failed("inject an interrupt"))?;
        Ok(None)
    }

    /// Has the guest take a pending interrupt here, if it can. What it cannot take here it takes at its next safepoint, or at the
    /// exit before that.
    ///
    /// Where the guest passes no safepoints, KVM is asked for the interrupt window instead. That is the architecture's own answer, but KVM's
    /// software virtualisation (PVM) sees the window late if the guest opens it for a few instructions at ring 0, which it emulates in
    /// runs of a length that depends on the host: twice in 100,000 interrupts, a second interrupt that was pending at a `hlt` came
    /// an instruction later in the replay.
    fn deliver_interrupt(&mut self) -> Result<(), KvmError> {
        let mut pending = self.devices.pic.pending();
        if pending {
            // The instruction that led here must be over before the interrupt is taken. And whether the guest takes it must not depend on
            // whether somebody has looked at the registers here, for which the instruction is completed, too.
            if self.complete_access()? && self.vcpu.accepts_interrupt() {
                let vector = self.devices.pic.acknowledge();
                self.vcpu.inject(vector)?;
                self.halted = false;
                pending = self.devices.pic.pending();
            }
        }
        if pending && self.safepoints.page().is_some() {
            self.safepoints.stop_at_next();
            pending = false;
        }
        self.vcpu.request_window(pending);
        Ok(())
    }

    /// Completes the last exit's access. False: the instruction is not over; its next access is the next exit.
    fn complete_access(&mut self) -> Result<bool, KvmError> {
        if self.access == Access::Pending {
            let whole = self.vcpu.complete_access()?;
            self.access = if whole { Access::None } else { Access::Another };
        }
        Ok(self.access == Access::None)
    }

    /// Runs the guest to its next instant. `Some` if it has ended.
    fn execute<D: Inputs + Outputs>(&mut self, door: &mut D) -> Result<Option<EndReason>, Halt> {
        loop {
            let exit = self.vcpu.run().map_err(failed("run the vCPU"))?;
            match exit {
                Exit::Interrupted => {
                    door.interrupted(self.at)?;
                    continue;
                }
                Exit::InterruptWindow => {
                    self.access = Access::None;
                    self.deliver_interrupt().map_err(failed("inject an interrupt"))?;
                    continue;
                }
                Exit::MmioWrite { address, .. } if address == pv::BASE + pv::DOORBELL => {
                    self.access = Access::Pending;
                    let count = self.safepoints.count();
                    if count < self.at.polls {
                        return Ok(Some(self.safepoints_went_back()));
                    }
                    if count > self.at.polls {
                        self.at.polls = count;
                    } else {
                        // Rung without a safepoint: an access like any other.
                        self.at.exits += 1;
                    }
                    self.safepoints.set_exits(self.at.exits);
                    return Ok(None);
                }
                _ => {}
            }
            let count = self.safepoints.count();
            if count < self.at.polls {
                return Ok(Some(self.safepoints_went_back()));
            }
            self.at = Instant::new(self.at.exits + 1, count);
            self.safepoints.set_exits(self.at.exits);
            let at = self.at;
            self.access = Access::None;
            if !matches!(exit, Exit::PortWrite { port: port::COM1, .. }) {
                // The guest has turned to something else: what it wrote so far is whole.
                transmit(&mut self.devices, at, door)?;
            }
            match exit {
                Exit::PortRead { port, size, data } => {
                    self.access = Access::Pending;
                    for element in data.chunks_mut(size.max(1)) {
                        for (i, byte) in element.iter_mut().enumerate() {
                            *byte = self.devices.read_port(at, port.wrapping_add(i as u16), door)?;
                        }
                    }
                }
                Exit::PortWrite { port, size, data } => {
                    self.access = Access::Pending;
                    for element in data.chunks(size.max(1)) {
                        for (i, &byte) in element.iter().enumerate() {
                            self.devices.write_port(at, port.wrapping_add(i as u16), byte, door)?;
                        }
                    }
                    if self.devices.uart.transmitted_enough() {
                        transmit(&mut self.devices, at, door)?;
                    }
                    if matches!(port, port::VIRTIO_SYNC | port::WAIT) {
                        self.waiting = port == port::WAIT;
                        self.send_out(door)?;
                    }
                    if let Some(code) = self.devices.exit_code {
                        return Ok(Some(EndReason::Exit(code)));
                    }
                }
                Exit::MmioRead { address, data } => {
                    self.access = Access::Pending;
                    match (offset_in(address, pv::BASE, pv::SIZE), offset_in(address, VIRTIO_BASE, VIRTIO_SIZE)) {
                        (Some(offset), _) => self.devices.pv.read(at, offset, data, door)?,
                        (_, Some(offset)) => self.devices.read_virtio(offset, data),
                        (None, None) => data.fill(0xff),
                    }
                }
                Exit::MmioWrite { address, data } => {
                    self.access = Access::Pending;
                    if let Some(offset) = offset_in(address, VIRTIO_BASE, VIRTIO_SIZE) {
                        if self.devices.write_virtio(offset, data, &self.memory) {
                            self.send_out(door)?;
                        }
                    } else if let Some(offset) = offset_in(address, pv::BASE, pv::SIZE)
                        && let Some(page) = self.devices.pv.asks_for_page(offset, data)
                    {
                        self.name_safepoint_page(page);
                    }
                }
                Exit::Halt => {
                    self.halted = true;
                    self.send_out(door)?;
                }
                Exit::Shutdown => return Ok(Some(EndReason::TripleFault)),
                Exit::CannotExecute => return Ok(Some(EndReason::CannotExecute(self.vcpu.instruction_pointer()))),
                Exit::Interrupted | Exit::InterruptWindow => unreachable!("handled above"),
            }
            return Ok(None);
        }
    }

    /// Hands out what the guest has queued at its network card and its disk.
    fn send_out(&mut self, door: &mut impl Outputs) -> Result<(), Halt> {
        loop {
            self.packets.clear();
            self.devices.transmit_packets(&self.memory, &mut self.packets);
            if self.packets.is_empty() {
                break;
            }
            door.network(self.at, &mut self.packets)?;
        }
        loop {
            self.requests.clear();
            // A request that was answered at once is what the guest waits for: there may be no event to come.
            self.waiting &= !self.devices.take_requests(&self.memory, &mut self.requests);
            if self.requests.is_empty() {
                return Ok(());
            }
            door.disk(self.at, &mut self.requests)?;
        }
    }

    /// The guest has set its safepoint count back, which ends it. At an instant of its own: one exit further, since the
    /// guest did run on from the last instant, and at the last count that can be believed.
    fn safepoints_went_back(&mut self) -> EndReason {
        self.at.exits += 1;
        self.safepoints.set_exits(self.at.exits);
        EndReason::SafepointsWentBack
    }

    /// The guest names its safepoint page. Refused, as a register ignores a bad value, unless it is a page of guest memory.
    fn name_safepoint_page(&mut self, page: u64) {
        if self.safepoints.set_page(page) {
            // The old page is memory like any other again, and the new one no longer.
            self.pages.mark([self.devices.pv.safepoint_page, page]);
            self.devices.pv.safepoint_page = page;
        }
    }

    /// Hands out the state, here or at the next instant that is not in the middle of an instruction.
    fn capture(&mut self, door: &mut impl Outputs) -> Result<(), Halt> {
        match self.state().map_err(failed("capture the machine's state"))? {
            Some(state) => door.captured(self.at, Box::new(state)),
            None => {
                self.capture_due = true;
                Ok(())
            }
        }
    }

    /// The state here and now, but for memory. `None` in the middle of an instruction.
    pub(super) fn state(&mut self) -> Result<Option<MachineState>, KvmError> {
        if !self.complete_access()? {
            return Ok(None);
        }
        Ok(Some(MachineState {
            version: STATE_VERSION,
            exits: self.at.exits,
            polls: self.at.polls,
            halted: self.halted,
            waiting: self.waiting,
            paused: self.paused,
            safepoints: self.safepoints.page().map(|page| SafepointState { page, count: self.safepoints.count() }),
            vcpu: self.vcpu.state()?,
            devices: self.devices.state(),
        }))
    }

    /// Back to the boot, at an instant of its own.
    fn reset(&mut self) -> Result<(), Halt> {
        // The processor first: what its last access still does to memory is gone with memory.
        self.vcpu.set_state(&self.fresh).map_err(failed("reset the processor"))?;
        self.access = Access::None;
        self.safepoints.forget_page();
        let reload = || -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
            memory::clear(&self.memory)?;
            Ok(boot::load(&self.boot, &self.memory)?)
        };
        let entry = reload().map_err(|source| Halt::Failed { what: "load the guest's image again", source })?;
        self.vcpu.enter_at(entry).map_err(failed("reset the processor"))?;
        self.devices.reset(self.boot.net, self.boot.disk);
        (self.halted, self.waiting) = (false, false);
        self.at = Instant::new(self.at.exits + 1, 0);
        self.safepoints.set_exits(self.at.exits);
        Ok(())
    }

    /// A digest of the whole machine, here and now.
    fn digest(&mut self) -> Result<Digest, KvmError> {
        self.complete_access()?;
        let safepoint_page = self.safepoints.page().map(|address| (address >> 12) as usize);
        let (memory, pages) = match &mut self.digest {
            None => (0, Vec::new()),
            Some(digest) => {
                let dirty = self.pages.take_for_digest()?;
                let pages = digest.update(&dirty, |page| {
                    if Some(page) == safepoint_page { None } else { memory::page(&self.memory, page) }
                });
                (digest.total(), pages)
            }
        };
        Ok(Digest {
            memory,
            registers: self.vcpu.registers()?,
            system: self.vcpu.system_hash()?,
            fpu: self.vcpu.fpu_hash()?,
            devices: self.devices.digest(),
            pages,
        })
    }
}

/// Hands out what the guest has written to the console.
///
/// KVM exits once for every byte of a `rep outsb`. An entry and a frame for each of them would cost more than the bytes, so they
/// go out together: at the end of a line, when the transmitter would be full, when the guest makes any other exit, and at the
/// latest with the next tick. All of these are part of the guest's execution, so a replay writes the same outputs.
/// (Nowhere else: a doorbell is not, and neither a digest nor a stop may have entries between it and its instant.)
fn transmit(devices: &mut Devices, at: Instant, door: &mut impl Outputs) -> Result<(), Halt> {
    let sent = devices.uart.transmitted();
    if !sent.is_empty() {
        door.console(at, sent)?;
        sent.clear();
    }
    Ok(())
}

fn failed(what: &'static str) -> impl FnOnce(KvmError) -> Halt {
    move |source| Halt::Failed { what, source: Box::new(source) }
}
