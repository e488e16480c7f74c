//! What a server knows about one client: its name, its transaction, the keys it watches.

use alloc::string::String;
use alloc::vec::Vec;

use crate::bytes::Bytes;
use crate::resp::{Args, Range};
use crate::table::Hash;

/// What every client may see of another (`CLIENT LIST`).
#[derive(Debug)]
pub(crate) struct ClientInfo {
    pub(crate) address: String,
    pub(crate) name: Bytes,
    pub(crate) library: Bytes,
    pub(crate) library_version: Bytes,
    pub(crate) opened_ms: u64,
    pub(crate) active_ms: u64,
    pub(crate) last_command: &'static str,
    /// Commands queued in a transaction, if there is one.
    pub(crate) queued: Option<usize>,
    pub(crate) watched: usize,
    /// `CLIENT KILL` named it.
    pub(crate) killed: bool,
}

/// A key under `WATCH`, and since when in the row of changes.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) hash: Hash,
    pub(crate) key: Bytes,
    pub(crate) since: u64,
}

/// Commands between `MULTI` and `EXEC`.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    bytes: Vec<u8>,
    ranges: Vec<Range>,
    /// For each command: its number in the command table, and the end of its ranges.
    commands: Vec<(u16, usize)>,
    /// A command was refused; `EXEC` will be, too.
    pub(crate) failed: bool,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    pub(crate) fn push(&mut self, command: u16, args: Args<'_>) {
        args.store(&mut self.bytes, &mut self.ranges);
        self.commands.push((command, self.ranges.len()));
    }

    /// The commands with their arguments.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, Args<'_>)> {
        let mut start = 0;
        self.commands.iter().map(move |&(command, end)| {
            let ranges = self.ranges.get(start..end).unwrap_or_default();
            start = end;
            (command, Args::new(&self.bytes, ranges))
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// How a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// All complete requests are answered: it needs more input.
    Read,
    /// The output is above its high-water mark: call again (with the rest of the input) when it has been sent.
    Write,
    /// Send the output, then close.
    Close,
    /// As [`Next::Close`]; and the client asked the whole server to end.
    Shutdown,
}

/// One client's state.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) queue: Option<Queue>,
    pub(crate) watched: Vec<Watched>,
    /// Name of the last command.
    pub(crate) last_command: &'static str,
    /// Set by a command that ends the connection.
    pub(crate) next: Next,
}
