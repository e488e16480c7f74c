//! Images and ports of test hosts.
#![allow(dead_code, reason = "each test uses its part")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use lockstep::disk::DiskError;
use lockstep::disk::open::Owner;
use lockstep::disk::port::DiskPort;
use lockstep::disk::spec::DiskSpec;
use lockstep::doors::Disk;
use lockstep::machine::blocks::Completions;

/// How long something that has to happen may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sparse image of `sectors` sectors. In the build's directory: memory file systems know no O_DIRECT everywhere.
pub fn image(directory: &Path, name: &str, sectors: u64) -> PathBuf {
    let path = directory.join(name);
    std::fs::File::create(&path).unwrap().set_len(sectors * 512).unwrap();
    path
}

pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn spec(path: &Path, settings: &str) -> DiskSpec {
    format!("{}{settings}", path.display()).parse().unwrap()
}

/// A port, and the sign that something is done.
pub struct Host {
    pub port: Arc<DiskPort>,
    signs: Arc<(Mutex<u64>, Condvar)>,
}

impl Host {
    pub fn open(path: &Path, settings: &str) -> Result<Self, DiskError> {
        let port = DiskPort::open_for(&spec(path, settings), Owner::Pair("vm"))?;
        let signs: Arc<(Mutex<u64>, Condvar)> = Arc::default();
        let sign = signs.clone();
        port.set_waker(Box::new(move || {
            *sign.0.lock().unwrap() += 1;
            sign.1.notify_all();
        }));
        Ok(Host { port, signs })
    }

    /// Takes what is done, waiting for something.
    pub fn wait(&self) -> Completions {
        loop {
            let seen = *self.signs.0.lock().unwrap();
            if let Some(completions) = self.port.take() {
                return completions;
            }
            let signs = self.signs.0.lock().unwrap();
            let (_signs, result) = self.signs.1.wait_timeout_while(signs, PATIENCE, |signs| *signs == seen).unwrap();
            assert!(!result.timed_out(), "nothing is done, and nobody says why: {:?}", self.port.counters());
        }
    }
}
