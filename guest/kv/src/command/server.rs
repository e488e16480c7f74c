//! The connection and the server itself.

use super::{Call, Outcome, transactions};
use crate::client::Next;

pub(super) fn ping(c: &mut Call<'_, '_>) -> Outcome {
    match c.args.len() {
        1 => c.out.raw(b"+PONG\r\n"),
        2 => c.out.bulk(c.args.at(1)),
        _ => return Err(c.arity()),
    }
    Ok(())
}

pub(super) fn echo(c: &mut Call<'_, '_>) -> Outcome {
    c.out.bulk(c.args.at(1));
    Ok(())
}

pub(super) fn quit(c: &mut Call<'_, '_>) -> Outcome {
    c.out.ok();
    c.client.next = Next::Close;
    Ok(())
}

pub(super) fn reset(c: &mut Call<'_, '_>) -> Outcome {
    transactions::end(c);
    if let Some(info) = c.store.clients.get_mut(&c.client.id) {
        info.name = Default::default();
    }
    c.out.simple("RESET");
    Ok(())
}
