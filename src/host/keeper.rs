//! Keeping a copy of the log in a file beside a running pair, off the channel thread. A file that cannot keep up or reaches its
//! limit is given up, never the machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use super::outgoing::Batch;
use crate::log::file::{EncodedWriter, LogError};
use crate::machine::snapshot::Boot;

/// Batches that may wait for the disk.
const QUEUE: usize = 1024;

/// A log file that is being kept.
pub struct Keeper {
    path: PathBuf,
    batches: Option<SyncSender<Batch>>,
    writer: Option<JoinHandle<Result<(), LogError>>>,
}

impl Keeper {
    /// Creates the file; beyond `limit_bytes` it is given up.
    pub fn create(path: &Path, boot: &Boot, limit_bytes: u64) -> Result<Self, LogError> {
        Self::continuing(path, EncodedWriter::create(path, boot)?, limit_bytes)
    }

    /// Goes on with a file that has what the log starts from.
    pub fn continuing(path: &Path, file: EncodedWriter<File>, limit_bytes: u64) -> Result<Self, LogError> {
        let (batches, inbox) = sync_channel(QUEUE);
        let writer = thread::Builder::new()
            .name("log file".into())
            .spawn(move || write(file, &inbox, limit_bytes))
            .map_err(LogError::Write)?;
        Ok(Keeper { path: path.to_owned(), batches: Some(batches), writer: Some(writer) })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a batch to write. Never waits.
    pub fn keep(&mut self, batch: Batch) {
        let Some(batches) = &self.batches else { return };
        match batches.try_send(batch) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                tracing::warn!(file = %self.path.display(), "the disk cannot keep up with the log: the file ends here");
                self.batches = None;
            }
            Err(TrySendError::Disconnected(_)) => {
                tracing::warn!(file = %self.path.display(), "the log file ends here");
                self.batches = None;
            }
        }
    }

    /// Writes what is left and closes the file.
    pub fn close(mut self) -> Result<PathBuf, LogError> {
        self.batches = None;
        if let Some(writer) = self.writer.take() {
            writer
                .join()
                .unwrap_or_else(|_| Err(LogError::Write(std::io::Error::other("the log file's thread panicked"))))?;
        }
        Ok(self.path)
    }
}

fn write(mut file: EncodedWriter<std::fs::File>, inbox: &Receiver<Batch>, limit_bytes: u64) -> Result<(), LogError> {
    while let Ok(batch) = inbox.recv() {
        file.append(batch.first, batch.count, &batch.bytes)?;
        for batch in inbox.try_iter() {
            file.append(batch.first, batch.count, &batch.bytes)?;
        }
        file.flush()?;
        if file.written_bytes() > limit_bytes {
            tracing::warn!(limit_bytes, "the kept log has reached its limit");
            return Ok(());
        }
    }
    file.close()
}
