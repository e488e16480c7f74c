//! The command line: words for the application, and settings of the form `name=value` for whoever asks.

use crate::single::Single;
use core::ffi::{CStr, c_char};

/// The longest command line in bytes; what is behind it is cut off.
const MAX: usize = 4096;

static KEPT: Single<([u8; MAX], usize)> = Single::new(([0; MAX], 0));

/// Copies the command line out of the loader's memory, which the heap may take over.
///
/// # Safety
/// `line` is null or points to a null-terminated string.
pub(crate) unsafe fn keep(line: *const c_char) {
    if line.is_null() {
        return;
    }
    // SAFETY: the caller's promise.
    let line = unsafe { CStr::from_ptr(line) }.to_bytes();
    let (bytes, length) = &mut *KEPT.borrow_mut();
    *length = line.len().min(MAX);
    bytes[..*length].copy_from_slice(&line[..*length]);
}

/// The command line's words.
#[derive(Clone, Debug)]
pub struct Args {
    line: &'static str,
}

impl Args {
    pub(crate) fn new() -> Self {
        let (bytes, length) = &*KEPT.borrow_mut();
        let line = core::str::from_utf8(&bytes[..*length]).unwrap_or("");
        Args { line: alloc::boxed::Box::leak(line.into()) }
    }

    /// The words that are no settings, first the application's name.
    pub fn words(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.line.split_ascii_whitespace().filter(|word| !word.contains('='))
    }

    /// The word at this position.
    pub fn word(&self, index: usize) -> Option<&'static str> {
        self.words().nth(index)
    }

    /// The word at this position, as a number.
    pub fn number_at(&self, index: usize) -> Option<u64> {
        self.word(index)?.parse().ok()
    }

    /// The value of the setting `name=value`.
    pub fn setting(&self, name: &str) -> Option<&'static str> {
        self.line
            .split_ascii_whitespace()
            .find_map(|word| word.split_once('=').filter(|(n, _)| *n == name).map(|(_, v)| v))
    }

    /// The value of the setting, as a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.setting(name)?.parse().ok()
    }
}
