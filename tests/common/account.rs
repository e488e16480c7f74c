//! What somebody between the two sides knows: which entry stands for which console bytes, and which acknowledgements
//! have got through. By this account every byte that a client sees must be covered.

use std::time::Instant;

use lockstep::log::entry::Body;
use lockstep::log::frame::{Frame, FrameKind};
use lockstep::log::stream::EntryStream;
use lockstep::replication::message::ENTRIES_HEAD;

/// The account of one logging channel.
#[derive(Default)]
pub struct Account {
    entries: EntryStream,
    /// Number of an output's entry, and the console position behind the output.
    outputs: Vec<(u64, u64)>,
    /// When an acknowledgement was about to be passed on, and the first entry that it does not cover.
    acknowledged: Vec<(Instant, u64)>,
}

impl Account {
    /// The primary has sent this.
    pub fn sent(&mut self, frame: &Frame<'_>) {
        if frame.kind == FrameKind::Boot {
            *self = Account::default();
        }
        if frame.kind != FrameKind::Entries {
            return;
        }
        self.entries.begin(frame.number, frame.count).expect("entries follow each other");
        let mut rest = &frame.payload[ENTRIES_HEAD..];
        loop {
            let number = self.entries.decoder().entries();
            let Some(entry) = self.entries.next(&mut rest).expect("entries can be read") else { return };
            if let Body::Output { length, .. } = entry.body {
                let end = self.outputs.last().map_or(0, |&(_, end)| end) + u64::from(length);
                self.outputs.push((number, end));
            }
        }
    }

    /// This is about to reach the primary.
    pub fn passed(&mut self, frame: &Frame<'_>) {
        if frame.kind == FrameKind::Ack {
            self.acknowledged.push((Instant::now(), frame.number));
        }
    }

    /// Entries sent so far.
    pub fn entries(&self) -> u64 {
        self.entries.decoder().entries()
    }

    /// Console bytes whose entries were sent so far.
    pub fn output_bytes(&self) -> u64 {
        self.outputs.last().map_or(0, |&(_, end)| end)
    }

    /// Console bytes covered by the acknowledgements passed on so far.
    pub fn covered_bytes(&self) -> u64 {
        let below = self.acknowledged.last().map_or(0, |&(_, below)| below);
        let covered = self.outputs.partition_point(|&(entry, _)| entry < below);
        covered.checked_sub(1).map_or(0, |last| self.outputs[last].1)
    }

    /// Whether everything up to `position`, seen at `at`, was covered by an acknowledgement passed on before.
    pub fn check_seen(&self, at: Instant, position: u64) -> Result<(), String> {
        let index = self.outputs.partition_point(|&(_, end)| end < position);
        let Some(&(entry, _)) = self.outputs.get(index) else {
            return Err(format!("console byte {position} was seen, but its entry was never sent"));
        };
        match self.acknowledged.iter().find(|&&(_, below)| below > entry) {
            Some(&(passed, _)) if passed <= at => Ok(()),
            Some(&(passed, _)) => Err(format!(
                "console byte {position} was seen {} µs before the acknowledgement of its entry {entry}",
                passed.duration_since(at).as_micros()
            )),
            None => Err(format!("console byte {position} was seen, but its entry {entry} was never acknowledged")),
        }
    }
}
