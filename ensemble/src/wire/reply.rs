//! What goes back to clients: frames of a reply's header and record, and of events.

use bytes::{BufMut, BytesMut};

use super::code::Code;
use super::jute::Write;
use super::request::op;
use super::stat::{Stat, write_acl, write_id};
use crate::tree::acl::{Entry, Id};
use crate::tree::session::PASSWORD_BYTES;
use crate::tree::{Outcome, Single};
use crate::watch::EventKind;

/// `xid` and `zxid` of an event.
const EVENT: i32 = -1;
/// The state that an event tells of: connected to a member that is one of a majority.
const SYNC_CONNECTED: i32 = 3;
/// The `xid` of every reply to a ping.
pub const PING_XID: i32 = -2;

/// Appends a frame with whatever `write` makes.
pub fn frame(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_i32(0);
    write(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a reply: its header, and its record if there is no error.
pub fn reply(out: &mut BytesMut, xid: i32, zxid: i64, result: Result<impl FnOnce(&mut BytesMut), Code>) {
    frame(out, |out| {
        out.int(xid);
        out.long(zxid);
        match result {
            Ok(record) => {
                out.int(0);
                record(out);
            }
            Err(code) => out.int(code.number()),
        }
    });
}

/// A reply without a record.
pub fn bare(out: &mut BytesMut, xid: i32, zxid: i64, result: Result<(), Code>) {
    reply(out, xid, zxid, result.map(|()| |_: &mut BytesMut| {}));
}

/// The answer to a client's first frame: the session that it has, or none.
pub fn connected(
    out: &mut BytesMut,
    session: Option<(i64, &[u8; PASSWORD_BYTES])>,
    timeout_ms: u32,
    with_read_only: bool,
) {
    let (number, password) = session.unwrap_or((0, &[0; PASSWORD_BYTES]));
    frame(out, |out| {
        out.int(0);
        out.int(timeout_ms as i32);
        out.long(number);
        out.buffer(password);
        if with_read_only {
            out.bool(false);
        }
    });
}

/// An event.
pub fn event(out: &mut BytesMut, kind: EventKind, path: &str) {
    frame(out, |out| {
        out.int(EVENT);
        out.long(EVENT.into());
        out.int(0);
        out.int(kind as i32);
        out.int(SYNC_CONNECTED);
        out.string(path);
    });
}

/// The record of what a change led to; `sync` is the path that a sync named.
pub fn outcome(out: &mut BytesMut, outcome: &Outcome, sync: Option<&str>) {
    match outcome {
        Outcome::Single(single) => self::single(out, single),
        Outcome::Multi(singles) => {
            for single in singles {
                multi_header(out, single.multi_type(), false, 0);
                self::single(out, single);
            }
            multi_end(out);
        }
        Outcome::Failed(codes) => {
            codes.iter().for_each(|code| failed_operation(out, *code));
            multi_end(out);
        }
        Outcome::Synced => match sync {
            Some(path) => out.string(path),
            None => out.null(),
        },
        Outcome::Closed => {}
    }
}

fn single(out: &mut BytesMut, single: &Single) {
    match single {
        Single::Created(path, stat) => {
            out.string(path);
            if let Some(stat) = stat {
                stat.write(out);
            }
        }
        Single::DataSet(stat) | Single::AclSet(stat) => stat.write(out),
        Single::Deleted | Single::Checked => {}
    }
}

/// Appends what comes before each operation's result.
pub fn multi_header(out: &mut BytesMut, kind: i32, done: bool, code: i32) {
    out.int(kind);
    out.bool(done);
    out.int(code);
}

/// Appends the result of an operation that failed, or was not carried out because another one did.
pub fn failed_operation(out: &mut BytesMut, code: i32) {
    multi_header(out, op::ERROR, false, code);
    out.int(code);
}

/// Appends the end of the results.
pub fn multi_end(out: &mut BytesMut) {
    multi_header(out, op::ERROR, true, -1);
}

/// Appends data, which may be null.
pub fn data(out: &mut BytesMut, data: Option<&[u8]>) {
    match data {
        Some(data) => out.buffer(data),
        None => out.null(),
    }
}

/// Appends a vector of so many strings.
pub fn strings<S: AsRef<str>>(out: &mut BytesMut, count: usize, strings: impl Iterator<Item = S>) {
    out.int(count as i32);
    strings.for_each(|string| out.string(string.as_ref()));
}

/// Appends an ACL and the stat of its node.
pub fn acl(out: &mut BytesMut, acl: &[Entry], stat: &Stat) {
    write_acl(acl, out);
    stat.write(out);
}

/// Appends who somebody is. The digests of passwords stay here.
pub fn identities(out: &mut BytesMut, ids: &[Id]) {
    out.int(ids.len() as i32);
    for id in ids {
        let shown = match (id.scheme.as_str(), id.id.split_once(':')) {
            ("digest", Some((user, _))) => Id { scheme: id.scheme.clone(), id: user.into() },
            _ => id.clone(),
        };
        write_id(&shown, out);
    }
}
