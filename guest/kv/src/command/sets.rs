//! Sets.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::hashes::random_entries;
use super::{Call, Outcome, POLL_EVERY};
use crate::bytes::Bytes;
use crate::journal::push_command;
use crate::refusal::Refusal;
use crate::reply::Reply;
use crate::value::{Members, Value};

pub(super) fn sadd(c: &mut Call<'_, '_>) -> Outcome {
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    let (at, members) = c.store.open_or_new::<Members>(c.args.at(1), c.now_ms)?;
    let mut new = 0;
    for (number, member) in c.args.from(2).enumerate() {
        new += usize::from(members.set(seed.hash(member), member, ()));
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
        }
    }
    if new > 0 {
        c.store.changed(at);
    }
    c.out.size(new);
    Ok(())
}

pub(super) fn srem(c: &mut Call<'_, '_>) -> Outcome {
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    let mut removed = 0;
    if let Some((at, members)) = c.store.open::<Members>(c.args.at(1), c.now_ms)? {
        for (number, member) in c.args.from(2).enumerate() {
            removed += usize::from(members.remove(seed.hash(member), member).is_some());
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

pub(super) fn scard(c: &mut Call<'_, '_>) -> Outcome {
    let length = c.store.read::<Members>(c.args.at(1), c.now_ms)?.map_or(0, Members::len);
    c.out.size(length);
    Ok(())
}

pub(super) fn sismember(c: &mut Call<'_, '_>) -> Outcome {
    let member = c.args.at(2);
    let hash = c.store.seed.hash(member);
    let found =
        c.store.read::<Members>(c.args.at(1), c.now_ms)?.is_some_and(|members| members.find(hash, member).is_some());
    c.out.bool(found);
    Ok(())
}

pub(super) fn smismember(c: &mut Call<'_, '_>) -> Outcome {
    let seed = c.store.seed.clone();
    let poll = c.store.settings.poll;
    let members = c.store.read::<Members>(c.args.at(1), c.now_ms)?;
    c.out.array(c.args.len() - 2);
    for (number, member) in c.args.from(2).enumerate() {
        c.out.bool(members.is_some_and(|members| members.find(seed.hash(member), member).is_some()));
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
        }
    }
    Ok(())
}

fn tell_members(members: &Members, out: &mut Reply<'_>, poll: fn()) {
    out.array(members.len());
    for (number, entry) in members.iter().enumerate() {
        out.bulk(&entry.key);
        if number % POLL_EVERY == POLL_EVERY - 1 {
            poll();
            if out.is_full() {
                break;
            }
        }
    }
}

pub(super) fn smove(c: &mut Call<'_, '_>) -> Outcome {
    let (from, to, member) = (c.args.at(1), c.args.at(2), c.args.at(3));
    let hash = c.store.seed.hash(member);
    let held = match c.store.open::<Members>(from, c.now_ms)? {
        None => {
            c.out.bool(false);
            return Ok(());
        }
        Some((_, members)) => members.find(hash, member).is_some(),
    };
    c.store.open::<Members>(to, c.now_ms)?;
    if held && from != to {
        if let Some((at, members)) = c.store.open::<Members>(from, c.now_ms)? {
            members.remove(hash, member);
            c.store.changed(at);
        }
        let (at, members) = c.store.open_or_new::<Members>(to, c.now_ms)?;
        if members.set(hash, member, ()) {
            c.store.changed(at);
        }
    }
    c.out.bool(held);
    Ok(())
}

pub(super) fn spop(c: &mut Call<'_, '_>) -> Outcome {
    if c.args.len() > 3 {
        return Err(Refusal::Syntax);
    }
    let count = super::lists::count(c, 2)?;
    let length = c.store.open::<Members>(c.args.at(1), c.now_ms)?.map_or(0, |(_, members)| members.len());
    let many = match count {
        None if length == 0 => {
            c.out.null();
            return Ok(());
        }
        None => 1,
        Some(count) => {
            let many = count.min(length);
            c.out.array(many);
            many
        }
    };
    // Noted by what was drawn: another time it would be others.
    let mut drawn = Drawn { notes: c.store.journal.is_some(), words: Vec::new(), members: Vec::new() };
    for number in 0..many {
        let at = c.store.random_below(length - number);
        if let Some((_, members)) = c.store.open::<Members>(c.args.at(1), c.now_ms)?
            && let Some(entry) = members.remove_at(at)
        {
            c.out.bulk(&entry.key);
            drawn.add(c.args.at(1), entry.key);
        }
        c.poll_at(number);
    }
    if many > 0
        && let Some(at) = c.store.find(c.args.at(1), c.now_ms)
    {
        c.store.changed(at);
        drawn.end(c.args.at(1));
        if let Some(journal) = &mut c.store.journal {
            journal.note_instead(drawn.words);
        }
    }
    Ok(())
}

/// What `SPOP` has drawn, as commands that remove the same.
struct Drawn {
    notes: bool,
    words: Vec<u8>,
    members: Vec<Bytes>,
}

impl Drawn {
    fn add(&mut self, key: &[u8], member: Bytes) {
        if self.notes {
            self.members.push(member);
            if self.members.len() == 512 {
                self.end(key);
            }
        }
    }

    fn end(&mut self, key: &[u8]) {
        if !self.members.is_empty() {
            let mut args: Vec<&[u8]> = alloc::vec![b"SREM", key];
            args.extend(self.members.iter().map(|member| &member[..]));
            push_command(&mut self.words, args.into_iter());
            self.members.clear();
        }
    }
}

pub(super) fn srandmember(c: &mut Call<'_, '_>) -> Outcome {
    if c.args.len() > 3 {
        return Err(Refusal::Syntax);
    }
    let count = if c.args.len() == 2 { None } else { Some(c.int(2)?) };
    let length = c.store.read::<Members>(c.args.at(1), c.now_ms)?.map_or(0, Members::len);
    random_entries(c, length, count, 1, |c, at| {
        if let Some(members) = c.store.view::<Members>(c.args.at(1), c.now_ms)? {
            c.out.bulk(&members.at(at).key);
        }
        Ok(())
    })
}

/// How sets are put together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Combine {
    Union,
    Intersection,
    Difference,
}

/// The combination of the sets under the keys from one argument to another (not included); of an intersection so
/// many members.
fn combine(c: &mut Call<'_, '_>, how: Combine, first: usize, end: usize, most: usize) -> Result<Members, Refusal> {
    let mut sets = alloc::vec::Vec::with_capacity(end - first);
    for at in first..end {
        sets.push(c.store.view::<Members>(c.args.at(at), c.now_ms)?);
    }
    let mut result = Members::default();
    let mut steps = 0;
    let mut step = || {
        steps += 1;
        if steps % POLL_EVERY == 0 {
            c.store.poll();
            return c.store.room_for(0);
        }
        Ok(())
    };
    let none = Members::default();
    let keep = |result: &mut Members, member: &Bytes| result.set(c.store.seed.hash(member), member, ());
    match how {
        Combine::Union => {
            for entry in sets.into_iter().flatten().flat_map(Members::iter) {
                keep(&mut result, &entry.key);
                step()?;
            }
        }
        Combine::Difference => {
            let (of, others) =
                sets.split_first().map_or((&none, &[][..]), |(of, others)| (of.unwrap_or(&none), others));
            for entry in of.iter() {
                let hash = c.store.seed.hash(&entry.key);
                let mut elsewhere = false;
                for other in others.iter().flatten() {
                    elsewhere |= other.find(hash, &entry.key).is_some();
                    step()?;
                }
                if !elsewhere {
                    keep(&mut result, &entry.key);
                }
                step()?;
            }
        }
        Combine::Intersection => {
            let sets: alloc::vec::Vec<&Members> = sets.into_iter().map(|set| set.unwrap_or(&none)).collect();
            let smallest = sets.iter().min_by_key(|set| set.len()).copied().unwrap_or(&none);
            for entry in smallest.iter() {
                let hash = c.store.seed.hash(&entry.key);
                let mut everywhere = true;
                for other in &sets {
                    everywhere = other.find(hash, &entry.key).is_some();
                    step()?;
                    if !everywhere {
                        break;
                    }
                }
                if everywhere {
                    keep(&mut result, &entry.key);
                    if result.len() >= most {
                        break;
                    }
                }
            }
        }
    }
    Ok(result)
}

fn tell_combination(c: &mut Call<'_, '_>, how: Combine) -> Outcome {
    let result = combine(c, how, 1, c.args.len(), usize::MAX)?;
    tell_members(&result, c.out, c.store.settings.poll);
    c.store.free_table(result);
    Ok(())
}

fn store_combination(c: &mut Call<'_, '_>, how: Combine) -> Outcome {
    let result = combine(c, how, 2, c.args.len(), usize::MAX)?;
    c.out.size(result.len());
    if result.is_empty() {
        c.store.delete(c.args.at(1), c.now_ms);
    } else {
        c.store.put(c.args.at(1), Value::Set(Box::new(result)), c.now_ms);
    }
    Ok(())
}

pub(super) fn smembers(c: &mut Call<'_, '_>) -> Outcome {
    let poll = c.store.settings.poll;
    match c.store.read::<Members>(c.args.at(1), c.now_ms)? {
        Some(members) => tell_members(members, c.out, poll),
        None => c.out.array(0),
    }
    Ok(())
}

pub(super) fn sunion(c: &mut Call<'_, '_>) -> Outcome {
    tell_combination(c, Combine::Union)
}

pub(super) fn sinter(c: &mut Call<'_, '_>) -> Outcome {
    tell_combination(c, Combine::Intersection)
}

pub(super) fn sdiff(c: &mut Call<'_, '_>) -> Outcome {
    tell_combination(c, Combine::Difference)
}

pub(super) fn sunionstore(c: &mut Call<'_, '_>) -> Outcome {
    store_combination(c, Combine::Union)
}

pub(super) fn sinterstore(c: &mut Call<'_, '_>) -> Outcome {
    store_combination(c, Combine::Intersection)
}

pub(super) fn sdiffstore(c: &mut Call<'_, '_>) -> Outcome {
    store_combination(c, Combine::Difference)
}

pub(super) fn sintercard(c: &mut Call<'_, '_>) -> Outcome {
    let keys =
        c.int(1).ok().and_then(|keys| usize::try_from(keys).ok()).filter(|&keys| keys > 0).ok_or(Refusal::NumKeys)?;
    if keys > c.args.len() - 2 {
        return Err(Refusal::NumKeysTooMany);
    }
    let options = 2 + keys;
    let mut most = 0;
    for at in (options..c.args.len()).step_by(2) {
        if !c.is(at, "LIMIT") || at + 1 == c.args.len() {
            return Err(Refusal::Syntax);
        }
        most = c.size_or(at + 1, Refusal::LimitNegative)?;
    }
    let result = combine(c, Combine::Intersection, 2, options, if most == 0 { usize::MAX } else { most })?;
    c.out.size(result.len());
    c.store.free_table(result);
    Ok(())
}
