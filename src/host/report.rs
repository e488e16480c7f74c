//! What `lockstep status` shows of a pair's side, out of its protocol's figures.

use super::channel::Connection;
use super::desk::Desk;
use super::guest::Guest;
use crate::backends::clock::boot_clock_ns;
use crate::console::status::{GuestState, Role, Status, TransferStatus};
use crate::replication::{backup, primary};

/// What both roles show.
fn common(desk: &mut Desk) -> impl FnOnce(&mut Status) + use<> {
    let (rate, log_bytes, heartbeats_sent) = (desk.rate.per_second(), desk.rate.total(), desk.heartbeats_sent);
    let traffic = desk.connection.as_ref().map(Connection::traffic);
    let net = desk.outlets.network.as_ref().map(|port| port.counters());
    let disk = desk.outlets.disk.as_ref().map(|disk| disk.counters());
    let guest = match &desk.guest {
        Some(Guest { ended: Some(reason), .. }) => GuestState::Ended(reason.to_string()),
        Some(_) => GuestState::Running,
        None => GuestState::Starting,
    };
    let memory_mib = desk.guest.as_ref().map(|guest| guest.boot.memory_bytes >> 20);
    move |status| {
        status.memory_mib = memory_mib.or(status.memory_mib);
        status.net = net;
        status.disk = disk;
        status.guest = guest;
        status.log_bytes_per_s = rate;
        status.log_bytes = log_bytes;
        status.heartbeats_sent = heartbeats_sent;
        if let Some(traffic) = traffic {
            (status.channel_sent_bytes, status.channel_received_bytes) = (traffic.sent, traffic.received);
        }
    }
}

/// A primary's side.
pub(super) fn primary(desk: &mut Desk, protocol: &primary::Primary, transfer: Option<TransferStatus>) {
    use primary::State;
    let (common, now) = (common(desk), boot_clock_ns());
    desk.board.update(|status| {
        common(status);
        status.state = protocol.state().name().into();
        status.role = match protocol.state() {
            State::Protected | State::HandingOver { .. } => Role::Primary,
            State::Unprotected | State::Transferring | State::Joining { .. } => Role::Unprotected,
            State::Waiting | State::Claiming(_) | State::Preparing | State::Asking(_) => Role::Waiting,
            State::HandedOver => Role::Backup,
            State::Stopped(_) => Role::Retired,
        };
        status.generation = protocol.generation();
        status.peer = protocol.peer().map(|peer| peer.host_name.clone());
        let protected = *protocol.state() == State::Protected;
        status.execution_lag_ns = protected.then(|| protocol.lag_ns());
        status.execution_lag_entries = protected.then(|| protocol.appended() - protocol.executed());
        status.entries_acknowledged = protected.then(|| protocol.acked());
        status.entries = protocol.appended();
        status.heartbeats_received = protocol.heartbeats();
        status.messages_fenced = protocol.fenced();
        status.last_heard_ms = protocol.heard_at().map(|at| now.saturating_sub(at) / 1_000_000);
        status.slowdown_per_mille = protocol.slow_down_per_mille().into();
        status.transfer = transfer;
    });
}

/// A backup's side.
pub(super) fn backup(desk: &mut Desk, protocol: &backup::Backup, transfer: Option<TransferStatus>) {
    use backup::State;
    let (common, now) = (common(desk), boot_clock_ns());
    desk.board.update(|status| {
        common(status);
        status.state = protocol.state().name().into();
        status.role = match protocol.state() {
            State::Connecting { .. }
            | State::Loading
            | State::Receiving
            | State::Restoring
            | State::Ready
            | State::Following
            | State::Finishing => Role::Backup,
            State::Taking(_) | State::Asking(_) | State::GoingLive => Role::Waiting,
            State::Live => Role::Unprotected,
            State::Stopped(_) => Role::Retired,
        };
        status.generation = protocol.generation();
        status.peer = protocol.peer().map(|peer| peer.host_name.clone());
        status.entries = protocol.received();
        status.entries_acknowledged = None;
        status.execution_lag_ns = None;
        status.execution_lag_entries = Some(protocol.received() - protocol.executed());
        status.heartbeats_received = protocol.heartbeats();
        status.messages_fenced = protocol.fenced();
        status.last_heard_ms = protocol.heard_at().map(|at| now.saturating_sub(at) / 1_000_000);
        status.slowdown_per_mille = 0;
        status.transfer = transfer;
    });
}
