//! The commands: finding one by its name, the checks that all have in common, carrying it out.

mod catalogue;
mod clients;
mod hashes;
mod keys;
mod lists;
mod scan;
mod server;
mod sets;
mod strings;
mod transactions;
mod zsets;

use crate::bytes;
use crate::client::Client;
use crate::refusal::Refusal;
use crate::reply::Reply;
use crate::resp::Args;
use crate::store::Store;

pub(crate) use catalogue::{COMMANDS, Command, Names, WRITE};
pub(crate) use transactions::forget_watched;

/// Every so many elements of a loop, the caller is polled.
pub(crate) const POLL_EVERY: usize = 64;

/// A command being carried out.
#[derive(Debug)]
pub(crate) struct Call<'a, 'o> {
    pub(crate) store: &'a mut Store,
    pub(crate) client: &'a mut Client,
    pub(crate) args: Args<'a>,
    pub(crate) out: &'a mut Reply<'o>,
    pub(crate) now_ms: u64,
    /// The command's full name, for errors.
    pub(crate) name: &'static str,
}

/// Done, with the reply written; or refused, with nothing written and nothing changed.
pub(crate) type Outcome = Result<(), Refusal>;

impl Call<'_, '_> {
    /// A whole number among the arguments.
    pub(crate) fn int(&self, at: usize) -> Result<i64, Refusal> {
        bytes::parse_i64(self.args.at(at)).ok_or(Refusal::NotInteger)
    }

    /// A whole number from zero on among the arguments; `otherwise` says why not.
    pub(crate) fn size_or(&self, at: usize, otherwise: Refusal) -> Result<usize, Refusal> {
        bytes::parse_i64(self.args.at(at)).and_then(|value| usize::try_from(value).ok()).ok_or(otherwise)
    }

    /// Whether an argument is this word (given in capitals).
    pub(crate) fn is(&self, at: usize, word: &str) -> bool {
        self.args.at(at).eq_ignore_ascii_case(word.as_bytes())
    }

    /// A string of its own.
    #[inline]
    pub(crate) fn own(&self, text: &[u8]) -> bytes::Bytes {
        bytes::copy(text, self.store.settings.poll)
    }

    /// Lets the caller see to other things, now and then in a loop.
    #[inline]
    pub(crate) fn poll_at(&self, number: usize) {
        if number % POLL_EVERY == POLL_EVERY - 1 {
            self.store.poll();
        }
    }

    /// An error reply with the client's own words in it.
    pub(crate) fn say(&mut self, before: &str, words: &[u8], behind: &str) -> Refusal {
        say(self.out, before, words, behind)
    }

    pub(crate) fn arity(&self) -> Refusal {
        Refusal::Arity(self.name)
    }
}

/// Carries out a request, or queues it, or refuses it.
#[inline]
pub(crate) fn execute(store: &mut Store, client: &mut Client, args: Args<'_>, out: &mut Reply<'_>, now_ms: u64) {
    store.stats.commands += 1;
    let outcome = match store.names.find(args.at(0)) {
        None => unknown(args, out),
        Some(number) => {
            let command = &COMMANDS[usize::from(number)];
            if !command.takes(args.len()) {
                Err(Refusal::Arity(command.name))
            } else if let Err(refusal) =
                check_subcommand(command, args, out).and_then(|()| check_resources(store, command, args))
            {
                Err(refusal)
            } else if client.queue.is_some() && !command.is(catalogue::IMMEDIATE) {
                transactions::enqueue(store, client, number, args, out)
            } else {
                client.last_command = command.name;
                let mut call = Call { store, client, args, out, now_ms, name: command.name };
                let outcome = carry_out(&mut call, command);
                if let Some(journal) = &mut call.store.journal {
                    journal.end_request();
                }
                if let Err(refusal) = outcome {
                    call.store.stats.errors += 1;
                    call.out.error(refusal);
                }
                return;
            }
        }
    };
    if let Err(refusal) = outcome {
        store.stats.errors += 1;
        out.error(refusal);
        if let Some(queue) = &mut client.queue {
            queue.failed = true;
        }
    }
}

/// Carries out a command, and notes it if it has changed data.
#[inline]
pub(crate) fn carry_out(call: &mut Call<'_, '_>, command: &Command) -> Outcome {
    let before = call.store.changes();
    let outcome = (command.run)(call);
    if outcome.is_ok()
        && command.is(WRITE)
        && call.store.changes() != before
        && let Some(journal) = &mut call.store.journal
    {
        journal.note(call.args);
    }
    outcome
}

/// Whether a command may be begun: there is memory for it, and room to note it.
#[inline]
pub(crate) fn check_resources(store: &Store, command: &Command, args: Args<'_>) -> Outcome {
    check_memory(store, command, args)?;
    match &store.journal {
        Some(journal) => journal.check(command, args),
        None => Ok(()),
    }
}

/// Whether a command that takes memory may be begun.
#[inline]
pub(crate) fn check_memory(store: &Store, command: &Command, args: Args<'_>) -> Outcome {
    /// What a small element takes beside its bytes, generously: pieces of arrays come as a whole.
    const ELEMENT_BYTES: usize = 128;
    if !command.is(catalogue::DENY_OOM) {
        return Ok(());
    }
    store.room_for(args.total_bytes() + args.len() * ELEMENT_BYTES)
}

/// Whether a command that has subcommands was given one of them.
#[inline]
fn check_subcommand(command: &Command, args: Args<'_>, out: &mut Reply<'_>) -> Outcome {
    if !command.is(catalogue::CONTAINER) || args.len() < 2 {
        return Ok(());
    }
    match catalogue::subcommand(command.name, args.at(1), args.len()) {
        Some((_, true)) => Ok(()),
        Some((name, false)) => Err(Refusal::Arity(name)),
        None => {
            let behind = alloc::format!("'. Try {} HELP.", command.name.to_ascii_uppercase());
            Err(say(out, "unknown subcommand '", args.at(1), &behind))
        }
    }
}

/// An error reply with the client's own words in it, kept to one line.
fn say(out: &mut Reply<'_>, before: &str, words: &[u8], behind: &str) -> Refusal {
    let mut text = alloc::format!("-ERR {before}").into_bytes();
    text.extend(words.iter().take(128).map(|&byte| one_line(byte)));
    text.extend_from_slice(behind.as_bytes());
    text.extend_from_slice(b"\r\n");
    out.raw(&text);
    Refusal::Said
}

/// A reply's line must not end early.
fn one_line(byte: u8) -> u8 {
    if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }
}

#[cold]
fn unknown(args: Args<'_>, out: &mut Reply<'_>) -> Outcome {
    let mut text = alloc::vec::Vec::new();
    text.extend_from_slice(b"-ERR unknown command '");
    let shown = |arg: &[u8], most: usize, text: &mut alloc::vec::Vec<u8>| {
        text.extend(arg.iter().take(most).map(|&byte| one_line(byte)));
    };
    shown(args.at(0), 128, &mut text);
    text.extend_from_slice(b"', with args beginning with: ");
    let start = text.len();
    for arg in args.from(1) {
        let length = text.len() - start;
        if length >= 128 {
            break;
        }
        text.push(b'\'');
        shown(arg, 128 - length, &mut text);
        text.extend_from_slice(b"' ");
    }
    text.extend_from_slice(b"\r\n");
    out.raw(&text);
    Err(Refusal::Said)
}
