//! A cable between one client and the members: it ends in one of them, can be plugged into another, and can be cut. Clients know its
//! near end only, so that moving a session to another member is the client's own reconnection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

#[derive(Default)]
struct State {
    /// `None`: cut.
    target: Option<SocketAddr>,
    /// Both ends of every connection that came through.
    sockets: Vec<TcpStream>,
    closed: bool,
}

/// The cable.
pub struct Cable {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    acceptor: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies until either end closes, then closes both.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Cable {
    /// A cable to a member.
    pub fn to(target: SocketAddr) -> Cable {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(Mutex::new(State { target: Some(target), ..State::default() }));
        let accepting = state.clone();
        let acceptor = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut state = lock(&accepting);
                if state.closed {
                    return;
                }
                // A connection that cannot go on is closed: the client tries again.
                let Some(Ok(server)) = state.target.map(TcpStream::connect) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let _ = from.set_nodelay(true);
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    std::thread::spawn(move || copy(from, to));
                }
                state.sockets.extend([client, server]);
            }
        });
        Cable { address, state, acceptor: Some(acceptor) }
    }

    /// Its near end.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts it: what runs through it ends, and nothing new gets through.
    pub fn cut(&self) {
        self.plug_into(None);
    }

    /// Plugs it into a member; what ran through it ends.
    pub fn plug(&self, target: SocketAddr) {
        self.plug_into(Some(target));
    }

    fn plug_into(&self, target: Option<SocketAddr>) {
        let mut state = lock(&self.state);
        state.target = target;
        for socket in state.sockets.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.cut();
        lock(&self.state).closed = true;
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}
