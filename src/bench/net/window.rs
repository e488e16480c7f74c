//! One load on one guest: what was done within a window of time, and what the primary's process paid for it.

use std::time::Instant;

use super::cpu::Cpu;
use crate::cli::loopback::Side;
use crate::console::status::Status;

/// A look at a primary.
pub struct Look {
    at: Instant,
    cpu: Cpu,
    status: Status,
}

impl Look {
    /// Looks.
    pub async fn at(primary: &Side) -> anyhow::Result<Self> {
        let status = primary.status().await?;
        Ok(Look { at: Instant::now(), cpu: Cpu::of(primary.pid())?, status })
    }

    /// What happened since `before`, in which `work` requests or bytes were done.
    pub fn since(&self, before: &Look, work: f64) -> Window {
        let cpu = self.cpu.since(&before.cpu);
        let (now, then) = (&self.status, &before.status);
        let more = |of: fn(&Status) -> u64| of(now).saturating_sub(of(then)) as f64;
        let net = |status: &Status| status.net.unwrap_or_default();
        let took_s = (self.at - before.at).as_secs_f64();
        Window {
            rate: work / took_s,
            cpu_ns: cpu.total_s() * 1e9 / work,
            vcpu_ns: cpu.thread_s("vcpu") * 1e9 / work,
            busy: cpu.total_s() / took_s,
            outside_guest: cpu.outside_guest("vcpu"),
            exits: more(|status| status.instant_exits) / work,
            log_bytes: more(|status| status.log_bytes),
            channel_bytes: more(|status| status.channel_sent_bytes),
            entries: more(|status| status.entries),
            received_bytes: net(now).rx_bytes.saturating_sub(net(then).rx_bytes) as f64,
            packets_in: net(now).rx_packets.saturating_sub(net(then).rx_packets) as f64 / work,
            packets_out: net(now).tx_packets.saturating_sub(net(then).tx_packets) as f64 / work,
            dropped: (net(now).rx_dropped + net(now).tx_dropped)
                .saturating_sub(net(then).rx_dropped + net(then).tx_dropped) as f64,
        }
    }
}

/// What happened between two looks. `work` is a request or a byte.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Work per second.
    pub rate: f64,
    /// CPU time of the primary's process for one work, nanoseconds.
    pub cpu_ns: f64,
    /// The vCPU thread's part of it.
    pub vcpu_ns: f64,
    /// Processors that the primary's process kept busy.
    pub busy: f64,
    /// Share of the vCPU thread's CPU time that was not spent in the guest.
    pub outside_guest: f64,
    /// Exits of the guest for one work.
    pub exits: f64,
    /// Bytes of entries that the primary logged.
    pub log_bytes: f64,
    /// Bytes sent to the backup.
    pub channel_bytes: f64,
    /// Entries logged.
    pub entries: f64,
    /// Bytes of the frames that the guest received.
    pub received_bytes: f64,
    /// Packets that the guest received, for one work.
    pub packets_in: f64,
    /// Packets that it sent, as they left the host.
    pub packets_out: f64,
    /// Packets dropped at the card, either way.
    pub dropped: f64,
}
