//! `stream`: bulk data. The port takes whatever comes and says how much it was when the client has sent all; the port
//! above it sends, for ever or `bytes=N`: byte *i* is *i* modulo 251.

use crate::{USAGE, network};
use core::fmt::Write;
use lockstep_net::Server;
use lockstep_net::server::Limits;
use lockstep_net::service::{Output, Service};
use lockstep_runtime::{Args, println};

const PERIOD: usize = 251;

/// The pattern, often enough to copy large pieces of it.
static PATTERN: [u8; 64 * PERIOD] = {
    let mut pattern = [0; 64 * PERIOD];
    let mut at = 0;
    while at < pattern.len() {
        pattern[at] = (at % PERIOD) as u8;
        at += 1;
    }
    pattern
};

struct Stream {
    sink_port: u16,
    /// How much a source sends; for ever if `None`.
    bytes: Option<u64>,
}

enum Connection {
    /// Bytes that have come.
    Sink(u64),
    /// Bytes that have been said.
    Source(u64),
}

impl Service for Stream {
    type Connection = Connection;
    const INPUT_MAX: usize = 1;

    fn open(&mut self, port: u16) -> Connection {
        if port == self.sink_port { Connection::Sink(0) } else { Connection::Source(0) }
    }

    fn receive(&mut self, connection: &mut Connection, input: &[u8], _output: &mut Output) -> usize {
        if let Connection::Sink(bytes) = connection {
            *bytes += input.len() as u64;
        }
        input.len()
    }

    fn fill(&mut self, connection: &mut Connection, output: &mut Output) {
        let Connection::Source(sent) = connection else { return };
        while !output.is_full() {
            let phase = (*sent % PERIOD as u64) as usize;
            let left = self.bytes.map_or(u64::MAX, |bytes| bytes - *sent);
            if left == 0 {
                output.close();
                return;
            }
            let piece = (PATTERN.len() - phase).min(output.room()).min(usize::try_from(left).unwrap_or(usize::MAX));
            output.write(&PATTERN[phase..phase + piece]);
            *sent += piece as u64;
        }
    }

    /// A source that is to send so many bytes sends them also to a client that only listens.
    fn end(&mut self, connection: &mut Connection, output: &mut Output) {
        match connection {
            Connection::Sink(bytes) => {
                // `Output` takes everything.
                let _ = writeln!(output, "{bytes} bytes");
                output.close();
            }
            Connection::Source(_) if self.bytes.is_some() => {}
            Connection::Source(_) => output.close(),
        }
    }
}

pub fn main(args: &Args) -> u8 {
    let bytes = match args.setting("bytes").map(|text| (text, text.parse())) {
        None => None,
        Some((_, Ok(bytes))) => Some(bytes),
        Some((text, Err(_))) => {
            println!("stream: bytes={text}: not a number");
            return USAGE;
        }
    };
    network::run(args, "stream", 5001, |net, sink_port| {
        let Some(source_port) = sink_port.checked_add(1) else {
            println!("stream: no port above {sink_port}");
            return USAGE;
        };
        let limits = Limits { connections: 16, backlog: 2, receive_bytes: 512 << 10, send_bytes: 512 << 10 };
        let mut server = Server::new(Stream { sink_port, bytes }, limits);
        server.listen(net, "stream", sink_port);
        server.listen(net, "stream", source_port);
        server.run(net)
    })
}
