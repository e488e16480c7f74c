//! Snapshots of the machine that lives here: for an operator, as the frames of a file, and for a recorder, between the entries of its log.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::backends::priority::ordinary_this_thread;
use crate::log::boot::encode_boot;
use crate::log::file::OwnStateFrame;
use crate::log::frame::{self, FrameKind};
use crate::machine::snapshot::Boot;
use crate::transfer::take::{SnapshotError, Subject, take};

/// A machine as an operator reaches it.
#[derive(Clone)]
pub struct Operated {
    /// What a snapshot is taken of.
    pub subject: Subject,
    /// What it has booted from.
    pub boot: Arc<Boot>,
}

/// Frames that may wait for a client that takes them slowly.
const WAITING: usize = 4;

/// Takes a snapshot on a thread of its own. The frames of a log that starts from it; without a close frame, it failed.
pub fn stream(operated: Operated) -> std::io::Result<mpsc::Receiver<Vec<u8>>> {
    let (frames, to_send) = mpsc::channel(WAITING);
    thread::Builder::new().name("snapshot".into()).spawn(move || {
        ordinary_this_thread();
        if let Err(error) = send(&operated, &frames) {
            tracing::warn!(%error, "no snapshot");
        }
    })?;
    Ok(to_send)
}

/// One frame's bytes.
fn framed(kind: FrameKind, number: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame::HEADER_BYTES + payload.len());
    frame::encode(kind, number, 0, payload, &mut bytes)
        .expect("chunks and states are shorter than their frames can be");
    bytes
}

fn send(operated: &Operated, frames: &mpsc::Sender<Vec<u8>>) -> Result<(), SnapshotError> {
    let wanted = |sent: Result<(), mpsc::error::SendError<Vec<u8>>>| sent.map_err(|_| SnapshotError::Unwanted);
    // The boot was encodable when the machine began.
    let Ok(boot) = encode_boot(&operated.boot) else { return Err(SnapshotError::Unwanted) };
    wanted(frames.blocking_send(framed(FrameKind::Transfer, 0, &boot)))?;
    let (say, said) = std::sync::mpsc::channel();
    take(
        &operated.subject,
        false,
        |chunk| frames.blocking_send(framed(FrameKind::Chunk, 0, &chunk)).is_ok(),
        move |chunks, state| {
            // Whoever asked waits for it.
            let _ = say.send((chunks, state));
        },
    )?;
    let Ok((chunks, state)) = said.recv() else { return Err(SnapshotError::Superseded) };
    for chunk in chunks {
        wanted(frames.blocking_send(framed(FrameKind::Chunk, 0, &chunk)))?;
    }
    let next = state.position.entries();
    wanted(frames.blocking_send(framed(FrameKind::State, next, &state.to_bytes())))?;
    wanted(frames.blocking_send(framed(FrameKind::Close, next, &[])))
}

/// Frames on their way into the log that a recorder writes. The vCPU thread takes them before its next entry.
#[derive(Default)]
pub struct Inserts {
    queue: Mutex<Queue>,
    taken: Condvar,
    /// Mirrors "there is something", so that an entry before which nothing comes costs no lock.
    any: AtomicBool,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<(OwnStateFrame, u32)>,
    closed: bool,
}

impl Inserts {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// vCPU thread: what comes before the next entry.
    pub fn take(&self) -> VecDeque<(OwnStateFrame, u32)> {
        if !self.any.load(SeqCst) {
            return VecDeque::new();
        }
        let mut queue = self.queue();
        self.any.store(false, SeqCst);
        self.taken.notify_all();
        std::mem::take(&mut queue.frames)
    }

    /// The log is closed: nothing is taken any more.
    pub fn close(&self) {
        self.queue().closed = true;
        self.taken.notify_all();
    }

    /// Waits until few frames are waiting. False: nothing is taken any more.
    fn put(&self, frame: OwnStateFrame, snapshot: u32) -> bool {
        let full = |queue: &mut Queue| queue.frames.len() >= WAITING && !queue.closed;
        let mut queue = self.taken.wait_while(self.queue(), full).unwrap_or_else(PoisonError::into_inner);
        queue.frames.push_back((frame, snapshot));
        self.any.store(true, SeqCst);
        !queue.closed
    }

    /// All at once, without waiting: on the vCPU thread itself.
    fn put_all(&self, frames: impl IntoIterator<Item = OwnStateFrame>, snapshot: u32) {
        self.queue().frames.extend(frames.into_iter().map(|frame| (frame, snapshot)));
        self.any.store(true, SeqCst);
    }
}

/// Puts a snapshot into the log every so often, until the machine or the log ends.
pub fn put_into_log(subject: Subject, inserts: Arc<Inserts>, every: Duration) -> std::io::Result<()> {
    thread::Builder::new().name("snapshots".into()).spawn(move || {
        ordinary_this_thread();
        for snapshot in 1.. {
            let queue = inserts.queue();
            let (queue, _) = inserts
                .taken
                .wait_timeout_while(queue, every, |queue| !queue.closed)
                .unwrap_or_else(PoisonError::into_inner);
            if queue.closed {
                return;
            }
            drop(queue);
            let last = inserts.clone();
            let taken = take(
                &subject,
                true,
                |chunk| inserts.put(OwnStateFrame::Chunk(chunk), snapshot),
                move |chunks, state| {
                    let chunks = chunks.into_iter().map(OwnStateFrame::Chunk);
                    last.put_all(chunks.chain([OwnStateFrame::State(state.to_bytes())]), snapshot);
                },
            );
            match taken {
                // Somebody else copies, or asked at the same time: the next one may go well.
                Ok(()) | Err(SnapshotError::Superseded | SnapshotError::Kvm(_)) => {}
                Err(SnapshotError::Ended | SnapshotError::Unwanted) => return,
            }
        }
    })?;
    Ok(())
}
