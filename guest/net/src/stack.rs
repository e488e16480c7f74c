//! The TCP/IP stack over the card: the guest's address, packets in and out, sleeping.

use crate::nic::Nic;
use core::fmt;
use core::str::FromStr;
use lockstep_runtime::{Args, console, entropy, println, safepoint, time};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr};

/// Why there is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// No slot has a network card with version 1 of virtio.
    NoCard,
    /// The setting `ip=` is neither `dhcp` nor an address with a prefix length.
    Address(&'static str),
    /// The setting `gw=` is no address.
    Gateway(&'static str),
    /// DHCP was asked for, with `hz=0`: it cannot wait without a timer.
    NoTimer,
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            NetError::NoCard => write!(f, "this machine has no network card"),
            NetError::Address(text) => write!(f, "ip={text}: neither `dhcp` nor an address like 10.9.0.2/24"),
            NetError::Gateway(text) => write!(f, "gw={text}: not an address like 10.9.0.1"),
            NetError::NoTimer => write!(f, "an address by DHCP needs the timer (hz=0 turns it off)"),
        }
    }
}

impl core::error::Error for NetError {}

/// The guest's network: the card and the stack on it.
pub struct Net {
    nic: Nic,
    interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
}

impl Net {
    /// Finds the card and takes an address: `ip=10.9.0.2/24` and `gw=10.9.0.1` of the command line, or from a DHCP
    /// server. Says on the console which.
    pub fn up(args: &Args) -> Result<Self, NetError> {
        let address = match args.setting("ip") {
            None | Some("dhcp") => None,
            Some(text) => Some(Ipv4Cidr::from_str(text).map_err(|_| NetError::Address(text))?),
        };
        let gateway = match args.setting("gw") {
            None => None,
            Some(text) => Some(Ipv4Address::from_str(text).map_err(|_| NetError::Gateway(text))?),
        };
        if address.is_none() && time::tick_ns() == 0 {
            return Err(NetError::NoTimer);
        }
        let mut nic = Nic::find().ok_or(NetError::NoCard)?;
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(nic.mac)));
        config.random_seed = entropy::random();
        let interface = Interface::new(config, &mut nic, now());
        let mut net = Net { nic, interface, sockets: SocketSet::new(alloc::vec::Vec::new()), dhcp: None };
        match address {
            Some(address) => net.set_address(Some(address), gateway),
            None => {
                println!("net: asking for an address, mac {}", EthernetAddress(net.nic.mac));
                net.dhcp = Some(net.sockets.add(dhcpv4::Socket::new()));
            }
        }
        Ok(net)
    }

    fn set_address(&mut self, address: Option<Ipv4Cidr>, gateway: Option<Ipv4Address>) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            if let Some(address) = address {
                // Room for one was there before, and is again.
                let _ = addresses.push(IpCidr::Ipv4(address));
            }
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some(gateway) = gateway {
            // The table is empty but for this one.
            let _ = routes.add_default_ipv4_route(gateway);
        }
        let mac = EthernetAddress(self.nic.mac);
        match (address, gateway) {
            (Some(address), Some(gateway)) => println!("net: {address} gateway {gateway} mac {mac}"),
            (Some(address), None) => println!("net: {address} mac {mac}"),
            (None, _) => println!("net: the address is lost"),
        }
    }

    /// Takes in what has come, one packet at a time. After one that may have taken a listening socket, `connected`
    /// may see to the sockets, and says whether there is a [place](Self::accept) for another.
    pub(crate) fn take_in(&mut self, mut connected: impl FnMut(&mut SocketSet<'static>) -> bool) {
        let now = now();
        let mut any = false;
        loop {
            match self.interface.poll_ingress_single(now, &mut self.nic, &mut self.sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed | PollIngressSingleResult::SocketStateChanged => {
                    any = true;
                    if core::mem::take(&mut self.nic.receiver.connecting) {
                        let place = connected(&mut self.sockets);
                        self.accept(place);
                    }
                }
            }
        }
        if any {
            self.follow_dhcp();
        }
    }

    /// Whether clients may connect. Otherwise what they ask is dropped, so that they ask again, rather than refused.
    pub(crate) fn accept(&mut self, place: bool) {
        self.nic.receiver.deaf = !place;
    }

    fn follow_dhcp(&mut self) {
        let Some(handle) = self.dhcp else { return };
        match self.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            None => {}
            Some(dhcpv4::Event::Configured(config)) => {
                let (address, gateway) = (config.address, config.router);
                self.set_address(Some(address), gateway);
            }
            // Said at the start as well, before there ever was an address.
            Some(dhcpv4::Event::Deconfigured) if self.interface.ipv4_addr().is_none() => {}
            Some(dhcpv4::Event::Deconfigured) => self.set_address(None, None),
        }
    }

    /// Puts into the card's ring what the sockets have to say.
    pub(crate) fn put_out(&mut self) {
        let now = now();
        while self.interface.poll_egress(now, &mut self.nic, &mut self.sockets) == PollResult::SocketStateChanged {
            safepoint();
        }
    }

    /// The end of a turn: returns when there may be something to do. `seen` is the number of interrupts at the turn's start; `busy` says whether there is
    /// something to do beside the network.
    pub(crate) fn rest(&mut self, seen: u64, busy: impl FnOnce() -> bool) {
        console::flush();
        if busy() || self.nic.receiver.has_frame() { self.nic.sync() } else { self.nic.idle(seen) }
    }

    pub(crate) fn interrupts() -> u64 {
        Nic::interrupts()
    }
}

/// The time as the stack sees it: in ticks, which cost nothing; without ticks the clock, an exit.
fn now() -> Instant {
    let now_ns = match time::tick_ns() {
        0 => time::clock_ns(),
        tick_ns => time::ticks() * tick_ns,
    };
    Instant::from_micros((now_ns / 1000) as i64)
}

/// Milliseconds since boot, as the stack sees it.
pub(crate) fn now_ms() -> u64 {
    now().total_millis() as u64
}
