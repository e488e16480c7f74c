//! Packet captures for Wireshark: the classic pcap format with nanoseconds (<https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html>).
//!
//! [`PcapWriter`] makes the bytes; [`Capture`] writes them to a file from a thread of its own, since a disk may hang and whoever
//! carries packets must not.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::NetError;
use crate::backends::priority::ordinary_this_thread;

/// Says that stamps have nanoseconds; in the writer's byte order, by which readers know that as well.
const MAGIC: u32 = 0xa1b2_3c4d;
/// Longer frames are cut to this many bytes.
const SNAP_BYTES: usize = 65_535;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// Writes frames as a pcap file. Each frame is up to two small writes: put a buffer behind it.
#[derive(Debug)]
pub struct PcapWriter<W> {
    to: W,
}

impl<W: Write> PcapWriter<W> {
    /// Begins the file.
    pub fn new(mut to: W) -> io::Result<Self> {
        let mut header = [0; 24];
        header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&2u16.to_le_bytes());
        header[6..8].copy_from_slice(&4u16.to_le_bytes());
        // Between them: time zone and accuracy of the stamps, 0 in every pcap file there is.
        header[16..20].copy_from_slice(&(SNAP_BYTES as u32).to_le_bytes());
        header[20..24].copy_from_slice(&ETHERNET.to_le_bytes());
        to.write_all(&header)?;
        Ok(PcapWriter { to })
    }

    /// Adds an Ethernet frame, seen `time_ns` nanoseconds after 1970 UTC.
    pub fn packet(&mut self, time_ns: u64, frame: &[u8]) -> io::Result<()> {
        let kept = &frame[..frame.len().min(SNAP_BYTES)];
        let mut header = [0; 16];
        header[0..4].copy_from_slice(&((time_ns / 1_000_000_000) as u32).to_le_bytes());
        header[4..8].copy_from_slice(&((time_ns % 1_000_000_000) as u32).to_le_bytes());
        header[8..12].copy_from_slice(&(kept.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        self.to.write_all(&header)?;
        self.to.write_all(kept)
    }

    /// Where the bytes go.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.to
    }
}

/// The file is at most this old.
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// This many bytes are written at once, however young they are.
const WRITE_AT_BYTES: usize = 256 << 10;
/// More than this does not wait for a slow disk: frames are left out.
const MAX_WAITING_BYTES: usize = 16 << 20;

struct Waiting {
    bytes: PcapWriter<Vec<u8>>,
    /// Frames that found no room.
    left_out: u64,
    closing: bool,
    /// A write failed; there is no capture any more.
    broken: bool,
}

struct Shared {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A capture into a file. Everything is in the file when this has been dropped, and what is older than 100 ms before.
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Creates the file `path`, or empties it.
    pub fn create(path: &Path) -> Result<Self, NetError> {
        let failed = |source| NetError::Capture { path: path.to_owned(), source };
        let mut file = File::create(path).map_err(failed)?;
        let mut bytes = PcapWriter::new(Vec::new()).map_err(failed)?;
        // So that a file without packets is one, and that a full disk is noticed early.
        file.write_all(bytes.get_mut()).map_err(failed)?;
        bytes.get_mut().clear();
        let waiting = Waiting { bytes, left_out: 0, closing: false, broken: false };
        let shared = Arc::new(Shared { waiting: Mutex::new(waiting), more: Condvar::new() });
        let (keep, path) = (shared.clone(), path.to_owned());
        let thread = std::thread::Builder::new().name("pcap".into());
        let thread = thread.spawn(move || write(&keep, file, path)).map_err(failed)?;
        Ok(Capture { shared, thread: Some(thread) })
    }

    /// Adds Ethernet frames, all seen `time_ns` nanoseconds after 1970 UTC.
    pub fn frames<'a>(&self, time_ns: u64, frames: impl Iterator<Item = &'a [u8]>) {
        let mut waiting = self.shared.waiting();
        if waiting.broken {
            return;
        }
        let before = waiting.bytes.get_mut().len();
        for frame in frames {
            if waiting.bytes.get_mut().len() + frame.len() > MAX_WAITING_BYTES {
                waiting.left_out += 1;
            } else {
                waiting.bytes.packet(time_ns, frame).expect("memory takes bytes");
            }
        }
        let now = waiting.bytes.get_mut().len();
        drop(waiting);
        if before == 0 || before < WRITE_AT_BYTES && now >= WRITE_AT_BYTES {
            self.shared.more.notify_one();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.waiting().closing = true;
        self.shared.more.notify_one();
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; and if it did, its message was shown.
            let _ = thread.join();
        }
    }
}

/// The thread: gathers for a while, and writes.
fn write(shared: &Shared, mut file: File, path: PathBuf) {
    ordinary_this_thread();
    let mut bytes = Vec::new();
    loop {
        let waiting = shared.waiting();
        let empty = |w: &mut Waiting| w.bytes.get_mut().is_empty() && !w.closing;
        let waiting = shared.more.wait_while(waiting, empty).unwrap_or_else(PoisonError::into_inner);
        let few = |w: &mut Waiting| w.bytes.get_mut().len() < WRITE_AT_BYTES && !w.closing;
        let gathered = shared.more.wait_timeout_while(waiting, WRITE_EVERY, few);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        let closing = waiting.closing;
        let left_out = std::mem::take(&mut waiting.left_out);
        std::mem::swap(waiting.bytes.get_mut(), &mut bytes);
        drop(waiting);
        if left_out > 0 {
            tracing::warn!(left_out, "{} is too slow: packets are left out of the capture", path.display());
        }
        if let Err(error) = file.write_all(&bytes) {
            tracing::warn!(%error, "cannot write {}: the capture ends here", path.display());
            let mut waiting = shared.waiting();
            waiting.broken = true;
            *waiting.bytes.get_mut() = Vec::new();
            return;
        }
        bytes.clear();
        if closing {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        writer.packet(1_700_000_000_123_456_789, b"abc").unwrap();
        let expected = [
            &[0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0][..],
            &1_700_000_000u32.to_le_bytes(),
            &123_456_789u32.to_le_bytes(),
            &[3, 0, 0, 0, 3, 0, 0, 0],
            b"abc",
        ]
        .concat();
        assert_eq!(*writer.get_mut(), expected);
    }

    #[test]
    fn a_long_frame_is_cut_and_its_length_told() {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        writer.packet(0, &vec![0; 70_000]).unwrap();
        let bytes = writer.get_mut();
        assert_eq!(bytes.len(), 24 + 16 + 65_535);
        assert_eq!((&bytes[32..36], &bytes[36..40]), (&65_535u32.to_le_bytes()[..], &70_000u32.to_le_bytes()[..]));
    }

    #[test]
    fn a_capture_is_whole_when_it_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.pcap");
        let capture = Capture::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 24);
        for _ in 0..1000 {
            capture.frames(5, [&[1u8; 60][..], &[2; 1514]].into_iter());
        }
        drop(capture);
        let length = std::fs::metadata(&path).unwrap().len();
        assert_eq!(length, 24 + 1000 * (16 + 60 + 16 + 1514));
    }

    #[test]
    fn a_capture_that_cannot_be_written_is_given_up() {
        let capture = Capture::create(Path::new("/dev/full"));
        assert!(matches!(capture, Err(NetError::Capture { .. })));
    }
}
