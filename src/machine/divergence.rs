//! A divergence: the first place where an execution is not the one in the log.

use super::digest::{Digest, REGISTER_NAMES};
use super::instant::Instant;
use std::fmt;

/// The first place where an execution is not the one in the log.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// Number of the log entry that was not met.
    pub entry: u64,
    /// Where the machine stood.
    pub at: Instant,
    /// What differs.
    pub difference: Difference,
}

/// What differs between the log and the execution.
#[derive(Clone, Debug)]
pub enum Difference {
    /// The log and the machine speak of different things: what the log has, and what the machine did.
    Kind {
        /// The entry, as `lockstep log` prints it.
        logged: String,
        /// What the machine did or was about to do.
        found: String,
    },
    /// The digests differ.
    Digest {
        /// The digest in the log.
        logged: Box<Digest>,
        /// The digest of this machine.
        found: Box<Digest>,
    },
}

impl std::error::Error for Divergence {}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "diverged at entry {}, instant {}: ", self.entry, self.at)?;
        match &self.difference {
            Difference::Kind { logged, found } => write!(f, "the log has {logged}; this machine: {found}"),
            Difference::Digest { logged, found } => write!(f, "{}", describe(logged, found).join("; ")),
        }
    }
}

/// One line for each part of the state in which two digests differ; the first page, all registers.
fn describe(logged: &Digest, found: &Digest) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, (l, f)) in REGISTER_NAMES.iter().zip(logged.registers.iter().zip(&found.registers)) {
        if l != f {
            lines.push(format!("{name} is {f:#x}, logged {l:#x}"));
        }
    }
    for (name, l, f) in [
        ("system registers", logged.system, found.system),
        ("x87/SSE/AVX registers", logged.fpu, found.fpu),
        ("device state", logged.devices, found.devices),
    ] {
        if l != f {
            lines.push(format!("{name} differ (hash {f:016x}, logged {l:016x})"));
        }
    }
    if logged.memory != found.memory {
        lines.push(match first_differing_page(logged, found) {
            Some(page) => format!("memory: first differing page {page:#x} (address {:#x})", u64::from(page) << 12),
            None => "memory differs in a page that the digest does not list".to_string(),
        });
    }
    lines
}

/// The lowest page that one side lists with another hash than the other, or that only one lists.
fn first_differing_page(logged: &Digest, found: &Digest) -> Option<u32> {
    let (mut l, mut f) = (logged.pages.iter().peekable(), found.pages.iter().peekable());
    loop {
        match (l.peek(), f.peek()) {
            (Some(a), Some(b)) if a == b => {
                l.next();
                f.next();
            }
            (Some(a), Some(b)) => return Some(a.page.min(b.page)),
            (Some(a), None) => return (found.pages.len() < Digest::MAX_PAGES).then_some(a.page),
            (None, Some(b)) => return (logged.pages.len() < Digest::MAX_PAGES).then_some(b.page),
            (None, None) => return None,
        }
    }
}
