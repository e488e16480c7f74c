//! Options that every subcommand shares which boots a guest.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};

use crate::backends::clock::wall_clock_ns;
use crate::disk::open::Owner;
use crate::disk::port::DiskPort;
use crate::disk::spec::DiskSpec;
use crate::guest;
use crate::machine::snapshot::Boot;
use crate::machine::{boot, cpuid, memory, vcpu};
use crate::net::port::Port;
use crate::net::spec::NetSpec;

/// The guest and its machine.
#[derive(Clone, Debug, clap::Args)]
pub struct MachineArgs {
    /// The guest: an application of the built-in image (shell, mix, compute, idle, ...; `lockstep run --guest list`
    /// shows them all), or the path of an ELF image with a PVH entry point
    #[arg(long, value_name = "NAME|FILE", default_value = "shell")]
    pub guest: String,
    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub memory: u64,
    /// Name of the VM: both sides of a pair and their arbiter know it by this name
    #[arg(long, default_value = "lockstep")]
    pub name: String,
    /// A network card for the guest: `tap=NAME` or `socket=PATH` (a stream socket to connect to, as of `passt` or QEMU's `-netdev
    /// stream`), then if you like `mac=52:54:00:…`, `ip=10.9.0.2/24` (without it the guest asks by DHCP), `gw=10.9.0.1`, `offload=off` (so that a backup
    /// may have a socket where its primary has a TAP device)
    #[arg(long, value_name = "SPEC")]
    pub net: Option<NetSpec>,
    /// Keep what the guest's network card sends and receives here in this file, for Wireshark (pcap)
    #[arg(long, value_name = "FILE", requires = "net")]
    pub pcap: Option<PathBuf>,
    /// A disk for the guest: an image file or a block device, then if you like `mode=shared` (one image that both hosts reach; the default) or `mode=separate` (each
    /// host has its own), `reads=backup` (the backup reads by itself what the guest reads, instead of out of the log), `ro`, `cache=none|writeback` (whether a write is at the storage
    /// when the guest hears that it is done, or perhaps in this host's memory: shared images need the first where the hosts are two), `format=raw|qcow2`, `stamp=FILE` (what is known of
    /// the image; FILE.lockstep beside it otherwise), `force` (this image is the right one, whatever its stamp says)
    #[arg(long, value_name = "SPEC")]
    pub disk: Option<DiskSpec>,
    /// Arguments for the guest (after `--`), put on its kernel command line; `hz=1000` sets its timer
    #[arg(last = true, value_name = "ARG")]
    pub arguments: Vec<String>,
}

impl MachineArgs {
    /// The boot that these options describe, on this host's CPU, of a machine with this disk.
    pub fn boot(&self, disk: &Option<Arc<DiskPort>>) -> anyhow::Result<Boot> {
        let host = vcpu::host_cpuid()?;
        let addresses = self.net.as_ref().map(NetSpec::arguments).unwrap_or_default();
        let arguments = self.arguments.join(" ") + &addresses;
        let (image, command_line) = match guest::app(&self.guest) {
            Some(app) => (guest::IMAGE.to_vec(), format!("{} {arguments}", app.name).trim_end().to_string()),
            None => (self.read_image()?, arguments),
        };
        if command_line.len() > boot::MAX_COMMAND_LINE {
            bail!(
                "the guest's arguments are {} bytes long; {} are possible",
                command_line.len(),
                boot::MAX_COMMAND_LINE
            );
        }
        let boot = Boot {
            name: self.name.clone(),
            memory_bytes: self.memory.saturating_mul(1 << 20),
            command_line,
            boot_time_ns: wall_clock_ns(),
            net: self.net.as_ref().map(|net| net.card(&self.name)),
            disk: disk.as_ref().map(|disk| disk.config()),
            cpuid: cpuid::template(&host),
            image,
        };
        let memory = memory::map(boot.memory_bytes)?;
        // Tried here as well, where it is known which file the image comes from.
        boot::load(&boot, &memory).with_context(|| format!("cannot boot {}", self.guest))?;
        Ok(boot)
    }

    /// Plugs the card in.
    pub fn port(&self) -> anyhow::Result<Option<Arc<Port>>> {
        let port = plug_in(&self.net, &self.pcap)?;
        if let (Some(net), Some(port)) = (&self.net, &port) {
            port.set_mac(net.card(&self.name).mac);
        }
        Ok(port)
    }

    fn read_image(&self) -> anyhow::Result<Vec<u8>> {
        let path = PathBuf::from(&self.guest);
        if !path.exists() && !self.guest.contains(['/', '.']) {
            let names: Vec<_> = guest::APPS.iter().map(|app| app.name).collect();
            bail!(
                "no guest application is called `{}`: there are {}, or give the path of an ELF image",
                self.guest,
                names.join(", ")
            );
        }
        let limit = boot_limit();
        let size =
            std::fs::metadata(&path).with_context(|| format!("cannot read the guest image {}", path.display()))?.len();
        if size > limit {
            bail!("the guest image {} has {size} bytes; {limit} are possible", path.display());
        }
        std::fs::read(&path).with_context(|| format!("cannot read the guest image {}", path.display()))
    }
}

/// Opens a disk's image.
pub fn open_disk(disk: &Option<DiskSpec>, owner: Owner) -> anyhow::Result<Option<Arc<DiskPort>>> {
    let open = |spec| DiskPort::open_for(spec, owner);
    disk.as_ref().map(open).transpose().context("no disk for the guest (--disk)")
}

/// Plugs a card in, and begins the capture `pcap` if there shall be one.
pub fn plug_in(net: &Option<NetSpec>, pcap: &Option<PathBuf>) -> anyhow::Result<Option<Arc<Port>>> {
    let Some(net) = net else { return Ok(None) };
    let port = Port::open(&net.backend).context("cannot plug the network card in (--net)")?;
    if let Some(file) = pcap {
        port.capture(file).context("cannot capture packets (--pcap)")?;
    }
    Ok(Some(port))
}

/// The largest image that fits into the first frame of a log.
fn boot_limit() -> u64 {
    crate::log::frame::FrameKind::Boot.max_payload() as u64 - (64 << 10)
}
