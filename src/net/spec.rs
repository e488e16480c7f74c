//! What `--net` says: the other end of the cable, and the card's and the guest's addresses.

use std::path::PathBuf;
use std::str::FromStr;

use crate::machine::snapshot::NicConfig;

/// What a card is plugged into, and what the guest is told about its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// The other end of the cable.
    pub backend: Backend,
    /// Ethernet address; `None`: one made from the VM's name.
    pub mac: Option<[u8; 6]>,
    /// Address and prefix length (`10.9.0.2/24`) for the guest's command line; `None`: the guest asks by DHCP.
    pub ip: Option<String>,
    /// Gateway for the guest's command line.
    pub gateway: Option<String>,
    /// Whether the card offers checksum and segmentation offloads: those of a TAP device, which a socket has not.
    pub offloads: bool,
}

/// The other end of the cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A TAP device of this name.
    Tap(String),
    /// A stream socket at this path, to which this program connects; each frame behind its length (4 bytes, big endian).
    Socket(PathBuf),
}

/// What is wrong with a `--net`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither `tap=` nor `socket=`, or both.
    #[error("one of tap=NAME and socket=PATH is needed")]
    Backend,
    /// A setting that there is not.
    #[error("`{0}` is no setting of a network card (tap=, socket=, mac=, ip=, gw=, offload=)")]
    Unknown(String),
    /// Not an Ethernet address that a card can have.
    #[error("`{0}` is no Ethernet address of one card (like 52:54:00:12:34:56)")]
    Mac(String),
    /// Not an address with prefix length.
    #[error("`{0}` is no IPv4 address with prefix length (like 10.9.0.2/24), nor `dhcp`")]
    Ip(String),
    /// Neither on nor off, or on for a socket.
    #[error("offload is `on` or `off`, and off for a socket, not `{0}`")]
    Offload(String),
    /// Not an address.
    #[error("`{0}` is no IPv4 address (like 10.9.0.1)")]
    Gateway(String),
}

impl NetSpec {
    /// The card of the VM `vm`, as the guest finds it.
    pub fn card(&self, vm: &str) -> NicConfig {
        let mac = self.mac.unwrap_or_else(|| {
            let hash = xxhash_rust::xxh3::xxh3_64(vm.as_bytes()).to_le_bytes();
            // Locally administered, and of QEMU's and KVM's prefix, as people expect of a virtual machine.
            [0x52, 0x54, 0x00, hash[0], hash[1], hash[2]]
        });
        NicConfig { mac, mtu: 1500, offloads: self.offloads }
    }

    /// What the guest's command line says about its addresses.
    pub fn arguments(&self) -> String {
        let ip = self.ip.iter().map(|ip| format!(" ip={ip}"));
        let gateway = self.gateway.iter().map(|gateway| format!(" gw={gateway}"));
        ip.chain(gateway).collect()
    }
}

impl FromStr for NetSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (mut backend, mut mac, mut ip, mut gateway, mut offloads) = (None, None, None, None, None);
        for setting in text.split(',') {
            let (name, value) = setting.split_once('=').ok_or_else(|| SpecError::Unknown(setting.into()))?;
            match name {
                "tap" | "socket" if backend.is_some() || value.is_empty() => return Err(SpecError::Backend),
                "tap" => backend = Some(Backend::Tap(value.into())),
                "socket" => backend = Some(Backend::Socket(value.into())),
                "mac" => mac = Some(parse_mac(value).ok_or_else(|| SpecError::Mac(value.into()))?),
                "ip" if value == "dhcp" || is_network(value) => ip = Some(value.into()),
                "ip" => return Err(SpecError::Ip(value.into())),
                "gw" if value.parse::<std::net::Ipv4Addr>().is_ok() => gateway = Some(value.into()),
                "gw" => return Err(SpecError::Gateway(value.into())),
                "offload" if value == "on" || value == "off" => offloads = Some(value == "on"),
                "offload" => return Err(SpecError::Offload(value.into())),
                _ => return Err(SpecError::Unknown(name.into())),
            }
        }
        let backend = backend.ok_or(SpecError::Backend)?;
        let possible = matches!(backend, Backend::Tap(_));
        let offloads = offloads.unwrap_or(possible);
        if offloads && !possible {
            return Err(SpecError::Offload("on".into()));
        }
        Ok(NetSpec { backend, mac, ip, gateway, offloads })
    }
}

/// A unicast address, not all zero.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

fn is_network(text: &str) -> bool {
    text.split_once('/').is_some_and(|(ip, prefix)| {
        ip.parse::<std::net::Ipv4Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|bits| bits <= 32)
    })
}
