//! `http`: a small web site with a counter that runs in the guest.

use crate::network;
use lockstep_http::Site;
use lockstep_net::Server;
use lockstep_net::server::Limits;
use lockstep_runtime::{Args, host_name};

pub fn main(args: &Args) -> u8 {
    network::run(args, "http", 80, |net, port| {
        let mut server = Server::new(Site::new(host_name), Limits::default());
        server.listen(net, "http", port);
        server.run(net)
    })
}
