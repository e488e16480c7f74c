//! What the network applications have in common: they bring up the network, or say why they cannot.

use crate::USAGE;
use lockstep_net::{Net, NetError};
use lockstep_runtime::{Args, println};

/// Exit code for a machine without a network card.
const NO_NETWORK: u8 = 1;

/// Brings up the network and calls `serve`, which stays there, with the port of `port=` or else this one.
pub fn run(args: &Args, name: &str, port: u16, serve: impl FnOnce(&mut Net, u16) -> u8) -> u8 {
    let port = match args.setting("port").map(|text| (text, text.parse())) {
        None => port,
        Some((_, Ok(port @ 1..))) => port,
        Some((text, _)) => {
            println!("{name}: port={text}: not a number from 1 to 65535");
            return USAGE;
        }
    };
    match Net::up(args) {
        Ok(mut net) => serve(&mut net, port),
        Err(error) => {
            println!("{name}: {error}");
            match error {
                NetError::NoCard => NO_NETWORK,
                NetError::Address(_) | NetError::Gateway(_) | NetError::NoTimer => USAGE,
            }
        }
    }
}
