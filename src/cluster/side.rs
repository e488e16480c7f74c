//! The record of a side: what its host's board shows, as the cluster sees it.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::paths::Paths;
use super::publish::Publication;
use super::records::{Side, VERSION};
use crate::arbiter::ensemble::Server;
use crate::arbiter::zookeeper::Sessions;
use crate::console::status::Role;
use crate::host::board::{Board, Summary};

/// A side that is to be listed.
pub struct Entry {
    /// The ensemble that keeps the list.
    pub sessions: Arc<Sessions>,
    /// All that does not change.
    pub side: Side,
}

/// A side that is listed in the cluster for as long as this lives.
pub struct Listed {
    publication: Publication,
    following: JoinHandle<()>,
}

impl Listed {
    /// Lists the side of which `board` tells.
    pub fn start(Entry { sessions, side }: Entry, board: &Board) -> Self {
        let mut summary = board.summary();
        let host = side.host.clone();
        let sides = Paths::below(sessions.root()).sides(&side.vm);
        let first = record(&side, &summary.borrow_and_update());
        let (told, record_now) = watch::channel(first);
        let following = sessions.handle().spawn(async move {
            while summary.changed().await.is_ok() {
                let now = record(&side, &summary.borrow_and_update());
                told.send_if_modified(|told| std::mem::replace(told, now) != *told);
            }
        });
        Listed { publication: Publication::start(sessions, sides, &host, record_now), following }
    }

    /// Takes it off the list.
    pub async fn end(self) {
        self.following.abort();
        self.publication.end().await;
    }
}

fn record(side: &Side, summary: &Summary) -> Side {
    let Summary { role, state, generation, peer, memory_mib } = summary.clone();
    let protected = match role {
        Role::Primary => true,
        Role::Backup => matches!(state.as_str(), "following" | "finishing" | "handed over"),
        Role::Unprotected | Role::Waiting | Role::Retired => false,
    };
    let memory_mib = memory_mib.or(side.memory_mib);
    Side { version: VERSION, role, state, generation, peer, memory_mib, protected, ..side.clone() }
}

/// The address by which other hosts reach what listens on `address` here. Where that is on every interface, it is the address by which this host goes to its
/// arbiter.
pub fn reachable(address: SocketAddr, sessions: &Sessions) -> String {
    let ip = if address.ip().is_unspecified() { towards(sessions).unwrap_or(address.ip()) } else { address.ip() };
    SocketAddr::new(ip, address.port()).to_string()
}

fn towards(sessions: &Sessions) -> Option<IpAddr> {
    // A datagram socket that is connected sends nothing, and knows where it would send it from.
    sessions.links().iter().find_map(|link| {
        let server = link.address().to_socket_addrs().ok()?.next()?;
        let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(server).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}
