//! `echo [port]`: sends back whatever comes, by TCP and by UDP.

use crate::network;
use lockstep_net::Server;
use lockstep_net::server::Limits;
use lockstep_net::service::{Output, Service};
use lockstep_runtime::Args;

struct Echo;

impl Service for Echo {
    type Connection = ();
    const INPUT_MAX: usize = Output::FULL;

    fn open(&mut self, _port: u16) {}

    fn receive(&mut self, _connection: &mut (), input: &[u8], output: &mut Output) -> usize {
        let bytes = input.len().min(output.room());
        output.write(&input[..bytes]);
        bytes
    }
}

pub fn main(args: &Args) -> u8 {
    network::run(args, "echo", 7, |net, port| {
        let limits = Limits { receive_bytes: 64 << 10, send_bytes: 64 << 10, ..Limits::default() };
        let mut server = Server::new(Echo, limits);
        server.listen(net, "echo", port);
        server.echo_datagrams(net, "echo", port);
        server.run(net)
    })
}
