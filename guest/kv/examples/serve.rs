//! The crate behind a TCP port, for trying it with clients: `cargo run --release -p lockstep-kv --example serve -- 127.0.0.1:6400`.

#[path = "../tests/support/mod.rs"]
mod support;

fn main() {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let server = support::Server::start(lockstep_kv::Settings::default(), &address);
    println!("{}", server.address);
    loop {
        std::thread::park();
    }
}
