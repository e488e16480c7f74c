//! What the scans have in common.
//!
//! A cursor is the number of entries that are still ahead: scans go from the last entry to the first, which is
//! what makes them meet every entry that stays (see `table`). It needs no memory between the calls.

use core::ops::Range;

use super::{Call, Outcome, POLL_EVERY};
use crate::bytes::{f64_text, push_i64};
use crate::glob;
use crate::refusal::Refusal;
use crate::reply::Reply;
use crate::table::{Entry, Table};
use crate::value::{Fields, Kind, Members};
use crate::zset::ZSet;

/// The cursor among the arguments; 0 begins.
pub(super) fn cursor(c: &Call<'_, '_>, at: usize) -> Result<usize, Refusal> {
    core::str::from_utf8(c.args.at(at)).ok().and_then(|text| text.parse().ok()).ok_or(Refusal::Cursor)
}

/// Options of a scan.
pub(super) struct ScanOptions<'a> {
    pattern: Option<&'a [u8]>,
    type_name: Option<&'a [u8]>,
    pub(super) count: usize,
    poll: fn(),
}

impl<'a> ScanOptions<'a> {
    pub(super) fn parse(c: &Call<'a, '_>, first: usize, with_type: bool) -> Result<Self, Refusal> {
        let mut options = ScanOptions { pattern: None, type_name: None, count: 10, poll: c.store.settings.poll };
        let mut at = first;
        while at < c.args.len() {
            if at + 1 == c.args.len() {
                return Err(Refusal::Syntax);
            } else if c.is(at, "COUNT") {
                options.count =
                    usize::try_from(c.int(at + 1)?).ok().filter(|&count| count > 0).ok_or(Refusal::Syntax)?;
            } else if c.is(at, "MATCH") {
                options.pattern = Some(c.args.at(at + 1));
            } else if c.is(at, "TYPE") && with_type {
                options.type_name = Some(c.args.at(at + 1));
            } else {
                return Err(Refusal::Syntax);
            }
            at += 2;
        }
        Ok(options)
    }

    pub(super) fn wants(&self, key: &[u8]) -> bool {
        self.pattern.is_none_or(|pattern| glob::matches(pattern, key, self.poll))
    }

    pub(super) fn wants_type(&self, name: &str) -> bool {
        self.type_name.is_none_or(|wanted| wanted.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// The next cursor, and the entries to look at.
pub(super) fn step(cursor: usize, count: usize, length: usize) -> (usize, Range<usize>) {
    let end = if cursor == 0 { length } else { cursor.min(length) };
    let start = end.saturating_sub(count);
    (start, start..end)
}

pub(super) fn tell_cursor(out: &mut Reply<'_>, cursor: usize) {
    let mut text = alloc::vec::Vec::with_capacity(20);
    push_i64(&mut text, cursor as i64);
    out.bulk(&text);
}

fn scan_table<V>(
    table: &Table<V>,
    cursor: usize,
    options: &ScanOptions<'_>,
    out: &mut Reply<'_>,
    poll: fn(),
    tell: impl Fn(&Entry<V>, &mut Reply<'_>) -> usize,
) {
    let (next, range) = step(cursor, options.count, table.len());
    out.array(2);
    tell_cursor(out, next);
    let mark = out.mark();
    let mut told = 0;
    for at in range {
        let entry = table.at(at);
        if options.wants(&entry.key) {
            told += tell(entry, out);
        }
        if at % POLL_EVERY == 0 {
            poll();
        }
    }
    out.array_since(mark, told);
}

fn scan_value<T: Kind>(
    c: &mut Call<'_, '_>,
    scan: impl Fn(&T, usize, &ScanOptions<'_>, &mut Reply<'_>, fn()),
) -> Outcome {
    let cursor = cursor(c, 2)?;
    let poll = c.store.settings.poll;
    let options = ScanOptions::parse(c, 3, false);
    match c.store.read::<T>(c.args.at(1), c.now_ms)? {
        Some(value) => scan(value, cursor, &options?, c.out, poll),
        None => c.out.raw(b"*2\r\n$1\r\n0\r\n*0\r\n"),
    }
    Ok(())
}

pub(super) fn hscan(c: &mut Call<'_, '_>) -> Outcome {
    scan_value::<Fields>(c, |fields, cursor, options, out, poll| {
        scan_table(fields, cursor, options, out, poll, |entry, out| {
            out.bulk(&entry.key);
            out.bulk(&entry.value);
            2
        });
    })
}

pub(super) fn sscan(c: &mut Call<'_, '_>) -> Outcome {
    scan_value::<Members>(c, |members, cursor, options, out, poll| {
        scan_table(members, cursor, options, out, poll, |entry, out| {
            out.bulk(&entry.key);
            1
        });
    })
}

pub(super) fn zscan(c: &mut Call<'_, '_>) -> Outcome {
    scan_value::<ZSet>(c, |zset, cursor, options, out, poll| {
        scan_table(zset.members(), cursor, options, out, poll, |entry, out| {
            out.bulk(&entry.key);
            out.bulk(&f64_text(entry.value));
            2
        });
    })
}
