//! The host's network as an agent needs it: a TAP device for each guest's card, plugged into the bridge, and whether the uplink is alive.
//!
//! Devices are made by `ip` (iproute2), which every host with a bridge has.

use std::process::Stdio;

use nix::net::if_::InterfaceFlags;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Why there is no TAP device.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// `ip` cannot be started.
    #[error("cannot start `ip`, which makes TAP devices: install iproute2")]
    NoIp(#[source] std::io::Error),
    /// `ip` says why not.
    #[error("no TAP device {device} in the bridge {bridge}: {said}")]
    Ip {
        /// The device.
        device: String,
        /// The bridge.
        bridge: String,
        /// What `ip` says.
        said: String,
    },
}

/// The TAP device of a VM on a host: no longer than a network interface's name may be, and the same each time.
pub fn device_of(host: &str, vm: &str) -> String {
    let hash = xxhash_rust::xxh3::xxh3_64(format!("{host}\0{vm}").as_bytes());
    format!("ls{:012x}", hash & 0xffff_ffff_ffff)
}

/// Makes a TAP device and plugs it into a bridge. One that a killed process has left behind gives way.
pub async fn plug(device: &str, bridge: &str) -> Result<(), PlugError> {
    unplug(device).await;
    let lines = format!(
        "tuntap add dev {device} mode tap\nlink set dev {device} addrgenmode none\nlink set dev {device} master {bridge} up\n"
    );
    match ip(&lines).await {
        Ok(None) => Ok(()),
        Ok(Some(said)) => {
            unplug(device).await;
            Err(PlugError::Ip { device: device.into(), bridge: bridge.into(), said })
        }
        Err(error) => Err(PlugError::NoIp(error)),
    }
}

/// Removes a TAP device, if it is there.
pub async fn unplug(device: &str) {
    // That it is not there is what is wanted.
    let _ = ip(&format!("link delete dev {device}\n")).await;
}

/// Has `ip` carry out some lines; what it says against it.
async fn ip(lines: &str) -> std::io::Result<Option<String>> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // An `ip` that reads no more says why on its standard error.
        let _ = stdin.write_all(lines.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    Ok((!output.status.success()).then_some(said))
}

/// Whether an interface is on and its cable leads somewhere. Where that cannot be seen, it is taken for no.
pub fn has_carrier(interface: &str) -> bool {
    let wanted = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_LOWER_UP;
    nix::ifaddrs::getifaddrs()
        .is_ok_and(|mut all| all.any(|one| one.interface_name == interface && one.flags.contains(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_name_of_its_own_that_the_kernel_takes() {
        let devices = [("a", "vm"), ("b", "vm"), ("a", "vm2"), ("av", "m")].map(|(host, vm)| device_of(host, vm));
        assert!(devices.iter().all(|device| device.len() < 16), "{devices:?}");
        assert_eq!(devices.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(device_of("a", "vm"), devices[0]);
    }

    #[test]
    fn the_loopback_interface_has_a_carrier_and_one_that_is_not_there_has_none() {
        assert!(has_carrier("lo") && !has_carrier("there-is-none"));
    }
}
