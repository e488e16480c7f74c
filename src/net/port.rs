//! The meeting point of the vCPU thread and the network. Received packets wait in a bounded queue, as in the ring of a card;
//! sent ones wait until the entry that stands for them is released.
//!
//! ```text
//!  vCPU thread                      │ the thread of channel and protocol
//!    take ◄── received (bounded) ◄──┼── run: reads the cable; wakes the guest, or reminds it a little later
//!    sent ──► held, by entry ───────┼──► release: writes to the cable, at once
//!                                   │    run: what the cable did not take, and what an unprotected guest sends
//! ```
//!
//! Two locks: `state` is what the vCPU thread meets, and nobody makes a system call while holding it; `wire` has the cable, and whoever
//! sends, receives or says who may, holds it (so does the vCPU thread, when the guest's driver starts, to set the cable's offloads). `wire` is
//! locked before `state`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::NetError;
use super::announce::Addresses;
use super::pcap::Capture;
use super::received::Received;
use super::replayed::Replayed;
use super::spec::Backend;
use super::wire::Wire;
use crate::console::hub::Protection;
use crate::console::status::NetStatus;
use crate::doors::Network;
use crate::machine::packets::{Offloads, Packets};
use crate::replication::held::HeldOutputs;

/// Says that packets wait. False: the guest computes, and the port has to remind it after a while.
pub type Waker = Box<dyn Fn() -> bool + Send>;
/// Stops a computing guest for the packets that still wait.
pub type Reminder = Box<dyn Fn() + Send>;

/// Bytes that wait to leave, at most, released or not. More is dropped, as by a switch that is congested.
const MAX_HELD_BYTES: usize = 16 << 20;

/// What the vCPU thread and the network share.
#[derive(Default)]
pub(super) struct State {
    pub received: Received,
    held: HeldOutputs<Packets>,
    held_bytes: usize,
    held_packets: usize,
    replayed: Replayed,
    pub addresses: Addresses,
    pub live: bool,
    /// This host has handed the machine over: what still comes for it is passed on.
    pub passes_on: bool,
    /// Nothing leaves, not even an announcement.
    pub on_hold: bool,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_dropped: u64,
    tx_dropped: u64,
}

impl State {
    /// Whether the output of this entry may leave now.
    pub fn may_leave(&self, entry: u64) -> bool {
        self.live && self.held.is_released(entry)
    }

    /// Takes the next output that may leave.
    pub fn next_output(&mut self) -> Option<(u64, Packets)> {
        let (entry, packets) = if self.live { self.held.pop()? } else { return None };
        self.held_bytes -= packets.bytes().len();
        self.held_packets -= packets.len();
        Some((entry, packets))
    }

    fn hold_output(&mut self, entry: u64, packets: Packets) {
        let bytes = packets.bytes().len();
        if self.held_bytes + bytes > MAX_HELD_BYTES {
            self.tx_dropped += packets.len() as u64;
            return;
        }
        self.held_bytes += bytes;
        self.held_packets += packets.len();
        self.held.push(entry, packets);
    }

    /// What the replay has sent goes before what has been sent since, and is held like it.
    fn hold_replayed(&mut self) {
        let mut since = std::mem::take(&mut self.held);
        (self.held_bytes, self.held_packets) = (0, 0);
        since.release(u64::MAX);
        while let Some((entry, packets)) = self.replayed.pop().or_else(|| since.pop()) {
            self.hold_output(entry, packets);
        }
    }

    fn forget_all(&mut self) {
        (self.live, self.passes_on) = (false, false);
        self.received.clear();
        (self.held, self.replayed) = Default::default();
        (self.held_bytes, self.held_packets) = (0, 0);
    }
}

/// The meeting point.
pub struct Port {
    state: Mutex<State>,
    wire: Mutex<Wire>,
    waker: Mutex<Option<(Waker, Reminder)>>,
    /// Nothing leaves from this host time on; see [`set_lease`](Self::set_lease).
    pub(super) lease_until_ns: AtomicU64,
    /// Something waits only for a longer lease.
    pub(super) lease_ran_out: AtomicBool,
    /// Packets have come that are to be [passed on](Self::strays).
    pub(super) astray: Notify,
    /// Something that [`run`](Self::run) has to look at has changed.
    pub(super) changed: Notify,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port {
    /// Plugs in the cable. Nothing is received or sent before [`go_live`](Self::go_live).
    pub fn open(backend: &Backend) -> Result<Arc<Self>, NetError> {
        Ok(Arc::new(Port {
            state: Mutex::default(),
            wire: Mutex::new(Wire::open(backend)?),
            waker: Mutex::new(None),
            lease_until_ns: AtomicU64::new(u64::MAX),
            lease_ran_out: AtomicBool::new(false),
            astray: Notify::new(),
            changed: Notify::new(),
        }))
    }

    /// Keeps what is received and sent from now on in the file `path` as well, which is created or emptied.
    pub fn capture(&self, path: &Path) -> Result<(), NetError> {
        let capture = Capture::create(path)?;
        self.wire().capture = Some(capture);
        Ok(())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.wire)
    }

    /// Whether the other end of the cable can fill in checksums and cut up segments.
    pub fn has_offloads(&self) -> bool {
        self.wire().has_offloads()
    }

    /// The address of the card that is plugged in: announced as soon as this host is live, for a switch may know it from another
    /// place.
    pub fn set_mac(&self, mac: [u8; 6]) {
        self.state().addresses.set_mac(mac);
    }

    /// Whom to tell that packets wait for the guest.
    pub fn set_waker(&self, waker: Waker, reminder: Reminder) {
        *lock(&self.waker) = Some((waker, reminder));
        if !self.state().received.is_empty() {
            self.wake();
        }
    }

    /// Tells the vCPU thread that packets wait; `false`: the guest computes.
    pub(super) fn wake(&self) -> bool {
        lock(&self.waker).as_ref().is_none_or(|(waker, _)| waker())
    }

    /// Stops a computing guest if packets still wait.
    pub(super) fn remind(&self) {
        if !self.state().received.is_empty()
            && let Some((_, reminder)) = &*lock(&self.waker)
        {
            reminder();
        }
    }

    /// This host runs the machine now: announces its address and receives. What came before was not for it; what the replay
    /// has sent leaves again, unless it is known to have [left](Self::left).
    pub fn go_live(&self, protection: Protection) {
        let mut wire = self.wire();
        wire.discard();
        {
            let mut state = self.state();
            (state.live, state.passes_on) = (true, false);
            state.hold_replayed();
        }
        self.protect(protection);
        wire.begin_to_announce(self);
        self.send(&mut wire);
        drop(wire);
        // There are announcements to come.
        self.changed.notify_one();
    }

    /// Sends now what may leave. What is more than the cable takes at once, [`run`](Self::run) sends, and what is so much that
    /// it would keep this thread for long.
    fn send(&self, wire: &mut Wire) {
        let plugs = (wire.plugs, wire.is_plugged_in());
        let more = wire.send(self);
        if more || wire.full || plugs != (wire.plugs, wire.is_plugged_in()) {
            self.changed.notify_one();
        }
    }

    /// Whether packets wait for a backup.
    pub fn set_protection(&self, protection: Protection) {
        let mut wire = self.wire();
        self.protect(protection);
        self.send(&mut wire);
    }

    fn protect(&self, protection: Protection) {
        let mut state = self.state();
        state.on_hold = false;
        state.held.release(match protection {
            Protection::HeldFrom(entry) => entry,
            Protection::Unprotected => u64::MAX,
        });
    }

    /// Packets of entries below `below` leave, now, on this thread; those that the other end does not take at once a little later.
    pub fn release(&self, below: u64) {
        let mut wire = self.wire();
        {
            let mut state = self.state();
            state.on_hold = false;
            state.held.release(below);
        }
        self.send(&mut wire);
    }

    /// Packets of entries below this number have left or were dropped: there is none of them that could be missing.
    pub fn left_below(&self) -> u64 {
        let wire = self.wire();
        let left_below = self.state().held.left_below();
        wire.leaving_entry().map_or(left_below, |entry| entry.min(left_below))
    }

    /// Nothing leaves until the next release.
    pub fn hold(&self) {
        let _nobody_sends = self.wire();
        let mut state = self.state();
        state.on_hold = true;
        state.held.hold();
    }

    /// What is released may leave before `until_ns`, a time of [`boot_clock_ns`](crate::backends::clock::boot_clock_ns), and
    /// not later: a host that stood still must not send what another host may have contradicted since. `u64::MAX`: for ever.
    pub fn set_lease(&self, until_ns: u64) {
        self.lease_until_ns.store(until_ns, SeqCst);
        if self.lease_ran_out.swap(false, SeqCst) {
            self.changed.notify_one();
        }
    }

    /// Another host runs the machine from now on, and this one replays it: what has not left is kept like what a replay sends.
    pub fn follow(&self) {
        let mut wire = self.wire();
        let mut state = self.state();
        let (mut held, received) = (std::mem::take(&mut state.held), std::mem::take(&mut state.received));
        state.forget_all();
        (state.received, state.passes_on) = (received, true);
        held.release(u64::MAX);
        while let Some((entry, packets)) = held.pop() {
            state.replayed.push(entry, &packets);
        }
        drop(state);
        wire.stop();
        self.astray.notify_one();
    }

    /// After [`follow`](Self::follow): waits for packets that came here all the same.
    pub async fn strays(&self) -> Packets {
        loop {
            {
                let mut state = self.state();
                if state.passes_on
                    && let Some(packets) = state.received.take(Packets::MAX_COUNT)
                {
                    return packets;
                }
            }
            self.astray.notified().await;
        }
    }

    /// The network has had time to learn: what comes here now is not passed on any more.
    pub fn end_strays(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.passes_on) {
            state.received.clear();
        }
    }

    /// Packets for the guest came to the other host, and from there.
    pub fn inject(&self, mut packets: Packets) {
        let mut state = self.state();
        if state.live {
            let dropped = state.received.append(&mut packets, |_| ());
            state.rx_dropped += dropped as u64;
            drop(state);
            self.wake();
        }
    }

    /// This host does not run the machine (any more). Nothing leaves, nothing comes in.
    pub fn not_live(&self) {
        let mut wire = self.wire();
        self.state().forget_all();
        wire.stop();
    }

    /// Outputs below `below` have left the live side as far as it is known; a backup need not repeat them.
    pub fn left(&self, below: u64) {
        self.state().replayed.left(below);
    }

    /// The counts so far.
    pub fn counters(&self) -> NetStatus {
        let wire = self.wire();
        let state = self.state();
        NetStatus {
            rx_packets: state.rx_packets,
            rx_bytes: state.rx_bytes,
            rx_dropped: state.rx_dropped,
            tx_packets: wire.packets,
            tx_bytes: wire.bytes,
            tx_dropped: state.tx_dropped + wire.dropped,
            tx_held: (state.held_packets + wire.being_sent()) as u64,
        }
    }
}

impl Network for Port {
    fn take(&self, room: usize) -> Option<Packets> {
        let mut state = self.state();
        let packets = state.received.take(room)?;
        state.rx_packets += packets.len() as u64;
        state.rx_bytes += super::frame_bytes(&packets);
        Some(packets)
    }

    fn set_offloads(&self, offloads: Offloads) {
        self.wire().set_offloads(offloads);
    }

    fn sent(&self, entry: u64, packets: Packets) {
        let mut state = self.state();
        state.addresses.learn(&packets);
        state.hold_output(entry, packets);
        let at_once = state.may_leave(entry);
        drop(state);
        if at_once {
            self.changed.notify_one();
        }
    }

    fn replayed_sent(&self, entry: u64, packets: &Packets) {
        let mut state = self.state();
        state.addresses.learn(packets);
        state.replayed.push(entry, packets);
    }
}
