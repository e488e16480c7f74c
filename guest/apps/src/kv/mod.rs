//! `kv [port=6379] [persist=1] [fsync=always|everysec|no] [format=1]`: a server that speaks the Redis protocol. The database is in memory, and
//! takes up to half of it; with `persist=1`, what changes it is [on a disk](persist) as well.

mod persist;

use crate::{USAGE, network};
use alloc::string::ToString;
use lockstep_kv::{Connection, Next, Settings, Store};
use lockstep_net::Server;
use lockstep_net::server::Limits;
use lockstep_net::service::{Now, Output, Service};
use lockstep_runtime::{Args, entropy, memory, println, safepoint, time};
use persist::{NoLog, Persist};

/// The longest request, in bytes: a bulk of this length arrives in pieces and is kept until it is whole.
const REQUEST_MAX: usize = 16 << 20;

/// Exit code for a machine without a disk, or one that holds no log.
const NO_LOG: u8 = 1;

struct Kv {
    store: Store,
    /// The wall clock at boot, milliseconds since 1970 UTC.
    boot_ms: u64,
    now_ms: u64,
    persist: Option<Persist>,
}

impl Service for Kv {
    type Connection = Connection;
    const INPUT_MAX: usize = REQUEST_MAX;

    fn open(&mut self, port: u16) -> Connection {
        Connection::open(&mut self.store, port.to_string(), self.now_ms)
    }

    fn receive(&mut self, connection: &mut Connection, input: &[u8], output: &mut Output) -> usize {
        let served = connection.serve(&mut self.store, self.now_ms, input, output.buffer());
        if let Some(persist) = &mut self.persist {
            persist.received(&mut self.store, output);
        }
        match served.next {
            Next::Read | Next::Write => {}
            Next::Close => output.close(),
            Next::Shutdown => {
                if let Some(persist) = &mut self.persist {
                    persist.settle(&mut self.store);
                }
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
        if let Some(persist) = &mut self.persist {
            persist.turn(&mut self.store, now_ms);
        }
    }

    fn served(&mut self) {
        if let Some(persist) = &mut self.persist {
            persist.served(&mut self.store);
        }
    }

    fn before_sleep(&mut self) -> bool {
        self.persist.as_mut().is_some_and(Persist::before_sleep)
    }

    fn released(&self) -> u64 {
        self.persist.as_ref().map_or(u64::MAX, Persist::released)
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
        let (persist, store) = match args.setting("persist") {
            None | Some("0") => (None, Store::new(settings)),
            Some("1") => match Persist::open(args, settings, boot_ms) {
                Ok((persist, store)) => (Some(persist), store),
                Err(error) => {
                    println!("kv: {error}");
                    return if let NoLog::Fsync(_) = error { USAGE } else { NO_LOG };
                }
            },
            Some(text) => {
                println!("kv: persist={text}: neither 0 nor 1");
                return USAGE;
            }
        };
        let service = Kv { store, boot_ms, now_ms: boot_ms, persist };
        let mut server = Server::new(service, Limits::default());
        server.listen(net, "kv", port);
        server.run(net)
    })
}
