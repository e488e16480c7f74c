//! A log file at the doors: written by `record`, read by `replay`.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::snapshots::Inserts;
use crate::doors::live::Log;
use crate::doors::replay::{Next, Source};
use crate::log::codec::Encoder;
use crate::log::entry::{Body, Entry};
use crate::log::file::{LogError, LogReader, LogWriter};
use crate::machine::doors::Halt;
use crate::machine::instant::Instant;

/// A log file that a live machine writes.
pub struct FileLog {
    writer: Option<LogWriter<File>>,
    inserts: Arc<Inserts>,
}

impl FileLog {
    /// A log that goes to `writer`.
    pub fn new(writer: LogWriter<File>) -> Self {
        FileLog { writer: Some(writer), inserts: Arc::default() }
    }

    /// The way for snapshots into the file.
    pub fn inserts(&self) -> Arc<Inserts> {
        self.inserts.clone()
    }

    /// Closes the file as complete; returns how many entries it has.
    pub fn close(&mut self) -> Result<u64, LogError> {
        self.inserts.close();
        let Some(mut writer) = self.writer.take() else { return Ok(0) };
        for (frame, snapshot) in self.inserts.take() {
            writer.put_state(&frame, snapshot)?;
        }
        let entries = writer.entries();
        writer.close().map(|()| entries)
    }
}

fn written(result: Result<u64, LogError>) -> Result<u64, Halt> {
    result.map_err(|e| Halt::Failed { what: "write the log", source: Box::new(e) })
}

impl Log for FileLog {
    const DIGESTS: bool = true;

    fn append(&mut self, entry: &Entry) -> Result<u64, Halt> {
        let Some(writer) = &mut self.writer else { return Err(Halt::Requested(entry.at)) };
        for (frame, snapshot) in self.inserts.take() {
            written(writer.put_state(&frame, snapshot).map(|()| 0))?;
        }
        let number = written(writer.append(entry))?;
        if matches!(entry.body, Body::Digest(_)) {
            // What a crash of this process may cost is what came since the last digest.
            written(writer.flush().map(|()| number))?;
        }
        Ok(number)
    }

    fn position(&self) -> Encoder {
        self.writer.as_ref().map_or_else(Encoder::new, |writer| writer.encoder().clone())
    }
}

/// A log file as a source of entries.
pub struct FileSource<R: Read> {
    reader: LogReader<R>,
    next: Option<(u64, Entry)>,
    taken: u64,
    watch: Arc<Watch>,
    seen: Box<dyn FnMut(&Entry) + Send>,
}

/// A replay's thread as seen from others.
#[derive(Debug, Default)]
pub struct Watch {
    /// Set to have the replay stop.
    pub abandon: AtomicBool,
    /// Bytes of the log that were read so far.
    pub offset: AtomicU64,
}

impl<R: Read> FileSource<R> {
    /// The entries of `reader`, from where it stands.
    pub fn new(reader: LogReader<R>, watch: Arc<Watch>) -> Self {
        FileSource { taken: reader.entries(), reader, next: None, watch, seen: Box::new(|_| ()) }
    }

    /// The same, and `seen` is told of each entry that the machine takes.
    pub fn telling(mut self, seen: impl FnMut(&Entry) + Send + 'static) -> Self {
        self.seen = Box::new(seen);
        self
    }

    /// After the machine has ended: reads to the end of the log, and says whether its writer closed it. A machine
    /// asks for nothing behind the entry of its own end, so only now is seen what comes there.
    pub fn finish(&mut self) -> Result<bool, LogError> {
        while self.reader.next_entry()?.is_some() {}
        Ok(self.reader.complete())
    }
}

impl<R: Read> Source for FileSource<R> {
    fn next(&mut self, at: Instant) -> Result<Next<'_>, Halt> {
        self.next_entry(at).map(|(number, entry)| Next::Entry(number, entry))
    }

    fn next_entry(&mut self, at: Instant) -> Result<(u64, &Entry), Halt> {
        if self.next.is_none() {
            let entry =
                self.reader.next_entry().map_err(|e| Halt::Failed { what: "read the log", source: Box::new(e) })?;
            self.next = entry.map(|entry| (self.taken, entry));
            self.watch.offset.store(self.reader.offset(), Relaxed);
        }
        if self.watch.abandon.load(SeqCst) {
            return Err(Halt::Requested(at));
        }
        self.next.as_ref().map(|(number, entry)| (*number, entry)).ok_or(Halt::EndOfLog(at))
    }

    fn take(&mut self) -> Option<Entry> {
        let (_, entry) = self.next.take()?;
        (self.seen)(&entry);
        self.taken += 1;
        Some(entry)
    }

    fn abandoned(&self) -> bool {
        self.watch.abandon.load(SeqCst)
    }
}
