//! The log on its way out of a live machine: the vCPU thread encodes each entry once, here; the channel thread takes the bytes
//! away in batches, for the backup, a file, or nobody.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::doors::live::Log;
use crate::log::codec::Encoder;
use crate::log::entry::{Body, Entry};
use crate::machine::doors::Halt;

/// Bytes that may wait here before the vCPU thread has to. With one more entry on top they still fit into one frame.
const CAPACITY: usize = 512 << 10;

/// More bytes than this do not wait for others.
const WORTH_A_FRAME: usize = 64 << 10;

/// Entries in order, encoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Number of the first one.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// Their bytes.
    pub bytes: Vec<u8>,
}

struct State {
    encoder: Encoder,
    batch: Batch,
    next: u64,
    /// What was logged before the log was cut, and whether what came since has to wait.
    before_cut: Option<Batch>,
    cut: bool,
    /// The protocol has told the vCPU to wait.
    stalled: bool,
    /// Nobody takes batches any more: the machine is to stop.
    closed: bool,
}

/// The meeting point of the vCPU thread and the channel.
pub struct Outgoing {
    state: Mutex<State>,
    room: Condvar,
    ready: Notify,
}

impl Outgoing {
    /// A log that goes on after the entries that `encoder` has seen, the next of which has number `next`.
    pub fn new(encoder: Encoder, next: u64) -> Arc<Self> {
        let batch = Batch { first: next, ..Batch::default() };
        let state = State { encoder, batch, next, before_cut: None, cut: false, stalled: false, closed: false };
        Arc::new(Outgoing { state: Mutex::new(state), room: Condvar::new(), ready: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds this lock")
    }

    /// Returns the entry's number, and how many bytes wait here now.
    fn append(&self, entry: &Entry) -> Result<(u64, usize), Halt> {
        let full = |state: &mut State| !state.closed && (state.stalled || state.batch.bytes.len() >= CAPACITY);
        let mut state = self.room.wait_while(self.state(), full).expect("no thread panics while it holds this lock");
        if state.closed {
            return Err(Halt::Requested(entry.at));
        }
        let state = &mut *state;
        state
            .encoder
            .encode(entry, &mut state.batch.bytes)
            .map_err(|e| Halt::Failed { what: "encode a log entry", source: Box::new(e) })?;
        state.batch.count += 1;
        state.next += 1;
        Ok((state.next - 1, state.batch.bytes.len()))
    }

    /// Channel: waits until there may be something to take.
    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Channel: what has come since the last call. `spare` is the buffer for what comes next.
    pub fn take(&self, spare: Vec<u8>) -> Option<Batch> {
        let mut state = self.state();
        if let Some(batch) = state.before_cut.take() {
            return Some(batch);
        }
        if state.batch.count == 0 || state.cut {
            return None;
        }
        let next = Batch { first: state.next, count: 0, bytes: spare };
        let batch = std::mem::replace(&mut state.batch, next);
        drop(state);
        self.room.notify_all();
        Some(batch)
    }

    /// vCPU thread: what is logged from here on waits for [`join`](Self::join), so that the channel can put something between.
    pub fn cut(&self) {
        let mut state = self.state();
        let next = Batch { first: state.next, ..Batch::default() };
        let batch = std::mem::replace(&mut state.batch, next);
        state.before_cut = (batch.count > 0).then_some(batch);
        state.cut = true;
        drop(state);
        self.ready.notify_one();
    }

    /// Channel: the log is whole again.
    pub fn join(&self) {
        self.state().cut = false;
        self.ready.notify_one();
    }

    /// Stalls the vCPU thread at its next entry, or lets it go on.
    pub fn set_stalled(&self, stalled: bool) {
        self.state().stalled = stalled;
        self.room.notify_all();
    }

    /// The vCPU thread gets nothing more into this log.
    pub fn close(&self) {
        self.state().closed = true;
        self.room.notify_all();
    }
}

/// Whether an entry may wait for the next one, so that both leave in one frame: nobody waits for its acknowledgement, and the output that
/// comes of it, the next tick or the driver's next look (its horizon timer) is soon enough for the backup. Each frame costs a wake-up and a
/// system call or two on either side.
fn waits_for_more(body: &Body) -> bool {
    match body {
        Body::Clock(_) | Body::Entropy(_) | Body::HostName(_) | Body::Packets(_) | Body::Disk(_) => true,
        Body::Tick
        | Body::Console(_)
        | Body::Output { .. }
        | Body::Sent { .. }
        | Body::Asked { .. }
        | Body::Control(_)
        | Body::Digest(_)
        | Body::End(_) => false,
    }
}

/// The vCPU thread's end of an [`Outgoing`].
pub struct OutgoingLog(pub Arc<Outgoing>);

impl Log for OutgoingLog {
    const DIGESTS: bool = true;

    fn append(&mut self, entry: &Entry) -> Result<u64, Halt> {
        let (number, waiting_bytes) = self.0.append(entry)?;
        if !waits_for_more(&entry.body) || waiting_bytes > WORTH_A_FRAME {
            self.0.ready.notify_one();
        }
        Ok(number)
    }

    fn append_at_leisure(&mut self, entry: &Entry) -> Result<u64, Halt> {
        let (number, waiting_bytes) = self.0.append(entry)?;
        if waiting_bytes > WORTH_A_FRAME {
            self.0.ready.notify_one();
        }
        Ok(number)
    }

    fn position(&self) -> Encoder {
        self.0.state().encoder.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::frame::FrameKind;
    use crate::machine::digest::{Digest, PageCheck};
    use crate::machine::instant::Instant;
    use crate::machine::packets::{HEADER, Packets};
    use crate::replication::message::ENTRIES_HEAD;

    /// Bytes of this entry where every number is as long as it gets.
    fn length(body: Body) -> usize {
        let mut bytes = Vec::new();
        Encoder::new().encode(&Entry { at: Instant::new(u64::MAX, u64::MAX), body }, &mut bytes).unwrap();
        bytes.len()
    }

    #[test]
    fn a_full_buffer_and_the_largest_entry_on_top_of_it_fit_into_one_frame() {
        let mut packets = Packets::new();
        while packets.push_frame(&[1; HEADER], &[1; Packets::MAX_BYTES / Packets::MAX_COUNT - HEADER]) {}
        assert_eq!((packets.len(), packets.bytes().len()), (Packets::MAX_COUNT, Packets::MAX_BYTES));
        let pages = (0..Digest::MAX_PAGES as u32).map(|page| PageCheck { page: page << 21, check: 1 }).collect();
        let digest = Digest { memory: 0, registers: [u64::MAX; 18], system: 1, fpu: 1, devices: 1, pages };
        let largest = length(Body::Packets(packets)).max(length(Body::Digest(Box::new(digest))));
        assert!(largest > Packets::MAX_BYTES);
        assert!(CAPACITY - 1 + largest + ENTRIES_HEAD <= FrameKind::Entries.max_payload());
    }
}
