//! A primary that takes a new backup: the transfer under way, as its driver has it.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::guest::{Guest, Living};
use super::outlets::Outlets;
use super::precopy::{self, PreCopy, Sent, Source};
use super::progress::Bar;
use super::{HostError, system};
use crate::console::hub::Protection;
use crate::console::status::TransferStatus;

/// A transfer under way.
pub(super) struct Transferring {
    /// The protocol's number for it.
    transfer: u64,
    copy: PreCopy,
    /// The rest of the state, and the entries that led to it, once it was taken.
    state: Option<(u64, Vec<u8>)>,
    cut: Option<u64>,
    began: Instant,
    /// Set when the last piece was taken.
    took: Option<Duration>,
    bar: Bar,
}

impl Transferring {
    /// Begins to send the state of `guest`, which lives.
    pub fn begin(
        transfer: u64,
        guest: &mut Guest,
        living: &Living,
        outlets: &Outlets,
        settings: precopy::Settings,
    ) -> Result<Self, HostError> {
        let source = Source {
            pages: guest.pages.clone(),
            world: living.world.clone(),
            outgoing: living.outgoing.clone(),
            outlets: outlets.clone(),
        };
        let begun = PreCopy::begin(source, settings, guest.copying.take());
        let (copy, copying) = begun.map_err(system("start the thread of the state transfer"))?;
        guest.copying = Some(copying);
        tracing::info!("a new backup gets the guest's state");
        let bar = Bar::new("state to the new backup");
        Ok(Transferring { transfer, copy, state: None, cut: None, began: Instant::now(), took: None, bar })
    }

    /// What is to be sent next.
    async fn next(&mut self) -> Sent {
        let sent = self.copy.next().await;
        if let Sent::Cut { entries } = sent {
            self.cut = Some(entries);
        }
        sent
    }

    /// The last piece has come; returns the transfer's number and the entries before it.
    pub fn captured(&mut self, state: Vec<u8>) -> (u64, u64) {
        let entries = self.cut.expect("the cut comes before the state");
        self.state = Some((entries, state));
        self.took = Some(self.began.elapsed());
        let status = self.status();
        tracing::info!(
            mib = status.sent_bytes >> 20,
            ms = status.elapsed_ms,
            rounds = status.rounds,
            stop_us = status.stop_ns / 1000,
            "the new backup has the guest's state"
        );
        self.bar.finish();
        (self.transfer, entries)
    }

    /// The rest of the state, to be sent.
    pub fn take_state(&mut self) -> Vec<u8> {
        self.state.as_mut().map(|(_, bytes)| std::mem::take(bytes)).unwrap_or_default()
    }

    /// Its backup is gone. Nothing is done for it any more when this returns; what was held for it goes its way.
    pub fn end(self, living: &Living, outlets: &Outlets) {
        self.bar.finish();
        drop(self.copy);
        living.world.set_slow_down(0);
        living.outgoing.join();
        outlets.set_protection(Protection::Unprotected);
    }

    /// How it gets on.
    pub fn status(&mut self) -> TransferStatus {
        let progress = &self.copy.progress;
        let status = TransferStatus {
            total_bytes: progress.total_bytes.load(SeqCst),
            copied_bytes: progress.copied_bytes.load(SeqCst),
            sent_bytes: progress.sent_bytes.load(SeqCst),
            rounds: progress.round.load(SeqCst),
            stop_ns: progress.stop_ns.load(SeqCst),
            elapsed_ms: self.took.unwrap_or_else(|| self.began.elapsed()).as_millis() as u64,
        };
        if self.took.is_none() {
            self.bar.show(status.copied_bytes, status.total_bytes);
        }
        status
    }
}

/// What a transfer sends next; for ever nothing where there is none.
pub(super) async fn next(transferring: &mut Option<Transferring>) -> Sent {
    match transferring {
        Some(transferring) if transferring.state.is_none() => transferring.next().await,
        _ => std::future::pending().await,
    }
}
