//! Keys, whatever they hold.

use super::scan::{self, ScanOptions};
use super::strings::{AT_MILLISECONDS, AT_SECONDS, MILLISECONDS, SECONDS, Unit, deadline};
use super::{Call, Outcome, POLL_EVERY};
use crate::glob;
use crate::refusal::Refusal;
use crate::store::NEVER;

pub(super) fn del(c: &mut Call<'_, '_>) -> Outcome {
    let mut deleted = 0;
    for (number, key) in c.args.from(1).enumerate() {
        deleted += usize::from(c.store.delete(key, c.now_ms));
        c.poll_at(number);
    }
    c.out.size(deleted);
    Ok(())
}

pub(super) fn exists(c: &mut Call<'_, '_>) -> Outcome {
    let mut found = 0;
    for (number, key) in c.args.from(1).enumerate() {
        found += usize::from(c.store.find(key, c.now_ms).is_some());
        c.poll_at(number);
    }
    c.out.size(found);
    Ok(())
}

pub(super) fn type_of(c: &mut Call<'_, '_>) -> Outcome {
    let name = c.store.find(c.args.at(1), c.now_ms).map_or("none", |at| c.store.slot(at).value.type_name());
    c.out.simple(name);
    Ok(())
}

/// When an `EXPIRE` counts.
#[derive(Default)]
struct Condition {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

fn condition(c: &mut Call<'_, '_>) -> Result<Condition, Refusal> {
    let mut condition = Condition::default();
    for at in 3..c.args.len() {
        match () {
            () if c.is(at, "NX") => condition.nx = true,
            () if c.is(at, "XX") => condition.xx = true,
            () if c.is(at, "GT") => condition.gt = true,
            () if c.is(at, "LT") => condition.lt = true,
            () => return Err(c.say("Unsupported option ", c.args.at(at), "")),
        }
    }
    if condition.nx && (condition.xx || condition.gt || condition.lt) {
        return Err(Refusal::NxAndOthers);
    }
    if condition.gt && condition.lt {
        return Err(Refusal::GtAndLt);
    }
    Ok(condition)
}

fn expire_by(c: &mut Call<'_, '_>, unit: Unit) -> Outcome {
    let condition = condition(c)?;
    let deadline = deadline(c, 2, unit)?;
    let Some(at) = c.store.find(c.args.at(1), c.now_ms) else {
        c.out.bool(false);
        return Ok(());
    };
    let old = c.store.slot(at).expires_ms;
    // Without an expiry a key lives longer than with any.
    let later = u64::try_from(deadline).is_ok_and(|deadline| deadline > old);
    let earlier = u64::try_from(deadline).map_or(true, |deadline| deadline < old);
    let wanted = !(condition.nx && old != NEVER
        || condition.xx && old == NEVER
        || condition.gt && !later
        || condition.lt && !earlier);
    if wanted {
        match u64::try_from(deadline) {
            Ok(deadline) if deadline > c.now_ms => {
                c.store.set_expiry(at, deadline);
                c.store.changed(at);
            }
            _ => c.store.delete_at(at),
        }
    }
    c.out.bool(wanted);
    Ok(())
}

pub(super) fn expire(c: &mut Call<'_, '_>) -> Outcome {
    expire_by(c, SECONDS)
}

pub(super) fn pexpire(c: &mut Call<'_, '_>) -> Outcome {
    expire_by(c, MILLISECONDS)
}

pub(super) fn expireat(c: &mut Call<'_, '_>) -> Outcome {
    expire_by(c, AT_SECONDS)
}

pub(super) fn pexpireat(c: &mut Call<'_, '_>) -> Outcome {
    expire_by(c, AT_MILLISECONDS)
}

/// Tells when a key is due: -2 without the key, -1 without an expiry.
fn tell_expiry(c: &mut Call<'_, '_>, tell: impl Fn(u64, u64) -> u64) -> Outcome {
    let value = match c.store.find(c.args.at(1), c.now_ms).map(|at| c.store.slot(at).expires_ms) {
        None => -2,
        Some(NEVER) => -1,
        Some(expires_ms) => tell(expires_ms, c.now_ms).cast_signed(),
    };
    c.out.int(value);
    Ok(())
}

pub(super) fn ttl(c: &mut Call<'_, '_>) -> Outcome {
    tell_expiry(c, |expires_ms, now_ms| (expires_ms - now_ms + 500) / 1000)
}

pub(super) fn pttl(c: &mut Call<'_, '_>) -> Outcome {
    tell_expiry(c, |expires_ms, now_ms| expires_ms - now_ms)
}

pub(super) fn expiretime(c: &mut Call<'_, '_>) -> Outcome {
    tell_expiry(c, |expires_ms, _| (expires_ms + 500) / 1000)
}

pub(super) fn pexpiretime(c: &mut Call<'_, '_>) -> Outcome {
    tell_expiry(c, |expires_ms, _| expires_ms)
}

pub(super) fn persist(c: &mut Call<'_, '_>) -> Outcome {
    let found = c.store.find(c.args.at(1), c.now_ms).filter(|&at| c.store.slot(at).expires_ms != NEVER);
    if let Some(at) = found {
        c.store.set_expiry(at, NEVER);
        c.store.changed(at);
    }
    c.out.bool(found.is_some());
    Ok(())
}

/// Moves a value; says whether it did.
fn move_to(c: &mut Call<'_, '_>, only_if_free: bool) -> Result<bool, Refusal> {
    let (from, to) = (c.args.at(1), c.args.at(2));
    if c.store.find(from, c.now_ms).is_none() {
        return Err(Refusal::NoKey);
    }
    if from == to {
        return Ok(!only_if_free);
    }
    if only_if_free && c.store.find(to, c.now_ms).is_some() {
        return Ok(false);
    }
    // Found again: looking for the other may have moved it.
    if let Some((_, slot)) = c.store.find(from, c.now_ms).and_then(|at| c.store.take_at(at)) {
        let at = c.store.put(to, slot.value, c.now_ms);
        c.store.set_expiry(at, slot.expires_ms);
    }
    Ok(true)
}

pub(super) fn rename(c: &mut Call<'_, '_>) -> Outcome {
    move_to(c, false)?;
    c.out.ok();
    Ok(())
}

pub(super) fn renamenx(c: &mut Call<'_, '_>) -> Outcome {
    let moved = move_to(c, true)?;
    c.out.bool(moved);
    Ok(())
}

pub(super) fn copy(c: &mut Call<'_, '_>) -> Outcome {
    let (from, to) = (c.args.at(1), c.args.at(2));
    let mut replace = false;
    let mut at = 3;
    while at < c.args.len() {
        if c.is(at, "REPLACE") {
            replace = true;
        } else if c.is(at, "DB") && at + 1 < c.args.len() {
            if c.int(at + 1)? != 0 {
                return Err(Refusal::Database);
            }
            at += 1;
        } else {
            return Err(Refusal::Syntax);
        }
        at += 1;
    }
    if from == to {
        return Err(Refusal::SameObject);
    }
    let free = replace || c.store.find(to, c.now_ms).is_none();
    let copied = match c.store.find(from, c.now_ms) {
        Some(found) if free => {
            let slot = c.store.slot(found);
            let poll = c.store.settings.poll;
            c.store.room_for(slot.value.heap_bytes(poll))?;
            let (value, expires_ms) = (slot.value.copy(poll), slot.expires_ms);
            let at = c.store.put(to, value, c.now_ms);
            c.store.set_expiry(at, expires_ms);
            true
        }
        _ => false,
    };
    c.out.bool(copied);
    Ok(())
}

pub(super) fn randomkey(c: &mut Call<'_, '_>) -> Outcome {
    while !c.store.is_empty() {
        let at = c.store.random_below(c.store.len());
        let (key, slot) = c.store.at(at);
        if slot.expires_ms >= c.now_ms {
            c.out.bulk(key);
            return Ok(());
        }
        // Past its time: one less, so this ends.
        c.store.delete_at(at);
        c.store.stats.expired_keys += 1;
        c.store.poll();
    }
    c.out.null();
    Ok(())
}

pub(super) fn keys(c: &mut Call<'_, '_>) -> Outcome {
    let pattern = c.args.at(1);
    let mark = c.out.mark();
    let mut found = 0;
    for at in 0..c.store.len() {
        let (key, slot) = c.store.at(at);
        if slot.expires_ms >= c.now_ms && glob::matches(pattern, key, c.store.settings.poll) {
            c.out.bulk(key);
            found += 1;
        }
        c.poll_at(at);
        if c.out.is_full() {
            break;
        }
    }
    c.out.array_since(mark, found);
    Ok(())
}

pub(super) fn scan(c: &mut Call<'_, '_>) -> Outcome {
    let cursor = scan::cursor(c, 1)?;
    let options = ScanOptions::parse(c, 2, true)?;
    let (next, range) = scan::step(cursor, options.count, c.store.len());
    c.out.array(2);
    scan::tell_cursor(c.out, next);
    let mark = c.out.mark();
    let mut found = 0;
    for at in range {
        let (key, slot) = c.store.at(at);
        if slot.expires_ms >= c.now_ms && options.wants(key) && options.wants_type(slot.value.type_name()) {
            c.out.bulk(key);
            found += 1;
        }
        c.poll_at(at);
    }
    c.out.array_since(mark, found);
    Ok(())
}

pub(super) fn dbsize(c: &mut Call<'_, '_>) -> Outcome {
    c.out.size(c.store.len());
    Ok(())
}

pub(super) fn flush(c: &mut Call<'_, '_>) -> Outcome {
    match c.args.len() {
        1 => {}
        2 if c.is(1, "ASYNC") || c.is(1, "SYNC") => {}
        _ => return Err(Refusal::Syntax),
    }
    c.store.clear();
    c.out.ok();
    Ok(())
}

pub(super) fn object(c: &mut Call<'_, '_>) -> Outcome {
    let encoding = c.is(1, "ENCODING");
    match c.store.find(c.args.at(2), c.now_ms) {
        None => c.out.null(),
        Some(at) if encoding => c.out.bulk(c.store.slot(at).value.encoding().as_bytes()),
        Some(_) => c.out.int(1),
    }
    Ok(())
}

pub(super) fn memory(c: &mut Call<'_, '_>) -> Outcome {
    // `SAMPLES n` is taken and not needed: all elements are counted.
    if c.args.len() != 3 && !(c.args.len() == 5 && c.is(3, "SAMPLES")) {
        return Err(Refusal::Syntax);
    }
    match c.store.find(c.args.at(2), c.now_ms) {
        None => c.out.null(),
        Some(at) => {
            let (key, slot) = c.store.at(at);
            let bytes =
                c.store.slot_bytes() + crate::bytes::heap_bytes(key) + slot.value.heap_bytes(c.store.settings.poll);
            c.out.size(bytes);
        }
    }
    Ok(())
}

/// Draws that many different numbers below `from` (Floyd's way), or all of them.
pub(super) fn draw(c: &mut Call<'_, '_>, from: usize, count: usize) -> Result<alloc::vec::Vec<usize>, Refusal> {
    if count >= from {
        c.store.room_for(from * size_of::<usize>())?;
        return Ok((0..from).collect());
    }
    let mut drawn = alloc::collections::BTreeSet::new();
    for (number, last) in (from - count..from).enumerate() {
        let at = c.store.random_below(last + 1);
        if !drawn.insert(at) {
            drawn.insert(last);
        }
        if number % POLL_EVERY == 0 {
            c.store.poll();
            c.store.room_for(0)?;
        }
    }
    Ok(drawn.into_iter().collect())
}
