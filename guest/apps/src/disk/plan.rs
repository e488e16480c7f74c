//! What the torture does: a row of operations that seed and settings determine, what each leaves in a sector, and the header on the disk
//! that says how far the row had come at the last flush.

use super::{Trouble, number};
use alloc::vec::Vec;
use lockstep_disk::{SECTOR, Shape};
use lockstep_kernels::random::{SplitMix64, mix};
use lockstep_runtime::Args;

/// Sectors at the disk's beginning that hold two copies of the header and nothing else.
pub(super) const HEADER_SECTORS: u64 = 16;
/// Operations of a round: at its end all is flushed, and the header says so.
pub(super) const ROUND: u32 = 256;
/// The most operations of a run: sectors' states are 32 bits.
const MOST_OPERATIONS: u64 = u32::MAX as u64 - 2;

/// The most sectors of an operation.
const MOST_SECTORS: u64 = 2048;

const MAGIC: u64 = u64::from_le_bytes(*b"torture1");

/// What the command line says.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) operations: u32,
    /// Sectors that are worked on, behind the header.
    pub(super) sectors: u64,
    pub(super) depth: usize,
    pub(super) report: u32,
    pub(super) faults: bool,
    /// Requests in flight may overlap: the disk carries out such ones in their order.
    pub(super) overlap: bool,
}

impl Settings {
    pub(super) fn of(args: &Args, shape: &Shape) -> Result<Self, Trouble> {
        let get = |name, otherwise| number(args, name, otherwise).ok_or(Trouble::Usage("a setting is no number"));
        let sectors = (get("size", 64 << 20)? / SECTOR as u64).min(shape.sectors).saturating_sub(HEADER_SECTORS);
        if sectors < 64 {
            return Err(Trouble::Usage("the disk or its size= is too small"));
        }
        let operations = match get("operations", 10_000)? {
            0 => MOST_OPERATIONS,
            operations => operations.min(MOST_OPERATIONS),
        };
        Ok(Settings {
            seed: get("seed", 1)?,
            operations: operations as u32,
            sectors,
            depth: get("depth", 16)?.clamp(1, lockstep_disk::SLOTS as u64) as usize,
            report: get("report", 1000)?.clamp(1, MOST_OPERATIONS) as u32,
            faults: get("faults", 0)? != 0,
            overlap: get("overlap", 0)? != 0,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes { may_unmap: bool },
}

/// One operation: sectors from `first` on, counted from the header's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) kind: Kind,
    pub(super) first: u64,
    pub(super) sectors: u64,
}

impl Operation {
    pub(super) fn covers(&self, sector: u64) -> bool {
        (self.first..self.first + self.sectors).contains(&sector)
    }
}

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(u32);

impl State {
    /// Nobody knows.
    pub(super) const UNKNOWN: State = State(0);

    /// What this operation left there.
    pub(super) fn after(number: u32) -> State {
        State(number + 1)
    }

    /// The operation that it is after.
    pub(super) fn operation(self) -> Option<u32> {
        self.0.checked_sub(1)
    }
}

/// The row of operations.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    settings: Settings,
    shape: Shape,
}

impl Plan {
    pub(super) fn new(settings: Settings, shape: Shape) -> Self {
        Plan { settings, shape }
    }

    /// Operation `number`.
    pub(super) fn operation(&self, number: u32) -> Operation {
        let mut random = SplitMix64::new(mix(self.settings.seed ^ u64::from(number) << 32));
        let mut below = |bound: u64| random.next_u64() % bound;
        let kind = match below(100) {
            0..42 => Kind::Read,
            42..86 => Kind::Write,
            86..90 => Kind::Flush,
            90..94 if self.shape.most_discard > 0 => Kind::Discard,
            94..100 if self.shape.most_zeroes > 0 => Kind::WriteZeroes { may_unmap: below(2) == 0 },
            _ => Kind::Write,
        };
        let most = match kind {
            Kind::Flush => return Operation { kind, first: 0, sectors: 0 },
            Kind::Read | Kind::Write => u64::from(self.shape.most_bytes) / SECTOR as u64,
            Kind::Discard => self.shape.most_discard.into(),
            Kind::WriteZeroes { .. } => self.shape.most_zeroes.into(),
        };
        // One that covers all leaves nothing to check.
        let most = most.min(MOST_SECTORS).min(self.settings.sectors / 16);
        // Mostly small ones; now and then as long as they may be.
        let sectors = match below(16) {
            0 => 1 + below(most),
            1..4 => 1 + below(64.min(most)),
            4..10 => [8, 1, 2, 16][below(4) as usize].min(most),
            _ => 1 + below(8.min(most)),
        };
        // Half of them in a small part of the disk, where they meet.
        let room = self.settings.sectors - sectors + 1;
        let mut first = if below(2) == 0 { below(room) } else { below(room.min(1024)) };
        if below(2) == 0 {
            first -= first % 8;
        }
        Operation { kind, first, sectors }
    }

    fn word(&self, sector: u64, state: State, index: usize) -> u64 {
        match index {
            0 => MAGIC ^ self.settings.seed,
            1 => sector << 32 | u64::from(state.0),
            _ => mix(self.settings.seed ^ sector << 40 ^ u64::from(state.0) << 8 ^ index as u64),
        }
    }

    /// Writes what a write leaves in a sector.
    pub(super) fn fill(&self, sector: u64, state: State, bytes: &mut [u8]) {
        for (index, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *word = self.word(sector, state, index).to_le_bytes();
        }
    }

    /// Whether a sector holds what a write with this number left there.
    pub(super) fn is_written(&self, sector: u64, state: State, bytes: &[u8]) -> bool {
        let words = bytes.as_chunks::<8>().0;
        words.iter().enumerate().all(|(index, word)| *word == self.word(sector, state, index).to_le_bytes())
    }

    /// Whether a sector is as `state` says.
    pub(super) fn is(&self, sector: u64, state: State, bytes: &[u8]) -> bool {
        let Some(number) = state.operation() else { return true };
        match self.operation(number).kind {
            Kind::WriteZeroes { .. } => bytes.iter().all(|&byte| byte == 0),
            Kind::Write => self.is_written(sector, state, bytes),
            // These leave no such state.
            Kind::Read | Kind::Flush | Kind::Discard => false,
        }
    }

    /// What a sector says that it holds.
    pub(super) fn claims(&self, bytes: &[u8]) -> Option<(u64, State)> {
        let words = bytes.as_chunks::<8>().0;
        let claim = u64::from_le_bytes(words[1]);
        (words[0] == self.word(0, State::UNKNOWN, 0).to_le_bytes()).then_some((claim >> 32, State(claim as u32)))
    }

    /// What an operation leaves in the sectors that it covers; `None` if it leaves them alone.
    pub(super) fn effect(&self, number: u32, operation: &Operation) -> Option<State> {
        match operation.kind {
            Kind::Read | Kind::Flush => None,
            Kind::Write | Kind::WriteZeroes { .. } => Some(State::after(number)),
            Kind::Discard => Some(State::UNKNOWN),
        }
    }

    /// All sectors after the first `operations` operations.
    pub(super) fn states_after(&self, operations: u32, poll: fn()) -> Vec<State> {
        let mut states = alloc::vec![State::UNKNOWN; self.settings.sectors as usize];
        for number in 0..operations {
            let operation = self.operation(number);
            if let Some(state) = self.effect(number, &operation) {
                states[operation.first as usize..][..operation.sectors as usize].fill(state);
            }
            poll();
        }
        states
    }

    /// The header: that all up to operation `operations` is on stable storage.
    pub(super) fn header(&self, operations: u32) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let words = [MAGIC, self.settings.seed, self.settings.sectors, operations.into()];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        let sum = words.iter().fold(0, |sum, &word| mix(sum ^ word));
        bytes[SECTOR - 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// What a header says, if it is one of this plan.
    pub(super) fn read_header(&self, bytes: &[u8]) -> Option<u32> {
        let operations = u32::from_le_bytes(*bytes.get(24..)?.first_chunk()?);
        (bytes == self.header(operations)).then_some(operations)
    }
}
