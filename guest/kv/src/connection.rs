//! One client's connection: bytes in, replies out.
//!
//! ```text
//!   input ──► parser ──► command ──► reply ──► output
//!               │           │                    │ above the high-water mark: Next::Write
//!               │           └ QUIT, SHUTDOWN, CLIENT KILL: Next::Close, Next::Shutdown
//!               ├ not all there: Next::Read
//!               └ not readable: error reply, Next::Close
//! ```

use alloc::string::String;
use alloc::vec::Vec;

use crate::client::{Client, ClientInfo, Next};
use crate::command;
use crate::reply::{Reply, ReplyBounds};
use crate::resp::{Args, Bounds, Parsed, Parser};
use crate::store::Store;

/// What one call of [`Connection::serve`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Bytes of the input that are dealt with; the caller shows the rest again, with more behind it.
    pub consumed: usize,
    /// How to go on.
    pub next: Next,
}

/// One client's connection.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    parser: Parser,
}

impl Connection {
    /// A new client; `address` is what `CLIENT LIST` tells of it.
    pub fn open(store: &mut Store, address: String, now_ms: u64) -> Self {
        let id = store.next_client;
        store.next_client += 1;
        store.stats.connections += 1;
        store.started_ms.get_or_insert(now_ms);
        let info = ClientInfo {
            address,
            name: Default::default(),
            library: Default::default(),
            library_version: Default::default(),
            opened_ms: now_ms,
            active_ms: now_ms,
            last_command: "NULL",
            queued: None,
            watched: 0,
            killed: false,
        };
        store.clients.insert(id, info);
        let client = Client { id, queue: None, watched: Vec::new(), last_command: "NULL", next: Next::Read };
        Connection { client, parser: Parser::default() }
    }

    /// The number that `CLIENT ID` tells.
    pub fn id(&self) -> u64 {
        self.client.id
    }

    /// Whether another client asked for this one's end (`CLIENT KILL`); the next call of `serve` would say so, too.
    pub fn is_killed(&self, store: &Store) -> bool {
        store.clients.get(&self.client.id).is_none_or(|info| info.killed)
    }

    /// The connection is gone, whoever closed it.
    pub fn close(mut self, store: &mut Store) {
        command::forget_watched(store, &mut self.client);
        store.clients.remove(&self.client.id);
    }

    /// Carries out the complete requests in `input` and appends their replies to `out`.
    ///
    /// `input` begins where the last call's `consumed` ended. The bytes of a request that is not complete are to be
    /// shown again, unchanged, at the beginning of the next call's input. A request has at most
    /// [`Settings::request_bytes`](crate::Settings::request_bytes), so no more needs to be kept.
    pub fn serve(&mut self, store: &mut Store, now_ms: u64, input: &[u8], out: &mut Vec<u8>) -> Served {
        let bounds = Bounds { bulk_bytes: store.settings.bulk_bytes, request_bytes: store.settings.request_bytes };
        let reply_bounds = ReplyBounds {
            reply_bytes: store.settings.reply_bytes,
            heap_bytes: store.settings.heap_bytes,
            heap_used: store.settings.heap_used,
            poll: store.settings.poll,
        };
        let out_before = out.len();
        let mut consumed = 0;
        match store.clients.get_mut(&self.client.id) {
            Some(info) if !info.killed => {
                info.active_ms = now_ms;
                info.last_command = self.client.last_command;
            }
            _ => return Served { consumed, next: Next::Close },
        }
        let next = loop {
            if self.client.next != Next::Read {
                break self.client.next;
            }
            if out.len() >= store.settings.high_water_bytes {
                break Next::Write;
            }
            let request = &input[consumed..];
            let length = match self.parser.parse(request, &bounds) {
                Ok(Parsed::Partial) => break Next::Read,
                Ok(Parsed::Complete(length)) => length,
                Err(error) => {
                    out.extend_from_slice(alloc::format!("-ERR Protocol error: {error}\r\n").as_bytes());
                    self.client.next = Next::Close;
                    continue;
                }
            };
            let (ranges, line) = self.parser.take();
            let args = Args::new(line.as_deref().unwrap_or(request), &ranges);
            if args.len() > 0 {
                let mut reply = Reply::new(out, reply_bounds);
                command::execute(store, &mut self.client, args, &mut reply, now_ms);
                if reply.finish().is_err() {
                    self.client.next = Next::Close;
                }
                (store.settings.poll)();
            }
            self.parser.reset(ranges);
            consumed += length;
        };
        store.stats.input_bytes += consumed as u64;
        store.stats.output_bytes += (out.len() - out_before) as u64;
        Served { consumed, next }
    }
}
