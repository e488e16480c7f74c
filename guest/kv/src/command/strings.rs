//! Strings and counters.

use super::{Call, Outcome};
use crate::bytes::{Bytes, Decimal, f64_text, parse_f64, parse_i64};
use crate::refusal::Refusal;
use crate::store::NEVER;
use crate::value::Value;

/// In what an expiry is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) milliseconds: i64,
    pub(super) absolute: bool,
}

pub(super) const SECONDS: Unit = Unit { milliseconds: 1000, absolute: false };
pub(super) const MILLISECONDS: Unit = Unit { milliseconds: 1, absolute: false };
pub(super) const AT_SECONDS: Unit = Unit { milliseconds: 1000, absolute: true };
pub(super) const AT_MILLISECONDS: Unit = Unit { milliseconds: 1, absolute: true };

/// The time that an expiry argument means; it may be past.
pub(super) fn deadline(c: &Call<'_, '_>, at: usize, unit: Unit) -> Result<i64, Refusal> {
    let time = c.int(at)?.checked_mul(unit.milliseconds).ok_or(Refusal::ExpireTime(c.name))?;
    if unit.absolute {
        return Ok(time);
    }
    time.checked_add_unsigned(c.now_ms).ok_or(Refusal::ExpireTime(c.name))
}

/// The same where the argument has to be above zero.
fn positive_deadline(c: &Call<'_, '_>, at: usize, unit: Unit) -> Result<u64, Refusal> {
    if c.int(at)? <= 0 {
        return Err(Refusal::ExpireTime(c.name));
    }
    // A positive argument gives a positive time.
    deadline(c, at, unit).map(i64::unsigned_abs)
}

/// An option `EX seconds` and its like.
fn expiry_unit(word: &[u8]) -> Option<Unit> {
    [("EX", SECONDS), ("PX", MILLISECONDS), ("EXAT", AT_SECONDS), ("PXAT", AT_MILLISECONDS)]
        .into_iter()
        .find_map(|(name, unit)| word.eq_ignore_ascii_case(name.as_bytes()).then_some(unit))
}

pub(super) fn get(c: &mut Call<'_, '_>) -> Outcome {
    match c.store.read::<Bytes>(c.args.at(1), c.now_ms)? {
        Some(text) => c.out.bulk(text),
        None => c.out.null(),
    }
    Ok(())
}

/// What `SET` is to do beside setting.
#[derive(Default)]
struct SetOptions {
    if_absent: bool,
    if_present: bool,
    keep_expiry: bool,
    get: bool,
    expires_ms: Option<u64>,
}

#[cold]
fn set_options(c: &Call<'_, '_>) -> Result<SetOptions, Refusal> {
    let mut options = SetOptions::default();
    let mut expiry = None;
    let mut at = 3;
    while at < c.args.len() {
        if c.is(at, "NX") && !options.if_present {
            options.if_absent = true;
        } else if c.is(at, "XX") && !options.if_absent {
            options.if_present = true;
        } else if c.is(at, "GET") {
            options.get = true;
        } else if c.is(at, "KEEPTTL") && expiry.is_none() {
            options.keep_expiry = true;
        } else if let Some(unit) = expiry_unit(c.args.at(at))
            && expiry.is_none()
            && !options.keep_expiry
            && at + 1 < c.args.len()
        {
            expiry = Some((at + 1, unit));
            at += 1;
        } else {
            return Err(Refusal::Syntax);
        }
        at += 1;
    }
    if let Some((at, unit)) = expiry {
        options.expires_ms = Some(positive_deadline(c, at, unit)?);
    }
    Ok(options)
}

pub(super) fn set(c: &mut Call<'_, '_>) -> Outcome {
    let (key, text) = (c.args.at(1), c.args.at(2));
    if c.args.len() == 3 {
        c.store.put(key, Value::Str(c.own(text)), c.now_ms);
        c.out.ok();
        return Ok(());
    }
    let options = set_options(c)?;
    let found = c.store.find(key, c.now_ms);
    let wanted = if found.is_some() { !options.if_absent } else { !options.if_present };
    if options.get {
        match found.map(|at| &c.store.slot(at).value) {
            None => c.out.null(),
            Some(Value::Str(old)) => c.out.bulk(old),
            Some(_) => return Err(Refusal::WrongType),
        }
    } else if !wanted {
        c.out.null();
    } else {
        c.out.ok();
    }
    if wanted {
        let kept = found.filter(|_| options.keep_expiry).map_or(NEVER, |at| c.store.slot(at).expires_ms);
        let at = c.store.put(key, Value::Str(c.own(text)), c.now_ms);
        c.store.set_expiry(at, options.expires_ms.unwrap_or(kept));
    }
    Ok(())
}

pub(super) fn setnx(c: &mut Call<'_, '_>) -> Outcome {
    let (key, text) = (c.args.at(1), c.args.at(2));
    let absent = c.store.find(key, c.now_ms).is_none();
    if absent {
        c.store.put(key, Value::Str(c.own(text)), c.now_ms);
    }
    c.out.bool(absent);
    Ok(())
}

fn set_for(c: &mut Call<'_, '_>, unit: Unit) -> Outcome {
    let expires_ms = positive_deadline(c, 2, unit)?;
    let at = c.store.put(c.args.at(1), Value::Str(c.own(c.args.at(3))), c.now_ms);
    c.store.set_expiry(at, expires_ms);
    c.out.ok();
    Ok(())
}

pub(super) fn setex(c: &mut Call<'_, '_>) -> Outcome {
    set_for(c, SECONDS)
}

pub(super) fn psetex(c: &mut Call<'_, '_>) -> Outcome {
    set_for(c, MILLISECONDS)
}

pub(super) fn getset(c: &mut Call<'_, '_>) -> Outcome {
    get(c)?;
    c.store.put(c.args.at(1), Value::Str(c.own(c.args.at(2))), c.now_ms);
    Ok(())
}

pub(super) fn getex(c: &mut Call<'_, '_>) -> Outcome {
    let deadline = match c.args.len() {
        2 => None,
        3 if c.is(2, "PERSIST") => Some(NEVER),
        4 => {
            let unit = expiry_unit(c.args.at(2)).ok_or(Refusal::Syntax)?;
            // The key comes first: without it, nobody looks at the time.
            if c.store.read::<Bytes>(c.args.at(1), c.now_ms)?.is_none() {
                c.out.null();
                return Ok(());
            }
            Some(positive_deadline(c, 3, unit)?)
        }
        _ => return Err(Refusal::Syntax),
    };
    get(c)?;
    if let (Some(deadline), Some(at)) = (deadline, c.store.find(c.args.at(1), c.now_ms)) {
        if deadline <= c.now_ms {
            c.store.delete_at(at);
        } else if c.store.slot(at).expires_ms != deadline {
            c.store.set_expiry(at, deadline);
            c.store.changed(at);
        }
    }
    Ok(())
}

pub(super) fn getdel(c: &mut Call<'_, '_>) -> Outcome {
    get(c)?;
    c.store.delete(c.args.at(1), c.now_ms);
    Ok(())
}

pub(super) fn append(c: &mut Call<'_, '_>) -> Outcome {
    let more = c.args.at(2);
    let longest = c.store.settings.bulk_bytes;
    let old = c.store.open::<Bytes>(c.args.at(1), c.now_ms)?.map_or(0, |(_, text)| text.len());
    if old + more.len() > longest {
        return Err(Refusal::TooLong);
    }
    // Growing takes old and new at once.
    c.store.room_for(2 * (old + more.len()))?;
    let (at, text) = c.store.open_or_new::<Bytes>(c.args.at(1), c.now_ms)?;
    text.extend_from_slice(more);
    let length = text.len();
    c.store.changed(at);
    c.out.size(length);
    Ok(())
}

pub(super) fn strlen(c: &mut Call<'_, '_>) -> Outcome {
    let length = c.store.read::<Bytes>(c.args.at(1), c.now_ms)?.map_or(0, |text| text.len());
    c.out.size(length);
    Ok(())
}

/// The elements from `first` to `last` (both included, negative from the end) of so many: first and number.
pub(super) fn span(first: i64, last: i64, length: usize) -> (usize, usize) {
    let length = length as i64;
    let absolute = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
    let (first, last) = (absolute(first).max(0), absolute(last).min(length - 1));
    if first > last { (0, 0) } else { (first as usize, (last - first + 1) as usize) }
}

pub(super) fn getrange(c: &mut Call<'_, '_>) -> Outcome {
    let (first, last) = (c.int(2)?, c.int(3)?);
    let text = c.store.read::<Bytes>(c.args.at(1), c.now_ms)?.map_or(&[][..], |text| text);
    // Unlike with lists, an end before the beginning means the first byte.
    let both_negative_and_crossed = first < 0 && last < 0 && first > last;
    let last = if last < 0 { last.saturating_add(text.len() as i64).max(0) } else { last };
    let (start, length) = if both_negative_and_crossed { (0, 0) } else { span(first, last, text.len()) };
    c.out.bulk(&text[start..start + length]);
    Ok(())
}

pub(super) fn setrange(c: &mut Call<'_, '_>) -> Outcome {
    let (key, patch) = (c.args.at(1), c.args.at(3));
    let offset = usize::try_from(c.int(2)?).map_err(|_| Refusal::Offset)?;
    let old = c.store.open::<Bytes>(key, c.now_ms)?.map_or(0, |(_, text)| text.len());
    if patch.is_empty() {
        c.out.size(old);
        return Ok(());
    }
    let end =
        offset.checked_add(patch.len()).filter(|&end| end <= c.store.settings.bulk_bytes).ok_or(Refusal::TooLong)?;
    if end > old {
        c.store.room_for(2 * end)?;
    }
    let (at, text) = c.store.open_or_new::<Bytes>(key, c.now_ms)?;
    if text.len() < end {
        text.resize(end, 0);
    }
    text[offset..end].copy_from_slice(patch);
    let length = text.len();
    c.store.changed(at);
    c.out.size(length);
    Ok(())
}

fn add(c: &mut Call<'_, '_>, increment: i64) -> Outcome {
    let found = c.store.open::<Bytes>(c.args.at(1), c.now_ms)?;
    let old = found.as_ref().map_or(Some(0), |(_, text)| parse_i64(text)).ok_or(Refusal::NotInteger)?;
    let sum = old.checked_add(increment).ok_or(Refusal::Overflow)?;
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(sum).as_bytes();
    match found {
        Some((at, text)) => {
            text.clear();
            text.extend_from_slice(digits);
            c.store.changed(at);
        }
        None => {
            c.store.put(c.args.at(1), Value::Str(Bytes::from_slice(digits)), c.now_ms);
        }
    }
    c.out.int(sum);
    Ok(())
}

pub(super) fn incr(c: &mut Call<'_, '_>) -> Outcome {
    add(c, 1)
}

pub(super) fn decr(c: &mut Call<'_, '_>) -> Outcome {
    add(c, -1)
}

pub(super) fn incrby(c: &mut Call<'_, '_>) -> Outcome {
    let increment = c.int(2)?;
    add(c, increment)
}

pub(super) fn decrby(c: &mut Call<'_, '_>) -> Outcome {
    let decrement = c.int(2)?;
    add(c, decrement.checked_neg().ok_or(Refusal::DecrementOverflow)?)
}

/// The sum of two numbers in text: exact where both are plain decimals, else as doubles have it.
pub(super) fn add_text(old: &[u8], increment: &[u8], not_a_number: Refusal) -> Result<Bytes, Refusal> {
    if let (Some(old), Some(increment)) = (Decimal::parse(old), Decimal::parse(increment)) {
        return Ok(Bytes::from_slice(&old.plus(increment).text()));
    }
    let old = parse_f64(old).ok_or(not_a_number)?;
    let sum = old + parse_f64(increment).ok_or(Refusal::NotFloat)?;
    if !sum.is_finite() {
        return Err(Refusal::NotFinite);
    }
    Ok(Bytes::from_slice(&f64_text(sum)))
}

pub(super) fn incrbyfloat(c: &mut Call<'_, '_>) -> Outcome {
    let key = c.args.at(1);
    let sum = match c.store.open::<Bytes>(key, c.now_ms)? {
        Some((_, text)) => add_text(text, c.args.at(2), Refusal::NotFloat)?,
        None => add_text(b"0", c.args.at(2), Refusal::NotFloat)?,
    };
    c.out.bulk(&sum);
    let (at, text) = c.store.open_or_new::<Bytes>(key, c.now_ms)?;
    *text = sum;
    c.store.changed(at);
    Ok(())
}

pub(super) fn mget(c: &mut Call<'_, '_>) -> Outcome {
    c.out.array(c.args.len() - 1);
    for (number, key) in c.args.from(1).enumerate() {
        match c.store.read::<Bytes>(key, c.now_ms) {
            Ok(Some(text)) => c.out.bulk(text),
            // What is not a string is as if it were not there.
            Ok(None) | Err(_) => c.out.null(),
        }
        c.poll_at(number);
    }
    Ok(())
}

fn set_pairs(c: &mut Call<'_, '_>) {
    for at in (1..c.args.len()).step_by(2) {
        c.store.put(c.args.at(at), Value::Str(c.own(c.args.at(at + 1))), c.now_ms);
        c.poll_at(at / 2);
    }
}

pub(super) fn mset(c: &mut Call<'_, '_>) -> Outcome {
    if c.args.len().is_multiple_of(2) {
        return Err(c.arity());
    }
    set_pairs(c);
    c.out.ok();
    Ok(())
}

pub(super) fn msetnx(c: &mut Call<'_, '_>) -> Outcome {
    if c.args.len().is_multiple_of(2) {
        return Err(c.arity());
    }
    let mut free = true;
    for at in (1..c.args.len()).step_by(2) {
        free &= c.store.find(c.args.at(at), c.now_ms).is_none();
        c.poll_at(at / 2);
    }
    if free {
        set_pairs(c);
    }
    c.out.bool(free);
    Ok(())
}
