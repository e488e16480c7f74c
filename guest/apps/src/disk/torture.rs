//! The torture: many requests in flight, a model of the disk in memory, and every sector that is read held against it.
//!
//! A request that overlaps one in flight waits for that one's end, unless `overlap=1` says that the disk carries out such requests in their order. With
//! `faults=1` a failed request leaves its sectors unknown; at the end of the round they are written again. A failed flush is asked again.

use super::plan::{HEADER_SECTORS, Kind, Operation, Plan, ROUND, Settings, State};
use super::{Trouble, wait};
use alloc::vec;
use alloc::vec::Vec;
use lockstep_disk::{Ask, Disk, DiskError, Done, SECTOR};
use lockstep_runtime::{Args, println, safepoint};

/// So often a request is asked again where faults are announced, before it counts as a fault that does not end.
const TRIES: u32 = 1000;

/// A request in flight.
struct Flying {
    number: u64,
    operation: Operation,
    /// Of a read: what is to be there.
    expected: Vec<State>,
}

struct Torture<'a> {
    disk: &'a mut Disk,
    plan: Plan,
    settings: Settings,
    states: Vec<State>,
    /// Sectors whose last change has failed, with the state that they are to have.
    lost: Vec<(u64, State)>,
    flying: Vec<Flying>,
    /// Sectors that were held against the model.
    checked: u64,
    faults: u64,
}

pub(super) fn run(disk: &mut Disk, args: &Args) -> Result<(), Trouble> {
    let shape = disk.shape();
    let settings = Settings::of(args, &shape)?;
    if shape.read_only {
        return Err(Trouble::Usage("the disk is read-only"));
    }
    let plan = Plan::new(settings, shape);
    let states = vec![State::UNKNOWN; settings.sectors as usize];
    let mut torture =
        Torture { disk, plan, settings, states, lost: Vec::new(), flying: Vec::new(), checked: 0, faults: 0 };
    println!("disk: torture of {} sectors, seed {}, depth {}", settings.sectors, settings.seed, settings.depth);
    // A header of another run would speak for this one.
    for place in [0, HEADER_SECTORS / 2] {
        torture.insist("erase an old header", |disk| disk.write(place, &[0; SECTOR]))?;
    }
    torture.insist("flush", |disk| disk.flush())?;
    torture.write_header(0)?;
    for number in 0..settings.operations {
        torture.start(number)?;
        let done = number + 1;
        if done % ROUND == 0 || done == settings.operations {
            torture.end_round(done)?;
        }
        if done % settings.report == 0 || done == settings.operations {
            println!("disk: {done} operations, ok ({} sectors checked, {} faults)", torture.checked, torture.faults);
        }
    }
    println!("disk: the end, ok");
    Ok(())
}

impl Torture<'_> {
    /// Puts an operation on its way.
    fn start(&mut self, number: u32) -> Result<(), Trouble> {
        safepoint();
        let operation = self.plan.operation(number);
        let meets = |other: &Operation| {
            other.first < operation.first + operation.sectors && operation.first < other.first + other.sectors
        };
        let conflicts = |flying: &Flying| {
            meets(&flying.operation) && !(operation.kind == Kind::Read && flying.operation.kind == Kind::Read)
        };
        while self.flying.len() >= self.settings.depth || !self.settings.overlap && self.flying.iter().any(conflicts) {
            self.take_in()?;
        }
        let sector = HEADER_SECTORS + operation.first;
        let sectors = operation.sectors as usize;
        let range = operation.first as usize..operation.first as usize + sectors;
        let mut expected = Vec::new();
        let ask = match operation.kind {
            Kind::Read => {
                expected = self.states[range.clone()].to_vec();
                Ask::Read { sector, buffer: vec![0xa5; sectors * SECTOR] }
            }
            Kind::Write => {
                let mut buffer = vec![0; sectors * SECTOR];
                for (at, bytes) in buffer.chunks_mut(SECTOR).enumerate() {
                    self.plan.fill(operation.first + at as u64, State::after(number), bytes);
                    poll_at(at);
                }
                Ask::Write { sector, buffer }
            }
            Kind::Flush if !self.disk.shape().flush => return Ok(()),
            Kind::Flush => Ask::Flush,
            Kind::Discard => Ask::Discard { sector, sectors: sectors as u32 },
            Kind::WriteZeroes { may_unmap } => Ask::WriteZeroes { sector, sectors: sectors as u32, may_unmap },
        };
        if let Some(state) = self.plan.effect(number, &operation) {
            self.states[range].fill(state);
            // What was lost there is not wanted any more.
            self.lost.retain(|(sector, _)| !operation.covers(*sector));
        }
        let number = self.disk.submit(ask).map_err(|(error, _)| Trouble::Failed("submit a request", error))?;
        self.flying.push(Flying { number, operation, expected });
        Ok(())
    }

    /// Waits for the end of at least one request.
    fn take_in(&mut self) -> Result<(), Trouble> {
        let mut any = false;
        loop {
            while let Some(done) = self.disk.poll() {
                self.ended(done)?;
                any = true;
            }
            if any {
                return Ok(());
            }
            wait(self.disk);
        }
    }

    fn ended(&mut self, done: Done) -> Result<(), Trouble> {
        let Some(at) = self.flying.iter().position(|flying| flying.number == done.number) else {
            println!("disk: WRONG: the end of request {}, which is not in flight", done.number);
            return Err(Trouble::Wrong);
        };
        let flying = self.flying.swap_remove(at);
        match done.result {
            Ok(()) => {
                if let Ask::Read { buffer, .. } = &done.ask {
                    self.check(&flying, buffer)?;
                }
                Ok(())
            }
            Err(DiskError::Io) if self.settings.faults => {
                self.faults += 1;
                if matches!(flying.operation.kind, Kind::Write | Kind::WriteZeroes { .. }) {
                    self.lose(&flying.operation);
                }
                Ok(())
            }
            Err(error) => Err(Trouble::Failed("carry out a request", error)),
        }
    }

    /// Nobody knows what these sectors hold; they are to hold it again at the round's end.
    fn lose(&mut self, operation: &Operation) {
        for sector in operation.first..operation.first + operation.sectors {
            let state = core::mem::replace(&mut self.states[sector as usize], State::UNKNOWN);
            if state != State::UNKNOWN {
                self.lost.push((sector, state));
            }
        }
        // Reads in flight may meet them or not.
        for flying in self.flying.iter_mut().filter(|flying| flying.operation.kind == Kind::Read) {
            for (at, expected) in flying.expected.iter_mut().enumerate() {
                if operation.covers(flying.operation.first + at as u64) {
                    *expected = State::UNKNOWN;
                }
            }
        }
    }

    fn check(&mut self, flying: &Flying, buffer: &[u8]) -> Result<(), Trouble> {
        for (at, (bytes, &state)) in buffer.chunks(SECTOR).zip(&flying.expected).enumerate() {
            let sector = flying.operation.first + at as u64;
            if !self.plan.is(sector, state, bytes) {
                println!(
                    "disk: WRONG: sector {sector} (read of {} from {}) should be as after operation {:?}, claims {:?}, begins {:02x?}",
                    flying.operation.sectors,
                    flying.operation.first,
                    state.operation(),
                    self.plan.claims(bytes),
                    &bytes[..32],
                );
                return Err(Trouble::Wrong);
            }
            self.checked += u64::from(state != State::UNKNOWN);
            poll_at(at);
        }
        Ok(())
    }

    /// All is carried out and on stable storage, and the header says so.
    fn end_round(&mut self, operations: u32) -> Result<(), Trouble> {
        while !self.flying.is_empty() {
            self.take_in()?;
        }
        for (sector, state) in core::mem::take(&mut self.lost) {
            let mut bytes = [0; SECTOR];
            if let Some(number) = state.operation()
                && self.plan.operation(number).kind == Kind::Write
            {
                self.plan.fill(sector, state, &mut bytes);
            }
            self.insist("write a lost sector again", |disk| disk.write(HEADER_SECTORS + sector, &bytes))?;
            self.states[sector as usize] = state;
        }
        self.insist("flush", |disk| disk.flush())?;
        self.write_header(operations)
    }

    /// The header goes to its two places in turn.
    fn write_header(&mut self, operations: u32) -> Result<(), Trouble> {
        let bytes = self.plan.header(operations);
        let place = u64::from(operations.div_ceil(ROUND) % 2) * (HEADER_SECTORS / 2);
        self.insist("write the header", |disk| disk.write(place, &bytes))?;
        self.insist("flush", |disk| disk.flush())
    }

    /// Where faults are announced, a request that must succeed is asked again.
    fn insist(
        &mut self,
        what: &'static str,
        mut ask: impl FnMut(&mut Disk) -> Result<(), DiskError>,
    ) -> Result<(), Trouble> {
        let mut tries = 0;
        loop {
            match ask(self.disk) {
                Ok(()) => return Ok(()),
                Err(DiskError::Io) if self.settings.faults && tries < TRIES => {
                    self.faults += 1;
                    tries += 1;
                }
                Err(error) => return Err(Trouble::Failed(what, error)),
            }
        }
    }
}

/// A sector costs about 0.1 µs.
pub(super) fn poll_at(number: usize) {
    if number % 64 == 63 {
        safepoint();
    }
}
