//! A bar for long work, where standard error is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar, or nothing.
pub(super) struct Bar(Option<ProgressBar>);

impl Bar {
    /// A bar that says `what` it is about.
    pub fn new(what: &'static str) -> Self {
        Bar(std::io::stderr().is_terminal().then(|| {
            let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let bar = ProgressBar::new(0).with_message(what);
            match ProgressStyle::with_template(style) {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        }))
    }

    /// So much of so much, in bytes.
    pub fn show(&self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total.max(done));
            bar.set_position(done);
        }
    }

    /// It is over.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
