//! The measurements behind `lockstep bench`: one file each, every figure against its target, ratios taken in one run.
//!
//! What is compared is measured alternately (A B A B …) and by medians, because machines are never quite alike from one second
//! to the next. Pairs are real: two processes of this program on loopback.
#![allow(clippy::disallowed_methods, reason = "measures time")]

mod alone;
mod arbiter;
mod codec;
mod compute;
mod disk;
mod failover;
mod heal;
mod lag;
mod log_rate;
mod net;
mod output_delay;
mod protected;
mod replay;
pub mod report;
pub mod statistics;
mod transfer;

use std::time::Duration;

use indicatif::ProgressBar;
use report::Row;

/// A measurement.
#[derive(Clone, Copy)]
pub struct Measurement {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures, in one line.
    pub about: &'static str,
    /// Left out unless it is named: it needs minutes, root or another package.
    pub by_name_only: bool,
    run: fn(&Bench) -> anyhow::Result<Vec<Row>>,
}

/// All measurements, in the order of the table.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        name: compute::NAME,
        about: "compute in an unprotected guest and natively",
        by_name_only: false,
        run: compute::run,
    },
    Measurement {
        name: protected::NAME,
        about: "compute protected and unprotected",
        by_name_only: false,
        run: protected::run,
    },
    Measurement {
        name: log_rate::NAME,
        about: "log of compute at 100 and 1,000 Hz",
        by_name_only: false,
        run: log_rate::run,
    },
    Measurement {
        name: output_delay::NAME,
        about: "how long the output rule holds output",
        by_name_only: false,
        run: output_delay::run,
    },
    Measurement {
        name: lag::NAME,
        about: "how far the backup's execution is behind",
        by_name_only: false,
        run: lag::run,
    },
    Measurement {
        name: failover::KILL,
        about: "SIGKILL of the primary to new output",
        by_name_only: false,
        run: failover::kill,
    },
    Measurement {
        name: failover::SILENCE,
        about: "silence of the primary to new output",
        by_name_only: false,
        run: failover::silence,
    },
    Measurement {
        name: replay::BUSY,
        about: "replay of a busy log and its recording",
        by_name_only: false,
        run: replay::busy,
    },
    Measurement { name: replay::IDLE, about: "replay of an idle guest", by_name_only: false, run: replay::idle },
    Measurement { name: codec::NAME, about: "encoding and decoding log entries", by_name_only: false, run: codec::run },
    Measurement {
        name: net::NAME,
        about: "the network, protected and unprotected (only if named; needs root)",
        by_name_only: true,
        run: net::run,
    },
    Measurement {
        name: net::kills::NAME,
        about: "the pause that clients on the network see, alone (only if named; needs root)",
        by_name_only: true,
        run: net::kills::run,
    },
    Measurement {
        name: disk::NAME,
        about: "a guest bound by its disk, protected and unprotected",
        by_name_only: false,
        run: disk::run,
    },
    Measurement {
        name: arbiter::NAME,
        about: "arbiters and Debian's ZooKeeper (only if named; needs the package zookeeper)",
        by_name_only: true,
        run: arbiter::run,
    },
    Measurement {
        name: heal::NAME,
        about: "from a host's loss to protection by another one, with agents (only if named)",
        by_name_only: true,
        run: heal::run,
    },
    Measurement {
        name: transfer::NAME,
        about: "a new backup for a running guest, and planned switches (only if named; needs root)",
        by_name_only: true,
        run: transfer::run,
    },
];

/// The measurement of this name.
pub fn measurement(name: &str) -> Option<&'static Measurement> {
    MEASUREMENTS.iter().find(|measurement| measurement.name == name)
}

/// What every measurement has at hand.
pub struct Bench {
    quick: bool,
    kills: Option<usize>,
    bar: ProgressBar,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    /// A bench that shows what it does on `bar`; `quick`: fewer samples; `kills` of a primary whose clients are on a network, where
    /// it is to be another number than usual.
    pub fn new(quick: bool, kills: Option<usize>, bar: ProgressBar) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Bench { quick, kills, bar, runtime })
    }

    /// Takes a measurement.
    pub fn measure(&self, measurement: &Measurement) -> anyhow::Result<Vec<Row>> {
        self.bar.set_message(measurement.name);
        (measurement.run)(self)
    }

    /// One of two sizes.
    fn size<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    fn say(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
    }

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

/// Lets `future` take as long as anything here may, and no longer.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(crate::cli::loopback::PATIENCE, future)
        .await
        .map_err(|_| anyhow::anyhow!("{what}: nothing for {} s", crate::cli::loopback::PATIENCE.as_secs()))
}

async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
