//! What a host of a pair has in any role, and hands on from the driver of one role to that of the next: the connection, the machine, the
//! referee, the figures.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};

use super::board::{Board, Rate};
use super::channel::Connection;
use super::guest::{Guest, Part, Surroundings};
use super::keeper::Keeper;
use super::outgoing::Batch;
use super::outlets::Outlets;
use super::precopy;
use super::referee::Referee;
use super::snapshots::Operated;
use super::{HostError, Keeping};
use crate::console::status::Role;
use crate::machine::divergence::Divergence;
use crate::machine::snapshot::Boot;
use crate::replication::message::{Envelope, Message, Refusal};
use crate::replication::{Identity, Settings, StopReason};
use crate::transfer::take::Subject;

/// The desk at which the drivers take turns.
pub(super) struct Desk {
    pub me: Identity,
    pub settings: Settings,
    pub keeping: Keeping,
    pub transfer: precopy::Settings,
    pub outlets: Outlets,
    pub board: Arc<Board>,
    pub referee: Referee,
    /// Where backups connect; also while this host is one itself, to be told so.
    pub listener: TcpListener,
    /// Logging channels of the other hosts, to connect to as their backup, and the one to try next.
    pub peers: Vec<String>,
    pub next_peer: usize,
    pub connection: Option<Connection>,
    pub guest: Option<Guest>,
    pub keeper: Option<Keeper>,
    pub rate: Rate,
    pub heartbeats_sent: u64,
    pub divergence: Option<Box<Divergence>>,
    pub stopped: Option<StopReason>,
}

impl Desk {
    /// The machine that lives here may be asked for snapshots from now on.
    pub fn operate(&self) {
        if let Some(guest) = &self.guest
            && let Part::Living(living) = &guest.part
        {
            let (world, pages, hub) = (living.world.clone(), guest.pages.clone(), self.outlets.hub.clone());
            self.board.operate(Operated { subject: Subject { world, pages, hub }, boot: guest.boot.clone() });
        }
    }

    /// What the doors of a machine on this host need.
    pub fn surroundings(&self) -> Surroundings {
        Surroundings {
            outlets: self.outlets.clone(),
            host_name: self.me.host_name().into(),
            digest_every_ns: self.keeping.digest_every_ns,
        }
    }

    /// Keeps a copy of the log from its beginning on, if asked for.
    pub fn keep(&mut self, boot: &Boot) -> Result<(), HostError> {
        let limit = self.keeping.limit_bytes;
        let create = |path: std::path::PathBuf| {
            Keeper::create(&path, boot, limit).map_err(|source| HostError::Keep { path, source })
        };
        self.keeper = self.keeping.file.clone().map(create).transpose()?;
        Ok(())
    }

    /// Keeps a batch of the log, if it is kept.
    pub fn kept(&mut self, batch: Batch) {
        if let Some(keeper) = &mut self.keeper {
            keeper.keep(batch);
        }
    }

    /// Sends; false: the connection is no use any more.
    pub fn send(&mut self, envelope: &Envelope, bulk: &[u8]) -> bool {
        self.heartbeats_sent += u64::from(matches!(envelope.message, Message::Heartbeat { .. }));
        let Some(connection) = &mut self.connection else { return true };
        let sent = if matches!(envelope.message, Message::Chunk) {
            connection.send_bulk(envelope, bulk)
        } else {
            connection.send(envelope, bulk)
        };
        match sent {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "sending to the other side");
                false
            }
        }
    }

    /// Closes the connection once what was sent has left.
    pub fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            tokio::spawn(connection.close());
        }
    }

    /// Has the machine, if there is one, forgotten; its thread ends by itself.
    pub fn drop_guest(&mut self) {
        if let Some(guest) = self.guest.take() {
            tokio::spawn(guest.stop());
        }
    }

    /// Nothing leaves any more; with `clean`, what a guest that has ended said last stays for the console's clients.
    pub fn end_outlets(&mut self, clean: bool) {
        if clean {
            if let Some(network) = &self.outlets.network {
                network.not_live();
            }
            if let Some(disk) = &self.outlets.disk {
                disk.not_live();
            }
        } else {
            self.outlets.not_live(Role::Retired);
            self.board.set_live(false);
        }
    }

    /// The address to try next as a backup.
    pub fn peer(&mut self) -> String {
        let peer = self.peers[self.next_peer % self.peers.len()].clone();
        self.next_peer += 1;
        peer
    }
}

/// Sends a caller away who is not wanted now.
pub(super) fn turn_away(stream: TcpStream, refusal: Refusal) {
    if let Ok(mut connection) = Connection::new(stream)
        && connection.send(&Envelope::refuse(refusal), &[]).is_ok()
    {
        tokio::spawn(connection.close());
    }
}

/// What comes after a driver has done its part.
pub(super) enum Turn {
    /// This host is the primary now.
    Primary(Box<crate::replication::primary::Primary>),
    /// This host is a backup now.
    Backup(Box<crate::replication::backup::Backup>),
    /// The protocol has stopped this side; the desk knows why.
    Over,
}
