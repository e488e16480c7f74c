//! A replay whose machine is taken away at instants that nobody chose: its state and its memory are put into a new machine, as bytes,
//! and that one goes on with the rest of the log.

use std::path::Path;
use std::sync::Arc;

use lockstep::doors::replay::{ReplayDoor, Source, Tally};
use lockstep::doors::{Behind, Disk, NoDisk};
use lockstep::host::file_log::{FileSource, Watch};
use lockstep::log::file::LogReader;
use lockstep::machine::blocks::Requests;
use lockstep::machine::digest::Digest;
use lockstep::machine::doors::{EndReason, Event, Halt, Inputs, Outputs, Readiness, Until};
use lockstep::machine::instant::Instant;
use lockstep::machine::packets::Packets;
use lockstep::machine::pages::Pages;
use lockstep::machine::snapshot::MachineState;
use lockstep::machine::{Blank, Machine, Tracking};

use super::load::next;
use super::machine::Terminal;

/// Doors of a replay that now and then ask for the state.
struct Moving<S> {
    replay: ReplayDoor<S>,
    random: u64,
    /// One of so many settled instants is one to move at.
    one_in: u64,
    captured: Option<MachineState>,
    /// The state that the machine was made from just now.
    restored: Option<MachineState>,
}

/// What a moved replay has met.
#[derive(Debug, Default)]
pub struct Moves {
    /// How often the machine was moved.
    pub moves: u64,
    /// Of these: in `hlt`; at the waiting port; with an interrupt in the interrupt controller; with interrupts off; with bytes in the UART's
    /// transmitter; before the guest named its safepoint page.
    pub halted: u64,
    pub waiting: u64,
    pub pending: u64,
    pub interrupts_off: u64,
    pub transmitting: u64,
    pub before_safepoints: u64,
    /// In the shadow of an `sti`; with live SSE registers.
    pub shadow: u64,
    pub floats: u64,
    /// With requests to the disk in flight.
    pub in_flight: u64,
}

impl Moves {
    fn count(&mut self, state: &MachineState) {
        self.moves += 1;
        self.halted += u64::from(state.halted);
        self.waiting += u64::from(state.waiting);
        self.interrupts_off += u64::from(state.vcpu.registers[17] & 0x200 == 0);
        self.before_safepoints += u64::from(state.safepoints.is_none());
        self.shadow += u64::from(state.vcpu.events.interrupt[3] != 0);
        self.floats += u64::from(state.vcpu.xsave[160..416].iter().any(|&byte| byte != 0));
        let devices = format!("{:?}", state.devices);
        self.transmitting += u64::from(!devices.contains("transmitted: []"));
        self.pending += u64::from(!devices.contains("master: ChipState { irr: 0,"));
    }

    /// All together.
    pub fn add(&mut self, other: &Moves) {
        self.moves += other.moves;
        self.halted += other.halted;
        self.waiting += other.waiting;
        self.pending += other.pending;
        self.interrupts_off += other.interrupts_off;
        self.transmitting += other.transmitting;
        self.before_safepoints += other.before_safepoints;
        self.shadow += other.shadow;
        self.floats += other.floats;
        self.in_flight += other.in_flight;
    }
}

impl<S: Source> Inputs for Moving<S> {
    fn clock(&mut self, at: Instant) -> Result<u64, Halt> {
        self.replay.clock(at)
    }

    fn entropy(&mut self, at: Instant) -> Result<u64, Halt> {
        self.replay.entropy(at)
    }

    fn host_name(&mut self, at: Instant, word: usize) -> Result<u64, Halt> {
        self.replay.host_name(at, word)
    }

    fn run_until(&mut self, at: Instant) -> Result<Until, Halt> {
        self.replay.run_until(at)
    }

    fn event(&mut self, at: Instant, ready: Readiness) -> Result<Option<Event>, Halt> {
        if self.restored.is_some() || next(&mut self.random).is_multiple_of(self.one_in) {
            return Ok(Some(Event::Capture));
        }
        self.replay.event(at, ready)
    }

    fn interrupted(&mut self, at: Instant) -> Result<(), Halt> {
        self.replay.interrupted(at)
    }
}

impl<S: Source> Outputs for Moving<S> {
    fn console(&mut self, at: Instant, bytes: &[u8]) -> Result<(), Halt> {
        self.replay.console(at, bytes)
    }

    fn network(&mut self, at: Instant, packets: &mut Packets) -> Result<(), Halt> {
        self.replay.network(at, packets)
    }

    fn disk(&mut self, at: Instant, requests: &mut Requests) -> Result<(), Halt> {
        self.replay.disk(at, requests)
    }

    fn captured(&mut self, at: Instant, state: Box<MachineState>) -> Result<(), Halt> {
        if let Some(restored) = self.restored.take() {
            // Much of it is nothing to the rest of most logs.
            assert_eq!(differences(&restored, &state), [""; 0], "a machine is in the state that it was made from");
            return Ok(());
        }
        self.captured = Some(*state);
        Err(Halt::Requested(at))
    }

    fn digest(&mut self, at: Instant, digest: Digest) -> Result<(), Halt> {
        self.replay.digest(at, digest)
    }

    fn ended(&mut self, at: Instant, reason: &EndReason) -> Result<(), Halt> {
        self.replay.ended(at, reason)
    }
}

/// The parts in which two states differ.
pub fn differences(one: &MachineState, other: &MachineState) -> Vec<String> {
    let parts = |state: &MachineState| {
        let mut rest = state.clone();
        let vcpu = rest.vcpu.clone();
        // What the processor tracks of the FPU is its own affair, and so are the last x87 instruction's pointers.
        let mut xsave = std::mem::take(&mut rest.vcpu.xsave);
        xsave[512..576].fill(0);
        xsave[5..24].fill(0);
        let lines = [
            ("registers", format!("{:x?}", vcpu.registers)),
            ("segments and tables", format!("{:x?} {:x?}", vcpu.segments, vcpu.tables)),
            ("control", format!("{:x?} {:?}", vcpu.control, vcpu.interrupt_bitmap)),
            ("debug", format!("{:x?}", vcpu.debug)),
            ("events", format!("{:?}", vcpu.events)),
            ("MSRs", format!("{:x?}", vcpu.msrs)),
            ("xsave", format!("{xsave:x?}")),
            ("devices", format!("{:?}", rest.devices)),
        ];
        let counts = (rest.exits, rest.polls, rest.halted, rest.waiting, rest.paused, rest.safepoints);
        [("counts", format!("{counts:?}"))].into_iter().chain(lines).collect::<Vec<_>>()
    };
    let pairs = parts(one).into_iter().zip(parts(other));
    pairs.filter(|(a, b)| a != b).map(|((name, a), (_, b))| format!("{name}: {a} / {b}")).collect()
}

/// A new machine with what `old` was, by way of bytes.
pub fn moved(old: &Machine, state: &MachineState) -> Machine {
    let config = bincode::config::standard();
    let bytes = bincode::encode_to_vec(state, config).expect("a state can be written");
    let (state, read): (MachineState, usize) = bincode::decode_from_slice(&bytes, config).expect("and read");
    assert_eq!(read, bytes.len());
    let mut blank = Blank::new(old.boot(), Tracking::On).expect("a machine");
    let pages: Pages = old.pages();
    let mut bytes = [0; 4096];
    for page in 0..pages.count() as u32 {
        pages.read(page, &mut bytes);
        // Something that is taken back, as when a page is copied again while the guest runs.
        if page % 97 == 3 {
            blank.put_page(page, Some(&[0xa5; 4096]));
        }
        blank.put_page(page, bytes.iter().any(|&byte| byte != 0).then_some(&bytes));
    }
    let new = blank.finish(&state).expect("the state of a machine");
    assert_eq!(old.disk_in_flight(), new.disk_in_flight());
    new
}

/// Replays the log in `file` on machine after machine. The end, what was met, and whether the log was read to its end.
pub fn replay_moving(file: &Path, seed: u64, one_in: u64) -> (Result<EndReason, Halt>, Moves, Tally, String) {
    replay_moving_with(file, seed, one_in, Arc::new(NoDisk), |_| {})
}

/// The same with this disk, and with a look at each new machine.
pub fn replay_moving_with(
    file: &Path,
    seed: u64,
    one_in: u64,
    disk: Arc<dyn Disk>,
    mut look: impl FnMut(&Machine),
) -> (Result<EndReason, Halt>, Moves, Tally, String) {
    let reader = LogReader::open(file).expect("a log");
    let mut machine = Machine::new(&reader.boot().clone(), Tracking::On).expect("a machine");
    let terminal = Arc::new(Terminal::default());
    let behind = Behind { disk, ..Behind::console(terminal.clone()) };
    let replay = ReplayDoor::new(FileSource::new(reader, Arc::new(Watch::default())), behind);
    let mut door = Moving { replay, random: seed | 1, one_in, captured: None, restored: None };
    let mut moves = Moves::default();
    loop {
        let end = machine.run(&mut door);
        let Some(state) = door.captured.take() else { return (end, moves, door.replay.tally(), terminal.screen()) };
        moves.count(&state);
        moves.in_flight += u64::from(!machine.disk_in_flight().is_empty());
        machine = moved(&machine, &state);
        look(&machine);
        door.restored = Some(state);
    }
}
