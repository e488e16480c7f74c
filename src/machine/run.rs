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

use super::blocks::Requests;
use super::boot::{self, BootError};
use super::digest::Digest;
use super::doors::{Control, EndReason, Event, Halt, Inputs, Outputs, Readiness, Until};
use super::instant::Instant;
use super::memory::{self, Memory, MemoryError};
use super::memory_digest::MemoryDigest;
use super::packets::Packets;
use super::safepoint::{NO_LIMIT, Safepoints};
use super::snapshot::{Boot, MachineState};
use super::vcpu::{Exit, KvmError, Vcpu};
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
enum Access {
    None,
    Read,
    Write,
}

const VIRTIO_BASE: u64 = virtio::MMIO_BASE;
const VIRTIO_SIZE: u64 = virtio::MMIO_STRIDE * virtio::SLOTS;

/// Where `address` lies in the `size` bytes from `base`, if it does.
fn offset_in(address: u64, base: u64, size: u64) -> Option<u64> {
    address.checked_sub(base).filter(|&offset| offset < size)
}

/// The deterministic machine: one vCPU, its memory, its devices.
pub struct Machine {
    vcpu: Vcpu,
    memory: Memory,
    devices: Devices,
    safepoints: Safepoints,
    at: Instant,
    /// The last exit was `hlt` and no interrupt has come since.
    halted: bool,
    /// The last exit was a write to the waiting port and no event has come since.
    waiting: bool,
    access: Access,
    /// With tracking: the digest of memory, and the pages to look at beside KVM's dirty log and what the host has written.
    digests: Option<(MemoryDigest, Vec<u64>)>,
    /// For packets on their way out: kept for its memory.
    packets: Packets,
    /// For disk requests on their way out: kept for its memory.
    requests: Requests,
}

impl Machine {
    /// Makes the machine that `boot` describes, ready to run its first instruction.
    pub fn new(boot: &Boot, tracking: Tracking) -> Result<Self, MachineError> {
        let memory = memory::map(boot.memory_bytes)?;
        let mut vcpu = Vcpu::new(memory.clone(), &boot.cpuid, tracking == Tracking::On)?;
        let entry = boot::load(boot, &memory)?;
        vcpu.enter_at(entry)?;
        let digests = (tracking == Tracking::On).then(|| {
            let pages = (boot.memory_bytes >> 12) as usize;
            (MemoryDigest::new(pages), vec![0u64; pages.div_ceil(64)])
        });
        Ok(Machine {
            vcpu,
            safepoints: Safepoints::new(memory.clone()),
            memory,
            devices: Devices::new(boot.boot_time_ns, boot.net, boot.disk),
            at: Instant::BOOT,
            halted: false,
            waiting: false,
            access: Access::None,
            digests,
            packets: Packets::new(),
            requests: Requests::new(),
        })
    }

    /// Sets the wall clock at boot, which the guest can read, in nanoseconds since 1970 UTC. Before the first run.
    pub fn set_boot_time(&mut self, boot_time_ns: u64) {
        assert_eq!(self.at, Instant::BOOT, "the boot time is part of what the guest boots with");
        self.devices.pv.set_boot_time(boot_time_ns);
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
                Some(Event::Control(Control::Reset)) => self.reset()?,
                Some(Event::Control(Control::Pause | Control::Resume | Control::Switch)) => {}
                Some(Event::Capture) => {
                    let state = self.state().map_err(failed("capture the machine's state"))?;
                    door.captured(self.at, Box::new(state))?;
                }
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
            if self.access == Access::Read {
                // The instruction that reads is still under way; it must be over before the interrupt is taken.
                self.complete_access()?;
            }
            if self.vcpu.accepts_interrupt() {
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

    fn complete_access(&mut self) -> Result<(), KvmError> {
        if self.access != Access::None {
            self.access = Access::None;
            self.vcpu.complete_access()?;
        }
        Ok(())
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
                    self.access = Access::Write;
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
                    self.access = Access::Read;
                    for element in data.chunks_mut(size.max(1)) {
                        for (i, byte) in element.iter_mut().enumerate() {
                            *byte = self.devices.read_port(at, port.wrapping_add(i as u16), door)?;
                        }
                    }
                }
                Exit::PortWrite { port, size, data } => {
                    self.access = Access::Write;
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
                    self.access = Access::Read;
                    match (offset_in(address, pv::BASE, pv::SIZE), offset_in(address, VIRTIO_BASE, VIRTIO_SIZE)) {
                        (Some(offset), _) => self.devices.pv.read(at, offset, data, door)?,
                        (_, Some(offset)) => self.devices.read_virtio(offset, data),
                        (None, None) => data.fill(0xff),
                    }
                }
                Exit::MmioWrite { address, data } => {
                    self.access = Access::Write;
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
            if let Some((_, written)) = &mut self.digests {
                for address in [self.devices.pv.safepoint_page, page] {
                    let index = (address >> 12) as usize;
                    written[index / 64] |= 1 << (index % 64);
                }
            }
            self.devices.pv.safepoint_page = page;
        }
    }

    /// The state here and now, but for memory.
    fn state(&mut self) -> Result<MachineState, KvmError> {
        self.complete_access()?;
        Ok(MachineState { exits: self.at.exits, polls: self.at.polls })
    }

    /// Back to the boot.
    fn reset(&mut self) -> Result<(), Halt> {
        Ok(())
    }

    /// A digest of the whole machine, here and now.
    fn digest(&mut self) -> Result<Digest, KvmError> {
        self.complete_access()?;
        let safepoint_page = self.safepoints.page().map(|address| (address >> 12) as usize);
        let (memory, pages) = match &mut self.digests {
            None => (0, Vec::new()),
            Some((digest, written)) => {
                let mut dirty = self.vcpu.take_dirty()?;
                for (word, extra) in dirty.iter_mut().zip(written.iter_mut()) {
                    *word |= std::mem::take(extra);
                }
                for (word, host) in dirty.iter_mut().zip(memory::take_written(&self.memory)) {
                    *word |= host;
                }
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
