//! Sorted sets.

use super::hashes::random_entries;
use super::strings::span;
use super::{Call, Outcome, POLL_EVERY};
use crate::bytes::parse_f64;
use crate::refusal::Refusal;
use crate::zset::ZSet;

/// Options of `ZADD`.
#[derive(Default)]
struct AddOptions {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
    changed: bool,
    increment: bool,
    /// The first score's argument.
    first: usize,
}

fn add_options(c: &Call<'_, '_>) -> Result<AddOptions, Refusal> {
    let mut options = AddOptions { first: 2, ..AddOptions::default() };
    while options.first < c.args.len() {
        let at = options.first;
        match () {
            () if c.is(at, "NX") => options.nx = true,
            () if c.is(at, "XX") => options.xx = true,
            () if c.is(at, "GT") => options.gt = true,
            () if c.is(at, "LT") => options.lt = true,
            () if c.is(at, "CH") => options.changed = true,
            () if c.is(at, "INCR") => options.increment = true,
            () => break,
        }
        options.first += 1;
    }
    let rest = c.args.len() - options.first;
    if rest == 0 || rest % 2 == 1 {
        Err(Refusal::Syntax)
    } else if options.nx && options.xx {
        Err(Refusal::NxAndXx)
    } else if (options.gt || options.lt) && options.nx || options.gt && options.lt {
        Err(Refusal::GtLtNx)
    } else if options.increment && rest > 2 {
        Err(Refusal::IncrOne)
    } else {
        Ok(options)
    }
}

fn add(c: &mut Call<'_, '_>, options: &AddOptions) -> Outcome {
    let key = c.args.at(1);
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    for at in (options.first..c.args.len()).step_by(2) {
        parse_f64(c.args.at(at)).ok_or(Refusal::NotFloat)?;
    }
    if options.xx && c.store.open::<ZSet>(key, c.now_ms)?.is_none() {
        if options.increment {
            c.out.null()
        } else {
            c.out.int(0)
        }
        return Ok(());
    }
    let (slot, zset) = c.store.open_or_new::<ZSet>(key, c.now_ms)?;
    let (mut added, mut updated, mut result, mut refused) = (0, 0, None, None);
    for (number, at) in (options.first..c.args.len()).step_by(2).enumerate() {
        let member = c.args.at(at + 1);
        let hash = seed.hash(member);
        let mut score = parse_f64(c.args.at(at)).unwrap_or_default();
        match zset.score(hash, member) {
            Some(_) if options.nx => {}
            Some(old) => {
                if options.increment {
                    score += old;
                    if score.is_nan() {
                        refused = Some(Refusal::ScoreNan);
                        break;
                    }
                }
                if !(options.gt && score <= old || options.lt && score >= old) {
                    result = Some(score);
                    if score != old {
                        zset.set(hash, member, score);
                        updated += 1;
                    }
                }
            }
            None if options.xx => {}
            None => {
                zset.set(hash, member, score);
                result = Some(score);
                added += 1;
            }
        }
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
        }
    }
    if added + updated > 0 {
        c.store.changed(slot);
    }
    if let Some(refusal) = refused {
        return Err(refusal);
    }
    match (options.increment, result) {
        (true, Some(score)) => c.out.f64(score),
        (true, None) => c.out.null(),
        (false, _) => c.out.size(added + if options.changed { updated } else { 0 }),
    }
    Ok(())
}

pub(super) fn zadd(c: &mut Call<'_, '_>) -> Outcome {
    let options = add_options(c)?;
    add(c, &options)
}

pub(super) fn zincrby(c: &mut Call<'_, '_>) -> Outcome {
    add(c, &AddOptions { increment: true, first: 2, ..AddOptions::default() })
}

pub(super) fn zrem(c: &mut Call<'_, '_>) -> Outcome {
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    let mut removed = 0;
    if let Some((at, zset)) = c.store.open::<ZSet>(c.args.at(1), c.now_ms)? {
        for (number, member) in c.args.from(2).enumerate() {
            removed += usize::from(zset.remove(seed.hash(member), member).is_some());
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

pub(super) fn zcard(c: &mut Call<'_, '_>) -> Outcome {
    let length = c.store.read::<ZSet>(c.args.at(1), c.now_ms)?.map_or(0, ZSet::len);
    c.out.size(length);
    Ok(())
}

pub(super) fn zscore(c: &mut Call<'_, '_>) -> Outcome {
    let member = c.args.at(2);
    let hash = c.store.seed.hash(member);
    match c.store.read::<ZSet>(c.args.at(1), c.now_ms)?.and_then(|zset| zset.score(hash, member)) {
        Some(score) => c.out.f64(score),
        None => c.out.null(),
    }
    Ok(())
}

pub(super) fn zmscore(c: &mut Call<'_, '_>) -> Outcome {
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    let zset = c.store.read::<ZSet>(c.args.at(1), c.now_ms)?;
    c.out.array(c.args.len() - 2);
    for (number, member) in c.args.from(2).enumerate() {
        match zset.and_then(|zset| zset.score(seed.hash(member), member)) {
            Some(score) => c.out.f64(score),
            None => c.out.null(),
        }
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
        }
    }
    Ok(())
}

fn rank(c: &mut Call<'_, '_>, reverse: bool) -> Outcome {
    let member = c.args.at(2);
    let hash = c.store.seed.hash(member);
    let rank = c.store.read::<ZSet>(c.args.at(1), c.now_ms)?.and_then(|zset| {
        let rank = zset.rank(zset.score(hash, member)?, member);
        Some(if reverse { zset.len() - 1 - rank } else { rank })
    });
    match rank {
        Some(rank) => c.out.size(rank),
        None => c.out.null(),
    }
    Ok(())
}

pub(super) fn zrank(c: &mut Call<'_, '_>) -> Outcome {
    rank(c, false)
}

pub(super) fn zrevrank(c: &mut Call<'_, '_>) -> Outcome {
    rank(c, true)
}

fn pop(c: &mut Call<'_, '_>, highest: bool) -> Outcome {
    if c.args.len() > 3 {
        return Err(Refusal::Syntax);
    }
    let many = match c.args.len() {
        2 => 1,
        _ => c.size_or(2, Refusal::NotPositive)?,
    };
    let poll = c.store.settings.poll;
    let Some((at, zset)) = c.store.open::<ZSet>(c.args.at(1), c.now_ms)? else {
        c.out.array(0);
        return Ok(());
    };
    let many = many.min(zset.len());
    c.out.array(2 * many);
    for number in 0..many {
        if let Some((score, member)) = zset.pop(highest) {
            c.out.bulk(&member);
            c.out.f64(score);
        }
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
        }
    }
    if many > 0 {
        c.store.changed(at);
    }
    Ok(())
}

pub(super) fn zpopmin(c: &mut Call<'_, '_>) -> Outcome {
    pop(c, false)
}

pub(super) fn zpopmax(c: &mut Call<'_, '_>) -> Outcome {
    pop(c, true)
}

pub(super) fn zrandmember(c: &mut Call<'_, '_>) -> Outcome {
    let with_scores = match c.args.len() {
        2 | 3 => false,
        4 if c.is(3, "WITHSCORES") => true,
        _ => return Err(Refusal::Syntax),
    };
    let count = if c.args.len() == 2 { None } else { Some(c.int(2)?) };
    let length = c.store.read::<ZSet>(c.args.at(1), c.now_ms)?.map_or(0, ZSet::len);
    random_entries(c, length, count, if with_scores { 2 } else { 1 }, |c, at| {
        if let Some(zset) = c.store.view::<ZSet>(c.args.at(1), c.now_ms)? {
            let entry = zset.members().at(at);
            c.out.bulk(&entry.key);
            if with_scores {
                c.out.f64(entry.value);
            }
        }
        Ok(())
    })
}

/// By what a range is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Rank,
    Score,
    Text,
}

/// One end of a range by score or by text.
#[derive(Clone, Copy)]
enum Bound<'a> {
    Score {
        value: f64,
        excluded: bool,
    },
    Text {
        value: &'a [u8],
        excluded: bool,
    },
    /// `-`: before every text.
    First,
    /// `+`: behind every text.
    Last,
}

impl<'a> Bound<'a> {
    fn parse(text: &'a [u8], by: By) -> Result<Self, Refusal> {
        if by == By::Score {
            let (number, excluded) = text.strip_prefix(b"(").map_or((text, false), |rest| (rest, true));
            return parse_f64(number).map(|value| Bound::Score { value, excluded }).ok_or(Refusal::RangeNotFloat);
        }
        match text {
            b"-" => Ok(Bound::First),
            b"+" => Ok(Bound::Last),
            [b'[', value @ ..] => Ok(Bound::Text { value, excluded: false }),
            [b'(', value @ ..] => Ok(Bound::Text { value, excluded: true }),
            _ => Err(Refusal::RangeNotString),
        }
    }

    /// Members before the range, if this is its low end.
    fn before(self, zset: &ZSet) -> usize {
        zset.count(|(score, member)| match self {
            Bound::Score { value, excluded } => score < value || excluded && score == value,
            Bound::Text { value, excluded } => member < value || excluded && member == value,
            Bound::First => false,
            Bound::Last => true,
        })
    }

    /// Members before the range's end, if this is its high end.
    fn up_to(self, zset: &ZSet) -> usize {
        zset.count(|(score, member)| match self {
            Bound::Score { value, excluded } => score < value || !excluded && score == value,
            Bound::Text { value, excluded } => member < value || !excluded && member == value,
            Bound::First => false,
            Bound::Last => true,
        })
    }
}

/// The ranks between two bounds: first and number.
fn ranks(zset: &ZSet, low: Bound<'_>, high: Bound<'_>) -> (usize, usize) {
    let first = low.before(zset);
    (first, high.up_to(zset).saturating_sub(first))
}

/// A range with everything that can be asked of it.
struct Query {
    by: By,
    reverse: bool,
    with_scores: bool,
    /// Leave out so many, tell so many (all, if negative).
    limit: Option<(i64, i64)>,
}

impl Query {
    /// Reads the options from an argument on; `ZRANGE` itself knows more of them.
    fn parse(c: &Call<'_, '_>, first: usize, mut query: Query, full: bool) -> Result<Query, Refusal> {
        let mut at = first;
        while at < c.args.len() {
            if c.is(at, "WITHSCORES") && (full || query.by != By::Text) {
                query.with_scores = true;
            } else if c.is(at, "LIMIT") && at + 2 < c.args.len() && (full || query.by != By::Rank) {
                query.limit = Some((c.int(at + 1)?, c.int(at + 2)?));
                at += 2;
            } else if full && c.is(at, "REV") && !query.reverse {
                query.reverse = true;
            } else if full && c.is(at, "BYSCORE") && query.by == By::Rank {
                query.by = By::Score;
            } else if full && c.is(at, "BYLEX") && query.by == By::Rank {
                query.by = By::Text;
            } else {
                return Err(Refusal::Syntax);
            }
            at += 1;
        }
        if query.by == By::Rank {
            // A limit of -1 is none.
            if query.limit.take().is_some_and(|(_, most)| most != -1) {
                return Err(Refusal::LimitAlone);
            }
        }
        if query.with_scores && query.by == By::Text {
            return Err(Refusal::WithScoresByLex);
        }
        Ok(query)
    }

    fn tell(&self, c: &mut Call<'_, '_>) -> Outcome {
        // By rank, and nowhere else, the arguments are in the order of the answer.
        let (low, high) = if self.reverse && self.by != By::Rank { (3, 2) } else { (2, 3) };
        let bounds = match self.by {
            By::Rank => Err((c.int(2)?, c.int(3)?)),
            by => Ok((Bound::parse(c.args.at(low), by)?, Bound::parse(c.args.at(high), by)?)),
        };
        let poll = c.store.settings.poll;
        let Some(zset) = c.store.read::<ZSet>(c.args.at(1), c.now_ms)? else {
            c.out.array(0);
            return Ok(());
        };
        let (mut first, mut length) = match bounds {
            Ok((low, high)) => ranks(zset, low, high),
            Err((first, last)) => {
                let (first, length) = span(first, last, zset.len());
                (if self.reverse { zset.len() - first - length } else { first }, length)
            }
        };
        if let Some((skip, most)) = self.limit {
            let skip = usize::try_from(skip).unwrap_or(length).min(length);
            let most = usize::try_from(most).unwrap_or(length).min(length - skip);
            first += if self.reverse { length - skip - most } else { skip };
            length = most;
        }
        c.out.array(if self.with_scores { 2 * length } else { length });
        if length == 0 {
            return Ok(());
        }
        for (number, (score, member)) in zset.range(first, first + length - 1, self.reverse).enumerate() {
            c.out.bulk(member);
            if self.with_scores {
                c.out.f64(score);
            }
            if number % POLL_EVERY == POLL_EVERY - 1 {
                poll();
                if c.out.is_full() {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn range(c: &mut Call<'_, '_>, by: By, reverse: bool, full: bool) -> Outcome {
    Query::parse(c, 4, Query { by, reverse, with_scores: false, limit: None }, full)?.tell(c)
}

pub(super) fn zrange(c: &mut Call<'_, '_>) -> Outcome {
    range(c, By::Rank, false, true)
}

pub(super) fn zrevrange(c: &mut Call<'_, '_>) -> Outcome {
    range(c, By::Rank, true, false)
}

pub(super) fn zrangebyscore(c: &mut Call<'_, '_>) -> Outcome {
    range(c, By::Score, false, false)
}

pub(super) fn zrevrangebyscore(c: &mut Call<'_, '_>) -> Outcome {
    range(c, By::Score, true, false)
}

pub(super) fn zrangebylex(c: &mut Call<'_, '_>) -> Outcome {
    range(c, By::Text, false, false)
}

pub(super) fn zrevrangebylex(c: &mut Call<'_, '_>) -> Outcome {
    range(c, By::Text, true, false)
}

fn count(c: &mut Call<'_, '_>, by: By) -> Outcome {
    let (low, high) = (Bound::parse(c.args.at(2), by)?, Bound::parse(c.args.at(3), by)?);
    let count = c.store.read::<ZSet>(c.args.at(1), c.now_ms)?.map_or(0, |zset| ranks(zset, low, high).1);
    c.out.size(count);
    Ok(())
}

pub(super) fn zcount(c: &mut Call<'_, '_>) -> Outcome {
    count(c, By::Score)
}

pub(super) fn zlexcount(c: &mut Call<'_, '_>) -> Outcome {
    count(c, By::Text)
}

fn remove_range(c: &mut Call<'_, '_>, by: By) -> Outcome {
    let bounds = match by {
        By::Rank => Err((c.int(2)?, c.int(3)?)),
        by => Ok((Bound::parse(c.args.at(2), by)?, Bound::parse(c.args.at(3), by)?)),
    };
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    let mut removed = 0;
    if let Some((at, zset)) = c.store.open::<ZSet>(c.args.at(1), c.now_ms)? {
        let (first, length) = match bounds {
            Ok((low, high)) => ranks(zset, low, high),
            Err((first, last)) => span(first, last, zset.len()),
        };
        removed = length;
        for number in 0..length {
            if let Some(member) = zset.at_rank(first).map(|(_, member)| member.clone()) {
                zset.remove(seed.hash(&member), &member);
            }
            // Finding a rank takes some time in a large set.
            if number % 8 == 0 {
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

pub(super) fn zremrangebyrank(c: &mut Call<'_, '_>) -> Outcome {
    remove_range(c, By::Rank)
}

pub(super) fn zremrangebyscore(c: &mut Call<'_, '_>) -> Outcome {
    remove_range(c, By::Score)
}

pub(super) fn zremrangebylex(c: &mut Call<'_, '_>) -> Outcome {
    remove_range(c, By::Text)
}
