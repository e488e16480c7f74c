//! What a host says about its machine: the answer to `lockstep status`.

use super::held_times::Quantiles;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a host is to its machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, bincode::Encode, bincode::Decode)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the machine, protected by a backup.
    Primary,
    /// Replays the machine a moment behind its primary.
    Backup,
    /// Runs the machine without a backup.
    #[default]
    Unprotected,
    /// Has lost its peer and waits for the arbiter's word; releases nothing.
    Waiting,
    /// Lost the machine to the other host, or gave it up; never runs it again.
    Retired,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Primary => "primary",
            Role::Backup => "backup",
            Role::Unprotected => "unprotected",
            Role::Waiting => "waiting",
            Role::Retired => "retired",
        })
    }
}

/// What the guest is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestState {
    /// Not started yet.
    #[default]
    Starting,
    /// Executing.
    Running,
    /// Waiting in `hlt` for an event.
    Idle,
    /// Paused by its operator.
    Paused,
    /// Stalled by its host: a full log buffer, or (backup) an empty log.
    Stalled,
    /// Ended; why.
    Ended(String),
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuestState::Starting => f.write_str("starting"),
            GuestState::Running => f.write_str("running"),
            GuestState::Idle => f.write_str("idle"),
            GuestState::Paused => f.write_str("paused"),
            GuestState::Stalled => f.write_str("stalled"),
            GuestState::Ended(why) => write!(f, "ended: {why}"),
        }
    }
}

/// The console's own figures; [`super::hub::Hub::console_status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsoleStatus {
    /// Bytes the guest has written.
    pub produced_bytes: u64,
    /// Bytes of them that may leave this host.
    pub released_bytes: u64,
    /// Bytes held back by the output rule.
    pub held_bytes: u64,
    /// Outputs (log entries) held back by the output rule.
    pub outputs_held: u64,
    /// Clients attached now.
    pub clients: u32,
    /// Keyboard bytes queued on this host and not yet in the log.
    pub input_queued_bytes: u64,
    /// Position of the first byte that this host's own live machine wrote (rather than the replay before it); `None` while
    /// it is not live.
    pub live_from_byte: Option<u64>,
    /// How long outputs were held, from their production to their release by an acknowledgement, in nanoseconds.
    pub output_delay_ns: Quantiles,
}

/// The network card's figures; [`crate::net::port::Port::counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetStatus {
    /// Packets that reached the guest.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets that found no room here.
    pub rx_dropped: u64,
    /// Packets that left.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets that the other end did not take.
    pub tx_dropped: u64,
    /// Packets that wait for their release.
    pub tx_held: u64,
}

impl fmt::Display for NetStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dropped = |count: u64| if count > 0 { format!(", {count} dropped") } else { String::new() };
        write!(
            f,
            "{} packets in ({} bytes{}), {} out ({} bytes{}), {} held",
            self.rx_packets,
            self.rx_bytes,
            dropped(self.rx_dropped),
            self.tx_packets,
            self.tx_bytes,
            dropped(self.tx_dropped),
            self.tx_held
        )
    }
}

/// How the state of a running guest gets to a new backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferStatus {
    /// Bytes of memory and disk there are to copy, those that were written again included.
    pub total_bytes: u64,
    /// Bytes copied.
    pub copied_bytes: u64,
    /// Bytes sent for that.
    pub sent_bytes: u64,
    /// Rounds begun.
    pub rounds: u64,
    /// Time that the guest stood still for its state, nanoseconds; 0 before.
    pub stop_ns: u64,
    /// Time since it began, milliseconds.
    pub elapsed_ms: u64,
}

impl fmt::Display for TransferStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (copied, total, sent) = (mib(self.copied_bytes), mib(self.total_bytes), mib(self.sent_bytes));
        write!(f, "{copied:.1} of {total:.1} MiB copied ({sent:.1} MiB sent), round {}", self.rounds)?;
        if self.stop_ns > 0 {
            write!(f, ", done; the guest stood still for {}", duration(self.stop_ns))
        } else {
            Ok(())
        }
    }
}

/// The disk's figures; [`crate::disk::port::DiskPort::counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskStatus {
    /// Reads that this host made.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes that this host made.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Ranges that were discarded or cleared.
    pub cleared: u64,
    /// Requests that failed here.
    pub errors: u64,
    /// Requests whose end the guest has not heard of.
    pub in_flight: u64,
    /// Changes of them that wait for the backup, or for the lease.
    pub held: u64,
    /// Bytes that a new backup has yet to get.
    pub to_copy_bytes: u64,
    /// The generation in which the VM has gone live elsewhere: this host changes the image no more.
    pub lost_to_generation: Option<u64>,
}

impl fmt::Display for DiskStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} reads ({} bytes), {} writes ({} bytes), {} flushes, {} in flight ({} held)",
            self.reads, self.read_bytes, self.writes, self.written_bytes, self.flushes, self.in_flight, self.held
        )?;
        if self.cleared > 0 {
            write!(f, ", {} cleared", self.cleared)?;
        }
        if self.errors > 0 {
            write!(f, ", {} failed", self.errors)?;
        }
        if self.to_copy_bytes > 0 {
            write!(f, ", {} bytes to copy", self.to_copy_bytes)?;
        }
        if let Some(generation) = self.lost_to_generation {
            write!(f, ", lost to generation {generation}")?;
        }
        Ok(())
    }
}

/// Everything a host says about its machine. Fields that a role has no value for are `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The VM's name.
    pub vm: String,
    /// This host's name.
    pub host: String,
    /// What this host is to the machine.
    pub role: Role,
    /// The protocol's state in its own words, `"replicating"` for example.
    pub state: String,
    /// The generation: how many times the machine changed hands, counted by the arbiter.
    pub generation: u64,
    /// The other host's logging channel.
    pub peer: Option<String>,
    /// Memory of the guest, in MiB, once this host knows of the guest.
    pub memory_mib: Option<u64>,
    /// How far the backup's execution is behind the primary's, in nanoseconds.
    pub execution_lag_ns: Option<u64>,
    /// How far the backup's execution is behind the primary's, in log entries.
    pub execution_lag_entries: Option<u64>,
    /// Log bytes made or received in the last second.
    pub log_bytes_per_s: u64,
    /// Log bytes made or received so far.
    pub log_bytes: u64,
    /// Bytes sent on the logging channel so far, with frames, heartbeats and all.
    pub channel_sent_bytes: u64,
    /// Bytes received on it.
    pub channel_received_bytes: u64,
    /// Log entries so far.
    pub entries: u64,
    /// Log entries the backup has acknowledged.
    pub entries_acknowledged: Option<u64>,
    /// Outputs held back by the output rule.
    pub outputs_held: u64,
    /// Heartbeats sent to the peer.
    pub heartbeats_sent: u64,
    /// Heartbeats received from the peer.
    pub heartbeats_received: u64,
    /// Messages of the peer that were refused because of the generation that they spoke for: of a side that has lost and does not know.
    pub messages_fenced: u64,
    /// Milliseconds since anything was heard from the peer.
    pub last_heard_ms: Option<u64>,
    /// Milliseconds since this process took the machine.
    pub uptime_ms: u64,
    /// Guest-caused exits so far (first half of the instant).
    pub instant_exits: u64,
    /// Safepoints passed so far (second half of the instant).
    pub instant_polls: u64,
    /// What the guest is doing.
    pub guest: GuestState,
    /// How much the vCPU is held back to bound the execution lag; 0 is full speed, 1000 a standstill.
    pub slowdown_per_mille: u32,
    /// The transfer of the guest's state to a new backup that is under way, or was the last.
    pub transfer: Option<TransferStatus>,
    /// The network card; `None` without one.
    pub net: Option<NetStatus>,
    /// The disk; `None` without one.
    pub disk: Option<DiskStatus>,
    /// The console.
    pub console: ConsoleStatus,
}

impl Status {
    /// One short line, for a console's status key.
    pub fn line(&self) -> String {
        let lag = match self.execution_lag_ns {
            Some(ns) => format!(", lag {}", duration(ns)),
            None => String::new(),
        };
        format!(
            "{} on {}, {}{}, generation {}{lag}, {} entries, {} outputs held",
            self.vm,
            self.host,
            self.role,
            if self.state.is_empty() { String::new() } else { format!(" ({})", self.state) },
            self.generation,
            self.entries,
            self.outputs_held,
        )
    }
}

/// The table that `lockstep status` prints.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn or_none<T: fmt::Display>(value: Option<T>) -> String {
            value.map_or_else(|| "-".into(), |value| value.to_string())
        }
        let acknowledged = self.entries_acknowledged.map(|n| format!(" ({n} acknowledged)")).unwrap_or_default();
        let lag = match (self.execution_lag_ns, self.execution_lag_entries) {
            (None, None) => "-".into(),
            (ns, entries) => format!("{}, {} entries", or_none(ns.map(duration)), or_none(entries)),
        };
        let fenced = match self.messages_fenced {
            0 => String::new(),
            messages => format!("; {messages} messages of another generation refused"),
        };
        let mut rows = vec![
            ("machine", format!("{} on {}", self.vm, self.host)),
            (
                "role",
                if self.state.is_empty() { self.role.to_string() } else { format!("{}, {}", self.role, self.state) },
            ),
            ("generation", self.generation.to_string()),
            ("peer", or_none(self.peer.as_ref())),
            ("last heard", or_none(self.last_heard_ms.map(|ms| format!("{ms} ms ago")))),
            ("heartbeats", format!("{} sent, {} received{fenced}", self.heartbeats_sent, self.heartbeats_received)),
            ("execution lag", lag),
            ("log", format!("{} entries{acknowledged}, {} B/s", self.entries, self.log_bytes_per_s)),
            ("outputs held", format!("{} ({} bytes)", self.outputs_held, self.console.held_bytes)),
            ("slow-down", format!("{:.1} %", f64::from(self.slowdown_per_mille) / 10.0)),
            ("guest", format!("{} at {}:{}", self.guest, self.instant_exits, self.instant_polls)),
            (
                "console",
                format!(
                    "{} clients, {} of {} bytes out",
                    self.console.clients, self.console.released_bytes, self.console.produced_bytes
                ),
            ),
            ("uptime", duration(self.uptime_ms.saturating_mul(1_000_000))),
        ];
        if let Some(transfer) = &self.transfer {
            rows.insert(rows.len() - 1, ("transfer", transfer.to_string()));
        }
        if let Some(net) = &self.net {
            rows.insert(rows.len() - 1, ("network", net.to_string()));
        }
        if let Some(disk) = &self.disk {
            rows.insert(rows.len() - 1, ("disk", disk.to_string()));
        }
        for (index, (name, value)) in rows.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{name:<14} {value}")?;
        }
        Ok(())
    }
}

/// A duration in nanoseconds with three or four significant digits.
pub(crate) fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        1_000_000_000..120_000_000_000 => format!("{:.1} s", ns as f64 / 1e9),
        _ => format!("{} min {} s", ns / 60_000_000_000, ns / 1_000_000_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_json_and_tolerates_a_status_with_fewer_fields() {
        let status = Status { vm: "v".into(), role: Role::Backup, execution_lag_ns: Some(5), ..Status::default() };
        let json = serde_json::to_vec(&status).unwrap();
        assert_eq!(serde_json::from_slice::<Status>(&json).unwrap(), status);
        let sparse: Status = serde_json::from_str(r#"{"vm":"v","role":"primary","new_field":1}"#).unwrap();
        assert_eq!((sparse.vm.as_str(), sparse.role, sparse.peer), ("v", Role::Primary, None));
    }

    #[test]
    fn a_network_has_a_line_where_there_is_one() {
        assert!(!Status::default().to_string().contains("network"));
        let net = NetStatus {
            rx_packets: 2,
            rx_bytes: 120,
            tx_packets: 1,
            tx_bytes: 60,
            tx_dropped: 3,
            ..NetStatus::default()
        };
        let shown = Status { net: Some(net), ..Status::default() }.to_string();
        assert!(
            shown.contains("network        2 packets in (120 bytes), 1 out (60 bytes, 3 dropped), 0 held\n"),
            "{shown}"
        );
    }

    #[test]
    fn a_disk_has_a_line_where_there_is_one() {
        assert!(!Status::default().to_string().contains("disk"));
        let disk = DiskStatus {
            reads: 2,
            read_bytes: 1024,
            writes: 1,
            written_bytes: 512,
            held: 1,
            in_flight: 3,
            ..DiskStatus::default()
        };
        let shown = Status { disk: Some(disk), ..Status::default() }.to_string();
        let line = "disk           2 reads (1024 bytes), 1 writes (512 bytes), 0 flushes, 3 in flight (1 held)\n";
        assert!(shown.contains(line), "{shown}");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(999), "999 ns");
        assert_eq!(duration(1_500), "1.5 µs");
        assert_eq!(duration(2_000_000), "2.0 ms");
        assert_eq!(duration(125_000_000_000), "2 min 5 s");
    }
}
