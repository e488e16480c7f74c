//! A TCP server: connections of a [`Service`], and UDP for those who want it, for ever.

use crate::stack::{Net, now_ms};
use alloc::vec;
use alloc::vec::Vec;
use lockstep_runtime::{println, safepoint};
use lockstep_service::{Now, Output, Service};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::{Socket, tcp, udp};
use smoltcp::time::Duration;

/// A client that has not answered for so long is gone.
const TIMEOUT: Duration = Duration::from_secs(120);
/// A silent client is asked so often whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(45);
/// After the last byte to a client has arrived there, so long it may take until it closes as well.
const LINGER_MS: u64 = 10_000;

/// How much a server may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections, on all ports together, with those that listen for one.
    pub connections: usize,
    /// Sockets that listen on each port. Few will do: there is a new one after each packet that took one.
    pub backlog: usize,
    /// Bytes that may wait in a connection's socket to be read.
    pub receive_bytes: usize,
    /// Bytes that may wait in a connection's socket for the client's acknowledgement.
    pub send_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: 300, backlog: 8, receive_bytes: 32 << 10, send_bytes: 32 << 10 }
    }
}

/// A connection that is there.
struct Open<C> {
    connection: C,
    /// What the service has not dealt with yet and no longer fits its socket's buffer.
    input: Vec<u8>,
    output: Output,
    /// `input` is the beginning of a message: there is no use in trying again before more has come.
    wants_more: bool,
    /// The service has heard that there is no more input.
    ended: bool,
}

/// What is behind a socket.
enum Stage<C> {
    /// It listens, or a client is just connecting.
    Free,
    Open(Open<C>),
    /// The service has done with it: what it said is on its way, or the connection was reset.
    Over {
        /// When the last of that was heard to have arrived, as far as it was.
        since_ms: u64,
    },
}

/// A socket and what is behind it.
struct Slot<C> {
    handle: SocketHandle,
    port: u16,
    stage: Stage<C>,
}

/// A server for one service.
pub struct Server<S: Service> {
    service: S,
    limits: Limits,
    ports: Vec<u16>,
    slots: Vec<Slot<S::Connection>>,
    /// Sockets that nobody uses, kept for their buffers.
    spare: Vec<tcp::Socket<'static>>,
    udp: Vec<SocketHandle>,
}

impl<S: Service> Server<S> {
    /// A server that listens nowhere yet.
    pub fn new(service: S, limits: Limits) -> Self {
        Server { service, limits, ports: Vec::new(), slots: Vec::new(), spare: Vec::new(), udp: Vec::new() }
    }

    /// Listens on this TCP port (not 0).
    pub fn listen(&mut self, net: &mut Net, name: &str, port: u16) {
        self.ports.push(port);
        let all_listen = self.rearm(&mut net.sockets);
        net.accept(all_listen);
        println!("{name}: listening on port {port}");
    }

    /// Sends whatever comes to this UDP port (not 0) back.
    pub fn echo_datagrams(&mut self, net: &mut Net, name: &str, port: u16) {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 64 << 10]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).expect("a port that is not 0, on a new socket");
        self.udp.push(net.sockets.add(socket));
        println!("{name}: answering datagrams on port {port}");
    }

    /// Serves, for ever.
    pub fn run(mut self, net: &mut Net) -> ! {
        loop {
            safepoint();
            let seen = Net::interrupts();
            net.take_in(|sockets| self.rearm(sockets));
            self.service.turn(Now { since_boot_ms: now_ms() });
            if self.serve_all(&mut net.sockets) {
                let all_listen = self.rearm(&mut net.sockets);
                net.accept(all_listen);
            }
            self.service.served();
            net.put_out();
            net.rest(seen, || self.service.before_sleep());
        }
    }

    /// Sees to it that enough sockets listen. Whether there is at least one on each port.
    fn rearm(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let mut all = true;
        for &port in &self.ports {
            let listens = |slot: &&Slot<_>| slot.port == port && state(sockets, slot) == tcp::State::Listen;
            let listening = self.slots.iter().filter(listens).count();
            for there in listening..self.limits.backlog {
                if self.slots.len() < self.limits.connections {
                    let socket = self.spare.pop().unwrap_or_else(|| new_socket(&self.limits));
                    self.slots.push(Slot { handle: sockets.add(listen(socket, port)), port, stage: Stage::Free });
                    continue;
                }
                // Full. A connection that has ended, and only remembers it for late packets, may be forgotten early.
                let ended = |slot: &&mut Slot<_>| state(sockets, slot) == tcp::State::TimeWait;
                let Some(slot) = self.slots.iter_mut().find(ended) else {
                    all &= there > 0;
                    break;
                };
                let mut socket = take(sockets, slot.handle);
                socket.abort();
                *slot = Slot { handle: sockets.add(listen(socket, port)), port, stage: Stage::Free };
            }
        }
        all
    }

    /// Serves every connection. Whether there is a socket less in use.
    fn serve_all(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let mut freed = false;
        for &handle in &self.udp {
            echo_datagrams(sockets.get_mut(handle));
        }
        let mut index = 0;
        while index < self.slots.len() {
            let slot = &mut self.slots[index];
            if serve(&mut self.service, slot, sockets.get_mut(slot.handle)) {
                index += 1;
            } else {
                self.spare.push(take(sockets, slot.handle));
                self.slots.swap_remove(index);
                freed = true;
            }
        }
        freed
    }
}

fn state<C>(sockets: &SocketSet<'static>, slot: &Slot<C>) -> tcp::State {
    sockets.get::<tcp::Socket>(slot.handle).state()
}

fn take(sockets: &mut SocketSet<'static>, handle: SocketHandle) -> tcp::Socket<'static> {
    match sockets.remove(handle) {
        Socket::Tcp(socket) => socket,
        Socket::Udp(_) | Socket::Dhcpv4(_) => unreachable!("a slot's socket is a TCP socket"),
    }
}

/// Lets a socket that is closed listen.
fn listen(mut socket: tcp::Socket<'static>, port: u16) -> tcp::Socket<'static> {
    socket.listen(port).expect("the port is not 0");
    socket
}

fn new_socket(limits: &Limits) -> tcp::Socket<'static> {
    let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
    let mut socket = tcp::Socket::new(buffer(limits.receive_bytes), buffer(limits.send_bytes));
    socket.set_nagle_enabled(false);
    // All that came in one turn is acknowledged at its end, with the answer if there is one.
    socket.set_ack_delay(None);
    socket.set_timeout(Some(TIMEOUT));
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket
}

/// Serves a connection as far as it can be. Whether its socket is still in use.
fn serve<S: Service>(service: &mut S, slot: &mut Slot<S::Connection>, socket: &mut tcp::Socket<'static>) -> bool {
    let closed = match socket.state() {
        tcp::State::Listen | tcp::State::SynReceived => return true,
        tcp::State::Closed => true,
        _ => false,
    };
    if let Stage::Free = slot.stage {
        slot.stage = Stage::Open(Open {
            connection: service.open(slot.port),
            input: Vec::new(),
            output: Output::default(),
            wants_more: false,
            ended: false,
        });
    }
    match &mut slot.stage {
        Stage::Free => true,
        Stage::Open(open) => {
            if closed || converse(service, open, socket) {
                socket.close();
                let stage = core::mem::replace(&mut slot.stage, Stage::Over { since_ms: now_ms() });
                if let Stage::Open(open) = stage {
                    service.closed(open.connection);
                }
            }
            true
        }
        // A client that has been reset has to be told so; if it is still there.
        Stage::Over { since_ms } if closed => socket.remote_endpoint().is_some() && waited_ms(*since_ms) <= LINGER_MS,
        Stage::Over { since_ms } => {
            // What still comes is nobody's.
            while socket.can_recv() && socket.recv(|bytes| (bytes.len(), ())).is_ok() {}
            if socket.send_queue() > 0 {
                *since_ms = now_ms();
            } else if socket.state() != tcp::State::TimeWait && waited_ms(*since_ms) > LINGER_MS {
                socket.abort();
                *since_ms = now_ms();
            }
            true
        }
    }
}

fn waited_ms(since_ms: u64) -> u64 {
    now_ms().saturating_sub(since_ms)
}

/// Moves bytes between a socket and its service until neither can go on. Whether all is said.
fn converse<S: Service>(service: &mut S, open: &mut Open<S::Connection>, socket: &mut tcp::Socket<'static>) -> bool {
    loop {
        safepoint();
        let taken = feed(service, open, socket);
        open.output.release(service.released());
        let sent = drain(&mut open.output, socket);
        if open.output.is_closing() && open.output.pending_bytes() == 0 {
            return true;
        }
        if !taken && !sent {
            return false;
        }
    }
}

/// Gives the service what has come. Whether that changed anything.
fn feed<S: Service>(service: &mut S, open: &mut Open<S::Connection>, socket: &mut tcp::Socket<'static>) -> bool {
    let Open { connection, input, output, wants_more, ended, .. } = open;
    let stops = |output: &Output| output.is_closing() || output.is_full();
    if stops(output) {
        return false;
    }
    let before = output.pending_bytes();
    let mut taken = 0;
    if input.is_empty() && socket.can_recv() {
        // As a rule whole messages, straight out of the socket's buffer.
        let used = socket.recv(|bytes| {
            let used = service.receive(connection, bytes, output);
            if used < bytes.len() && !stops(output) {
                // The rest of a message is missing: it waits here, so that the socket has room for it.
                input.extend_from_slice(&bytes[used..]);
                *wants_more = true;
                (bytes.len(), bytes.len())
            } else {
                (used, used)
            }
        });
        taken += used.unwrap_or(0);
    } else if !input.is_empty() {
        // Twice at most: what has come may wrap around the end of the socket's buffer.
        while socket.can_recv() && input.len() < S::INPUT_MAX {
            let more = socket.recv(|bytes| {
                let bytes = &bytes[..bytes.len().min(S::INPUT_MAX - input.len())];
                input.extend_from_slice(bytes);
                (bytes.len(), bytes.len())
            });
            taken += more.unwrap_or(0);
        }
        if taken > 0 || !*wants_more {
            let used = service.receive(connection, input, output);
            input.drain(..used);
            if input.is_empty() {
                // A single long message shall not hold its memory for ever.
                input.shrink_to(Output::FULL);
            }
            taken += used;
            *wants_more = !stops(output);
        }
        if *wants_more && input.len() >= S::INPUT_MAX {
            // For the rest of a message that is too long.
            socket.abort();
        }
    }
    if !*ended && !socket.may_recv() && !stops(output) {
        *ended = true;
        service.end(connection, output);
        taken += 1;
    }
    if !stops(output) {
        service.fill(connection, output);
    }
    taken > 0 || output.pending_bytes() != before
}

/// Moves what the service has said into the socket. Whether that changed anything.
fn drain(output: &mut Output, socket: &mut tcp::Socket<'static>) -> bool {
    let mut any = false;
    while !output.waiting().is_empty() && socket.can_send() {
        match socket.send_slice(output.waiting()) {
            Ok(bytes @ 1..) => {
                output.taken(bytes);
                any = true;
            }
            Ok(0) | Err(_) => break,
        }
    }
    any
}

fn echo_datagrams(socket: &mut udp::Socket<'static>) {
    while socket.can_send() && socket.can_recv() {
        safepoint();
        let Ok((payload, from)) = socket.recv() else { return };
        let payload = Vec::from(payload);
        // A datagram that does not fit is lost, as datagrams may be.
        let _ = socket.send_slice(&payload, from);
    }
}
