//! `lockstep log --pcap`: the packets of a recorded run for Wireshark.
//!
//! Received packets are in the log. Sent ones are not, but for their number and a check: the recorded guest is run again, and says them again. What a
//! packet's time was, the log does not say either: it gets the newest time that the guest had read from its clock by then, so
//! several may have the same, and none an earlier one than the packet before it.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

use super::replay::{Screen, replay_before};
use crate::doors::{Behind, Network};
use crate::host::file_log::Watch;
use crate::log::entry::{Body, Entry};
use crate::log::file::{LogError, LogReader};
use crate::machine::packets::{HEADER, Packets};
use crate::net::pcap::PcapWriter;

/// The packets found so far.
struct Extract<W> {
    pcap: PcapWriter<W>,
    time_ns: u64,
    boot_time_ns: u64,
    /// The first write that failed; nothing is written after it.
    failed: Option<io::Error>,
}

impl<W: io::Write> Extract<W> {
    fn new(to: W, boot_time_ns: u64) -> io::Result<Self> {
        Ok(Extract { pcap: PcapWriter::new(to)?, time_ns: boot_time_ns, boot_time_ns, failed: None })
    }

    fn entry(&mut self, entry: &Entry) {
        match &entry.body {
            Body::Clock(ns) => self.time_ns = self.boot_time_ns.saturating_add(*ns),
            Body::Packets(packets) => self.packets(packets),
            Body::Entropy(_)
            | Body::Tick
            | Body::Console(_)
            | Body::Output { .. }
            | Body::Sent { .. }
            | Body::HostName(_)
            | Body::Asked { .. }
            | Body::Disk(_)
            | Body::Control(_)
            | Body::Digest(_)
            | Body::End(_) => {}
        }
    }

    fn packets(&mut self, packets: &Packets) {
        for packet in packets.iter() {
            if self.failed.is_none() {
                self.failed = self.pcap.packet(self.time_ns, &packet[HEADER..]).err();
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.pcap.get_mut().flush(),
        }
    }
}

/// What the replayed guest sends goes to the capture.
struct Sent<W>(Arc<Mutex<Extract<W>>>);

impl<W: io::Write + Send> Network for Sent<W> {
    fn take(&self, _: usize) -> Option<Packets> {
        None
    }

    fn sent(&self, _: u64, _: Packets) {}

    fn replayed_sent(&self, _: u64, packets: &Packets) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).packets(packets);
    }
}

/// Writes the packets of the log in `file` to `out`.
pub fn extract(file: &Path, out: &Path, received_only: bool) -> anyhow::Result<()> {
    let writing = || format!("cannot write {}", out.display());
    let mut log = LogReader::<File>::open(file).map_err(|error| match error {
        LogError::Open { .. } => anyhow::Error::new(error), // names the file itself
        error => anyhow::Error::new(error).context(file.display().to_string()),
    })?;
    let to = BufWriter::new(File::create(out).with_context(writing)?);
    let mut extract = Extract::new(to, log.boot().boot_time_ns).with_context(writing)?;
    if received_only {
        while let Some(entry) = log.next_entry().with_context(|| file.display().to_string())? {
            extract.entry(&entry);
        }
        return extract.finish().with_context(writing);
    }
    drop(log);
    let extract = Arc::new(Mutex::new(extract));
    let watch = Arc::new(Watch::default());
    super::interrupts::on_signal({
        let watch = watch.clone();
        move || watch.abandon.store(true, SeqCst)
    })?;
    let seen = {
        let extract = extract.clone();
        move |entry: &Entry| extract.lock().unwrap_or_else(PoisonError::into_inner).entry(entry)
    };
    let behind =
        Behind { network: Arc::new(Sent(extract.clone())), ..Behind::console(Arc::new(Screen { show: false })) };
    let replayed = replay_before(file, behind, seen, watch, |_| ());
    // What was found before the trouble is good.
    extract.lock().unwrap_or_else(PoisonError::into_inner).finish().with_context(writing)?;
    replayed
        .map(|_| ())
        .context("cannot run the recorded guest again for the packets that it sent (--pcap-received-only does without)")
}
