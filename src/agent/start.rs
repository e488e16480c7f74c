//! Starting a side on this host: the command line for what a placement and a specification say.

use super::ledger::Order;
use super::plug;
use super::run::Agent;
use crate::cluster::spec::{Card, Spec};

impl Agent {
    /// Starts a side: a backup of `primary`, or one that boots the guest.
    pub(super) async fn start(
        &mut self,
        vm: &str,
        number: u64,
        boot: Option<u64>,
        primary: Option<String>,
        spec: &Spec,
    ) {
        let what = match &primary {
            Some(primary) => format!("a backup of the side at {primary}"),
            None => "the side that boots it".into(),
        };
        eprintln!("lockstep: `{vm}` (placement {number}): starting {what}");
        let started = match self.order(vm, number, boot, primary, spec).await {
            Ok(order) => self.ledger.start(order).map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            let text = format!("{error:#}");
            eprintln!("lockstep: `{vm}`: {text}");
            self.ledger.failed((vm.into(), number, boot), text);
        }
    }

    async fn order(
        &self,
        vm: &str,
        number: u64,
        boot: Option<u64>,
        primary: Option<String>,
        spec: &Spec,
    ) -> anyhow::Result<Order> {
        let card = spec.net.as_ref();
        let bridged = card.is_some_and(|card| card.tap.is_none());
        let tap = bridged.then(|| plug::device_of(self.me(), vm));
        if let (Some(device), Some(bridge)) = (&tap, &self.settings.bridge) {
            plug::plug(device, bridge).await?;
        }
        let [control, channel] = self.ports()?;
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        add(&[if primary.is_some() { "backup" } else { "primary" }, "--name", vm, "--host", self.me()]);
        add(&["--control", &control, "--channel", &channel]);
        add(&["--outcome", &self.ledger.outcome(vm).display().to_string()]);
        if let Some(disk) = &spec.disk {
            add(&["--disk", disk]);
        }
        if let Some(Card { tap: named, settings }) = card {
            let device = named.as_ref().or(tap.as_ref()).map(String::as_str).unwrap_or_default();
            // The other settings are of the side that boots the guest.
            let settings =
                if primary.is_some() || settings.is_empty() { String::new() } else { format!(",{settings}") };
            add(&["--net", &format!("tap={device}{settings}")]);
        }
        match (&primary, &spec.guest) {
            (Some(primary), _) => add(&["--primary", primary]),
            (None, Some(guest)) => {
                add(&["--guest", &guest.name, "--memory", &spec.memory_mib.to_string()]);
                add(&["--heartbeat", &spec.heartbeat_ms.to_string(), "--timeout", &spec.timeout_ms.to_string()]);
                add(&["--only-after", &boot.unwrap_or(0).to_string()]);
                if spec.backups == 0 {
                    add(&["--start-alone"]);
                }
                add(&["--"]);
                arguments.extend(guest.arguments.iter().cloned());
            }
            (None, None) => anyhow::bail!("how its guest is booted is not known"),
        }
        let arbiter = self.settings.arbiter.with_password();
        Ok(Order { vm: vm.into(), number, boot, primary: primary.unwrap_or_default(), tap, arguments, arbiter })
    }

    /// Where a new side listens: free ports of those it may have.
    fn ports(&self) -> anyhow::Result<[String; 2]> {
        let address = |port: u16| {
            let ip = &self.settings.address;
            if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
        };
        let Some((first, last)) = self.settings.ports else { return Ok([address(0), address(0)]) };
        let free = |port: &u16| std::net::TcpListener::bind(address(*port)).is_ok();
        let mut ports = (first..=last).filter(free);
        match (ports.next(), ports.next()) {
            (Some(control), Some(channel)) => Ok([address(control), address(channel)]),
            _ => anyhow::bail!("no two of the ports {first} to {last} are free on {}", self.settings.address),
        }
    }
}
