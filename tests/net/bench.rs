//! `redis-benchmark` as a load that never ends: each run must end without complaint, and is followed by another.

use super::site::GUEST;
use super::tool::Tool;
use crate::common::eventually;

/// A load on the guest's server.
pub struct Bench {
    namespace: String,
    words: Vec<String>,
    tool: Option<Tool>,
    /// Runs that have ended, all well.
    pub runs: u64,
}

impl Bench {
    /// Starts `redis-benchmark` with these options.
    #[track_caller]
    pub fn start(namespace: &str, options: &str) -> Bench {
        let mut words: Vec<String> = ["redis-benchmark", "-h", GUEST, "-q"].map(str::to_owned).to_vec();
        words.extend(options.split(' ').map(str::to_owned));
        let mut bench = Bench { namespace: namespace.into(), words, tool: None, runs: 0 };
        bench.goes_on();
        bench
    }

    /// Whatever a client of it did not like, it says by its status. Starts the next run when one has ended.
    #[track_caller]
    pub fn goes_on(&mut self) {
        if self.tool.as_mut().is_none_or(|tool| tool.status().is_some()) {
            if let Some(tool) = self.tool.take() {
                tool.succeeds();
                self.runs += 1;
            }
            let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
            self.tool = Some(Tool::start(&self.namespace, &words));
        }
    }

    /// Waits until the run that is under way has ended well.
    #[track_caller]
    pub fn comes_to_an_end(&mut self) {
        let runs = self.runs;
        eventually("redis-benchmark ends", || {
            self.goes_on();
            (self.runs > runs).then_some(())
        });
    }
}
