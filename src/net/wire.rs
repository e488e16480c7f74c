//! What is on the wire of a [`Port`]: the cable and whatever is on its way through it. Only threads that may make system calls get here.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use tokio::time::Instant;

use super::NetError;
use super::cable::{Cable, CableError, Handle, Sent};
use super::pcap::Capture;
use super::port::Port;
use super::spec::Backend;
use crate::backends::clock::{boot_clock_ns, wall_clock_ns};
use crate::machine::packets::{HEADER, Offloads, Packets};

/// Packets that are received or sent in one go, at most: heartbeats and acknowledgements share the thread.
const TURN_PACKETS: usize = 64;
/// A long packet counts as several of so many bytes.
const TURN_PACKET_BYTES: usize = 16 << 10;
/// Time between two attempts to plug a lost cable in again.
const PLUG_IN_EVERY: Duration = Duration::from_millis(250);
/// When the guest's addresses are announced after it went live, in milliseconds. Frames get lost, most of all while a switch learns.
const ANNOUNCE_AFTER_MS: [u64; 5] = [0, 50, 150, 300, 600];
/// What a cable may have stored up while it was not live, in packets. The longest queue of a TAP device is a few times shorter.
const MOST_STORED: usize = 8192;

/// An output that is leaving.
struct Leaving {
    entry: u64,
    packets: Packets,
    /// How many of them have left.
    gone: usize,
}

/// Announcements that are still to come.
struct Announcing {
    began: Instant,
    /// How many were made.
    made: usize,
}

impl Announcing {
    fn next_at(&self) -> Option<Instant> {
        ANNOUNCE_AFTER_MS.get(self.made).map(|&ms| self.began + Duration::from_millis(ms))
    }
}

/// How a turn of receiving went.
pub(super) enum Turn {
    /// The cable has no more now.
    Empty,
    /// It may have more.
    More,
}

/// What is on the wire.
pub(super) struct Wire {
    backend: Backend,
    cable: Option<Cable>,
    /// How many times a cable was plugged in.
    pub plugs: u64,
    plug_in_at: Option<Instant>,
    incoming: Packets,
    leaving: Option<Leaving>,
    /// What the guest takes off the cable.
    offloads: Offloads,
    /// The cable takes nothing now: wait until it does.
    pub full: bool,
    pub capture: Option<Capture>,
    announcing: Option<Announcing>,
    /// Sent so far.
    pub packets: u64,
    pub bytes: u64,
    pub dropped: u64,
}

impl Wire {
    /// Plugs the cable in.
    pub fn open(backend: &Backend) -> Result<Self, NetError> {
        Ok(Wire {
            backend: backend.clone(),
            cable: Some(Cable::open(backend)?),
            plugs: 1,
            plug_in_at: None,
            incoming: Packets::new(),
            leaving: None,
            offloads: Offloads::default(),
            full: false,
            capture: None,
            announcing: None,
            packets: 0,
            bytes: 0,
            dropped: 0,
        })
    }

    /// Whether the cable can fill in checksums and cut up segments.
    pub fn has_offloads(&self) -> bool {
        matches!(self.backend, Backend::Tap(_))
    }

    /// What to wait for, if a cable is plugged in.
    pub fn handle(&self) -> Option<Handle> {
        self.cable.as_ref().map(Cable::handle)
    }

    /// Whether a cable is plugged in.
    pub fn is_plugged_in(&self) -> bool {
        self.cable.is_some()
    }

    /// Packets that have begun to leave as an output, and are still here.
    pub fn being_sent(&self) -> usize {
        self.leaving.as_ref().map_or(0, |leaving| leaving.packets.len() - leaving.gone)
    }

    /// The entry of the output that has begun to leave.
    pub fn leaving_entry(&self) -> Option<u64> {
        self.leaving.as_ref().map(|leaving| leaving.entry)
    }

    /// When [`on_time`](Self::on_time) has something to do.
    pub fn next_at(&self) -> Option<Instant> {
        let announcing = self.announcing.as_ref().and_then(Announcing::next_at);
        [announcing, self.plug_in_at].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn on_time(&mut self, port: &Port) {
        let now = Instant::now();
        if self.plug_in_at.is_some_and(|at| at <= now) {
            self.plug_in();
        }
        if self.announcing.as_ref().and_then(Announcing::next_at).is_some_and(|at| at <= now) {
            self.announce(port);
        }
    }

    /// The guest takes this off the cable from now on.
    pub fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
        if let Some(Err(error)) = self.cable.as_mut().map(|cable| cable.set_offloads(offloads)) {
            // Frames come whole then: slower, and not wrong.
            tracing::warn!(%error, "the TAP device does not leave checksums and segments to the guest");
        }
    }

    fn plug_in(&mut self) {
        match Cable::open(&self.backend) {
            Ok(cable) => {
                tracing::info!("the network's cable is plugged in again");
                self.cable = Some(cable);
                self.set_offloads(self.offloads);
                self.plugs += 1;
                self.plug_in_at = None;
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "the network's cable is not back yet");
                self.plug_in_at = Some(Instant::now() + PLUG_IN_EVERY);
            }
        }
    }

    fn lose(&mut self, error: CableError) {
        tracing::warn!(error = &error as &dyn std::error::Error, "the network's cable is out");
        self.cable = None;
        self.full = false;
        self.plug_in_at = Some(Instant::now() + PLUG_IN_EVERY);
    }

    /// Throws away what has come so far.
    pub fn discard(&mut self) {
        if self.cable.is_none() {
            self.plug_in();
        }
        let mut discarded = 0;
        while let Some(cable) = &mut self.cable {
            match cable.receive(&mut self.incoming, TURN_PACKETS) {
                Ok(more) => {
                    discarded += self.incoming.len();
                    self.incoming.clear();
                    if !more || discarded >= MOST_STORED {
                        return;
                    }
                }
                Err(error) => self.lose(error),
            }
        }
    }

    /// Nothing leaves any more.
    pub fn stop(&mut self) {
        self.unplug_within_a_packet();
        self.leaving = None;
        self.full = false;
        self.announcing = None;
        self.capture = None;
    }

    /// Receives for a while. Returns whether there is more, and whether the guest has to be reminded.
    pub fn receive(&mut self, port: &Port) -> (Turn, bool) {
        let Some(cable) = &mut self.cable else { return (Turn::Empty, false) };
        let turn = match cable.receive(&mut self.incoming, TURN_PACKETS) {
            Ok(true) => Turn::More,
            Ok(false) => Turn::Empty,
            Err(error) => {
                self.lose(error);
                Turn::Empty
            }
        };
        let mut state = port.state();
        if state.passes_on && !self.incoming.is_empty() {
            state.received.append(&mut self.incoming, |_| ());
            port.astray.notify_one();
            return (turn, false);
        }
        if !state.live || self.incoming.is_empty() {
            self.incoming.clear();
            return (turn, false);
        }
        let capture = &self.capture;
        let see = |packets: &Packets| {
            if let Some(capture) = capture {
                capture.frames(wall_clock_ns(), packets.iter().map(|packet| &packet[HEADER..]));
            }
        };
        let dropped = state.received.append(&mut self.incoming, see);
        state.rx_dropped += dropped as u64;
        drop(state);
        (turn, !port.wake())
    }

    /// Sends what may leave, for a while. Returns whether there is more that could.
    pub fn send(&mut self, port: &Port) -> bool {
        self.full = false;
        let mut budget = TURN_PACKETS;
        if self.leaving.as_ref().is_some_and(|leaving| !port.state().may_leave(leaving.entry)) {
            return false;
        }
        loop {
            if self.leaving.is_none() {
                let next = port.state().next_output();
                self.leaving = next.map(|(entry, packets)| Leaving { entry, packets, gone: 0 });
            }
            let Some(leaving) = &mut self.leaving else { return false };
            if budget == 0 {
                return true;
            }
            let Some(cable) = &mut self.cable else {
                // As with any cable that is not plugged in.
                self.dropped += self.being_sent() as u64;
                self.leaving = None;
                continue;
            };
            if !lease_holds(port) {
                return false;
            }
            let gone = match cable.send(&leaving.packets, leaving.gone) {
                Ok(Sent::Left(count)) => {
                    let packets = (leaving.gone..leaving.gone + count).filter_map(|index| leaving.packets.get(index));
                    let frames = packets.map(|packet| &packet[HEADER..]);
                    let bytes = frames.clone().map(<[u8]>::len).sum::<usize>();
                    self.packets += count as u64;
                    self.bytes += bytes as u64;
                    budget = budget.saturating_sub(bytes / TURN_PACKET_BYTES);
                    if let Some(capture) = &self.capture {
                        capture.frames(wall_clock_ns(), frames);
                    }
                    count
                }
                Ok(Sent::Refused) => {
                    self.dropped += 1;
                    1
                }
                Ok(Sent::Full) => {
                    self.full = true;
                    return false;
                }
                Err(error) => {
                    self.lose(error);
                    continue;
                }
            };
            leaving.gone += gone;
            budget = budget.saturating_sub(gone);
            if leaving.gone == leaving.packets.len() {
                self.leaving = None;
            }
        }
    }

    /// The guest is here now.
    pub fn begin_to_announce(&mut self, port: &Port) {
        self.announcing = Some(Announcing { began: Instant::now(), made: 0 });
        self.announce(port);
    }

    fn announce(&mut self, port: &Port) {
        let Some(announcing) = &mut self.announcing else { return };
        announcing.made += 1;
        let state = port.state();
        let packets = if state.on_hold { Packets::new() } else { state.addresses.announcement() };
        drop(state);
        let Some(cable) = self.cable.as_mut().filter(|cable| !cable.in_a_packet()) else { return };
        let mut sent = 0;
        while sent < packets.len() && lease_holds(port) {
            match cable.send(&packets, sent) {
                Ok(Sent::Left(count)) => sent += count,
                // Another one follows.
                Ok(Sent::Full | Sent::Refused) => break,
                Err(error) => return self.lose(error),
            }
        }
        if let Some(capture) = &self.capture {
            let frames = (0..sent).filter_map(|index| packets.get(index)).map(|packet| &packet[HEADER..]);
            capture.frames(wall_clock_ns(), frames);
        }
        // So few bytes leave in one piece or not at all.
        self.unplug_within_a_packet();
    }

    /// If a packet has left in part, and its rest will not: whatever came next would be taken for that.
    fn unplug_within_a_packet(&mut self) {
        if self.cable.as_ref().is_some_and(Cable::in_a_packet) {
            self.cable = None;
            self.plug_in_at = Some(Instant::now() + PLUG_IN_EVERY);
        }
    }
}

/// Whether anything may leave at this very moment.
fn lease_holds(port: &Port) -> bool {
    let until_ns = port.lease_until_ns.load(SeqCst);
    if until_ns == u64::MAX || boot_clock_ns() < until_ns {
        return true;
    }
    port.lease_ran_out.store(true, SeqCst);
    // A lease that was prolonged in between has not seen that.
    boot_clock_ns() < port.lease_until_ns.load(SeqCst)
}
