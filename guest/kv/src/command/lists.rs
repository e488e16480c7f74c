//! Lists.

use super::strings::span;
use super::{Call, Outcome, POLL_EVERY};
use crate::bytes::{Bytes, copy};
use crate::list::{End, List};
use crate::refusal::Refusal;

fn push(c: &mut Call<'_, '_>, end: End, create: bool) -> Outcome {
    let key = c.args.at(1);
    let poll = c.store.settings.poll;
    let found =
        if create { Some(c.store.open_or_new::<List>(key, c.now_ms)?) } else { c.store.open::<List>(key, c.now_ms)? };
    let Some((at, list)) = found else {
        c.out.int(0);
        return Ok(());
    };
    for (number, element) in c.args.from(2).enumerate() {
        list.push(end, copy(element, poll));
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
        }
    }
    let length = list.len();
    c.store.changed(at);
    c.out.size(length);
    Ok(())
}

pub(super) fn lpush(c: &mut Call<'_, '_>) -> Outcome {
    push(c, End::Left, true)
}

pub(super) fn rpush(c: &mut Call<'_, '_>) -> Outcome {
    push(c, End::Right, true)
}

pub(super) fn lpushx(c: &mut Call<'_, '_>) -> Outcome {
    push(c, End::Left, false)
}

pub(super) fn rpushx(c: &mut Call<'_, '_>) -> Outcome {
    push(c, End::Right, false)
}

/// A number of elements among the arguments, if it is there.
pub(super) fn count(c: &Call<'_, '_>, at: usize) -> Result<Option<usize>, Refusal> {
    if c.args.len() > at + 1 {
        return Err(c.arity());
    }
    if c.args.len() == at {
        return Ok(None);
    }
    c.size_or(at, Refusal::NotPositive).map(Some)
}

fn pop(c: &mut Call<'_, '_>, end: End) -> Outcome {
    let count = count(c, 2)?;
    let poll = c.store.settings.poll;
    let Some((at, list)) = c.store.open::<List>(c.args.at(1), c.now_ms)? else {
        if count.is_some() {
            c.out.null_array()
        } else {
            c.out.null()
        }
        return Ok(());
    };
    match count {
        None => c.out.bulk_or_null(list.pop(end).as_deref()),
        Some(count) => {
            let count = count.min(list.len());
            c.out.array(count);
            for number in 0..count {
                c.out.bulk_or_null(list.pop(end).as_deref());
                if number % POLL_EVERY == POLL_EVERY - 1 {
                    poll();
                }
            }
        }
    }
    if count != Some(0) {
        c.store.changed(at);
    }
    Ok(())
}

pub(super) fn lpop(c: &mut Call<'_, '_>) -> Outcome {
    pop(c, End::Left)
}

pub(super) fn rpop(c: &mut Call<'_, '_>) -> Outcome {
    pop(c, End::Right)
}

pub(super) fn llen(c: &mut Call<'_, '_>) -> Outcome {
    let length = c.store.read::<List>(c.args.at(1), c.now_ms)?.map_or(0, List::len);
    c.out.size(length);
    Ok(())
}

pub(super) fn lrange(c: &mut Call<'_, '_>) -> Outcome {
    let (first, last) = (c.int(2)?, c.int(3)?);
    let poll = c.store.settings.poll;
    let Some(list) = c.store.read::<List>(c.args.at(1), c.now_ms)? else {
        c.out.array(0);
        return Ok(());
    };
    let (start, length) = span(first, last, list.len());
    c.out.array(length);
    for (number, element) in list.iter_from(start).take(length).enumerate() {
        c.out.bulk(element);
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
            if c.out.is_full() {
                break;
            }
        }
    }
    Ok(())
}

/// The place that an index means, negative ones from the end.
fn place(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add_unsigned(length as u64)? } else { index };
    usize::try_from(index).ok().filter(|&at| at < length)
}

pub(super) fn lindex(c: &mut Call<'_, '_>) -> Outcome {
    let index = c.int(2);
    let element = match c.store.read::<List>(c.args.at(1), c.now_ms)? {
        Some(list) => place(index?, list.len()).and_then(|at| list.get(at)),
        None => None,
    };
    c.out.bulk_or_null(element.map(|element| element.as_slice()));
    Ok(())
}

pub(super) fn lset(c: &mut Call<'_, '_>) -> Outcome {
    let index = c.int(2);
    let poll = c.store.settings.poll;
    let (at, list) = c.store.open::<List>(c.args.at(1), c.now_ms)?.ok_or(Refusal::NoKey)?;
    let place = place(index?, list.len()).ok_or(Refusal::IndexRange)?;
    if let Some(element) = list.get_mut(place) {
        *element = copy(c.args.at(3), poll);
    }
    c.store.changed(at);
    c.out.ok();
    Ok(())
}

pub(super) fn linsert(c: &mut Call<'_, '_>) -> Outcome {
    let behind = match () {
        () if c.is(2, "BEFORE") => 0,
        () if c.is(2, "AFTER") => 1,
        () => return Err(Refusal::Syntax),
    };
    let (pivot, element) = (c.args.at(3), c.args.at(4));
    let poll = c.store.settings.poll;
    let Some((at, list)) = c.store.open::<List>(c.args.at(1), c.now_ms)? else {
        c.out.int(0);
        return Ok(());
    };
    let found = list.iter().enumerate().position(|(number, element)| {
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
        }
        element.as_slice() == pivot
    });
    let Some(place) = found else {
        c.out.int(-1);
        return Ok(());
    };
    list.insert(place + behind, copy(element, poll));
    let length = list.len();
    c.store.changed(at);
    c.out.size(length);
    Ok(())
}

pub(super) fn lrem(c: &mut Call<'_, '_>) -> Outcome {
    let count = c.int(2)?;
    let element = c.args.at(3);
    let poll = c.store.settings.poll;
    let Some((at, list)) = c.store.open::<List>(c.args.at(1), c.now_ms)? else {
        c.out.int(0);
        return Ok(());
    };
    let most = if count == 0 { u64::MAX } else { count.unsigned_abs() };
    let (mut seen, mut removed) = (0, 0);
    list.retain(if count < 0 { End::Right } else { End::Left }, |other| {
        seen += 1;
        if seen % POLL_EVERY == 0 {
            poll();
        }
        let goes = removed < most && other.as_slice() == element;
        removed += u64::from(goes);
        !goes
    });
    if removed > 0 {
        c.store.changed(at);
    }
    c.out.int(removed.cast_signed());
    Ok(())
}

pub(super) fn ltrim(c: &mut Call<'_, '_>) -> Outcome {
    let (first, last) = (c.int(2)?, c.int(3)?);
    let poll = c.store.settings.poll;
    if let Some((at, list)) = c.store.open::<List>(c.args.at(1), c.now_ms)? {
        let (start, length) = span(first, last, list.len());
        let behind = list.len() - start - length;
        for (end, many) in [(End::Left, start), (End::Right, behind)] {
            for number in 0..many {
                list.pop(end);
                if number % POLL_EVERY == POLL_EVERY - 1 {
                    poll();
                }
            }
        }
        c.store.changed(at);
    }
    c.out.ok();
    Ok(())
}

pub(super) fn lpos(c: &mut Call<'_, '_>) -> Outcome {
    let element = c.args.at(2);
    let (mut rank, mut count, mut longest) = (1i64, None, 0usize);
    let mut at = 3;
    while at < c.args.len() {
        if at + 1 == c.args.len() {
            return Err(Refusal::Syntax);
        } else if c.is(at, "RANK") {
            rank = c.int(at + 1)?;
            if rank == 0 {
                return Err(Refusal::RankZero);
            }
            if rank == i64::MIN {
                return Err(Refusal::OutOfRange);
            }
        } else if c.is(at, "COUNT") {
            count = Some(c.size_or(at + 1, Refusal::CountNegative)?);
        } else if c.is(at, "MAXLEN") {
            longest = c.size_or(at + 1, Refusal::MaxlenNegative)?;
        } else {
            return Err(Refusal::Syntax);
        }
        at += 2;
    }
    let poll = c.store.settings.poll;
    let (length, mut found) = (if longest == 0 { usize::MAX } else { longest }, alloc::vec::Vec::new());
    if let Some(list) = c.store.read::<List>(c.args.at(1), c.now_ms)? {
        let wanted = match count {
            None => 1,
            Some(0) => usize::MAX,
            Some(count) => count,
        };
        let mut skip = rank.unsigned_abs() - 1;
        let mut visit = |(place, other): (usize, &Bytes)| {
            if place % POLL_EVERY == 0 {
                poll();
            }
            if other.as_slice() == element {
                if skip > 0 {
                    skip -= 1;
                } else {
                    found.push(place);
                }
            }
            found.len() < wanted
        };
        let last = list.len().saturating_sub(1);
        if rank > 0 {
            let _all = list.iter().enumerate().take(length).all(&mut visit);
        } else {
            let _all = list.iter().rev().enumerate().take(length).all(|(back, other)| visit((last - back, other)));
        }
    }
    match count {
        None => match found.first() {
            Some(&place) => c.out.size(place),
            None => c.out.null(),
        },
        Some(_) => {
            c.out.array(found.len());
            for (number, &place) in found.iter().enumerate() {
                c.out.size(place);
                c.poll_at(number);
            }
        }
    }
    Ok(())
}

fn move_element(c: &mut Call<'_, '_>, from_end: End, to_end: End) -> Outcome {
    let (from, to) = (c.args.at(1), c.args.at(2));
    if c.store.open::<List>(from, c.now_ms)?.is_none() {
        c.out.null();
        return Ok(());
    }
    // The other key's kind is looked at before anything changes.
    c.store.open::<List>(to, c.now_ms)?;
    let Some((at, list)) = c.store.open::<List>(from, c.now_ms)? else { return Ok(()) };
    let Some(element) = list.pop(from_end) else { return Ok(()) };
    c.out.bulk(&element);
    if from == to {
        list.push(to_end, element);
        c.store.changed(at);
        return Ok(());
    }
    c.store.changed(at);
    let (at, list) = c.store.open_or_new::<List>(to, c.now_ms)?;
    list.push(to_end, element);
    c.store.changed(at);
    Ok(())
}

pub(super) fn rpoplpush(c: &mut Call<'_, '_>) -> Outcome {
    move_element(c, End::Right, End::Left)
}

pub(super) fn lmove(c: &mut Call<'_, '_>) -> Outcome {
    let end = |c: &Call<'_, '_>, at| match () {
        () if c.is(at, "LEFT") => Ok(End::Left),
        () if c.is(at, "RIGHT") => Ok(End::Right),
        () => Err(Refusal::Syntax),
    };
    let (from, to) = (end(c, 3)?, end(c, 4)?);
    move_element(c, from, to)
}
