//! The check after a restart: the disk's header says up to which operation all is on stable storage, and every sector must be as after
//! that one, or as one of the next round left it, which may have got there or not.

use super::Trouble;
use super::plan::{HEADER_SECTORS, Kind, Plan, ROUND, Settings};
use super::torture::poll_at;
use alloc::vec;
use alloc::vec::Vec;
use lockstep_disk::{Disk, SECTOR};
use lockstep_runtime::{Args, println, safepoint};

pub(super) fn run(disk: &mut Disk, args: &Args) -> Result<(), Trouble> {
    let shape = disk.shape();
    let settings = Settings::of(args, &shape)?;
    let plan = Plan::new(settings, shape);
    let failed = |error| Trouble::Failed("read", error);
    let mut header = [0; SECTOR];
    let mut found = Vec::new();
    for place in [0, HEADER_SECTORS / 2] {
        disk.read(place, &mut header).map_err(failed)?;
        found.extend(plan.read_header(&header));
    }
    let Some(&operations) = found.iter().max() else {
        println!("disk: WRONG: no header of a run with this seed and size");
        return Err(Trouble::Wrong);
    };
    let states = plan.states_after(operations, safepoint);
    let next: Vec<_> = (operations..operations.saturating_add(ROUND))
        .map(|number| (number, plan.operation(number)))
        .filter(|(_, operation)| !matches!(operation.kind, Kind::Read | Kind::Flush))
        .collect();
    let (mut known, mut newer) = (0_u64, 0_u64);
    let mut buffer = vec![0; shape.most_bytes as usize];
    let mut first = 0;
    while first < settings.sectors {
        let sectors = (settings.sectors - first).min((buffer.len() / SECTOR) as u64);
        let bytes = &mut buffer[..sectors as usize * SECTOR];
        disk.read(HEADER_SECTORS + first, bytes).map_err(failed)?;
        for (at, bytes) in bytes.chunks(SECTOR).enumerate() {
            let sector = first + at as u64;
            let state = states[sector as usize];
            poll_at(at);
            if plan.is(sector, state, bytes) {
                known += u64::from(state.operation().is_some());
                continue;
            }
            let may_be = next.iter().filter(|(_, operation)| operation.covers(sector)).any(|(number, operation)| {
                match plan.effect(*number, operation) {
                    Some(state) => plan.is(sector, state, bytes),
                    None => false,
                }
            });
            if !may_be {
                println!(
                    "disk: WRONG: sector {sector} should be as after operation {:?} of {operations}, claims {:?}, begins {:02x?}",
                    state.operation(),
                    plan.claims(bytes),
                    &bytes[..32],
                );
                return Err(Trouble::Wrong);
            }
            newer += 1;
        }
        first += sectors;
    }
    println!("disk: verified {operations} operations, ok ({known} sectors as flushed, {newer} newer)");
    Ok(())
}
