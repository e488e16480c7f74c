//! Hashes.

use super::keys::draw;
use super::strings::add_text;
use super::{Call, Outcome, POLL_EVERY};
use crate::bytes::{Bytes, copy, parse_i64};
use crate::refusal::Refusal;
use crate::reply::Reply;
use crate::table::Entry;
use crate::value::Fields;

/// Sets the pairs from the second argument on; how many fields are new.
fn set_pairs(c: &mut Call<'_, '_>) -> Result<usize, Refusal> {
    if c.args.len() % 2 == 1 {
        return Err(c.arity());
    }
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    let (at, fields) = c.store.open_or_new::<Fields>(c.args.at(1), c.now_ms)?;
    let mut new = 0;
    for arg in (2..c.args.len()).step_by(2) {
        let field = c.args.at(arg);
        new += usize::from(fields.set(seed.hash(field), field, copy(c.args.at(arg + 1), poll)));
        if arg % POLL_EVERY == 0 {
            poll();
        }
    }
    c.store.changed(at);
    Ok(new)
}

pub(super) fn hset(c: &mut Call<'_, '_>) -> Outcome {
    let new = set_pairs(c)?;
    c.out.size(new);
    Ok(())
}

pub(super) fn hmset(c: &mut Call<'_, '_>) -> Outcome {
    set_pairs(c)?;
    c.out.ok();
    Ok(())
}

pub(super) fn hsetnx(c: &mut Call<'_, '_>) -> Outcome {
    let field = c.args.at(2);
    let hash = c.store.seed.hash(field);
    let poll = c.store.settings.poll;
    let (at, fields) = c.store.open_or_new::<Fields>(c.args.at(1), c.now_ms)?;
    let absent = fields.find(hash, field).is_none();
    if absent {
        fields.set(hash, field, copy(c.args.at(3), poll));
        c.store.changed(at);
    }
    c.out.bool(absent);
    Ok(())
}

pub(super) fn hget(c: &mut Call<'_, '_>) -> Outcome {
    let field = c.args.at(2);
    let hash = c.store.seed.hash(field);
    let value = c.store.read::<Fields>(c.args.at(1), c.now_ms)?.and_then(|fields| fields.get(hash, field));
    c.out.bulk_or_null(value.map(|value| value.as_slice()));
    Ok(())
}

pub(super) fn hmget(c: &mut Call<'_, '_>) -> Outcome {
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    let fields = c.store.read::<Fields>(c.args.at(1), c.now_ms)?;
    c.out.array(c.args.len() - 2);
    for (number, field) in c.args.from(2).enumerate() {
        let value = fields.and_then(|fields| fields.get(seed.hash(field), field));
        c.out.bulk_or_null(value.map(|value| value.as_slice()));
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
        }
    }
    Ok(())
}

pub(super) fn hdel(c: &mut Call<'_, '_>) -> Outcome {
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    let mut removed = 0;
    if let Some((at, fields)) = c.store.open::<Fields>(c.args.at(1), c.now_ms)? {
        for (number, field) in c.args.from(2).enumerate() {
            removed += usize::from(fields.remove(seed.hash(field), field).is_some());
            if number % POLL_EVERY == POLL_EVERY - 1 {
                poll();
            }
        }
        if removed > 0 {
            c.store.changed(at);
        }
    }
    c.out.size(removed);
    Ok(())
}

pub(super) fn hlen(c: &mut Call<'_, '_>) -> Outcome {
    let length = c.store.read::<Fields>(c.args.at(1), c.now_ms)?.map_or(0, Fields::len);
    c.out.size(length);
    Ok(())
}

pub(super) fn hexists(c: &mut Call<'_, '_>) -> Outcome {
    let field = c.args.at(2);
    let hash = c.store.seed.hash(field);
    let found =
        c.store.read::<Fields>(c.args.at(1), c.now_ms)?.is_some_and(|fields| fields.find(hash, field).is_some());
    c.out.bool(found);
    Ok(())
}

pub(super) fn hstrlen(c: &mut Call<'_, '_>) -> Outcome {
    let field = c.args.at(2);
    let hash = c.store.seed.hash(field);
    let value = c.store.read::<Fields>(c.args.at(1), c.now_ms)?.and_then(|fields| fields.get(hash, field));
    c.out.size(value.map_or(0, |value| value.len()));
    Ok(())
}

/// Tells of every field what `tell` writes: that many replies each.
fn tell_all(c: &mut Call<'_, '_>, each: usize, tell: fn(&Entry<Bytes>, &mut Reply<'_>)) -> Outcome {
    let poll = c.store.settings.poll;
    let Some(fields) = c.store.read::<Fields>(c.args.at(1), c.now_ms)? else {
        c.out.array(0);
        return Ok(());
    };
    c.out.array(each * fields.len());
    for (number, entry) in fields.iter().enumerate() {
        tell(entry, c.out);
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
            if c.out.is_full() {
                break;
            }
        }
    }
    Ok(())
}

pub(super) fn hgetall(c: &mut Call<'_, '_>) -> Outcome {
    tell_all(c, 2, |entry, out| {
        out.bulk(&entry.key);
        out.bulk(&entry.value);
    })
}

pub(super) fn hkeys(c: &mut Call<'_, '_>) -> Outcome {
    tell_all(c, 1, |entry, out| out.bulk(&entry.key))
}

pub(super) fn hvals(c: &mut Call<'_, '_>) -> Outcome {
    tell_all(c, 1, |entry, out| out.bulk(&entry.value))
}

/// A field's value, if the key is there and has it.
fn old_value(c: &mut Call<'_, '_>) -> Result<Option<Bytes>, Refusal> {
    let field = c.args.at(2);
    let hash = c.store.seed.hash(field);
    let found = c.store.open::<Fields>(c.args.at(1), c.now_ms)?;
    Ok(found.and_then(|(_, fields)| fields.get(hash, field).cloned()))
}

fn set_field(c: &mut Call<'_, '_>, value: Bytes) -> Outcome {
    let field = c.args.at(2);
    let hash = c.store.seed.hash(field);
    let (at, fields) = c.store.open_or_new::<Fields>(c.args.at(1), c.now_ms)?;
    fields.set(hash, field, value);
    c.store.changed(at);
    Ok(())
}

pub(super) fn hincrby(c: &mut Call<'_, '_>) -> Outcome {
    let increment = c.int(3)?;
    let old = old_value(c)?.map_or(Some(0), |value| parse_i64(&value)).ok_or(Refusal::HashNotInteger)?;
    let sum = old.checked_add(increment).ok_or(Refusal::Overflow)?;
    set_field(c, Bytes::from_slice(itoa::Buffer::new().format(sum).as_bytes()))?;
    c.out.int(sum);
    Ok(())
}

pub(super) fn hincrbyfloat(c: &mut Call<'_, '_>) -> Outcome {
    let increment = c.args.at(3);
    if crate::bytes::parse_f64(increment).ok_or(Refusal::NotFloat)?.is_infinite() {
        return Err(Refusal::Infinite);
    }
    let old = old_value(c)?;
    let sum = add_text(old.as_deref().unwrap_or(b"0"), increment, Refusal::HashNotFloat)?;
    c.out.bulk(&sum);
    set_field(c, sum)
}

pub(super) fn hrandfield(c: &mut Call<'_, '_>) -> Outcome {
    let with_values = match c.args.len() {
        2 | 3 => false,
        4 if c.is(3, "WITHVALUES") => true,
        _ => return Err(Refusal::Syntax),
    };
    let count = if c.args.len() == 2 { None } else { Some(c.int(2)?) };
    let length = c.store.read::<Fields>(c.args.at(1), c.now_ms)?.map_or(0, Fields::len);
    random_entries(c, length, count, if with_values { 2 } else { 1 }, |c, at| {
        if let Some(fields) = c.store.view::<Fields>(c.args.at(1), c.now_ms)? {
            let entry = fields.at(at);
            c.out.bulk(&entry.key);
            if with_values {
                c.out.bulk(&entry.value);
            }
        }
        Ok(())
    })
}

/// What the draws have in common: one entry, so many different ones, or (negative) so many with repeats.
pub(super) fn random_entries(
    c: &mut Call<'_, '_>,
    length: usize,
    count: Option<i64>,
    each: usize,
    mut tell: impl FnMut(&mut Call<'_, '_>, usize) -> Outcome,
) -> Outcome {
    let Some(count) = count else {
        if length == 0 {
            c.out.null();
            return Ok(());
        }
        let at = c.store.random_below(length);
        return tell(c, at);
    };
    if !(-i64::MAX / 2..=i64::MAX / 2).contains(&count) {
        return Err(Refusal::OutOfRange);
    }
    let size = count.unsigned_abs() as usize;
    if length == 0 || count == 0 {
        c.out.array(0);
    } else if count > 0 {
        let drawn = draw(c, length, size)?;
        c.out.array(each * drawn.len());
        for (number, at) in drawn.into_iter().enumerate() {
            tell(c, at)?;
            c.poll_at(number);
        }
    } else {
        c.out.array(each * size);
        for number in 0..size {
            let at = c.store.random_below(length);
            tell(c, at)?;
            c.poll_at(number);
            if c.out.is_full() {
                break;
            }
        }
    }
    Ok(())
}
