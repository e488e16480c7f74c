//! Transactions: `MULTI` queues, `EXEC` carries out, unless a key under `WATCH` has changed.

use super::{COMMANDS, Call, Outcome, carry_out, catalogue, check_memory};
use crate::bytes::Bytes;
use crate::client::{Client, Queue, Watched};
use crate::refusal::Refusal;
use crate::reply::Reply;
use crate::resp::Args;
use crate::store::Store;

pub(super) fn multi(c: &mut Call<'_, '_>) -> Outcome {
    if c.client.queue.is_some() {
        return Err(Refusal::NestedMulti);
    }
    c.client.queue = Some(Queue::default());
    note(c.store, c.client);
    c.out.ok();
    Ok(())
}

/// Keeps a command for `EXEC`.
pub(super) fn enqueue(
    store: &mut Store,
    client: &mut Client,
    command: u16,
    args: Args<'_>,
    out: &mut Reply<'_>,
) -> Outcome {
    if COMMANDS[usize::from(command)].is(catalogue::NOT_IN_MULTI) {
        return Err(Refusal::NotInMulti);
    }
    if let Some(queue) = &mut client.queue {
        // The queue's own growth may double it.
        store.room_for(2 * (queue.bytes() + args.total_bytes()))?;
        if queue.bytes() + args.total_bytes() > store.settings.request_bytes {
            return Err(Refusal::OutOfMemory);
        }
        queue.push(command, args);
        out.raw(b"+QUEUED\r\n");
    }
    note(store, client);
    Ok(())
}

/// Lets `CLIENT LIST` know.
fn note(store: &mut Store, client: &Client) {
    if let Some(info) = store.clients.get_mut(&client.id) {
        info.queued = client.queue.as_ref().map(Queue::len);
        info.watched = client.watched.len();
    }
}

/// Ends the transaction and the watches.
pub(super) fn end(c: &mut Call<'_, '_>) -> Option<Queue> {
    forget_watched(c.store, c.client);
    let queue = c.client.queue.take();
    note(c.store, c.client);
    queue
}

/// Ends the watches.
pub(crate) fn forget_watched(store: &mut Store, client: &mut Client) {
    for key in core::mem::take(&mut client.watched) {
        store.unwatch(key.hash, &key.key);
    }
}

pub(super) fn exec(c: &mut Call<'_, '_>) -> Outcome {
    if c.args.len() != 1 {
        end(c);
        return Err(Refusal::ExecArity);
    }
    if c.client.queue.is_none() {
        return Err(Refusal::WithoutMulti("EXEC"));
    }
    let mut changed = false;
    for key in &c.client.watched {
        changed |= c.store.changed_since(key.hash, &key.key, key.since, c.now_ms);
    }
    let Some(queue) = end(c) else { return Ok(()) };
    if queue.failed {
        return Err(Refusal::ExecAbort);
    }
    if changed {
        c.out.null_array();
        return Ok(());
    }
    for (command, args) in queue.iter() {
        check_memory(c.store, &COMMANDS[usize::from(command)], args).map_err(|_| Refusal::ExecMemory)?;
    }
    if let Some(journal) = &c.store.journal {
        let commands = queue.iter().map(|(command, args)| (&COMMANDS[usize::from(command)], args));
        journal.check_all(commands).map_err(|refusal| match refusal {
            Refusal::LogFull => Refusal::ExecLogFull,
            _ => Refusal::ExecLogFailed,
        })?;
    }
    c.out.array(queue.len());
    for (command, args) in queue.iter() {
        let command = &COMMANDS[usize::from(command)];
        let mut call =
            Call { store: c.store, client: c.client, args, out: c.out, now_ms: c.now_ms, name: command.name };
        if let Err(refusal) = check_memory(call.store, command, args).and_then(|()| carry_out(&mut call, command)) {
            call.store.stats.errors += 1;
            call.out.error(refusal);
        }
        c.store.stats.commands += 1;
        c.store.poll();
    }
    Ok(())
}

pub(super) fn discard(c: &mut Call<'_, '_>) -> Outcome {
    if c.client.queue.is_none() {
        return Err(Refusal::WithoutMulti("DISCARD"));
    }
    end(c);
    c.out.ok();
    Ok(())
}

pub(super) fn watch(c: &mut Call<'_, '_>) -> Outcome {
    if c.client.queue.is_some() {
        return Err(Refusal::WatchInMulti);
    }
    for (number, key) in c.args.from(1).enumerate() {
        let hash = c.store.seed.hash(key);
        // Twice the same key does no harm, so this need not look far.
        if c.client.watched.iter().take(64).any(|watched| watched.hash == hash && watched.key.as_slice() == key) {
            continue;
        }
        c.store.room_for(2 * (c.client.watched.len() + 1) * size_of::<Watched>() + key.len())?;
        let since = c.store.watch(hash, key, c.now_ms);
        c.client.watched.push(Watched { hash, key: Bytes::from_slice(key), since });
        c.poll_at(number);
    }
    note(c.store, c.client);
    c.out.ok();
    Ok(())
}

pub(super) fn unwatch(c: &mut Call<'_, '_>) -> Outcome {
    forget_watched(c.store, c.client);
    note(c.store, c.client);
    c.out.ok();
    Ok(())
}
