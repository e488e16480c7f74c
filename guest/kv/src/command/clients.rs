//! `CLIENT`: what one client may know of itself and of the others.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use super::{Call, Outcome};
use crate::bytes::Bytes;
use crate::client::ClientInfo;
use crate::refusal::Refusal;

/// A name that does not spoil the lines of `CLIENT LIST`.
pub(super) fn checked_name(name: &[u8]) -> Result<Bytes, Refusal> {
    if name.iter().all(u8::is_ascii_graphic) { Ok(Bytes::from_slice(name)) } else { Err(Refusal::ClientName) }
}

fn describe(c: &Call<'_, '_>, id: u64, client: &ClientInfo, text: &mut String) {
    let name = core::str::from_utf8(&client.name).unwrap_or_default();
    let (library, version) = (
        core::str::from_utf8(&client.library).unwrap_or_default(),
        core::str::from_utf8(&client.library_version).unwrap_or_default(),
    );
    let (age_s, idle_s) =
        ((c.now_ms - client.opened_ms.min(c.now_ms)) / 1000, (c.now_ms - client.active_ms.min(c.now_ms)) / 1000);
    let multi = client.queued.map_or(-1, |queued| queued as i64);
    let flags = if multi >= 0 { "x" } else { "N" };
    // Writing into a string cannot fail.
    let _ = write!(
        text,
        "id={id} addr={} name={name} age={age_s} idle={idle_s} flags={flags} db=0 sub=0 psub=0 multi={multi} watch={} cmd={} user=default lib-name={library} lib-ver={version} resp=2",
        client.address, client.watched, client.last_command,
    );
}

/// Carries out one of the subcommands.
pub(super) fn client(c: &mut Call<'_, '_>) -> Outcome {
    let own = c.client.id;
    match () {
        () if c.is(1, "ID") => {
            c.out.int(own.cast_signed());
        }
        () if c.is(1, "GETNAME") => {
            let name = c.store.clients.get(&own).map(|info| info.name.as_slice()).filter(|name| !name.is_empty());
            c.out.bulk_or_null(name);
        }
        () if c.is(1, "SETNAME") => {
            let name = checked_name(c.args.at(2))?;
            own_info(c, |info| info.name = name);
            c.out.ok();
        }
        () if c.is(1, "SETINFO") => {
            let value = checked_name(c.args.at(3))?;
            match () {
                () if c.is(2, "LIB-NAME") => own_info(c, |info| info.library = value),
                () if c.is(2, "LIB-VER") => own_info(c, |info| info.library_version = value),
                () => return Err(c.say("Unrecognized option '", c.args.at(2), "'")),
            }
            c.out.ok();
        }
        () if c.is(1, "INFO") => {
            let mut text = String::new();
            if let Some(info) = c.store.clients.get(&own) {
                describe(c, own, info, &mut text);
            }
            text.push('\n');
            c.out.bulk(text.as_bytes());
        }
        () if c.is(1, "LIST") => list(c)?,
        () if c.is(1, "KILL") => kill(c)?,
        // `NO-EVICT`, `NO-TOUCH`: nobody is ever evicted, and no use of a key is noted: nothing to switch.
        () if c.is(2, "ON") || c.is(2, "OFF") => c.out.ok(),
        () => return Err(Refusal::Syntax),
    }
    Ok(())
}

fn own_info(c: &mut Call<'_, '_>, change: impl FnOnce(&mut ClientInfo)) {
    if let Some(info) = c.store.clients.get_mut(&c.client.id) {
        change(info);
    }
}

fn id(c: &Call<'_, '_>, at: usize) -> Result<u64, Refusal> {
    c.int(at).ok().and_then(|id| u64::try_from(id).ok()).filter(|&id| id > 0).ok_or(Refusal::ClientId)
}

fn list(c: &mut Call<'_, '_>) -> Outcome {
    let mut wanted: Option<Vec<u64>> = None;
    let mut kind = true;
    match c.args.len() {
        2 => {}
        4 if c.is(2, "TYPE") => {
            if !["NORMAL", "MASTER", "REPLICA", "SLAVE", "PUBSUB"].iter().any(|word| c.is(3, word)) {
                return Err(c.say("Unknown client type '", c.args.at(3), "'"));
            }
            kind = c.is(3, "NORMAL");
        }
        4.. if c.is(2, "ID") => wanted = Some((3..c.args.len()).map(|at| id(c, at)).collect::<Result<_, _>>()?),
        _ => return Err(Refusal::Syntax),
    }
    let own = c.client.id;
    own_info(c, |info| info.last_command = "client|list");
    let mut text = String::new();
    for (number, (&id, info)) in c.store.clients.iter().enumerate() {
        if kind && wanted.as_ref().is_none_or(|wanted| wanted.contains(&id)) && (!info.killed || id == own) {
            describe(c, id, info, &mut text);
            text.push('\n');
        }
        c.poll_at(number);
    }
    c.out.bulk(text.as_bytes());
    Ok(())
}

fn kill(c: &mut Call<'_, '_>) -> Outcome {
    let own = c.client.id;
    let (mut by_id, mut by_address, mut skip_me) = (None, None, true);
    let old_form = c.args.len() == 3;
    if old_form {
        (by_address, skip_me) = (Some(c.args.at(2)), false);
    } else {
        if c.args.len() % 2 == 1 {
            return Err(Refusal::Syntax);
        }
        for at in (2..c.args.len()).step_by(2) {
            match () {
                () if c.is(at, "ID") => by_id = Some(id(c, at + 1)?),
                () if c.is(at, "ADDR") => by_address = Some(c.args.at(at + 1)),
                () if c.is(at, "SKIPME") && c.is(at + 1, "YES") => skip_me = true,
                () if c.is(at, "SKIPME") && c.is(at + 1, "NO") => skip_me = false,
                () => return Err(Refusal::Syntax),
            }
        }
    }
    let mut killed = 0;
    for (&id, info) in &mut c.store.clients {
        let named = by_id.is_none_or(|wanted| wanted == id)
            && by_address.is_none_or(|wanted| wanted == info.address.as_bytes());
        if named && !info.killed && !(skip_me && id == own) {
            info.killed = true;
            killed += 1;
        }
    }
    c.store.kills += killed;
    if c.store.clients.get(&own).is_some_and(|info| info.killed) {
        c.client.next = crate::Next::Close;
    }
    match (old_form, killed) {
        (true, 0) => return Err(Refusal::NoClient),
        (true, _) => c.out.ok(),
        (false, killed) => c.out.int(killed.cast_signed()),
    }
    Ok(())
}
