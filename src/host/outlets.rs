//! What stands behind a machine's doors on this host, console, network and disk, told in one breath by whoever decides what may leave.

use std::sync::Arc;

use crate::backends::world::World;
use crate::console::hub::{Hub, Protection};
use crate::console::status::Role;
use crate::disk::DiskError;
use crate::disk::port::DiskPort;
use crate::doors::Behind;
use crate::machine::snapshot::Boot;
use crate::net::port::Port;

use super::HostError;

/// The guest has come to its end: its disk is made whole, as well as that can be. A storage that fails (a full one, say) changes nothing of how the
/// guest has ended, and nothing that it has flushed is lost; the stamp goes on saying that not everything may be there.
pub(super) fn at_its_end(disk: &DiskPort) {
    if let Err(error) = disk.ended() {
        tracing::warn!(error = &error as &dyn std::error::Error, "the disk is not marked as whole at the guest's end");
    }
}

/// Console, network and disk.
#[derive(Clone)]
pub struct Outlets {
    /// The console.
    pub hub: Arc<Hub>,
    /// Where the guest's card is plugged in, if it has one.
    pub network: Option<Arc<Port>>,
    /// The guest's disk, if it has one.
    pub disk: Option<Arc<DiskPort>>,
}

impl Outlets {
    /// As the doors see them.
    pub fn behind(&self) -> Behind {
        let mut behind = Behind::console(self.hub.clone());
        if let Some(port) = &self.network {
            behind.network = port.clone();
        }
        if let Some(disk) = &self.disk {
            behind.disk = disk.clone();
        }
        behind
    }

    /// Has what arrives wake the machine in `world`.
    pub fn wake(&self, world: &Arc<World>) {
        let wake = world.clone();
        self.hub.set_input_waker(Box::new(move || wake.input_waits()));
        if let Some(port) = &self.network {
            let (wake, remind) = (world.clone(), world.clone());
            port.set_waker(Box::new(move || wake.packets_wait()), Box::new(move || remind.remind_of_packets()));
        }
        if let Some(disk) = &self.disk {
            let wake = world.clone();
            disk.set_waker(Box::new(move || wake.disk_done()));
        }
    }

    /// Whether they fit the machine that `boot` describes, and another host runs.
    pub fn fit(&self, boot: &Boot) -> Result<(), HostError> {
        self.plug(boot)?;
        match (&boot.disk, &self.disk) {
            (Some(config), Some(disk)) => Ok(disk.fit(config)?),
            (Some(_), None) => Err(HostError::NoDisk),
            (None, _) => Ok(()),
        }
    }

    /// Whether the network can serve the machine that `boot` describes; tells it the address of its card. A host that boots a machine of its own needs no
    /// more: its disk is the machine's, however it was left, and no copy that has to be like another.
    pub fn plug(&self, boot: &Boot) -> Result<(), HostError> {
        if boot.net.is_some() && self.network.is_none() {
            return Err(HostError::NoNetwork);
        }
        if boot.net.is_some_and(|net| net.offloads) && self.network.as_ref().is_some_and(|port| !port.has_offloads()) {
            return Err(HostError::NoOffloads);
        }
        if let (Some(port), Some(card)) = (&self.network, boot.net) {
            port.set_mac(card.mac);
        }
        Ok(())
    }

    /// This host runs the machine now.
    pub fn go_live(&self, generation: u64, protection: Protection) -> Result<(), DiskError> {
        if let Some(disk) = &self.disk {
            disk.go_live(generation, protection)?;
        }
        self.hub.go_live(generation, protection);
        if let Some(network) = &self.network {
            network.go_live(protection);
        }
        Ok(())
    }

    /// Outputs of entries below `below` may leave.
    pub fn release(&self, below: u64) {
        if let Some(disk) = &self.disk {
            disk.release(below);
        }
        if let Some(network) = &self.network {
            network.release(below);
        }
        self.hub.release(below);
    }

    /// Which outputs wait for a backup.
    pub fn set_protection(&self, protection: Protection) {
        if let Some(disk) = &self.disk {
            disk.set_protection(protection);
        }
        self.hub.set_protection(protection);
        if let Some(network) = &self.network {
            network.set_protection(protection);
        }
    }

    /// Nothing leaves until the next release.
    pub fn hold(&self) {
        if let Some(disk) = &self.disk {
            disk.hold();
        }
        if let Some(network) = &self.network {
            network.hold();
        }
        self.hub.hold();
    }

    /// What is released may leave before `until_ns`, and not later.
    pub fn set_lease(&self, until_ns: u64) {
        if let Some(disk) = &self.disk {
            disk.set_lease(until_ns);
        }
        if let Some(network) = &self.network {
            network.set_lease(until_ns);
        }
        self.hub.set_lease(until_ns);
    }

    /// The other host runs the machine from now on, and this one replays it: what was released and has not left is kept like the outputs
    /// of a replay.
    pub fn follow(&self, role: Role, generation: u64) -> Result<(), DiskError> {
        if let Some(disk) = &self.disk {
            disk.follow(generation)?;
        }
        if let Some(network) = &self.network {
            network.follow();
        }
        self.hub.follow(role);
        Ok(())
    }

    /// Nothing comes in or goes out here any more; console clients are sent away as from a host in this role.
    pub fn not_live(&self, role: Role) {
        if let Some(disk) = &self.disk {
            disk.not_live();
        }
        if let Some(network) = &self.network {
            network.not_live();
        }
        self.hub.not_live(role);
    }
}
