//! `kv [port=6379]`: a server that speaks the Redis protocol. The database is in memory, and takes up to half of it.

use crate::network;
use alloc::string::ToString;
use lockstep_kv::{Connection, Next, Settings, Store};
use lockstep_net::Server;
use lockstep_net::server::Limits;
use lockstep_net::service::{Now, Output, Service};
use lockstep_runtime::{Args, entropy, memory, println, safepoint, time};

/// The longest request, in bytes: a bulk of this length arrives in pieces and is kept until it is whole.
const REQUEST_MAX: usize = 16 << 20;

struct Kv {
    store: Store,
    /// The wall clock at boot, milliseconds since 1970 UTC.
    boot_ms: u64,
    now_ms: u64,
}

impl Service for Kv {
    type Connection = Connection;
    const INPUT_MAX: usize = REQUEST_MAX;

    fn open(&mut self, port: u16) -> Connection {
        Connection::open(&mut self.store, port.to_string(), self.now_ms)
    }

    fn receive(&mut self, connection: &mut Connection, input: &[u8], output: &mut Output) -> usize {
        let served = connection.serve(&mut self.store, self.now_ms, input, output.buffer());
        match served.next {
            Next::Read | Next::Write => {}
            Next::Close => output.close(),
            Next::Shutdown => {
                println!("kv: shut down by a client");
                lockstep_runtime::console::flush();
                lockstep_runtime::gate::exit(0);
            }
        }
        served.consumed
    }

    fn closed(&mut self, connection: Connection) {
        connection.close(&mut self.store);
    }

    fn turn(&mut self, now: Now) {
        let now_ms = self.boot_ms + now.since_boot_ms;
        if now_ms != self.now_ms {
            self.now_ms = now_ms;
            self.store.expire_some(now_ms);
        }
    }
}

fn heap_used() -> usize {
    memory::usage().0
}

pub fn main(args: &Args) -> u8 {
    network::run(args, "kv", 6379, |net, port| {
        let (used, free) = memory::usage();
        let heap = used + free;
        let settings = Settings {
            seed: entropy::random(),
            maxmemory_bytes: heap / 2,
            heap_bytes: heap / 4 * 3,
            heap_used,
            bulk_bytes: REQUEST_MAX.min(heap / 8),
            request_bytes: REQUEST_MAX.min(heap / 8),
            reply_bytes: heap / 8,
            high_water_bytes: Output::FULL,
            poll: || safepoint(),
        };
        let boot_ms = time::wall_clock_ns().unwrap_or(0) / 1_000_000;
        let service = Kv { store: Store::new(settings), boot_ms, now_ms: boot_ms };
        let mut server = Server::new(service, Limits::default());
        server.listen(net, "kv", port);
        server.run(net)
    })
}
