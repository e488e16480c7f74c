//! A TCP connection that can be held up: what the far end sends waits in the valve while it is shut, and no one else notices.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The valve in front of one address.
pub struct Valve {
    /// The port to connect to instead.
    pub port: u16,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let shut = self.shut.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_while(shut, |shut| *shut).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Valve {
    /// A valve before the loopback port `target`, open. Its threads end with their connections, and with the process.
    pub fn before(target: u16) -> Valve {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let gate = Arc::<Gate>::default();
        let gate_there = gate.clone();
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let ends = [near.try_clone().expect("a handle"), far.try_clone().expect("a handle")];
                let [near_again, far_again] = ends;
                let gate = gate_there.clone();
                std::thread::spawn(move || copy(near, far, || ()));
                std::thread::spawn(move || copy(far_again, near_again, || gate.pass()));
            }
        });
        Valve { port, gate }
    }

    /// Shuts or opens it.
    pub fn shut(&self, shut: bool) {
        *self.gate.shut.lock().unwrap_or_else(PoisonError::into_inner) = shut;
        self.gate.opened.notify_all();
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, pass: impl Fn()) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        pass();
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
